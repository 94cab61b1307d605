// evaluation_data.h: the evaluations that a training run, or clip_eval, makes again and again: which data,
// which classes, which transform.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/contact_sheet.h"
#include "data/augment.h"
#include "data/reasons.h"
#include "models/evaluation.h"

namespace switchback {

class SampleSource;
class Tokenizer;
struct Batch;
struct LoaderOptions;

struct EvaluationOptions {
  std::string retrieval_data;  // shards, a CSV or a CLIP_benchmark folder with captions; empty: no retrieval
  // Labelled images: shards with .cls, a CLIP_benchmark folder, an ImageFolder, or a list; empty: no
  // zero-shot
  std::string zero_shot_data;
  bool imagenet = false;    // class names and templates are ImageNet's where none are given
  std::string class_names;  // a file, one name per line; empty: classnames.txt beside or in zero_shot_data
  std::string templates;    // a file; empty: zeroshot_classification_templates.txt beside zero_shot_data
  std::string dataset_type = "auto", csv_separator = "\t", csv_image_key = "filepath",
              csv_caption_key = "title";
  std::string label_key;  // take labels from this field of .json instead of .cls
  std::vector<std::string> image_suffixes{"jpg", "png", "jpeg", "webp"}, caption_suffixes{"txt"};
  std::vector<std::string> json_captions;  // captions from the first of these fields of .json that is there
  Interpolation interpolation = Interpolation::bicubic;
  ResizeMode resize_mode = ResizeMode::shortest;
  std::optional<int64_t> samples;
  int64_t batch_size = 64;
  int workers = 2;
};

class EvaluationData {
 public:
  // Opens the data at once, so that a wrong path is an error before training, not after the first epoch.
  EvaluationData(EvaluationOptions options, const ClipConfig& config,
                 std::shared_ptr<const Tokenizer> tokenizer, Warn warn);

  // Nothing where there are no data for it.
  std::optional<Retrieval> retrieval(const Clip& clip, const Clip::Options& options, Device device,
                                     EvaluationRanks ranks = {}) const;
  std::optional<ZeroShot> zero_shot(const Clip& clip, const Clip::Options& options, Device device,
                                    EvaluationRanks ranks = {}) const;

  // For a picture: the images that fit each query best. Without queries: the captions of the first images of
  // the retrieval data, or the class names. At most 20,000 images are looked at.
  std::vector<SheetQuery> best_matches(const Clip& clip, const Clip::Options& options, Device device,
                                       std::vector<std::string> queries, int64_t per_query) const;

 private:
  LoaderOptions loader_options(const Communicator& ranks = single_rank()) const;
  int64_t label_in(const Batch& batch, int64_t row) const;

  EvaluationOptions options_;
  int64_t image_size_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Warn warn_;
  std::shared_ptr<SampleSource> retrieval_source_, zero_shot_source_;
  std::vector<std::string> classes_, templates_;
  bool several_captions_ = false;  // a CLIP_benchmark folder: every line of .txt is a caption of its own
};

// Where the data of `path` are: for a CLIP_benchmark folder (ROOT/test/nshards.txt) the pattern of its
// shards.
std::string evaluation_shards(const std::string& path);

// Lines of a text file without their ends; empty lines at the end are dropped. Error: cannot be read, or is
// empty.
std::vector<std::string> read_lines(const std::string& path);

}  // namespace switchback
