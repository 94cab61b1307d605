// sample_source.h: where image-text pairs come from, behind one interface.
//
// A source is a list of blocks. A block is what is indexed at once: one WebDataset shard, one CSV file, a run
// of synthetic samples. An indexed block has random access: read(i) fetches the encoded image and the caption
// of its sample i with one or two reads of a file. Indexing reads no image, so a source of 400 million
// samples is opened block by block, ahead of need (stream_order.h), and nothing ever holds the whole list of
// samples.
//
//   source.block(7)->read(12, sample)      sample 12 of shard 7
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/reasons.h"

namespace switchback {

// What a sample must have, beside an image, to be of use. A sample without it is dropped when it is indexed.
struct SampleNeeds {
  bool caption = true;
  bool label = false;      // an integer in .cls
  bool read_json = false;  // fetch .json too where there is one
  // Suffixes of tar members, the first one present is used.
  std::vector<std::string> image_suffixes{"jpg", "png", "jpeg", "webp"}, caption_suffixes{"txt"};
  // Not empty: the caption is one of these fields of .json, drawn by weight (empty: alike) among those
  // present.
  std::vector<std::string> json_captions;
  std::vector<double> json_caption_weights;
};

// "jpg;.PNG" -> {"jpg", "png"}
std::vector<std::string> suffixes_of(const std::string& key);

// A sample as it is stored. Its buffers are reused from one read to the next.
struct RawSample {
  std::span<const uint8_t> image;  // encoded: JPEG, PNG, WebP; inside `bytes`
  std::string caption;          // whole text, valid UTF-8; several lines in CLIP_benchmark's retrieval sets
  int64_t label = -1;           // -1: none
  std::string json;             // bytes of .json; empty: none
  std::string problem, detail;  // not empty: why it cannot be used after all, "caption is empty"
  std::vector<uint8_t> bytes;
  uint64_t draw = 0;  // set by the reader: what a choice among several captions depends on

  void clear() {  // all but `draw`
    image = {};
    caption.clear();
    label = -1;
    json.clear();
    problem.clear();
    detail.clear();
  }
};

class SampleBlock {
 public:
  virtual ~SampleBlock() = default;
  virtual int64_t size() const = 0;
  virtual const std::string& name() const = 0;  // for messages: the shard's path
  // Any thread. Errors: a shard that vanished or shrank. What concerns one sample only goes to its `problem`.
  virtual void read(int64_t sample, RawSample& to) const = 0;
  virtual std::string key(int64_t sample) const = 0;  // its name inside the block, for messages and results
};

class SampleSource {
 public:
  virtual ~SampleSource() = default;
  virtual int64_t block_count() const = 0;
  virtual std::string block_name(int64_t block) const = 0;
  // Indexes a block, or returns it from a bounded cache of recent ones. Any thread.
  virtual std::shared_ptr<const SampleBlock> block(int64_t block) = 0;

  // Number of samples without reading the data: sizes.json or __len__ beside the shards, rows of a CSV, the N
  // of synthetic data. It may count samples that are dropped later.
  virtual std::optional<uint64_t> declared_count() const = 0;
  uint64_t count();  // exact: indexes every block

  // Whether blocks come from commands, addresses or the standard input: then nothing is known beforehand.
  virtual bool streamed() const { return false; }
  // true: reads that wait (for a stream) end in an error, so that threads can be joined. false: as before.
  virtual void set_stopping(bool) {}
  // Number of blocks of each '::' source, in order.
  virtual std::vector<int64_t> source_sizes() const { return {block_count()}; }
  // Not empty (--dataset-resampled): blocks are drawn with replacement, forever, with these relative weights
  // (one per block); empty: every pass holds every block once.
  const std::vector<double>& draw_weights() const { return draw_weights_; }
  void set_draw_weights(std::vector<double> weights) { draw_weights_ = std::move(weights); }

  // One clear line for a source in which no block has a usable sample: what was looked for, what was found.
  virtual std::string why_empty() const = 0;

  // Samples dropped while indexing, and captions repaired, by reason.
  Reasons& reasons() const { return reasons_; }

 private:
  mutable Reasons reasons_;  // counting is not a change of the data
  std::vector<double> draw_weights_;
};

struct SourceOptions {
  // Shard pattern "a/{0000..0003}.tar::pipe:zstd -dc b/{x,y}.tar.zst", or a CSV file; unused by synthetic.
  std::string data;
  std::string type = "auto";  // webdataset, csv, synthetic, or auto: by the file's extension
  SampleNeeds needs;
  bool resampled = false;                  // draw shards with replacement instead of passing over all of them
  std::vector<double> upsampling_factors;  // per '::' source, for each of its shards; empty: 1
  bool skip_bad_shards = false;  // a damaged shard is no error: the samples before the damage are kept
  std::string csv_separator = "\t";
  std::string csv_image_key = "filepath";
  std::string csv_caption_key = "title";
  int64_t synthetic_samples = 0;
  int synthetic_image_size = 224;
  Warn warn;  // default: a line on stderr
};
std::shared_ptr<SampleSource> open_source(const SourceOptions& options);

// Black square images with the caption "Dummy caption": measures everything but the disk.
std::shared_ptr<SampleSource> open_synthetic(int64_t samples, int image_size);

}  // namespace switchback
