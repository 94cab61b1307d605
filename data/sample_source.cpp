#include "data/sample_source.h"

#include <algorithm>

#include "data/csv.h"
#include "data/input_file.h"
#include "data/png_writer.h"
#include "data/shards.h"
#include "runtime/check.h"

namespace switchback {
namespace {

// The image is encoded once; decoding, transforming and tokenising it happens per sample, as for real data.
class SyntheticSource final : public SampleSource {
 public:
  SyntheticSource(int64_t samples, int image_size) : samples_(samples) {
    const std::vector<uint8_t> black(static_cast<size_t>(image_size) * image_size * 3, 0);
    image_ = encode_png(black, image_size, image_size, 3);
  }
  int64_t block_count() const override { return (samples_ + block_samples - 1) / block_samples; }
  std::string block_name(int64_t) const override { return "synthetic"; }
  std::optional<uint64_t> declared_count() const override { return static_cast<uint64_t>(samples_); }
  std::string why_empty() const override { return "synthetic data of 0 samples"; }
  std::shared_ptr<const SampleBlock> block(int64_t block) override {
    const int64_t first = block * block_samples;
    return std::make_shared<Block>(*this, first, std::min(block_samples, samples_ - first));
  }

 private:
  static constexpr int64_t block_samples =
      1 << 16;  // so that a billion samples need no table of a billion entries

  class Block final : public SampleBlock {
   public:
    Block(const SyntheticSource& source, int64_t first, int64_t size)
        : source_(source), first_(first), size_(size) {}
    int64_t size() const override { return size_; }
    const std::string& name() const override { return name_; }
    std::string key(int64_t sample) const override { return std::to_string(first_ + sample); }
    void read(int64_t, RawSample& to) const override {
      to.clear();
      to.image = source_.image_;
      to.caption = "Dummy caption";
    }

   private:
    const SyntheticSource& source_;
    int64_t first_, size_;
    std::string name_ = "synthetic";
  };

  int64_t samples_;
  std::vector<uint8_t> image_;
};

// A source's factor is the weight of each of its shards, as in open_clip: its share of the samples is the
// factor times the number of its shards.
std::vector<double> shard_weights(const std::vector<int64_t>& source_sizes,
                                  const std::vector<double>& factors) {
  if (!factors.empty() && factors.size() != source_sizes.size())
    fail("--train-data-upsampling-factors has ", factors.size(), " numbers, --train-data has ",
         source_sizes.size(), source_sizes.size() == 1 ? " source" : " sources", " ('::' separates both)");
  std::vector<double> weights;
  for (size_t i = 0; i < source_sizes.size(); ++i)
    weights.insert(weights.end(), static_cast<size_t>(source_sizes[i]), factors.empty() ? 1 : factors[i]);
  return weights;
}

bool ends_with_any(const std::string& text, std::initializer_list<const char*> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](const char* end) { return text.ends_with(end); });
}

}  // namespace

std::vector<std::string> suffixes_of(const std::string& key) {
  std::vector<std::string> suffixes(1);
  for (const char c : key) {
    if (c == ';')
      suffixes.emplace_back();
    else if (c != ' ' && (c != '.' || !suffixes.back().empty()))
      suffixes.back() += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  }
  std::erase(suffixes, "");
  return suffixes;
}

uint64_t SampleSource::count() {
  uint64_t samples = 0;
  for (int64_t i = 0; i < block_count(); ++i) samples += static_cast<uint64_t>(block(i)->size());
  return samples;
}

std::shared_ptr<SampleSource> open_synthetic(int64_t samples, int image_size) {
  if (samples <= 0)
    fail("synthetic data needs a number of samples above 0 (--train-num-samples), got ", samples);
  return std::make_shared<SyntheticSource>(samples, image_size);
}

std::shared_ptr<SampleSource> open_source(const SourceOptions& options) {
  std::string type = options.type;
  if (type == "auto") {
    if (ends_with_any(options.data, {".csv", ".tsv"}))
      type = "csv";
    else if (is_stream(options.data) || ends_with_any(options.data, {".tar", ".tar}", "}"}))
      type = "webdataset";
    else
      fail("cannot tell the kind of data from '", options.data,
           "': give --dataset-type webdataset, csv or synthetic");
  }
  std::shared_ptr<SampleSource> source;
  if (type == "webdataset") {
    source = open_shards(expand_shards(options.data), options.needs, options.skip_bad_shards);
  } else if (type == "csv") {
    source = open_csv(options.data, {options.csv_image_key, options.csv_caption_key,
                                     parse_csv_separator(options.csv_separator)});
  } else if (type == "synthetic") {
    source = open_synthetic(options.synthetic_samples, options.synthetic_image_size);
  } else {
    fail("unknown --dataset-type '", type, "': expected webdataset, csv, synthetic or auto");
  }
  if (options.resampled)
    source->set_draw_weights(shard_weights(source->source_sizes(), options.upsampling_factors));
  source->reasons().set_warn(options.warn ? options.warn : Warn(warn_on_stderr));
  return source;
}

}  // namespace switchback
