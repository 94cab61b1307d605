#include "apps/evaluation_data.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/image_folder.h"
#include "data/loader.h"
#include "data/sample_source.h"
#include "data/tokenizer.h"
#include "kernels/transfer.h"
#include "runtime/check.h"
#include "runtime/file.h"

namespace switchback {
namespace {

namespace fs = std::filesystem;

// The file NAME in the folder of the first shard.
std::string beside(const std::string& shards, const char* name) {
  const std::string first = shards.substr(0, shards.find("::"));
  const std::string prefix = first.substr(0, first.find('{'));  // "data/{000..009}.tar" lies in data/
  const std::filesystem::path folder =
      fs::is_directory(first) ? fs::path(first) : fs::path(prefix + "x").parent_path();
  // CLIP_benchmark: ROOT/test/0.tar, ROOT/classnames.txt
  if (!fs::exists(folder / name) && fs::exists(folder.parent_path() / name))
    return (folder.parent_path() / name).string();
  return (folder / name).string();
}

// CLIP_benchmark's retrieval sets have several captions per image, one per line; the loader tokenised the
// first.
void add_further_texts(const Batch& batch, int64_t images, const Tokenizer& tokenizer, EvaluationBatch& to) {
  std::vector<std::string> texts;
  to.more_owners.clear();
  for (int64_t i = 0; i < images; ++i) {
    std::istringstream lines(batch.captions[static_cast<size_t>(i)]);
    bool first = true;
    for (std::string line; std::getline(lines, line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      if (!first) texts.push_back(line), to.more_owners.push_back(i);
      first = false;
    }
  }
  to.more_tokens = Tensor();
  if (texts.empty()) return;
  const int64_t length = tokenizer.context_length();
  to.more_tokens = Tensor({std::ssize(texts), length}, DType::i32);
  for (size_t i = 0; i < texts.size(); ++i)
    tokenizer.encode(texts[i], to.more_tokens.span<int32_t>().subspan(i * static_cast<size_t>(length),
                                                                      static_cast<size_t>(length)));
}

// Class names or templates of ImageNet, as scripts/fetch_vocabulary.sh leaves them.
std::string of_imagenet(const char* name) {
  const char* home = std::getenv("HOME");
  const std::string path = concat(home ? home : "", "/.cache/switchback/", name);
  if (!fs::exists(path))
    fail("--imagenet-val needs ", path,
         ", which scripts/fetch_vocabulary.sh writes; or give --zeroshot-classes "
         "and --zeroshot-templates");
  return path;
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
  source.needs.image_suffixes = options_.image_suffixes;
  source.needs.caption_suffixes = options_.caption_suffixes;
  source.needs.json_captions = options_.json_captions;
  source.warn = warn_;
  if (!options_.retrieval_data.empty()) {
    source.data = evaluation_shards(options_.retrieval_data);
    several_captions_ = source.data != options_.retrieval_data;
    retrieval_source_ = open_source(source);
  }
  if (!options_.zero_shot_data.empty()) {
    const std::string data = evaluation_shards(options_.zero_shot_data);
    const bool imagenet = options_.imagenet;
    if (options_.class_names.empty())
      options_.class_names =
          imagenet ? of_imagenet("imagenet_classnames.txt") : beside(data, "classnames.txt");
    if (options_.templates.empty())
      options_.templates = imagenet ? of_imagenet("imagenet_templates.txt")
                                    : beside(data, "zeroshot_classification_templates.txt");
    classes_ = read_lines(options_.class_names);
    templates_ = read_lines(options_.templates);
    if (fs::is_directory(data)) {
      const size_t folders = image_folder_classes(data).size();
      if (folders != classes_.size())
        fail(data, " has ", folders, " folders, but ", options_.class_names, " has ", classes_.size(),
             " class names, one per folder in the order of their names");
      zero_shot_source_ = open_image_folder(data);
    } else if (data.ends_with(".txt") || data.ends_with(".lst")) {
      zero_shot_source_ = open_image_list(data, classes_);
    } else {
      source.type = "auto";
      source.data = data;
      source.needs.caption = false;
      source.needs.label = options_.label_key.empty();
      source.needs.read_json = !options_.label_key.empty();
      zero_shot_source_ = open_source(source);
    }
    zero_shot_source_->reasons().set_warn(warn_ ? warn_ : Warn(warn_on_stderr));
  }
}

std::string evaluation_shards(const std::string& path) {
  if (!fs::is_directory(path)) return path;
  for (const fs::path& folder : {fs::path(path) / "test", fs::path(path)}) {
    if (!fs::exists(folder / "nshards.txt")) continue;
    const std::string text = read_file((folder / "nshards.txt").string());
    int64_t shards = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), shards);
    if (parsed.ec != std::errc() || shards < 1)
      fail((folder / "nshards.txt").string(), " does not hold a number of shards");
    if (shards == 1) return (folder / "0.tar").string();
    return (folder / concat("{0..", shards - 1, "}.tar")).string();
  }
  return path;
}

LoaderOptions EvaluationData::loader_options(const Communicator& ranks) const {
  LoaderOptions o;
  o.rank = ranks.rank();
  o.world_size = ranks.world_size();
  o.mode = LoaderOptions::Mode::evaluate;
  o.batch_size = options_.batch_size;
  o.workers = options_.workers;
  o.image_size = static_cast<int>(image_size_);
  o.interpolation = options_.interpolation;
  o.resize_mode = options_.resize_mode;
  o.warn = warn_;
  return o;
}

std::optional<Retrieval> EvaluationData::retrieval(const Clip& clip, const Clip::Options& clip_options,
                                                   Device device, EvaluationRanks ranks) const {
  if (!retrieval_source_) return {};
  Loader loader(retrieval_source_, tokenizer_, loader_options(ranks.host));
  int64_t left = options_.samples.value_or(INT64_MAX);
  Batch batch;
  const auto next = [&](EvaluationBatch& to) {
    bool more = left > 0 && loader.next(batch);
    int64_t size = more ? batch.size : 0;
    if (options_.samples) {
      // The batches of lower ranks come before this one, those of higher ranks behind it.
      const Tensor own = Tensor::of<int64_t>({1}, {size}), all({ranks.host.world_size()}, DType::i64);
      ranks.host.all_gather(all, own);
      for (int r = 0; r < ranks.host.world_size(); ++r) {
        const int64_t used = std::min(left, all.span<int64_t>()[static_cast<size_t>(r)]);
        if (r == ranks.host.rank()) size = used;
        left -= used;
      }
      more = more && size > 0;
    }
    if (!more) return false;
    to.images = batch.images.slice(0, size);
    to.tokens = batch.tokens.slice(0, size);
    if (several_captions_) add_further_texts(batch, size, *tokenizer_, to);
    return true;
  };
  return evaluate_retrieval(clip, clip_options, device, next, ranks);
}

int64_t EvaluationData::label_in(const Batch& batch, int64_t row) const {
  const size_t i = static_cast<size_t>(row);
  return options_.label_key.empty() ? batch.labels[i] : label_of(batch.json[i], options_.label_key, classes_);
}

std::vector<SheetQuery> EvaluationData::best_matches(const Clip& clip, const Clip::Options& clip_options,
                                                     Device device, std::vector<std::string> texts,
                                                     int64_t per_query) const {
  constexpr int64_t most_images = 20'000, most_queries = 24, thumbnail = 96;
  const bool pairs = retrieval_source_ != nullptr, own_texts = texts.empty();
  Tape::Pause pause;
  struct Seen {
    Image picture;
    std::vector<float> features;  // (E)
    int64_t label = -1;           // of its class, or its number among the pairs
  };
  std::vector<Seen> gallery;
  Loader loader(pairs ? retrieval_source_ : zero_shot_source_, nullptr, loader_options());
  Batch batch;
  const int64_t bytes = image_size_ * image_size_ * 3;
  while (std::ssize(gallery) < most_images && loader.next(batch)) {
    const Tensor features = to_host(clip.encode_image(to_device(batch.images, device), clip_options).value());
    const int64_t embed = features.cols();
    for (int64_t i = 0; i < batch.size; ++i) {
      if (pairs && own_texts && std::ssize(texts) < most_queries)
        texts.push_back(batch.captions[static_cast<size_t>(i)].substr(
            0, batch.captions[static_cast<size_t>(i)].find('\n')));
      Seen& seen = gallery.emplace_back();
      const auto pixels =
          batch.images.span<uint8_t>().subspan(static_cast<size_t>(i * bytes), static_cast<size_t>(bytes));
      const Image whole{image_size_, image_size_, {pixels.begin(), pixels.end()}};
      seen.picture = resize(whole, thumbnail, thumbnail);
      const auto row =
          features.span<float>().subspan(static_cast<size_t>(i * embed), static_cast<size_t>(embed));
      seen.features.assign(row.begin(), row.end());
      seen.label = pairs ? std::ssize(gallery) - 1 : label_in(batch, i);
    }
  }
  if (gallery.empty()) fail("contact sheet: the evaluation data have no usable image");
  if (!pairs && own_texts)
    texts.assign(classes_.begin(), classes_.begin() + std::min<int64_t>(most_queries, std::ssize(classes_)));

  std::vector<SheetQuery> queries;
  for (size_t q = 0; q < texts.size(); ++q) {
    const std::string asked = !pairs && own_texts ? fill_template(templates_[0], texts[q]) : texts[q];
    Tensor ids({1, tokenizer_->context_length()}, DType::i32);
    tokenizer_->encode(asked, ids.span<int32_t>());
    const Tensor wanted =
        to_host(clip.encode_text(to_device(clip.needed_columns(ids), device), clip_options).value());
    std::vector<std::pair<double, size_t>> order;  // similarity, image
    for (size_t i = 0; i < gallery.size(); ++i) {
      double dot = 0;
      for (size_t e = 0; e < gallery[i].features.size(); ++e)
        dot += static_cast<double>(gallery[i].features[e]) * wanted.span<float>()[e];
      order.emplace_back(-dot, i);
    }
    const size_t count = std::min(order.size(), static_cast<size_t>(per_query));
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end());
    SheetQuery& query = queries.emplace_back();
    query.text = asked;
    for (size_t i = 0; i < count; ++i) {
      const Seen& seen = gallery[order[i].second];
      query.matches.push_back(
          {seen.picture, -order[i].first, own_texts && seen.label == static_cast<int64_t>(q)});
    }
  }
  return queries;
}

std::optional<ZeroShot> EvaluationData::zero_shot(const Clip& clip, const Clip::Options& clip_options,
                                                  Device device, EvaluationRanks ranks) const {
  if (!zero_shot_source_) return {};
  const Tensor classifier = zero_shot_classifier(
      clip, clip_options, device,
      [this](const std::string& text, std::span<int32_t> ids) { tokenizer_->encode(text, ids); }, classes_,
      templates_, ranks.host);
  Loader loader(zero_shot_source_, nullptr, loader_options(ranks.host));
  Batch batch;
  int64_t unlabelled = 0;
  const ZeroShot result = evaluate_zero_shot(
      clip, clip_options, device, classifier,
      [&](EvaluationBatch& to) {
        if (!loader.next(batch)) return false;
        for (int64_t i = 0; i < batch.size; ++i) batch.labels[i] = label_in(batch, i);
        to.images = batch.images;
        to.labels = batch.labels;
        unlabelled +=
            std::count_if(batch.labels.begin(), batch.labels.end(), [](int64_t label) { return label < 0; });
        return true;
      },
      ranks.host);
  const Tensor of_all = Tensor::of<int64_t>({1}, {unlabelled});
  ranks.host.all_reduce(of_all);
  unlabelled = of_all.span<int64_t>()[0];
  if (unlabelled > 0 && ranks.host.rank() == 0) {
    const std::string line = concat("zero-shot: ", unlabelled, " images are left out: their ",
                                    options_.label_key.empty() ? ".cls" : options_.label_key,
                                    " is missing or no class of ", options_.class_names);
    warn_ ? warn_(line) : warn_on_stderr(line);
  }
  return result;
}

}  // namespace switchback
