// file.h: whole files read, mapped, and replaced in one piece.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace switchback {

// Errors of everything here: one line with the path and the system's reason.

std::string read_file(const std::string& path);

// The bytes of a file, mapped read-only: pages are read when touched and shared between processes.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A file that appears complete or not at all: bytes go to PATH.tmp-PID; commit() syncs them, renames the file
// over PATH, and syncs the folder. Without commit(), or after an error (disk full), the temporary file is
// removed and whatever was at PATH stays as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  [[noreturn]] void give_up(const char* action, int error_number);
  void flush();
  void write_through(std::span<const std::byte> bytes);

  std::string path_, temporary_, buffer_;
  int file_ = -1;
  size_t written_ = 0;
};

// Replaces PATH by this text through an AtomicFile.
void write_file(const std::string& path, std::string_view text);

// Makes a rename or removal in this folder last through a power cut.
void sync_folder(const std::string& folder);

}  // namespace switchback
