// The learning study's results: read from a run's folder, kept as lines, made into a table and a picture.
#include <cmath>
#include <fstream>
#include <limits>

#include "bench/learning_results.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

LearningRun made(const std::string& recipe, double layer_scale, int64_t seed, double loss) {
  return {.recipe = recipe,
          .layer_scale = layer_scale,
          .seed = seed,
          .steps = 20,
          .loss = loss,
          .validation_loss = 3,
          .image_to_text = 0.25,
          .text_to_image = 0.5,
          .seconds = 2,
          .curve = {4, loss}};
}

// What clip_train leaves behind after 20 steps in two epochs, losses 20, 19, ..., 1.
void write_run(const std::string& folder, int evaluated_after) {
  std::filesystem::create_directories(folder + "/checkpoints");
  std::ofstream log(folder + "/train.jsonl");
  log << R"({"kind":"configuration","options":{"linear":"fp8-sim","layer_scale":0.0,"seed":7}})"
      << "\n";
  for (int step = 0; step < 20; ++step)
    log << R"({"kind":"step","step":)" << step << R"(,"epoch":)" << step / 10 << R"(,"loss":)" << 20 - step
        << R"(,"step_seconds":0.5})"
        << "\n";
  log << R"({"kind":"step","step":20,"ep)";  // cut off
  std::ofstream(folder + "/checkpoints/results.jsonl")
      << R"({"image_to_text_R@1":0.5,"text_to_image_R@1":0.25,"clip_val_loss":2.5,"epoch":2,"step":)"
      << evaluated_after << "}\n";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("learning study: a run's folder") {
  TemporaryFolder folder;
  write_run(folder / "run", 20);
  const LearningRun run = read_learning_run(folder / "run");
  CHECK_EQ(run.name(), "fp8-sim, zero-init");
  CHECK_EQ(run.seed, 7);
  CHECK_EQ(run.steps, 20);
  CHECK_EQ(run.loss, 1.5);  // of the last two steps
  CHECK_EQ(run.seconds, 10);
  CHECK_EQ(run.curve, std::vector<double>{15.5, 5.5});
  CHECK_EQ(run.validation_loss, 2.5);
  CHECK_EQ(run.image_to_text, 0.5);
  CHECK_EQ(run.text_to_image, 0.25);
  write_run(folder / "cut", 10);
  CHECK_THROWS_AS(read_learning_run(folder / "cut"), Error);
  CHECK_THROWS_AS(read_learning_run(folder / "nothing"), Error);
}

TEST_CASE("learning study: lines come back as they were, twice the same counts once") {
  TemporaryFolder folder;
  const std::string path = folder / "learning.jsonl";
  const LearningRun run = made("switchback", -1, 3, 1.25), other = made("fp8", 0, 3, not_a_number);
  // bench/learning_study.sh looks for these beginnings.
  CHECK(json_line(run).starts_with(R"({"recipe":"switchback","layer_scale":null,"seed":3,)"));
  CHECK(json_line(other).starts_with(R"({"recipe":"fp8","layer_scale":0.0,"seed":3,)"));
  write_file(path, json_line(run) + "\n" + json_line(other) + "\n" + json_line(made("switchback", -1, 3, 9)) +
                       "\n{\"recipe\":");
  const std::vector<LearningRun> runs = read_learning_lines(path);
  REQUIRE_EQ(runs.size(), 2);
  CHECK_EQ(json_line(runs[0]), json_line(run));
  CHECK_EQ(json_line(runs[1]), json_line(other));
  CHECK(std::isnan(runs[1].loss));
  CHECK_THROWS_AS(read_learning_lines(folder / "nothing"), Error);
}

TEST_CASE("learning study: the table") {
  const std::string table = learning_table({
      made("standard", -1, 1, 1.0),
      made("standard", -1, 2, 2.0),
      made("standard", 0, 1, 5.0),
      made("llm-int8", -1, 1, 1.5),
      made("llm-int8", -1, 2, 2.5),
      made("llm-int8", -1, 3, 7.0),
      made("fp8", 0, 1, 5.25),
      made("fp8-sim", -1, 1, not_a_number),
      made("fp8-sim", -1, 2, 2.125),
  });
  INFO(table);
  CHECK(has(table, "| standard | 2 | 1.5000 ± 0.7071 |  | 3.0000 ± 0.0000 | 0.2500 ± 0.0000 |"));
  // Its third seed has no standard beside it.
  CHECK(has(table, "| llm-int8 | 3 | 3.6667 ± 2.9297 | +0.5000 ± 0.0000 |"));
  CHECK(has(table, "| standard, zero-init | 1 | 5.0000 |  |"));
  CHECK(has(table, "| fp8, zero-init | 1 | 5.2500 | +0.2500 | 3.0000 | 0.2500 | 0.5000 | 2.0 |"));
  CHECK(has(table, "| fp8-sim | 2, 1 diverged | 2.1250 | +0.1250 |"));
  // Pooled: (0.5 + 2 · 2.9297²)/(1 + 2) = 2.4267²
  CHECK(has(table, "- fp8-sim: mean loss +0.6250 from standard's, 0.2 standard errors (seeds deviate by 2.4267, "));
  CHECK(has(table, "- llm-int8: mean loss +2.1667 from standard's, 1.0 standard errors (seeds deviate by 2.4267, "));
  CHECK_FALSE(has(table, "- fp8, zero-init"));  // a single seed of standard has no noise
}

TEST_CASE("learning study: the picture") {
  std::vector<LearningRun> runs = {made("standard", -1, 1, 1.0), made("standard", -1, 2, 1.5),
                                   made("switchback", -1, 1, 1.1), made("fp8", 0, 1, not_a_number)};
  std::string picture = learning_picture(runs, "title");
  for (const char* part :
       {"title", ">standard<", ">switchback<", ">deviation between seeds<", "int8", "zero-init"})
    CHECK_MESSAGE(has(picture, part), part);
  CHECK_FALSE(has(picture, "8-bit floats"));
  CHECK_FALSE(has(picture, "nan"));
  runs.resize(1);
  CHECK(has(learning_picture(runs, "title"), "</svg>"));
}
