#include "apps/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "runtime/check.h"

namespace switchback {

RunFolder::RunFolder(const std::string& logs, const std::string& name, bool resume) {
  if (logs == "none") return;
  path_ = (std::filesystem::path(logs) / name).string();
  std::error_code error;
  std::filesystem::create_directories(path_ + "/checkpoints", error);
  if (error) fail("cannot make the run folder ", path_, ": ", error.message());
  lock_ = open((path_ + "/.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) fail("cannot write into the run folder ", path_, ": ", std::strerror(errno));
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    close(lock_);
    fail("run folder ", path_, " is in use by another process; choose another --name");
  }
  if (!resume && std::filesystem::exists(path_ + "/train.jsonl")) {
    close(lock_);
    fail("Error. Experiment already exists. Use --name {} to specify a new experiment. (", path_,
         "; --resume latest goes on with it)");
  }
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) close(lock_);  // releases the lock
}

}  // namespace switchback
