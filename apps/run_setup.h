// run_setup.h: what the flags of clip_train mean to the parts of a run: which data, which batches, which
// evaluations, which parameters stay as they are.
#pragma once

#include <cstdint>
#include <memory>

#include "apps/evaluation_data.h"
#include "apps/training_options.h"
#include "data/loader.h"
#include "data/sample_source.h"
#include "kernels/kernels.h"

namespace switchback {

class ParameterArena;

// --image-mean and --image-std, else CLIP's
PixelNormalization pixel_normalization(const TrainingOptions& options);

// The training data; null in a dry run without any.
std::shared_ptr<SampleSource> open_training_data(const TrainingOptions& options, const ClipConfig& config,
                                                 Warn warn);
// Of an epoch: --train-num-samples, else what lies beside the shards, else what their headers say.
int64_t samples_of_epoch(const TrainingOptions& options, SampleSource* source);

// batch: samples per step. Seed, start and rank are the run's business.
LoaderOptions training_loader(const TrainingOptions& options, const ClipConfig& config, int64_t batch,
                              Warn warn);
EvaluationOptions evaluation_options(const TrainingOptions& options);

// Before the first step: weights from --pretrained, and which of them stay (--lock-image, --lock-text).
void prepare_parameters(const TrainingOptions& options, const ClipConfig& config, ParameterArena& arena,
                        const Warn& say);

// What --dry-run says beyond the summary of every run: memory, work and expected time.
struct DryRun {
  int64_t samples_per_step = 0, total_steps = 0;
  Device device = cpu_device;
  DType dtype = DType::f32;
};
void report_dry_run(const TrainingOptions& options, const ClipConfig& config, const DryRun& run,
                    const Warn& say);

}  // namespace switchback
