// The log line that third parties parse. What is expected was printed by Python's format(), with open_clip's
// pattern.
#include "apps/training_log.h"

#include "runtime/file.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

StepRecord record(int64_t epoch, int64_t step_in_epoch, int64_t steps_per_epoch, int64_t batch, double loss,
                  double seconds, double rate, double logit_scale) {
  StepRecord r;
  r.epoch = epoch;
  r.step_in_epoch = step_in_epoch;
  r.steps_per_epoch = steps_per_epoch;
  r.global_batch = batch;
  r.loss = loss;
  r.step_seconds = seconds;
  r.learning_rate = rate;
  r.logit_scale = logit_scale;
  return r;
}

}  // namespace

TEST_CASE("the log line is open_clip's, byte for byte") {
  CHECK_EQ(open_clip_line(record(0, 2, 196, 16384, 9.70309, 6.46641, 1e-7, 14.2857), 9.7031, 0.0341, 6.466),
           "Train Epoch: 0 [  49152/3211264 (2%)] Data (t): 0.034 Batch (t): 6.466, 2533.71/s, 2533.71/s/gpu "
           "LR: 0.000000 "
           "Logit Scale: 14.286 Contrastive_loss: 9.7031 (9.7031) Loss: 9.7031 (9.7031)");
  CHECK_EQ(open_clip_line(record(31, 7, 8, 125, 0.5, 1.25, 5e-4, 100), 12, 0, 1.25),
           "Train Epoch: 31 [1000/1000 (100%)] Data (t): 0.000 Batch (t): 1.250, 100.000/s, 100.000/s/gpu "
           "LR: 0.000500 "
           "Logit Scale: 100.000 Contrastive_loss: 0.50000 (12.000) Loss: 0.50000 (12.000)");
  CHECK_EQ(open_clip_line(record(3, 0, 1, 999, 1.25e-5, 1e-4, 2e-3, 99.9996), 123456, 12.3456, 1000),
           "Train Epoch: 3 [999/999 (100%)] Data (t): 12.346 Batch (t): 1000.000, 9.99000e+06/s, "
           "9.99000e+06/s/gpu LR: "
           "0.002000 Logit Scale: 100.000 Contrastive_loss: 1.2500e-05 (1.2346e+05) Loss: 1.2500e-05 "
           "(1.2346e+05)");
}

TEST_CASE("a run of two sessions, the first one killed late, has the picture of one session") {
  TemporaryFolder folder;
  auto session = [&](const std::string& name, int64_t from, int64_t to, double spoiled = 0) {
    TrainingLogOptions options;
    options.folder = folder / name;
    options.log_every_n_steps = 1000;
    std::filesystem::create_directories(options.folder);
    TrainingLog log(options);
    log.start(from, "{}", "{}");
    for (int64_t step = from; step < to; ++step) {
      StepRecord r = record(0, step, 100, 8, 3 - 0.01 * static_cast<double>(step) + spoiled, 1, 1e-3, 14);
      r.step = step;
      r.largest_rms = 1.5;
      r.patch_embedding_rms = step == 4 ? -1 : 1;
      log.step(r);
    }
    log.write_picture();
    return read_file(options.folder + "/training.svg");
  };
  const std::string whole = session("whole", 0, 20);
  CHECK(session("parts", 0, 7) != whole);
  session("parts", 5, 12,
          0.5);  // killed after step 12; its last checkpoint was of step 5, and so is the next start
  CHECK(session("parts", 5, 20) == whole);
}

TEST_CASE("TensorBoard's points have their own interval, or the log's") {
  TemporaryFolder folder;
  auto points = [&](const std::string& name, int64_t interval) {
    TrainingLogOptions options;
    options.folder = folder / name;
    options.tensorboard = true;
    options.log_every_n_steps = 10;
    options.metric_every_n_steps = interval;
    std::filesystem::create_directories(options.folder);
    TrainingLog log(options);
    log.start(0, "{}", "{}");
    for (int64_t step = 0; step < 30; ++step) {
      StepRecord r = record(0, step, 100, 8, 3, 1, 1e-3, 14);
      r.step = step;
      r.total_steps = 100;
      log.step(r);
    }
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(options.folder + "/tensorboard")) {
      const std::string bytes = read_file(entry.path().string());
      for (size_t at = 0; (at = bytes.find("train/loss", at)) != std::string::npos; ++at) ++count;
    }
    return count;
  };
  CHECK_EQ(points("log", 0), 3);
  CHECK_EQ(points("own", 2), 15);
  CHECK_EQ(points("rare", 25), 2);
}
