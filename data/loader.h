// loader.h: batches of images and token ids, prepared ahead of need by worker threads.
//
//   source ──► order of samples ──► workers: read, decode, augment, tokenise ──► ring of batches ──► next()
//
// The unit of work is one sample, not one batch: a slow disk or a huge picture delays one row, not a whole
// batch of one worker. Memory is bounded by `prefetch_batches` batches plus what the caller holds.
//
// The contents of a batch depend on (data, seed, position, batch size) only: not on the number of threads,
// and the ranks of any world size together get the same samples per step. The augmentation of the sample at
// position q draws from a Philox stream of (seed, q). Training is an endless stream; a sample that cannot be
// used (broken image, empty caption) is replaced by another one of the same group and counted. Evaluation is
// one pass in sequence that leaves such samples out and counts them; its last batch is as short as it comes.
//
//   Loader loader(open_source({.data = "shards/{0000..0009}.tar"}), tokenizer, {.batch_size = 256});
//   Batch batch;
//   while (loader.next(batch)) { ... save loader.state() with a checkpoint ... }
//
// See stream_order.h (positions), sample_source.h (shards, CSV, synthetic), augment.h, tokenizer.h.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/augment.h"
#include "data/color_jitter.h"
#include "data/reasons.h"
#include "data/stream_order.h"
#include "runtime/tensor.h"

namespace switchback {

class SampleSource;
class Tokenizer;

struct LoaderOptions {
  enum class Mode { train, evaluate } mode = Mode::train;
  int64_t batch_size = 64;       // B, per rank
  int rank = 0, world_size = 1;  // evaluation: rank r gets batches r, r + world size, ...
  int workers = 2;               // threads that decode
  int prefetch_batches = 4;      // ring size; at least 1
  uint64_t seed = 0;
  uint64_t shuffle_window = 16384;                       // samples that are mixed
  int image_size = 224;                                  // S
  CropOptions crop;                                      // training: RandomResizedCrop
  ColorJitter colors;                                    // training, after the crop
  DecodeOptions decode;                                  // largest picture, fast decoding
  ResizeMode resize_mode = ResizeMode::shortest;         // evaluation
  Interpolation interpolation = Interpolation::bicubic;  // evaluation
  bool page_locked = false;   // batches lie where a GPU copies from by itself
  bool keep_text = false;     // fill Batch::captions and Batch::json (always on in evaluation)
  StreamState start;          // from Loader::state() of the run that is resumed
  double stall_seconds = 60;  // next() waits longer: a warning names what is being read
  Warn warn;                  // default: a line on stderr
};

struct Batch {
  int64_t size = 0;               // B; evaluation: 1..B
  Tensor images;                  // (size, S, S, 3) u8, RGB
  Tensor tokens;                  // (size, L) i32, L the tokenizer's context length; undefined without one
  uint64_t first_position = 0;    // stream position of row 0
  uint64_t pass = 0;              // pass over the data that row 0 belongs to
  std::vector<std::string> keys;  // (size) "shard.tar:key"
  std::vector<int64_t> labels;    // (size) from .cls, -1 where absent
  std::vector<std::string> captions;  // (size) whole text; in evaluation the tokens are of its first line
  std::vector<std::string> json;      // (size) bytes of .json, empty where absent
};

struct LoaderStatistics {
  uint64_t batches = 0;     // handed out
  double wait_seconds = 0;  // time that next() kept its caller waiting, since construction
  uint64_t replaced = 0;    // rows filled by another sample (training) or left out (evaluation)
  std::map<std::string, uint64_t> reasons;  // of drops, replacements and repairs, the source's included
};

class Loader {
 public:
  // tokenizer may be null (no tokens). Errors: a global batch larger than the data set; no usable sample.
  Loader(std::shared_ptr<SampleSource> source, std::shared_ptr<const Tokenizer> tokenizer,
         LoaderOptions options);
  ~Loader();  // at any time; workers finish the sample they are at
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next batch, in order. Training: always true. Evaluation: false when the pass is over.
  // Rethrows the first error of a worker, as one line.
  bool next(Batch& batch);

  uint64_t position() const;  // global stream position of the next batch: the same on every rank
  StreamState state() const;  // what a checkpoint needs (state().to_string() is five numbers)
  LoaderStatistics statistics() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace switchback
