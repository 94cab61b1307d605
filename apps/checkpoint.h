// checkpoint.h: everything a run needs to go on as if it had never stopped.
//
// A checkpoint is a folder, complete or absent: it is written under another name, synced, and renamed.
// Training goes on meanwhile: CheckpointWriter copies weights and moments (host memory: 12 bytes a
// parameter), a thread writes the copies.
//
//   logs/RUN/checkpoints/step_00000300/
//     open_clip_model.safetensors   the f32 weights under open_clip's state-dict keys
//     open_clip_config.json         the model: open_clip loads the two as they are
//     training_state.safetensors    optimizer moments by parameter name; metadata: step, samples, loader,
//     seed
//
// Random numbers come from counters (seed, step, sample), so step and seed are the whole state of the
// generator.
#pragma once

#include <cstdint>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "models/config.h"
#include "nn/parameter.h"
#include "optim/adamw.h"

namespace switchback {

struct TrainingProgress {
  int64_t step = 0;   // steps done
  int64_t epoch = 0;  // epochs completed
  int64_t samples_seen = 0;
  int64_t seed = 0;
  std::string loader;        // Loader::state()
  std::string options_json;  // of the run that wrote it, for a reader's information
};

std::string checkpoint_name(int64_t step);  // "step_00000300"

// Writes checkpoints one after the other beside the run.
class CheckpointWriter {
 public:
  // keep_last > 0: older checkpoints beyond that number are removed after each one that is complete.
  CheckpointWriter(std::string checkpoints, int64_t keep_last)
      : checkpoints_(std::move(checkpoints)), keep_last_(keep_last) {}
  ~CheckpointWriter();  // waits; an error that nobody asked for is lost
  CheckpointWriter(const CheckpointWriter&) = delete;

  // Begins to write CHECKPOINTS/step_00000300, with the values as they are now; completed(true) must have
  // been called since the last one. With a sharded optimizer every rank calls optimizer.state() where rank 0
  // calls this.
  void save(const ClipConfig& config, const PixelNormalization& normalization, const ParameterArena& arena,
            const AdamW& optimizer, const TrainingProgress& progress);

  // The path of a checkpoint that has become complete since the last call; empty when there is none. wait:
  // until it is. Errors (disk full, no permission) come out here, and left every other checkpoint as it was.
  std::string completed(bool wait);

 private:
  std::string checkpoints_;
  int64_t keep_last_;
  std::future<std::string> writing_;
};

// The complete checkpoint of the highest step below `checkpoints`, or of the highest one before the
// checkpoint `before`; empty when there is none.
std::string latest_checkpoint(const std::string& checkpoints, const std::string& before = "");

// Fills arena and optimizer. Errors name the first tensor that is missing, not expected, or of another shape.
TrainingProgress load_checkpoint(const std::string& folder, ParameterArena& arena, AdamW& optimizer);

// The model of a checkpoint folder, or of a folder of open_clip or transformers (models/interchange.h loads
// the weights of all three).
ClipConfig checkpoint_config(const std::string& folder);
PixelNormalization checkpoint_normalization(const std::string& folder);

}  // namespace switchback
