// evaluation_data.h: the evaluations that a training run, or clip_eval, makes again and again: which data,
// which classes, which transform.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/reasons.h"
#include "models/evaluation.h"

namespace switchback {

class SampleSource;
class Tokenizer;
struct LoaderOptions;

struct EvaluationOptions {
  std::string retrieval_data;  // shards or CSV with captions; empty: no retrieval
  std::string zero_shot_data;  // shards with .cls; empty: no zero-shot
  std::string class_names;     // a file, one name per line; empty: classnames.txt beside zero_shot_data
  std::string templates;       // a file; empty: zeroshot_classification_templates.txt beside zero_shot_data
  std::string dataset_type = "auto", csv_separator = "\t", csv_image_key = "filepath",
              csv_caption_key = "title";
  std::string label_key;       // take labels from this field of .json instead of .cls
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
  std::optional<Retrieval> retrieval(const Clip& clip, const Clip::Options& options, Device device) const;
  std::optional<ZeroShot> zero_shot(const Clip& clip, const Clip::Options& options, Device device) const;

 private:
  LoaderOptions loader_options() const;

  EvaluationOptions options_;
  int64_t image_size_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Warn warn_;
  std::shared_ptr<SampleSource> retrieval_source_, zero_shot_source_;
  std::vector<std::string> classes_, templates_;
};

// Lines of a text file without their ends; empty lines at the end are dropped. Error: cannot be read, or is
// empty.
std::vector<std::string> read_lines(const std::string& path);

}  // namespace switchback
