// Runs that stop and go on: killed at any moment, with other flags, from an older or a damaged checkpoint,
// after an evaluation that failed.
#include "tests/apps/workshop.h"

using namespace switchback;

namespace {

// The names below a run's checkpoint folder that begin with "step_", and everything else there.
Words names_in(const Workshop& w, const std::string& run) {
  Words names;
  for (const auto& entry : fs::directory_iterator(w.path + "/logs/" + run + "/checkpoints"))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("killed again and again, a run ends with the same bits") {
  Workshop w;
  const Words flags{"--max-steps", "40", "--save-every",        "1",
                    "--keep-last", "2",  "--log-every-n-steps", "10"};
  REQUIRE_EQ(w.train("whole", flags).status, 0);
  Words again = flags;
  again.insert(again.end(), {"--resume", "latest"});
  for (int i = 0; i < 12; ++i) {
    Program run("clip_train", w.arguments("killed", again), w.file("killed"));
    std::this_thread::sleep_for(std::chrono::milliseconds(20 + 17 * i));
    run.send(SIGKILL);
    run.wait();
  }
  const Outcome last = w.train("killed", again);
  INFO(last.output);
  REQUIRE_EQ(last.status, 0);
  CHECK(w.weights("whole", 40) == w.weights("killed", 40));
  CHECK(w.moments("whole", 40) == w.moments("killed", 40));
}

TEST_CASE("evaluations leave training as it was") {
  Workshop w;
  write_file(w.file("classnames.txt"), "zero\none\ntwo\n");
  write_file(w.file("zeroshot_classification_templates.txt"), "number {c}\n");
  REQUIRE_EQ(w.train("plain").status, 0);
  REQUIRE_EQ(w.train("evaluated", {"--val-data", w.file("b.tar"), "--zeroshot-data", w.file("a.tar"),
                                   "--eval-every-n-steps", "1"}).status, 0);
  CHECK(w.weights("plain", 6) == w.weights("evaluated", 6));
  CHECK(w.moments("plain", 6) == w.moments("evaluated", 6));
}

TEST_CASE("an evaluation that fails costs no step") {
  Workshop w;
  write_file(w.file("classnames.txt"), "zero\n");
  write_file(w.file("zeroshot_classification_templates.txt"), "number {c}\n");
  check_fails(w.train("run", {"--zeroshot-data", w.file("a.tar"), "--eval-every-n-steps", "2"}),
              {"label 1", "class"});
  CHECK_EQ(names_in(w, "run"), Words{"step_00000002"});
}

TEST_CASE("resuming with other flags: batch, precision, window, after the end") {
  Workshop w;
  REQUIRE_EQ(w.train("run", {"--max-steps", "3"}).status, 0);
  const Outcome batch = w.train("run", {"--max-steps", "6", "--batch-size", "4", "--resume", "latest"});
  INFO(batch.output);
  CHECK_EQ(batch.status, 0);
  CHECK(contains(batch.output, "3 steps saw 24 samples, not 4 each"));
  CHECK(contains(read_file(w.path + "/logs/run/train.jsonl"), "\"step\":5,\"epoch\":0,\"samples\":36,"));

  CHECK_EQ(w.train("run", {"--max-steps", "8", "--precision", "amp_bf16", "--resume", "latest"}).status, 0);
  CHECK_EQ(
      w.train("run", {"--max-steps", "10", "--shuffle-window", "5", "--workers", "1", "--resume", "latest"})
          .status,
      0);
  const std::string before = w.weights("run", 10);
  const Outcome done = w.train("run", {"--max-steps", "10", "--resume", "latest"});
  CHECK_EQ(done.status, 0);
  CHECK(contains(done.output, "training is complete"));
  CHECK(w.weights("run", 10) == before);
  check_fails(w.train("", {"--resume", "latest"}), {"--resume latest needs the --name"});
}

TEST_CASE(
    "going back to an older checkpoint: later ones stay, and are named; the same step is written anew") {
  Workshop w;
  REQUIRE_EQ(w.train("run", {"--save-every", "2"}).status, 0);
  const std::string later = w.moments("run", 4);
  const Outcome back = w.train("run", {"--max-steps", "5", "--save-every", "1", "--keep-last", "2",
                                       "--resume", w.checkpoint("run", 2)});
  INFO(back.output);
  CHECK_EQ(back.status, 0);
  CHECK(contains(back.output, "step_00000006 is of a later step"));
  CHECK_EQ(names_in(w, "run"), Words{"step_00000004", "step_00000005", "step_00000006"});
  CHECK(w.moments("run", 4) == later);
}

TEST_CASE("a damaged newest checkpoint: the message names the one before it, which is good") {
  Workshop w;
  REQUIRE_EQ(w.train("run", {"--save-every", "3"}).status, 0);
  const std::string newest = w.checkpoint("run", 6);
  const std::string state = newest + "/training_state.safetensors";
  write_file(state, read_file(state).substr(0, 1000));
  check_fails(w.train("run", {"--resume", "latest"}),
              {"training_state.safetensors", "remove", "step_00000003"});
  fs::remove_all(newest);
  CHECK_EQ(w.train("run", {"--resume", "latest"}).status, 0);
}

TEST_CASE("folders and flags that cannot be: the logs are a file, no deviation, a report to nobody") {
  Workshop w;
  check_fails(w.train("run", {"--logs", w.file("a.tar")}), {"a.tar/run", "Not a directory"});
  check_fails(w.train("run", {"--image-std", "0.2", "0", "0.2"}), {"--image-std must be positive"});
  check_fails(w.train("run", {"--wd", "inf"}), {"--wd must be a finite number"});
  CHECK(contains(w.train("run", {"--report-to", "wandb", "--max-steps", "1"}).output, "only tensorboard"));
  const Outcome bytes = w.train("no\xffutf8", {"--max-steps", "1"});
  INFO(bytes.output);
  CHECK_EQ(bytes.status, 0);
}

TEST_CASE("clip_eval: classes by name, what is left out is said; a folder that is no checkpoint") {
  Workshop w;
  REQUIRE_EQ(w.train("run", {"--max-steps", "1"}).status, 0);
  {
    TarWriter tar(w.file("named.tar"));
    for (int i = 0; i < 9; ++i) {
      const std::string key = std::to_string(100 + i);
      tar.add(key + ".png", noise_png(static_cast<uint64_t>(i), 16, 16));
      tar.add(key + ".json", i % 3 == 0   ? "{\"kind\":\"cat\"}"
                             : i % 3 == 1 ? "{\"kind\":\"dog\"}"
                                          : "{\"kind\":\"owl\"}");
    }
    tar.finish();
  }
  write_file(w.file("classnames.txt"), "cat\ndog\n");
  write_file(w.file("zeroshot_classification_templates.txt"), "a {c}\n");
  auto evaluate = [&](const std::string& checkpoint, const Words& more) {
    Words words{"--checkpoint", checkpoint, "--zeroshot-data", w.file("named.tar"), "--label-key", "kind"};
    words.insert(words.end(), more.begin(), more.end());
    return Program("clip_eval", words, w.file("evaluation")).wait();
  };
  const Outcome named = evaluate(w.checkpoint("run", 1), {});
  INFO(named.output);
  CHECK_EQ(named.status, 0);
  CHECK(contains(named.output, "zero-shot, 6 images"));
  CHECK(contains(named.output, "3 images are left out: their kind"));
  const Outcome nowhere = evaluate(w.path + "/logs/run", {});
  CHECK_EQ(nowhere.status, 1);
  CHECK(contains(nowhere.output, "is not a checkpoint"));
}
