// fuzz.h: bytes of the fuzzer as a file, for readers that take a path; and what counts as a finding.
//
// A reader may refuse its input with an Error. Everything else (a crash, a hang, memory out of
// proportion, another exception, a broken precondition of our own) is a finding.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/check.h"

namespace switchback {

// A file in memory that has a path.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : file_(memfd_create("fuzz", MFD_CLOEXEC)) {
    for (size_t done = 0; done < size;) {
      const ssize_t count = write(file_, data + done, size - done);
      if (count <= 0) std::abort();
      done += static_cast<size_t>(count);
    }
    path_ = "/proc/self/fd/" + std::to_string(file_);
  }
  ~MemoryFile() { close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  int file_;
  std::string path_;
};

// Whether the line ends as CHECK ends it: " [data/tar.cpp:12: condition]". Written without find() and out of
// the sight of the fuzzer, which learns what it is compared with and would write such lines itself.
__attribute__((no_sanitize("coverage"))) inline bool broken_rule(const std::string& line) {
  const char* const extension = ".cpp:";
  size_t matched = 0, slashes = 0;
  if (line.empty() || line.back() != ']') return false;
  for (size_t i = line.size(); i-- > 0;) {
    if (line[i] != '[' || i == 0 || line[i - 1] != ' ') continue;
    for (size_t j = i + 1; j < line.size() && line[j] != ' '; ++j) {
      slashes += line[j] == '/';
      matched = line[j] == extension[matched] ? matched + 1 : line[j] == '.' ? 1 : 0;
      if (matched == 5) return slashes > 0;
    }
    return false;
  }
  return false;
}

// Runs f; an Error for the user is fine.
template <class F>
void refusing(F f) {
  try {
    f();
  } catch (const Error& error) {
    const std::string line = error.what();
    if (line.empty() || broken_rule(line)) {
      std::fprintf(stderr, "%s\n", line.c_str());
      std::abort();
    }
  }
}

}  // namespace switchback
