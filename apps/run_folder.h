// run_folder.h: the folder of one training run, held by one process at a time.
//
//   LOGS/NAME/            out.log, train.jsonl, params.txt, training.svg
//   LOGS/NAME/checkpoints results.jsonl, step_00000300/ ...
//   LOGS/NAME/.lock       locked while a process trains there
#pragma once

#include <string>

namespace switchback {

class RunFolder {
 public:
  // logs "none": nothing is written, path() is empty. Errors: the run exists and `resume` is false
  // (open_clip's words; a run that failed before its loop began does not count); another process is training
  // there; the folder cannot be made.
  RunFolder(const std::string& logs, const std::string& name, bool resume);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return path_.empty() ? "" : path_ + "/checkpoints"; }

 private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace switchback
