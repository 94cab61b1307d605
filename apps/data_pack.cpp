// data_pack: writes numbered WebDataset shards that clip_train and clip_eval read, from either of
//
//   a folder and a table   data_pack --csv captions.csv --folder pictures --output shards
//                          columns filepath and title (as open_clip's), optionally a label; the image files
//                          go in as they are
//   MNIST-style idx files  data_pack --images train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz
//                              --class-names names.txt --templates templates.txt --output shards
//                          every image becomes a grey PNG, its caption a template such as "a photo of a {c}"
//
// Output: 000000.tar, 000001.tar ... with KEY.png or the like, KEY.txt, KEY.cls (the label, where there is
// one); sizes.json (samples per shard), and for labelled data classnames.txt and
// zeroshot_classification_templates.txt, as clip_eval looks for them. The same input gives the same bytes.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "apps/flags.h"
#include "data/csv.h"
#include "data/idx.h"
#include "data/input_file.h"
#include "data/png_writer.h"
#include "data/reasons.h"
#include "data/tar.h"
#include "data/utf8_repair.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "runtime/philox.h"

using namespace switchback;
namespace fs = std::filesystem;

namespace {

struct Options {
  std::string output;
  int64_t samples_per_shard = 10000;
  bool overwrite = false;
  uint64_t seed = 0;
  // a folder and a table
  std::string csv, folder, csv_separator = "\t", csv_image_key = "filepath", csv_caption_key = "title",
                           csv_label_key;
  // idx files
  std::string images, labels, class_names, templates;
};

// Lines of a text file without the line ends; blank lines at the end do not count.
std::vector<std::string> read_lines(const std::string& path, const char* what) {
  std::istringstream in(read_file(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (lines.empty()) fail(path, " is empty: expected one ", what, " per line");
  return lines;
}

std::string digits(int64_t number, size_t width) {
  std::string text = std::to_string(number);
  return text.size() < width ? text.insert(0, width - text.size(), '0') : text;
}

// Cuts a stream of samples into shards.
class ShardWriter {
 public:
  explicit ShardWriter(const Options& options)
      : folder_(options.output),
        per_shard_(options.samples_per_shard),
        start_(std::chrono::steady_clock::now()) {
    if (per_shard_ < 1) fail("--samples-per-shard must be at least 1, got ", per_shard_);
    std::error_code error;
    fs::create_directories(folder_, error);
    if (error) fail("cannot create the folder ", options.output, ": ", error.message());
    if (const auto old = shards_there(); !old.empty()) {
      if (!options.overwrite)
        fail(options.output, " already holds shards (", old[0].filename().string(),
             "): choose another folder, or --overwrite");
      for (const fs::path& path : old) fs::remove(path);
    }
    fs::remove(folder_ / "sizes.json");  // written last: its presence says that the set is complete
  }

  // extension: "png"; label: absent for data without classes
  void add(std::string_view extension, std::span<const uint8_t> image, const std::string& caption,
           std::optional<int64_t> label) {
    if (!shard_) shard_.emplace((folder_ / shard_name()).string());
    const std::string key = digits(total_, 9);
    shard_->add(concat(key, '.', extension), image);
    shard_->add(key + ".txt", caption);
    if (label) shard_->add(key + ".cls", std::to_string(*label));
    ++total_;
    if (++in_shard_ == per_shard_) close();
    const bool show = isatty(STDERR_FILENO) && total_ % 1000 == 0;
    if (show) std::fprintf(stderr, "\rpacked %lld samples", static_cast<long long>(total_));
  }

  void finish() {
    if (in_shard_ > 0) close();
    if (total_ == 0) fail("nothing was packed: no usable sample");
    nlohmann::ordered_json sizes;
    for (const auto& [name, samples] : sizes_) sizes[name] = samples;
    write_file((folder_ / "sizes.json").string(), sizes.dump(1) + "\n");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::fprintf(stderr, "%spacked %lld samples into %zu %s in %s (%.1f s)\n",
                 isatty(STDERR_FILENO) ? "\r" : "", static_cast<long long>(total_), sizes_.size(),
                 sizes_.size() == 1 ? "shard" : "shards", folder_.c_str(), seconds);
  }

 private:
  std::string shard_name() const { return digits(static_cast<int64_t>(sizes_.size()), 6) + ".tar"; }

  void close() {
    shard_->finish();
    shard_.reset();
    const std::string name = shard_name();
    sizes_.emplace_back(name, in_shard_);
    in_shard_ = 0;
  }

  std::vector<fs::path> shards_there() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      const bool numbered =
          name.size() == 10 && name.find_first_not_of("0123456789") == 6 && name.ends_with(".tar");
      if (numbered) found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  fs::path folder_;
  int64_t per_shard_, total_ = 0, in_shard_ = 0;
  std::chrono::steady_clock::time_point start_;
  std::optional<TarWriter> shard_;
  std::vector<std::pair<std::string, int64_t>> sizes_;
};

void pack_idx(const Options& options) {
  const std::vector<std::string> names = read_lines(options.class_names, "class name");
  const std::vector<std::string> templates = read_lines(options.templates, "template");
  for (const std::string& line : templates) {
    if (line.find("{c}") == std::string::npos)
      fail(options.templates, ": the template '", line, "' has no {c} for the class name");
  }
  const IdxImages images = read_idx_images(options.images);
  const std::vector<uint8_t> labels = read_idx_labels(options.labels);
  if (images.count != static_cast<int64_t>(labels.size())) {
    fail(images.count, " images in ", options.images, " but ", labels.size(), " labels in ", options.labels);
  }
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] >= names.size()) {
      fail(options.labels, ": label ", int{labels[i]}, " of image ", i, ", but ", options.class_names,
           " names ", names.size(), " classes only");
    }
  }

  ShardWriter shards(options);
  for (int64_t i = 0; i < images.count; ++i) {
    const size_t label = labels[static_cast<size_t>(i)];
    std::string caption =
        templates[PhiloxStream(options.seed, static_cast<uint64_t>(i)).below(templates.size())];
    for (size_t at = 0; (at = caption.find("{c}", at)) != std::string::npos; at += names[label].size()) {
      caption.replace(at, 3, names[label]);
    }
    shards.add("png", encode_png(images.image(i), images.height, images.width, 1), caption,
               static_cast<int64_t>(label));
  }
  const auto joined = [](const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    return text;
  };
  write_file(options.output + "/classnames.txt", joined(names));
  write_file(options.output + "/zeroshot_classification_templates.txt", joined(templates));
  shards.finish();
}

// What the first bytes say the file is; names lie.
std::string_view image_extension(std::string_view bytes) {
  if (bytes.starts_with("\xff\xd8\xff")) return "jpg";
  if (bytes.starts_with("\x89PNG\r\n")) return "png";
  if (bytes.starts_with("RIFF") && bytes.substr(0, 12).ends_with("WEBP")) return "webp";
  return "";
}

void pack_csv(const Options& options) {
  const InputFile file(options.csv);
  const char separator = parse_csv_separator(options.csv_separator);
  CsvReader reader(file, separator);
  std::vector<std::string> row;
  if (!reader.next(row)) fail(options.csv, " is empty: expected a first row that names the columns");
  const size_t image = find_csv_column(options.csv, row, options.csv_image_key, separator);
  const size_t caption = find_csv_column(options.csv, row, options.csv_caption_key, separator);
  const bool labelled = !options.csv_label_key.empty();
  const size_t label = labelled ? find_csv_column(options.csv, row, options.csv_label_key, separator) : 0;

  ShardWriter shards(options);
  Reasons dropped(warn_on_stderr);
  while (reader.next(row)) {
    const std::string where = concat(options.csv, " line ", reader.line());
    if (row.size() <= std::max({image, caption, label})) {
      dropped.count("row with too few columns", where);
      continue;
    }
    const std::string path = (fs::path(options.folder) / row[image]).string();
    if (row[caption].find_first_not_of(" \t\r\n") == std::string::npos) {
      dropped.count("caption is empty", concat(where, ": ", path));
      continue;
    }
    std::optional<int64_t> number;
    if (labelled) {
      int64_t value = 0;
      const auto parsed = std::from_chars(row[label].data(), row[label].data() + row[label].size(), value);
      if (parsed.ec != std::errc() || value < 0)
        fail(where, ": the label '", row[label], "' is not an integer from 0 on");
      number = value;
    }
    std::string bytes;
    try {
      bytes = read_file(path);
    } catch (const Error& error) {
      dropped.count("image file cannot be read", concat(where, ": ", error.what()));
      continue;
    }
    const std::string_view extension = image_extension(bytes);
    if (extension.empty()) {
      dropped.count("not a JPEG, PNG or WebP", concat(where, ": ", path));
      continue;
    }
    if (repair_utf8(row[caption])) dropped.count("caption of invalid UTF-8 (repaired)", where);
    shards.add(extension, {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, row[caption],
               number);
  }
  shards.finish();
  if (const std::string summary = dropped.summary(); !summary.empty())
    std::fprintf(stderr, "left out or repaired: %s\n", summary.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Packs images and captions into WebDataset shards."};
  app.add_option("--output", options.output, "folder for the shards")->required();
  app.add_option("--samples-per-shard", options.samples_per_shard, "")->capture_default_str();
  app.add_flag("--overwrite", options.overwrite, "remove shards that are in the folder already");
  app.add_option("--csv", options.csv, "table of image files and captions")
      ->group("From a folder and a table");
  app.add_option("--folder", options.folder,
                 "where the image paths of the table start; default: the current folder")
      ->group("From a folder and a table");
  app.add_option("--csv-separator", options.csv_separator, "a character, or tab (the default)")
      ->group("From a folder and a table");
  app.add_option("--csv-img-key", options.csv_image_key, "column of image paths")
      ->capture_default_str()
      ->group("From a folder and a table");
  app.add_option("--csv-caption-key", options.csv_caption_key, "column of captions")
      ->capture_default_str()
      ->group("From a folder and a table");
  app.add_option("--csv-label-key", options.csv_label_key, "column of integer labels; default: no labels")
      ->group("From a folder and a table");
  app.add_option("--images", options.images, "idx file of images, plain or gzip")
      ->group("From MNIST-style files");
  app.add_option("--labels", options.labels, "idx file of labels, plain or gzip")
      ->group("From MNIST-style files");
  app.add_option("--class-names", options.class_names, "a class name per line")
      ->group("From MNIST-style files");
  app.add_option("--templates", options.templates, "a caption per line, {c} stands for the class name")
      ->group("From MNIST-style files");
  app.add_option("--seed", options.seed, "of the choice of templates")
      ->capture_default_str()
      ->group("From MNIST-style files");
  try {
    if (!parse_flags(app, argc, argv)) return 0;
    if (options.csv.empty() == options.images.empty())
      fail("give either --csv FILE, or --images FILE with --labels, --class-names and --templates");
    if (!options.csv.empty()) {
      pack_csv(options);
    } else {
      if (options.labels.empty() || options.class_names.empty() || options.templates.empty()) {
        fail("--images needs --labels, --class-names and --templates too");
      }
      pack_idx(options);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "data_pack: %s\n", error.what());
    return 1;
  }
}
