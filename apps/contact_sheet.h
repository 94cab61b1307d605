// contact_sheet.h: a picture of what a model finds: one row per query, the images that fit it best from left
// to right, each with its similarity; a green frame marks the query's own image or class. One SVG file with
// the pictures inside.
#pragma once

#include <string>
#include <vector>

#include "data/image.h"

namespace switchback {

struct SheetMatch {
  Image picture;
  double similarity = 0;  // cosine
  bool own = false;       // the query's own image, or of its class
};
struct SheetQuery {
  std::string text;
  std::vector<SheetMatch> matches;  // best first
};

std::string contact_sheet(const std::string& title, const std::vector<SheetQuery>& queries);

}  // namespace switchback
