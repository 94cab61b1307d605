// full_disk.h: while it lives, no file of this process can grow beyond `bytes`: what a full disk looks like
// to a writer.
#pragma once

#include <sys/resource.h>

#include <csignal>

namespace switchback {

class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    signal_before_ = std::signal(SIGXFSZ, SIG_IGN);  // so that write() fails with EFBIG
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_before_);
  }
  FullDisk(const FullDisk&) = delete;

 private:
  rlimit before_{};
  void (*signal_before_)(int);
};

}  // namespace switchback
