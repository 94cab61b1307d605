#include "apps/evaluation_data.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/loader.h"
#include "data/sample_source.h"
#include "data/tokenizer.h"
#include "runtime/check.h"

namespace switchback {
namespace {

// The file NAME in the folder of the first shard.
std::string beside(const std::string& shards, const char* name) {
  const std::string first = shards.substr(0, shards.find("::"));
  const std::string prefix = first.substr(0, first.find('{'));  // "data/{000..009}.tar" lies in data/
  return (std::filesystem::path(prefix + "x").parent_path() / name).string();
}

// An integer under `key` of the sample's .json, or a name that is one of the classes.
int64_t label_of(const std::string& json, const std::string& key, const std::vector<std::string>& classes) {
  const auto parsed = nlohmann::json::parse(json, nullptr, false);
  if (!parsed.is_object() || !parsed.contains(key)) return -1;
  const auto& value = parsed[key];
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_string()) return -1;
  const auto it = std::find(classes.begin(), classes.end(), value.get<std::string>());
  return it == classes.end() ? -1 : it - classes.begin();
}

}  // namespace

std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream in(path);
  if (!in) fail("cannot read ", path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (lines.empty()) fail(path, " is empty: expected one entry per line");
  return lines;
}

EvaluationData::EvaluationData(EvaluationOptions options, const ClipConfig& config,
                               std::shared_ptr<const Tokenizer> tokenizer, Warn warn)
    : options_(std::move(options)),
      image_size_(config.vision.image_size),
      tokenizer_(std::move(tokenizer)),
      warn_(std::move(warn)) {
  SourceOptions source;
  source.type =
      options_.dataset_type == "synthetic" ? "auto" : options_.dataset_type;  // --val-data are files
  source.csv_separator = options_.csv_separator;
  source.csv_image_key = options_.csv_image_key;
  source.csv_caption_key = options_.csv_caption_key;
  source.warn = warn_;
  if (!options_.retrieval_data.empty()) {
    source.data = options_.retrieval_data;
    retrieval_source_ = open_source(source);
  }
  if (!options_.zero_shot_data.empty()) {
    source.type = "auto";
    source.data = options_.zero_shot_data;
    source.needs.caption = false;
    source.needs.label = options_.label_key.empty();
    source.needs.read_json = !options_.label_key.empty();
    zero_shot_source_ = open_source(source);
    if (options_.class_names.empty()) options_.class_names = beside(source.data, "classnames.txt");
    if (options_.templates.empty())
      options_.templates = beside(source.data, "zeroshot_classification_templates.txt");
    classes_ = read_lines(options_.class_names);
    templates_ = read_lines(options_.templates);
  }
}

LoaderOptions EvaluationData::loader_options() const {
  LoaderOptions o;
  o.mode = LoaderOptions::Mode::evaluate;
  o.batch_size = options_.batch_size;
  o.workers = options_.workers;
  o.image_size = static_cast<int>(image_size_);
  o.warn = warn_;
  return o;
}

std::optional<Retrieval> EvaluationData::retrieval(const Clip& clip, const Clip::Options& clip_options,
                                                   Device device) const {
  if (!retrieval_source_) return {};
  Loader loader(retrieval_source_, tokenizer_, loader_options());
  int64_t left = options_.samples.value_or(INT64_MAX);
  Batch batch;
  return evaluate_retrieval(clip, clip_options, device, [&](EvaluationBatch& to) {
    if (left <= 0 || !loader.next(batch)) return false;
    const int64_t size = std::min(left, batch.size);
    left -= size;
    to.images = batch.images.slice(0, size);
    to.tokens = batch.tokens.slice(0, size);
    return true;
  });
}

std::optional<ZeroShot> EvaluationData::zero_shot(const Clip& clip, const Clip::Options& clip_options,
                                                  Device device) const {
  if (!zero_shot_source_) return {};
  const Tensor classifier = zero_shot_classifier(
      clip, clip_options, device,
      [this](const std::string& text, std::span<int32_t> ids) { tokenizer_->encode(text, ids); }, classes_,
      templates_);
  Loader loader(zero_shot_source_, nullptr, loader_options());
  Batch batch;
  int64_t unlabelled = 0;
  const ZeroShot result =
      evaluate_zero_shot(clip, clip_options, device, classifier, [&](EvaluationBatch& to) {
        if (!loader.next(batch)) return false;
        if (!options_.label_key.empty())
          for (int64_t i = 0; i < batch.size; ++i)
            batch.labels[i] = label_of(batch.json[i], options_.label_key, classes_);
        to.images = batch.images;
        to.labels = batch.labels;
        unlabelled +=
            std::count_if(batch.labels.begin(), batch.labels.end(), [](int64_t label) { return label < 0; });
        return true;
      });
  if (unlabelled > 0) {
    const std::string line = concat("zero-shot: ", unlabelled, " images are left out: their ",
                                    options_.label_key.empty() ? ".cls" : options_.label_key,
                                    " is missing or no class of ", options_.class_names);
    warn_ ? warn_(line) : warn_on_stderr(line);
  }
  return result;
}

}  // namespace switchback
