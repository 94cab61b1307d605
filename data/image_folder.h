// image_folder.h: labelled images as files.
//
//   folder   ROOT/n01440764/ILSVRC2012_val_00000293.JPEG   one folder per class; label: its place in the
//   sorted
//            list of folders. Folders called 0, 1, ..., n-1 mean their numbers (ImageNetV2), since the sorted
//            list would be 0, 1, 10, 100.
//   list     a text file with "path<TAB>label" per line (a blank instead of the tab will do when the path has
//            none); label: a number from 0, or one of the class names. Paths are relative to the list.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/sample_source.h"

namespace switchback {

// Images: .jpg .jpeg .png .webp in upper or lower case, in any depth below the class's folder, sorted by
// path. Errors: no such folder, no class, no image.
std::shared_ptr<SampleSource> open_image_folder(const std::string& root);

// Errors: by line number.
std::shared_ptr<SampleSource> open_image_list(const std::string& path,
                                              const std::vector<std::string>& class_names);

// The classes of an ImageFolder in the order of their labels.
std::vector<std::string> image_folder_classes(const std::string& root);

}  // namespace switchback
