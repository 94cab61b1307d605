// Processes under the launcher: a rank that dies, throws or hangs brings all down soon, with a line that says
// who, where and why; and nothing else does.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "distributed/socket.h"
#include "runtime/file.h"
#include "tests/distributed/testing.h"

using namespace switchback;

namespace {

struct Outcome {
  int status = 0;
  double seconds = 0;
  std::string output;
};

std::string folder() {
  static const std::string path = [] {
    std::string name = (std::filesystem::temp_directory_path() / "switchback-ranks-XXXXXX").string();
    if (!mkdtemp(name.data())) fail("no temporary folder");
    return name;
  }();
  return path;
}

Outcome run(const std::string& arguments, const std::string& before = "") {
  const std::string file = folder() + "/output";
  const double start = steady_seconds();
  const int status =
      std::system((before + " " SWITCHBACK_RANK_PROGRAM " " + arguments + " > " + file + " 2>&1").c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), steady_seconds() - start,
          read_file(file)};
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

}  // namespace

TEST_CASE("nothing goes wrong") {
  for (const char* nproc : {"--nproc 1", "--nproc 2", "--nproc=4"}) {
    const Outcome o = run(concat(nproc, " none 0"));
    CHECK(o.status == 0);
    CHECK(contains(o.output, "sum"));
    CHECK(count(o.output, "\n") == 1);
  }
  const Outcome alone = run("none 0");
  CHECK(alone.status == 0);
  CHECK(alone.output == "sum 1\n");
}

TEST_CASE("a slow rank is waited for") {
  const Outcome o = run("--nproc 3 delay 1");
  CHECK(o.status == 0);
  CHECK(contains(o.output, "sum 6"));
}

TEST_CASE("killed in forward: who and where") {
  for (const char* victim : {"2", "0"}) {
    const Outcome o = run(concat("--nproc 3 die-forward ", victim));
    INFO(o.output);
    CHECK(o.status == 128 + SIGKILL);
    CHECK(o.seconds < 10);
    CHECK(contains(o.output, concat("rank ", victim, " of 3")));
    CHECK(contains(o.output, "forward of step 3"));
    CHECK(contains(o.output, "signal 9"));
    CHECK(count(o.output, "\n") == 2);  // the launcher's line, and one rank's
  }
}

TEST_CASE("killed in all-reduce") {
  const Outcome o = run("--nproc 3 die-reduce 2");
  INFO(o.output);
  CHECK(o.status == 128 + SIGKILL);
  CHECK(contains(o.output, "rank 2 of 3"));
  CHECK(contains(o.output, "backward of step 3, in all_reduce"));
  CHECK(o.seconds < 10);
}

TEST_CASE("killed in saving: the old checkpoint stands") {
  const std::string file = folder() + "/checkpoint";
  write_file(file, "old");
  const Outcome o = run("--nproc 2 die-saving 0 " + file);
  INFO(o.output);
  CHECK(o.status == 128 + SIGKILL);
  CHECK(contains(o.output, "saving"));
  CHECK(read_file(file) == "old");
  CHECK(run("--nproc 2 none 0 " + file).status == 0);
  CHECK(read_file(file) == "half of the new checkpoint");
}

TEST_CASE("a rank that throws: its own words, once") {
  for (const char* victim : {"0", "1"}) {
    const Outcome o = run(concat("--nproc 3 throw ", victim));
    INFO(o.output);
    CHECK(o.status == 1);
    CHECK(o.seconds < 10);
    CHECK(contains(o.output, concat("rank ", victim, " of 3")));
    CHECK(contains(o.output, "failed at: forward of step 3: the loss is NaN"));
    CHECK(count(o.output, "\n") == 1);
  }
}

TEST_CASE("a rank that hangs") {
  for (const char* victim : {"0", "2"}) {
    const Outcome o = run(concat("--nproc 3 hang ", victim));
    INFO(o.output);
    CHECK(o.status != 0);
    CHECK(o.seconds < 15);
    CHECK(contains(o.output, concat("rank ", victim, " of 3")));
    CHECK(contains(o.output, "has been at: forward of step 3 for"));
  }
}

TEST_CASE("a rank that leaves early, though well") {
  const Outcome o = run("--nproc 3 leave 1");
  INFO(o.output);
  CHECK(o.status == 1);
  CHECK(contains(o.output, "rank 1 of 3"));
  CHECK(contains(o.output, "ended without a word"));
}

TEST_CASE("mistakes of a new user") {
  Outcome o = run("--nproc 3 flags 2");
  CHECK(o.status == 1);
  CHECK(contains(o.output, "has --batch-size 64, rank 0 on"));
  CHECK(count(o.output, "\n") == 1);
  o = run("--nproc 2 gpus 0");
  CHECK(contains(o.output, "both want GPU 0"));
  CHECK(contains(run("--nproc zero none 0").output, "--nproc zero: it must be a whole number"));
  CHECK(contains(run("--nproc 2 none 0", "RANK=0").output, "RANK is set"));
  CHECK(contains(run("none 0", "RANK=0 WORLD_SIZE=2").output, "MASTER_ADDR is not set"));
}

TEST_CASE("SIGTERM to the launcher stops all ranks at one step") {
  const std::string file = folder() + "/stop-output";
  std::fflush(stdout);
  const pid_t launcher = fork();
  if (launcher == 0) {
    if (!std::freopen(file.c_str(), "w", stdout) || dup2(1, 2) < 0) _exit(126);
    execl(SWITCHBACK_RANK_PROGRAM, "distributed_rank", "--nproc", "3", "stop", "0", nullptr);
    _exit(127);
  }
  const auto output = [&] { return std::filesystem::exists(file) ? read_file(file) : std::string(); };
  for (int i = 0; i < 1000 && output().find("running") == std::string::npos; ++i) usleep(10'000);
  kill(launcher, SIGTERM);
  int status = 0;
  waitpid(launcher, &status, 0);
  INFO(output());
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(contains(output(), "sum 6, stopped"));
}

TEST_CASE("the temporary folder goes") { std::filesystem::remove_all(folder()); }
