// input_file.h: a file that is read at offsets, from any thread, without a shared cursor (pread).
//
// Streams are files too: what a command prints ("pipe:zstd -dc shard.tar.zst"), what lies at an address
// ("https://...", "s3://...", "gs://...", fetched by curl, aws and gsutil), or the standard input ("-"). A
// stream is read to its end into a nameless file in $TMPDIR (/tmp), which vanishes with the last user; so a
// sample of it can be fetched like any other, and again.
//
// OpenFiles keeps the most recently used ones open: a group of samples may span thousands of small shards,
// more than the process may have open.
#pragma once

#include <atomic>
#include <cstdint>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

namespace switchback {

bool is_stream(std::string_view path);

class InputFile {
 public:
  // Errors name the path and the system's reason, or the command and its exit status. stop: when it becomes
  // true, reading a stream ends in an error (and its command is ended) instead of going on.
  explicit InputFile(std::string path, const std::atomic<bool>* stop = nullptr);
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
  explicit OpenFiles(size_t limit = 64, size_t stream_limit = 8)
      : limit_(limit), stream_limit_(stream_limit) {}
  std::shared_ptr<const InputFile> get(const std::string& path);
  void set_stopping(bool stopping) { stopping_ = stopping; }

 private:
  using File = std::shared_ptr<const InputFile>;
  struct Entry {
    std::string path;
    std::shared_future<File> file;  // ready, or being opened by another thread
  };
  using Files = std::list<Entry>;  // most recently used first
  void evict();

  std::mutex mutex_;
  size_t limit_, stream_limit_;
  std::atomic<bool> stopping_{false};
  Files files_;
  std::unordered_map<std::string, Files::iterator> by_path_;
};

}  // namespace switchback
