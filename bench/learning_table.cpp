// learning_table.cpp: results of bench/learning_study.sh.
//
//   build/bench/learning_table run FOLDER                        one JSON line of a run of clip_train
//   build/bench/learning_table table LINES.jsonl [PICTURE.svg [TITLE]]   what all runs came to
#include <cstdio>

#include "bench/learning_results.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "runtime/program.h"

using namespace switchback;

namespace {

int run(int count, char** arguments) {
  const std::string what = count > 2 ? arguments[1] : "";
  if (what == "run" && count == 3) {
    std::printf("%s\n", json_line(read_learning_run(arguments[2])).c_str());
  } else if (what == "table") {
    const std::vector<LearningRun> runs = read_learning_lines(arguments[2]);
    std::printf("%s", learning_table(runs).c_str());
    const std::string title = count > 4 ? arguments[4] : "Training a small CLIP with low-precision linears";
    if (count > 3) write_file(arguments[3], learning_picture(runs, title));
  } else {
    fail("usage: learning_table run FOLDER, or learning_table table LINES.jsonl [PICTURE.svg [TITLE]]");
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) { return run_program("learning_table", run, count, arguments); }
