// clip_train as a program: the same seed gives the same bits, a killed run goes on as if nothing had
// happened, and bad input ends in one clear line, a non-zero status and nothing lost.
#include <sys/file.h>

#include "tests/apps/workshop.h"

using namespace switchback;

TEST_CASE("same seed, same bits: two runs, one and four loader threads; another seed differs") {
  Workshop w;
  REQUIRE_EQ(w.train("one", {"--workers", "1"}).status, 0);
  REQUIRE_EQ(w.train("four", {"--workers", "4"}).status, 0);
  REQUIRE_EQ(w.train("cores", {"--threads", "1"}).status, 0);
  REQUIRE_EQ(w.train("seed", {"--seed", "1"}).status, 0);
  CHECK(w.weights("one", 6) == w.weights("four", 6));
  CHECK(w.moments("one", 6) == w.moments("four", 6));
  CHECK(w.weights("one", 6) == w.weights("cores", 6));
  REQUIRE_EQ(w.train("behind", {"--optimizer-in-backward", "off"}).status, 0);
  CHECK(w.weights("one", 6) == w.weights("behind", 6));
  CHECK(w.moments("one", 6) == w.moments("behind", 6));
  CHECK(w.weights("one", 6) != w.weights("seed", 6));
}

TEST_CASE("6 steps are 3 steps, a kill, and 3 more, bitwise") {
  Workshop w;
  REQUIRE_EQ(w.train("whole", {"--opt", "stableadamw"}).status, 0);
  {
    Program run("clip_train", w.arguments("killed", {"--opt", "stableadamw", "--save-every", "3"}),
                w.file("killed"));
    REQUIRE(wait_until([&] { return fs::exists(w.checkpoint("killed", 3)); }));
    run.send(SIGKILL);
    run.wait();
  }
  const std::string checkpoints = w.path + "/logs/killed/checkpoints";
  fs::remove_all(w.checkpoint("killed", 6));  // it may have got that far before the signal
  REQUIRE_EQ(w.train("killed", {"--opt", "stableadamw", "--resume", "latest", "--workers", "3",
                                "--optimizer-in-backward", "off"})
                 .status,
             0);
  CHECK(w.weights("whole", 6) == w.weights("killed", 6));
  CHECK(w.moments("whole", 6) == w.moments("killed", 6));
  for (const auto& entry : fs::directory_iterator(checkpoints))
    CHECK(entry.path().filename().string().find("unfinished") == std::string::npos);
}

TEST_CASE("SIGTERM saves and ends with 0") {
  Workshop w;
  Program run("clip_train", w.arguments("long", {"--max-steps", "100000", "--log-every-n-steps", "100"}),
              w.file("long"));
  REQUIRE(wait_until([&] {
    return fs::exists(w.path + "/logs/long/out.log") &&
           read_file(w.path + "/logs/long/out.log").find("Train Epoch") != std::string::npos;
  }));
  run.send(SIGTERM);
  const Outcome outcome = run.wait();
  INFO(outcome.output);
  CHECK_EQ(outcome.status, 0);
  CHECK(outcome.output.find("stopped by signal 15") != std::string::npos);
  CHECK(outcome.output.find("saved ") != std::string::npos);
}

TEST_CASE("parts of a batch give the loss and the weights of the whole batch, to rounding") {
  Workshop w;
  REQUIRE_EQ(w.train("whole", {"--max-steps", "3"}).status, 0);
  REQUIRE_EQ(w.train("parts", {"--max-steps", "3", "--batch-size", "2", "--accum-freq", "4"}).status, 0);
  auto losses = [&](const std::string& name) {
    std::vector<double> found;
    const std::string log = read_file(w.path + "/logs/" + name + "/train.jsonl");
    for (size_t at = 0; (at = log.find("\"loss\":", at)) != std::string::npos; ++at)
      found.push_back(std::stod(log.substr(at + 7)));
    return found;
  };
  const std::vector<double> whole = losses("whole"), parts = losses("parts");
  REQUIRE_EQ(whole.size(), 3);
  REQUIRE_EQ(parts.size(), 3);
  for (size_t i = 0; i < 3; ++i) CHECK(parts[i] == doctest::Approx(whole[i]).epsilon(1e-5));
}

TEST_CASE(
    "texts and last blocks that stop early train as whole ones, to rounding; the log says what is left out") {
  Workshop w;
  const Words longer{"--force-context-length", "24"};  // captions are 9 or 10 tokens
  const auto train = [&](const std::string& name, Words flags) {
    flags.insert(flags.end(), longer.begin(), longer.end());
    const Outcome outcome = w.train(name, flags);
    INFO(outcome.output);
    REQUIRE_EQ(outcome.status, 0);
    const std::string log = read_file(w.path + "/logs/" + name + "/train.jsonl");
    std::vector<double> losses;
    for (size_t at = 0; (at = log.find("\"loss\":", at)) != std::string::npos; ++at)
      losses.push_back(std::stod(log.substr(at + 7)));
    CHECK_EQ(losses.size(), 6);
    return std::tuple{losses, log, outcome.output};
  };
  const auto [stops, log, output] = train("stops", {});
  const auto [whole, whole_log, whole_output] = train("whole", {"--whole-text", "--whole-last-block"});
  for (size_t i = 0; i < stops.size(); ++i) CHECK(stops[i] == doctest::Approx(whole[i]).epsilon(1e-5));
  CHECK(log.find("\"text_length\":16") != std::string::npos);
  CHECK(whole_log.find("\"text_length\":24") != std::string::npos);
  CHECK(output.find("text behind a batch's longest caption") != std::string::npos);
  CHECK(output.find(" text 16.0 ") != std::string::npos);
  CHECK(whole_output.find("Left out: nothing") != std::string::npos);
  const auto [shared, shared_log, shared_output] = train("shared", {"--linear", "llm-int8"});
  CHECK(shared_output.find("tokens share a scale with --linear llm-int8") != std::string::npos);
  CHECK(shared_log.find("\"text_length\":24") != std::string::npos);
}

TEST_CASE("the log: open_clip's line, a JSONL twin whose first record is the configuration, a picture") {
  Workshop w;
  const Outcome outcome = w.train("log", {"--report-to", "tensorboard"});
  REQUIRE_EQ(outcome.status, 0);
  CHECK(outcome.output.find("Train Epoch: 0 [ 8/48 (17%)] Data (t): ") != std::string::npos);
  CHECK(outcome.output.find("Train Epoch: 0 [48/48 (100%)] Data (t): ") != std::string::npos);
  const std::string folder = w.path + "/logs/log/";
  CHECK(read_file(folder + "train.jsonl").starts_with("{\"kind\":\"configuration\""));
  CHECK(read_file(folder + "training.svg").starts_with("<"));
  CHECK(read_file(folder + "params.txt").find("batch_size: 8\n") != std::string::npos);
  CHECK_FALSE(fs::is_empty(folder + "tensorboard"));
}

TEST_CASE("flags: unknown, ambiguous, malformed, out of range, contradictory") {
  Workshop w;
  check_fails(w.train("x", {"--bach-size", "3"}), {"unknown flag --bach-size", "--batch-size"});
  check_fails(w.train("x", {"shards/1.tar"}), {"'shards/1.tar' belongs to no flag", "quotes"});
  check_fails(w.train("x", {"--val", "y"}), {"ambiguous", "--val-data", "--val-frequency"});
  check_fails(w.train("x", {"--batch-size", "many"}), {"--batch-size", "many"});
  check_fails(w.train("x", {"--batch-size", "0"}), {"--batch-size must be at least 1", "0"});
  check_fails(w.train("x", {"--beta2", "1.5"}), {"[0, 1)", "1.5"});
  check_fails(w.train("x", {"--opt", "sgd"}), {"--opt sgd", "adamw, stableadamw"});
  check_fails(w.train("x", {"--lr-scheduler", "const-cooldown"}), {"--epochs-cooldown"});
  check_fails(w.train("x", {"--model", "ViT-B32"}), {"ViT-B32", "ViT-B-32"});
  check_fails(w.train("x", {"--model", "RN50"}), {"RN50 is not supported", "ViT-B-32"});
  check_fails(w.train("x", {"--tokenizer", w.file("a.tar")}), {"a.tar"});
  check_fails(w.train("x", {"--accum-freq", "7"}), {"--accum-freq 7"});
  check_fails(w.train("x", {"--aug-cfg", "scale=2"}), {"--aug-cfg scale=2"});
  CHECK_EQ(w.train("x", {"--lr=1.e-3", "--local-loss", "--save-f", "1", "--ddp-static-graph"}).status, 0);
}

TEST_CASE("data: missing shards, garbage, truncation, nothing usable, too few samples") {
  Workshop w;
  check_fails(w.train("m", {"--train-data", w.path + "/{a,b,c}.tar"}), {"c.tar"});
  write_file(w.file("g.tar"), std::string(5000, 'x'));
  check_fails(w.train("g", {"--train-data", w.file("g.tar")}), {"g.tar"});
  const std::string whole = read_file(w.file("a.tar"));
  write_file(w.file("t.tar"), whole.substr(0, whole.size() / 2));
  check_fails(w.train("t", {"--train-data", w.file("t.tar")}), {"t.tar"});
  check_fails(w.train("n", {"--batch-size", "64"}), {"64", "48"});
  {
    TarWriter tar(w.file("nothing.tar"));
    for (int i = 0; i < 10; ++i) tar.add(std::to_string(i) + ".txt", "no image");
    tar.finish();
  }
  check_fails(w.train("e", {"--train-data", w.file("nothing.tar")}), {"nothing.tar", "txt"});
  {
    TarWriter tar(w.file("broken.tar"));
    for (int i = 0; i < 10; ++i) {
      tar.add(std::to_string(i) + ".png", "not a picture");
      tar.add(std::to_string(i) + ".txt", "caption");
    }
    tar.finish();
  }
  check_fails(w.train("k", {"--train-data", w.file("broken.tar")}), {"broken.tar"});
}

TEST_CASE("data: what was left out is counted in the log") {
  Workshop w;
  {
    TarWriter tar(w.file("mixed.tar"));
    for (int i = 0; i < 30; ++i) {
      const std::string key = std::to_string(1000 + i);
      if (i % 10 == 3)
        tar.add(key + ".png", "not a picture");
      else if (i % 10 != 4)
        tar.add(key + ".png", noise_png(static_cast<uint64_t>(i), 16, 16));
      if (i % 10 != 5)
        tar.add(key + ".txt", i % 10 == 6 ? std::string(10000, 'a') : i % 10 == 7 ? "bad \xff utf" : "ok");
    }
    tar.finish();
  }
  const Outcome outcome = w.train("mixed", {"--train-data", w.file("mixed.tar"), "--max-steps", "8"});
  INFO(outcome.output);
  CHECK_EQ(outcome.status, 0);
  for (const char* reason : {"image", "caption"}) CHECK(outcome.output.find(reason) != std::string::npos);
}

TEST_CASE("a run folder belongs to one process, and is not overwritten") {
  Workshop w;
  REQUIRE_EQ(w.train("r", {"--max-steps", "1"}).status, 0);
  check_fails(w.train("r"), {"Experiment already exists", "--resume latest"});
  const int lock = open((w.path + "/logs/r/.lock").c_str(), O_RDWR);
  REQUIRE_EQ(flock(lock, LOCK_EX | LOCK_NB), 0);
  check_fails(w.train("r", {"--resume", "latest"}), {"in use", "--name"});
  close(lock);
}

TEST_CASE("checkpoints: of another model, damaged, missing") {
  Workshop w;
  REQUIRE_EQ(w.train("first", {"--max-steps", "2"}).status, 0);
  const std::string good = w.checkpoint("first", 2);
  check_fails(w.train("other", {"--model", "mini-28", "--resume", good}),
              {"open_clip_model.safetensors", "tensor"});
  check_fails(w.train("scale", {"--layer-scale", "0", "--resume", good}), {"tensor", "ls_1.gamma"});
  check_fails(w.train("gone", {"--resume", w.file("nowhere")}), {"nowhere"});
  CHECK_EQ(w.train("fresh", {"--resume", "latest", "--max-steps", "1"}).status, 0);  // job scripts rely on it

  const std::string weights = good + "/open_clip_model.safetensors";
  const std::string bytes = read_file(weights);
  write_file(weights, bytes.substr(0, bytes.size() - 100));
  check_fails(w.train("first", {"--resume", "latest"}), {"open_clip_model.safetensors"});
  std::string huge = bytes;
  huge[5] = 1;  // header length of 2^40
  write_file(weights, huge);
  check_fails(w.train("first", {"--resume", "latest"}), {"open_clip_model.safetensors", "header"});
}

TEST_CASE("a disk that fills up while saving leaves the old checkpoint as it was") {
  Workshop w;
  REQUIRE_EQ(w.train("disk", {"--max-steps", "3"}).status, 0);
  const std::string before = w.weights("disk", 3);
  const Outcome outcome = w.train("disk", {"--resume", "latest", "--keep-last", "1"}, 100 * 1024);
  check_fails(outcome, {"safetensors"});
  CHECK(w.weights("disk", 3) == before);
  CHECK_FALSE(fs::exists(w.checkpoint("disk", 6)));
  CHECK_EQ(w.train("disk", {"--resume", "latest", "--keep-last", "1"}).status, 0);  // and it goes on
  CHECK(fs::exists(w.checkpoint("disk", 6)));
  CHECK_FALSE(fs::exists(w.checkpoint("disk", 3)));
}

TEST_CASE("a loss that is not a number names the first tensor, and the last checkpoint stays") {
  Workshop w;
  check_fails(w.train("nan", {"--lr", "1e30", "--warmup", "0", "--save-every", "1"}),
              {"the loss is", "first tensor", "--resume"});
  CHECK(fs::exists(w.checkpoint("nan", 1)));
}

TEST_CASE("clip_eval: zero-shot and retrieval from a checkpoint, and its errors") {
  Workshop w;
  REQUIRE_EQ(w.train("e").status, 0);
  write_file(w.file("classnames.txt"), "zero\none\ntwo\n");
  write_file(w.file("zeroshot_classification_templates.txt"), "number {c}\n");
  auto evaluate = [&](Words words) {
    words.insert(words.begin(), {"--checkpoint", w.checkpoint("e", 6)});
    return Program("clip_eval", words, w.file("evaluation")).wait();
  };
  const Outcome both = evaluate({"--zeroshot-data", w.file("a.tar"), "--retrieval-data", w.file("b.tar"),
                                 "--output", w.file("results.json")});
  INFO(both.output);
  CHECK_EQ(both.status, 0);
  CHECK(both.output.find("zero-shot, 20 images") != std::string::npos);
  CHECK(both.output.find("retrieval, 28 pairs") != std::string::npos);
  CHECK(both.output.find("zero-shot top-1: 0.") != std::string::npos);
  CHECK(read_file(w.file("results.json")).find("image_to_text") != std::string::npos);
  write_file(w.file("classnames.txt"), "zero\none\n");
  const Outcome label = evaluate({"--zeroshot-data", w.file("a.tar")});
  CHECK_EQ(label.status, 1);
  CHECK(label.output.find("label 2") != std::string::npos);
  CHECK_EQ(evaluate({}).status, 1);
}

TEST_CASE("--profile-steps says where the time of its steps goes, and changes no bit; neither does --eager") {
  Workshop w;
  REQUIRE_EQ(w.train("plain").status, 0);
  const Outcome profiled = w.train("profiled", {"--profile-steps", "2-3", "--eager"});
  CHECK_EQ(profiled.status, 0);
  INFO(profiled.output);
  CHECK(contains(profiled.output, "Where the time goes, steps 2-3"));
  CHECK(contains(profiled.output, "attention backward"));
  CHECK(w.weights("plain", 6) == w.weights("profiled", 6));
  CHECK_EQ(w.train("beyond", {"--profile-steps", "4-90"}).status, 0);
  check_fails(w.train("wrong", {"--profile-steps", "3"}), {"--profile-steps is A-B", "got 3"});
}
