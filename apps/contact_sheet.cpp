#include "apps/contact_sheet.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "data/png_writer.h"
#include "data/utf8_repair.h"
#include "runtime/check.h"

namespace switchback {
namespace {

std::string base64(const std::vector<uint8_t>& bytes) {
  constexpr const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (k < left ? bytes[i + k] : 0u);
    for (size_t k = 0; k < 4; ++k) text += k <= left ? digits[group >> (18 - 6 * k) & 63] : '=';
  }
  return text;
}

// As the text of an SVG element: no markup, no control characters, at most `longest` characters.
std::string escaped(std::string text, size_t longest) {
  repair_utf8(text);
  std::string result;
  size_t characters = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) != 0x80 && characters++ == longest) return result + "\xE2\x80\xA6";  // an ellipsis
    if (c == '<')
      result += "&lt;";
    else if (c == '>')
      result += "&gt;";
    else if (c == '&')
      result += "&amp;";
    else
      result += byte < 32 || byte == 127 ? ' ' : c;
  }
  return result;
}

constexpr int cell = 112, gap = 8, text_height = 22, margin = 16, title_height = 40;

}  // namespace

std::string contact_sheet(const std::string& title, const std::vector<SheetQuery>& queries) {
  size_t columns = 1;
  for (const SheetQuery& query : queries) columns = std::max(columns, query.matches.size());
  const int row_height = text_height + cell + text_height;
  const int width = std::max(2 * margin + static_cast<int>(columns) * (cell + gap), 480);
  const int height = title_height + static_cast<int>(queries.size()) * row_height + margin;
  std::string svg =
      concat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", width, "\" height=\"", height,
             "\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" ",
             "fill=\"white\"/>\n<text x=\"", margin, "\" y=\"26\" font-size=\"16\">", escaped(title, 120),
             "</text>\n");
  int y = title_height;
  for (const SheetQuery& query : queries) {
    svg += concat("<text x=\"", margin, "\" y=\"", y + 15, "\">", escaped(query.text, 100), "</text>\n");
    int x = margin;
    for (const SheetMatch& match : query.matches) {
      const std::vector<uint8_t> png =
          encode_png(match.picture.pixels, match.picture.height, match.picture.width, 3);
      svg += concat("<image x=\"", x, "\" y=\"", y + text_height, "\" width=\"", cell, "\" height=\"", cell,
                    "\" href=\"data:image/png;base64,", base64(png), "\"/>\n");
      if (match.own)
        svg += concat("<rect x=\"", x, "\" y=\"", y + text_height, "\" width=\"", cell, "\" height=\"", cell,
                      "\" fill=\"none\" stroke=\"#1a9641\" stroke-width=\"4\"/>\n");
      char number[32];
      std::snprintf(number, sizeof number, "%.3f", match.similarity);
      svg += concat("<text x=\"", x, "\" y=\"", y + text_height + cell + 14,
                    "\" font-size=\"11\" fill=\"#555\">", number, "</text>\n");
      x += cell + gap;
    }
    y += row_height;
  }
  return svg + "</svg>\n";
}

}  // namespace switchback
