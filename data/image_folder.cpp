#include "data/image_folder.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "runtime/check.h"
#include "runtime/file.h"

namespace switchback {
namespace {

namespace fs = std::filesystem;

bool is_image(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return extension == ".jpg" || extension == ".jpeg" || extension == ".png" || extension == ".webp";
}

struct LabelledFile {
  std::string path;
  int64_t label;
};

class LabelledFiles final : public SampleSource, public SampleBlock {
 public:
  LabelledFiles(std::string name, std::vector<LabelledFile> files)
      : name_(std::move(name)), files_(std::move(files)) {}

  int64_t block_count() const override { return 1; }
  std::string block_name(int64_t) const override { return name_; }
  std::shared_ptr<const SampleBlock> block(int64_t) override { return {std::shared_ptr<void>(), this}; }
  std::optional<uint64_t> declared_count() const override { return files_.size(); }
  std::string why_empty() const override { return name_ + " has no usable image: " + reasons().summary(); }

  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  const std::string& name() const override { return name_; }
  std::string key(int64_t sample) const override { return files_[static_cast<size_t>(sample)].path; }
  void read(int64_t sample, RawSample& to) const override {
    to.clear();
    const LabelledFile& file = files_[static_cast<size_t>(sample)];
    to.label = file.label;
    try {
      const std::string bytes = read_file(file.path);
      to.bytes.assign(bytes.begin(), bytes.end());
      to.image = to.bytes;
    } catch (const Error& error) {
      to.problem = "image cannot be read";
      to.detail = error.what();
    }
  }

 private:
  std::string name_;
  std::vector<LabelledFile> files_;
};

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value < 0)
    return std::nullopt;
  return value;
}

}  // namespace

std::vector<std::string> image_folder_classes(const std::string& root) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error))
    if (entry.is_directory() && !entry.path().filename().string().starts_with("."))
      names.push_back(entry.path().filename().string());
  if (error) fail("cannot read the image folder ", root, ": ", error.message());
  std::sort(names.begin(), names.end());
  const int64_t count = std::ssize(names);
  const bool numbers = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    const auto number = whole_number(name);
    return number && *number < count && std::to_string(*number) == name;
  });
  if (numbers)
    std::sort(names.begin(), names.end(),
              [](const std::string& a, const std::string& b) { return whole_number(a) < whole_number(b); });
  return names;
}

std::shared_ptr<SampleSource> open_image_folder(const std::string& root) {
  const std::vector<std::string> classes = image_folder_classes(root);
  if (classes.empty())
    fail(root, " has no folders: expected one per class, as in ", root, "/n01440764/image.JPEG");
  std::vector<LabelledFile> files;
  for (int64_t label = 0; label < std::ssize(classes); ++label) {
    std::vector<std::string> paths;
    for (const auto& entry :
         fs::recursive_directory_iterator(fs::path(root) / classes[static_cast<size_t>(label)]))
      if (entry.is_regular_file() && is_image(entry.path())) paths.push_back(entry.path().string());
    std::sort(paths.begin(), paths.end());
    for (std::string& path : paths) files.push_back({std::move(path), label});
  }
  if (files.empty()) fail(root, ": no .jpg, .jpeg, .png or .webp in its ", classes.size(), " folders");
  return std::make_shared<LabelledFiles>(root, std::move(files));
}

std::shared_ptr<SampleSource> open_image_list(const std::string& path,
                                              const std::vector<std::string>& classes) {
  const std::string text = read_file(path);
  const fs::path folder = fs::path(path).parent_path();
  std::vector<LabelledFile> files;
  int64_t number = 0;
  for (size_t start = 0; start < text.size();) {
    size_t end = std::min(text.find('\n', start), text.size());
    std::string_view line = std::string_view(text).substr(start, end - start);
    start = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    size_t gap = line.rfind('\t');
    if (gap == std::string_view::npos) gap = line.find(' ');
    if (gap == std::string_view::npos || gap == 0 || gap + 1 == line.size())
      fail(path, ", line ", number, ": expected path, tab and label, got '", line.substr(0, 80), "'");
    const std::string_view label_text = line.substr(gap + 1);
    auto label = whole_number(label_text);
    if (!label) {
      const auto found = std::find(classes.begin(), classes.end(), label_text);
      if (found == classes.end())
        fail(path, ", line ", number, ": label '", label_text, "' is neither a number from 0 nor one of the ",
             classes.size(), " class names");
      label = found - classes.begin();
    }
    files.push_back({(folder / fs::path(line.substr(0, gap))).string(), *label});
  }
  if (files.empty()) fail(path, " lists no image: expected path, tab and label in every line");
  return std::make_shared<LabelledFiles>(path, std::move(files));
}

}  // namespace switchback
