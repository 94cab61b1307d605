// input_file.h: a file that is read at offsets, from any thread, without a shared cursor (pread).
//
// OpenFiles keeps the most recently used ones open: a group of samples may span thousands of small shards,
// more than the process may have open.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>

namespace switchback {

class InputFile {
 public:
  explicit InputFile(std::string path);  // error: names the path and the system's reason
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened

  size_t read_some(uint64_t offset, std::span<uint8_t> to) const;  // fewer bytes only at the end of the file
  void read(uint64_t offset, std::span<uint8_t> to) const;         // error: the file ends before
  void will_need_all()
      const;  // asks the system to read ahead: one sequential pass is faster than scattered reads

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

class OpenFiles {
 public:
  explicit OpenFiles(size_t limit = 64) : limit_(limit) {}
  std::shared_ptr<const InputFile> get(const std::string& path);

 private:
  using Files = std::list<std::shared_ptr<const InputFile>>;  // most recently used first
  std::mutex mutex_;
  size_t limit_;
  Files files_;
  std::unordered_map<std::string, Files::iterator> by_path_;
};

}  // namespace switchback
