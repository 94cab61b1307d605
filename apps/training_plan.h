// training_plan.h: what the flags of clip_train mean to the run as a whole: its name, its length, its
// learning rates, its optimizer; what is said about them before the first step; and how a run goes on from a
// checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "apps/checkpoint.h"
#include "apps/training_log.h"
#include "apps/training_options.h"
#include "optim/schedule.h"

namespace switchback {

// --name, or open_clip's automatic one: date, model, learning rate, batch, workers, precision
std::string run_name(const TrainingOptions& options);

AdamWOptions optimizer_options(const TrainingOptions& options);

// How long training goes on, in steps. An epoch is rounded up to whole batches, as open_clip's is (there to a
// multiple of --workers besides: its processes get equal shares; our threads need none).
struct Plan {
  int64_t ranks = 1;
  int64_t global_batch = 0;  // samples per step: batch size x parts x ranks
  int64_t steps_per_epoch = 0;
  int64_t total_steps = 0;
};
Plan make_plan(const TrainingOptions& options, int64_t samples, int64_t ranks);

// What all ranks of a run must agree on: the program, and every flag but those that concern one process.
std::vector<std::pair<std::string, std::string>> agreement(const TrainingOptions& options);

Schedule make_schedule(const TrainingOptions& options, const Plan& plan);

// Model, data and optimizer in three lines.
void print_summary(TrainingLog& log, const TrainingOptions& options, const ClipConfig& config,
                   const Plan& plan, int64_t samples, const Schedule& schedule);

// Weights, moments and progress as `checkpoint` has them, and what is odd about going on from there.
// checkpoints: the folder of all checkpoints of the run.
TrainingProgress go_on_from(const std::string& checkpoint, const std::string& checkpoints, const Plan& plan,
                            const TrainingOptions& options, ParameterArena& arena, AdamW& optimizer,
                            TrainingLog& log);

}  // namespace switchback
