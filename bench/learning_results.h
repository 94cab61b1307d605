// learning_results.h: what the runs of bench/learning_study.sh came to: one JSON line a run, a table, a
// picture.
//
// Runs of one seed begin with the same weights and see the same batches, whatever their recipe. So a recipe
// is compared with `standard` seed by seed, and what is left beside the recipe's effect is smaller than the
// noise between seeds. Runs with zero-init layer-scale are compared with such a standard.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchback {

struct LearningRun {
  std::string recipe;       // --linear
  double layer_scale = -1;  // its initial value; below 0: the model has none
  int64_t seed = 0, steps = 0;
  double loss = 0;             // mean of the last tenth of the steps; NaN: it did not stay finite
  double validation_loss = 0;  // of the last evaluation, like both below
  double image_to_text = 0, text_to_image = 0;  // R@1
  double seconds = 0;                           // from the first step to the last, all waiting included
  std::vector<double> curve;                    // loss, mean of each epoch

  std::string name() const;  // "fp8-sim, zero-init"
};

// FOLDER/train.jsonl and FOLDER/checkpoints/results.jsonl of clip_train. An Error when the run was cut off:
// it has not evaluated after its last step.
LearningRun read_learning_run(const std::string& folder);
std::string json_line(const LearningRun& run);
// The lines of a file; the first run of a recipe and seed counts.
std::vector<LearningRun> read_learning_lines(const std::string& path);

// Markdown, a row for each recipe in the order of its first run: mean ± standard deviation over the seeds.
// Below it, how far each mean lies from standard's, beside the noise between seeds.
std::string learning_table(const std::vector<LearningRun>& runs);
// SVG: standard's loss, and the other recipes' minus standard's, over the epochs.
std::string learning_picture(const std::vector<LearningRun>& runs, const std::string& title);

}  // namespace switchback
