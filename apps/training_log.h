// training_log.h: what a run says and keeps.
//
//   out.log, stderr    open_clip's line, byte for byte (third parties parse it), then our additions
//   train.jsonl        the same as records; the first one is the resolved configuration
//   params.txt         the configuration as open_clip writes it
//   training.svg       loss, learning rate and RMS over the steps
//   results.jsonl      one record per evaluation
//
// Train Epoch: 0 [  49152/3200000 (2%)] Data (t): 0.034 Batch (t): 6.466, 2533.71/s, 2533.71/s/gpu
//   LR: 0.000500 Logit Scale: 14.286 Contrastive_loss: 9.7031 (9.7031) Loss: 9.7031 (9.7031) | data wait 1%
//   grad norm ...
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/evaluation.h"
#include "optim/spikes.h"

namespace switchback {

class EventFile;
class JsonLines;
class Logger;

struct StepRecord {
  int64_t step = 0;           // from 0, over the whole run
  int64_t epoch = 0;          // from 0
  int64_t step_in_epoch = 0;  // from 0
  int64_t steps_per_epoch = 0, total_steps = 0;
  int64_t global_batch = 0;                             // samples per step
  int64_t ranks = 1;                                    // GPUs that share them
  int64_t samples_seen = 0;                             // over the whole run, this step's included
  double loss = 0, learning_rate = 0, logit_scale = 0;  // logit_scale: exp'd
  double data_seconds = 0, step_seconds = 0;            // step_seconds includes the wait for data
  double pause_seconds = 0;  // spent on a checkpoint or an evaluation before the step; not part of it
  int64_t text_length = 0;   // tokens of each text that are computed
  size_t peak_memory = 0;    // bytes that the run has held on the device at most
  double gradient_norm = 0, visual_gradient_norm = 0, text_gradient_norm = 0;
  double largest_rms = 0, patch_embedding_rms = 0;
  std::string largest_rms_name;
  std::vector<std::string> skipped;  // tensors whose update was skipped (Inf or NaN)
};

struct TrainingLogOptions {
  std::string folder;  // the run's; empty: write nothing but stderr. A resumed run appends.
  int64_t log_every_n_steps = 100;
  double flops_per_sample = 0;  // nominal, forward and backward
  bool tensorboard = false;
  int64_t metric_every_n_steps = 0;  // steps between TensorBoard's points; 0: those of the log
  bool quiet = false;                // of a rank that is not the first: nothing is written or printed
};

class TrainingLog {
 public:
  explicit TrainingLog(const TrainingLogOptions& options);
  ~TrainingLog();

  void info(const std::string& line);
  void warning(const std::string& line);
  void error(const std::string& line);
  // Once, before the first step: the resolved configuration becomes the first record. A resumed run
  // (first_step > 0) takes the curves of its picture from the records of the sessions before.
  void start(int64_t first_step, const std::string& options_json, const std::string& model_json);

  // Call once per step; prints at open_clip's moments: every n-th step of an epoch, and its last one.
  void step(const StepRecord& record);
  void end_epoch(int64_t epoch);
  void evaluation(int64_t epoch, int64_t step, const std::optional<Retrieval>& retrieval,
                  const std::optional<ZeroShot>& zero_shot, double seconds);
  void write_picture();

 private:
  void print_line(const StepRecord& record);
  void add_point(const StepRecord& record);
  void recall(int64_t first_step);
  SpikeDetector::Notice remember(int64_t step, double loss, double rate, double patch_rms,
                                 double largest_rms);

  struct Mean {
    double sum = 0;
    int64_t count = 0;
    void add(double v) { sum += v, ++count; }
    double value() const { return count ? sum / static_cast<double>(count) : 0; }
  };
  TrainingLogOptions options_;
  std::unique_ptr<Logger> logger_;
  std::unique_ptr<JsonLines> records_;
  std::unique_ptr<EventFile> events_;
  Mean epoch_loss_;
  Mean data_seconds_, step_seconds_, text_length_;  // since the last line
  Mean point_data_seconds_, point_step_seconds_;    // since TensorBoard's last point
  double data_total_ = 0, step_total_ = 0, last_picture_ = 0;
  int64_t steps_timed_ = 0;
  bool picture_failed_ = false;  // said once
  SpikeDetector spikes_;
  std::vector<double> steps_, losses_, rates_, patch_rms_, largest_rms_;  // for the picture
};

// open_clip's part of the line (openclip train.py): everything up to "Loss: x (y)".
std::string open_clip_line(const StepRecord& record, double mean_loss, double mean_data_seconds,
                           double mean_step_seconds);

}  // namespace switchback
