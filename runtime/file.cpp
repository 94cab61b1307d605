#include "runtime/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr size_t buffer_size = size_t{1} << 16;    // small writes are gathered
constexpr size_t largest_write = size_t{1} << 30;  // Linux writes at most 2 GiB at a time

struct OpenFile {
  int number = -1;
  explicit OpenFile(const std::string& path) : number(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (number < 0) fail("cannot open ", path, ": ", std::strerror(errno));
    struct stat info {};
    if (fstat(number, &info) == 0 && S_ISDIR(info.st_mode)) {
      close(number);
      fail("cannot read ", path, ": it is a folder");
    }
  }
  ~OpenFile() { close(number); }
  OpenFile(const OpenFile&) = delete;
};

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

std::string read_file(const std::string& path) {
  const OpenFile file(path);
  std::string text;
  struct stat info {};
  if (fstat(file.number, &info) == 0 && info.st_size > 0) text.reserve(static_cast<size_t>(info.st_size));
  char part[buffer_size];
  while (true) {  // until the end, not st_size: that is 0 for pipes and /proc
    const ssize_t got = read(file.number, part, sizeof part);
    if (got == 0) return text;
    if (got > 0) {
      text.append(part, static_cast<size_t>(got));
    } else if (errno != EINTR) {
      fail("cannot read ", path, ": ", std::strerror(errno));
    }
  }
}

// ---- MappedFile ----

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const OpenFile file(path);
  struct stat info {};
  if (fstat(file.number, &info) != 0) fail("cannot read ", path, ": ", std::strerror(errno));
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;  // nothing can be mapped; bytes() is empty
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (mapped == MAP_FAILED) fail("cannot map ", path, " (", size_, " bytes): ", std::strerror(errno));
  data_ = static_cast<const std::byte*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

// ---- AtomicFile ----

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)), temporary_(path_ + ".tmp-" + std::to_string(getpid())) {
  file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file_ < 0) fail("cannot write ", path_, ": ", std::strerror(errno));
  buffer_.reserve(buffer_size);
}

AtomicFile::~AtomicFile() {
  if (file_ < 0) return;
  close(file_);
  unlink(temporary_.c_str());
}

void AtomicFile::give_up(const char* action, int error_number) {
  if (file_ >= 0) close(file_);
  file_ = -1;
  unlink(temporary_.c_str());
  fail("cannot ", action, " ", path_, " (", written_, " bytes were written): ", std::strerror(error_number),
       "; nothing was changed", error_number == ENOSPC ? ", make room and try again" : "");
}

void AtomicFile::write_through(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::write(file_, bytes.data(), std::min(bytes.size(), largest_write));
    if (done < 0) {
      if (errno == EINTR) continue;
      give_up("write", errno);
    }
    written_ += static_cast<size_t>(done);
    bytes = bytes.subspan(static_cast<size_t>(done));
  }
}

void AtomicFile::flush() {
  write_through(std::as_bytes(std::span(buffer_)));
  buffer_.clear();
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  CHECK(file_ >= 0, path_, ": written to after the end");
  if (buffer_.size() + bytes.size() > buffer_size) flush();
  if (bytes.size() >= buffer_size) {
    write_through(bytes);
  } else {
    buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  CHECK(file_ >= 0, path_, ": committed twice");
  flush();
  if (fsync(file_) != 0) give_up("write", errno);  // file systems may report a full disk only here
  const int result = close(std::exchange(file_, -1));
  if (result != 0) give_up("write", errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) give_up("replace", errno);
  sync_folder(folder_of(path_));
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void sync_folder(const std::string& folder) {
  const int number = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (number < 0) fail("cannot open folder ", folder, ": ", std::strerror(errno));
  const int result = fsync(number);
  const int reason = errno;
  close(number);
  // Some network file systems cannot sync folders and say so with EINVAL: the data are as safe as they get.
  if (result != 0 && reason != EINVAL && reason != ENOTSUP)
    fail("cannot sync folder ", folder, ": ", std::strerror(reason));
}

}  // namespace switchback
