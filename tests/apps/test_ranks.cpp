// clip_train over several processes, on the CPU: what one process does with the whole batch, to rounding; and
// one line for everything that goes wrong.
#include <cmath>

#include "tests/apps/workshop.h"

using namespace switchback;

namespace {

std::vector<double> losses(const Workshop& w, const std::string& name) {
  std::vector<double> found;
  const std::string log = read_file(w.path + "/logs/" + name + "/train.jsonl");
  for (size_t at = 0; (at = log.find("\"loss\":", at)) != std::string::npos; ++at)
    found.push_back(std::stod(log.substr(at + 7)));
  return found;
}

void check_close(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE_EQ(a.size(), b.size());
  REQUIRE_GE(a.size(), 6);
  for (size_t i = 0; i < a.size(); ++i) {
    INFO("step ", i, ": ", a[i], " and ", b[i]);
    CHECK(std::abs(a[i] - b[i]) < 1e-4 * std::abs(b[i]));
  }
}

int lines_of(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

}  // namespace

TEST_CASE(
    "two ranks with half of the batch each train as one with all of it; ZeRO-1 and accumulation as well") {
  Workshop w;
  const Words stable{"--opt", "stableadamw"};
  REQUIRE_EQ(w.train("one", stable).status, 0);
  const Outcome two = w.train("two", {"--opt", "stableadamw", "--nproc", "2", "--batch-size", "4"});
  INFO(two.output);
  REQUIRE_EQ(two.status, 0);
  check_close(losses(w, "two"), losses(w, "one"));
  CHECK_EQ(lines_of(two.output, "Train Epoch: "), 6);  // rank 0's lines alone
  const Outcome behind = w.train("behind", {"--opt", "stableadamw", "--nproc", "2", "--batch-size", "4",
                                            "--overlap-reduce", "off"});
  REQUIRE_EQ(behind.status, 0);
  CHECK_EQ(lines_of(behind.output, "behind the backward pass"), 1);
  CHECK(w.weights("behind", 6) == w.weights("two", 6));  // updated piece by piece
  REQUIRE_EQ(w.train("zero", {"--opt", "stableadamw", "--nproc", "2", "--batch-size", "2", "--accum-freq",
                              "2", "--zero", "1"})
                 .status,
             0);
  check_close(losses(w, "zero"), losses(w, "one"));
}

TEST_CASE("a run of two ranks goes on with one, then with four, with ZeRO-1 and without") {
  Workshop w;
  const std::string flat = "--skip-scheduler";  // the rates must not depend on --max-steps
  REQUIRE_EQ(w.train("whole", {flat}).status, 0);
  REQUIRE_EQ(w.train("parts", {flat, "--max-steps", "2", "--nproc", "2", "--batch-size", "4", "--zero", "1",
                               "--save-every-n-steps", "1"})
                 .status,
             0);
  REQUIRE_EQ(
      w.train("parts", {flat, "--max-steps", "4", "--resume", "latest", "--save-every-n-steps", "1"}).status,
      0);
  const Outcome last =
      w.train("parts", {flat, "--nproc", "4", "--batch-size", "2", "--zero", "1", "--resume", "latest"});
  INFO(last.output);
  REQUIRE_EQ(last.status, 0);
  check_close(losses(w, "parts"), losses(w, "whole"));
}

TEST_CASE("two ranks find in an evaluation what one finds") {
  Workshop w;
  write_file(w.file("classnames.txt"), "zero\none\ntwo\n");
  write_file(w.file("zeroshot_classification_templates.txt"), "number {c}\n");
  const auto results = [&](const std::string& name, Words more) {
    more.insert(more.end(),
                {"--lr", "0", "--max-steps", "1", "--batch-size", "4", "--val-data", w.file("b.tar"),
                 "--zeroshot-data", w.file("a.tar"), "--eval-every-n-steps", "1"});
    const Outcome outcome = w.train(name, more);
    INFO(outcome.output);
    REQUIRE_EQ(outcome.status, 0);
    CHECK_EQ(lines_of(outcome.output, "Eval Epoch: "), 1);
    std::string line = read_file(w.path + "/logs/" + name + "/checkpoints/results.jsonl");
    const size_t at = line.find("\"clip_val_loss\":") + 16, end = line.find_first_of(",}", at);
    const double loss = std::stod(line.substr(at));  // a sum in another order
    return std::pair{line.erase(at, end - at), loss};
  };
  for (const char* samples : {"28", "11"}) {
    const auto [one, loss] =
        results(concat("one", samples), {"--accum-freq", "2", "--val-num-samples", samples});
    const auto [two, loss_of_two] =
        results(concat("two", samples), {"--nproc", "2", "--val-num-samples", samples});
    CHECK_EQ(two, one);
    CHECK(std::abs(loss - loss_of_two) < 1e-6 * loss);
    CHECK_EQ(lines_of(one, concat("\"num_samples\":", samples)), 1);
  }
}

TEST_CASE("SIGTERM to the launcher saves once and ends all") {
  Workshop w;
  Program run("clip_train",
              w.arguments("long", {"--max-steps", "100000", "--train-num-samples", "800000", "--nproc", "2",
                                   "--batch-size", "4"}),  // no epoch ends
              w.file("long"));
  REQUIRE(wait_until([&] {
    return fs::exists(w.file("long")) && read_file(w.file("long")).find("Train Epoch") != std::string::npos;
  }));
  run.send(SIGTERM);
  const Outcome outcome = run.wait();
  INFO(outcome.output);
  CHECK_EQ(outcome.status, 0);
  CHECK_EQ(lines_of(outcome.output, "stopped by signal 15"), 1);
  CHECK_EQ(lines_of(outcome.output, "saved "), 1);
}

TEST_CASE("bad data end all ranks with one line") {
  Workshop w;
  const Outcome outcome = w.train("bad", {"--nproc", "2", "--batch-size", "40"});
  INFO(outcome.output);
  CHECK_EQ(outcome.status, 1);
  CHECK_EQ(lines_of(outcome.output, "clip_train: "), 1);
}
