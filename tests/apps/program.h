// program.h: runs the built programs as a user would, and makes small data for them.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "data/png_writer.h"
#include "data/tar.h"
#include "runtime/file.h"
#include "runtime/philox.h"

namespace switchback {

struct Outcome {
  int status = 0;      // exit status; 128 + signal when killed
  std::string output;  // stdout and stderr together
};

class Program {
 public:
  // largest_file > 0: writes beyond that many bytes fail, as on a full disk.
  Program(const std::string& name, const std::vector<std::string>& arguments, const std::string& output_file,
          uint64_t largest_file = 0)
      : output_file_(output_file) {
    process_ = fork();
    if (process_ == 0) {
      const int out = open(output_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      dup2(out, 1);
      dup2(out, 2);
      if (largest_file > 0) {
        signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{largest_file, largest_file};
        setrlimit(RLIMIT_FSIZE, &limit);
      }
      const std::string path = std::string(SWITCHBACK_PROGRAMS) + "/" + name;
      std::vector<char*> words{const_cast<char*>(path.c_str())};
      for (const std::string& a : arguments) words.push_back(const_cast<char*>(a.c_str()));
      words.push_back(nullptr);
      execv(path.c_str(), words.data());
      _exit(127);
    }
  }
  void send(int signal_number) { kill(process_, signal_number); }
  bool running() {
    return !ended_ && waitpid(process_, &status_, WNOHANG) == 0 ? true : (ended_ = true, false);
  }
  Outcome wait() {
    if (!ended_) waitpid(process_, &status_, 0);
    ended_ = true;
    return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_), read_file(output_file_)};
  }

 private:
  std::string output_file_;
  pid_t process_ = 0;
  int status_ = 0;
  bool ended_ = false;
};

// Waits until `happened`, or fails the caller's patience of two minutes (a loaded machine is slow).
inline bool wait_until(const std::function<bool()>& happened) {
  for (int i = 0; i < 12000; ++i) {
    if (happened()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

inline std::vector<uint8_t> noise_png(uint64_t seed, int64_t height, int64_t width) {
  PhiloxStream random(seed, 7);
  std::vector<uint8_t> pixels(static_cast<size_t>(height * width * 3));
  for (uint8_t& p : pixels) p = static_cast<uint8_t>(random.next_u32());
  return encode_png(pixels, height, width, 3);
}

// `samples` pairs of noise and a caption that tells them apart.
inline void write_noise_shard(const std::string& path, int samples, int first = 0) {
  TarWriter tar(path);
  for (int i = first; i < first + samples; ++i) {
    const std::string key = std::to_string(100000 + i);
    tar.add(key + ".png", noise_png(static_cast<uint64_t>(i), 20 + i % 5, 18 + i % 7));
    tar.add(key + ".txt", "number " + std::to_string(i));
    tar.add(key + ".cls", std::to_string(i % 3));
  }
  tar.finish();
}

}  // namespace switchback
