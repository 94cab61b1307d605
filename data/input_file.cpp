#include "data/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/check.h"

namespace switchback {

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) fail("cannot open ", path_, ": ", std::strerror(errno));
  struct stat status {};
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    fail("cannot read ", path_, ": it is not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

InputFile::~InputFile() { close(descriptor_); }

size_t InputFile::read_some(uint64_t offset, std::span<uint8_t> to) const {
  size_t done = 0;
  while (done < to.size()) {
    const ssize_t n =
        pread(descriptor_, to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("cannot read ", path_, " at byte ", offset + done, ": ", std::strerror(errno));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

void InputFile::read(uint64_t offset, std::span<uint8_t> to) const {
  const size_t done = read_some(offset, to);
  if (done < to.size()) {
    fail(path_, " ends at byte ", offset + done, " where ", to.size() - done,
         " more bytes were expected: it was "
         "truncated or changed while in use");
  }
}

void InputFile::will_need_all() const { posix_fadvise(descriptor_, 0, 0, POSIX_FADV_WILLNEED); }

std::shared_ptr<const InputFile> OpenFiles::get(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (auto found = by_path_.find(path); found != by_path_.end()) {
    files_.splice(files_.begin(), files_, found->second);
    return files_.front();
  }
  // Opening under the lock keeps one descriptor per path; a slow open stalls the other readers meanwhile.
  files_.push_front(std::make_shared<const InputFile>(path));
  by_path_[path] = files_.begin();
  if (files_.size() > limit_) {
    by_path_.erase(files_.back()->path());
    files_.pop_back();
  }
  return files_.front();
}

}  // namespace switchback
