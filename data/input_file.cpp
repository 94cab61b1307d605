#include "data/input_file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime/check.h"

namespace switchback {
namespace {

// A word that a shell takes as it is.
std::string quoted(std::string_view text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

// What a shell runs to get the stream; empty: the standard input.
std::string command_of(const std::string& path) {
  if (path == "-") return "";
  if (path.starts_with("pipe:")) return path.substr(5);
  if (path.starts_with("s3://")) return "aws s3 cp --quiet " + quoted(path) + " -";
  if (path.starts_with("gs://")) return "gsutil -q cat " + quoted(path);
  return "curl --fail --silent --show-error --location --retry 3 " + quoted(path);
}

int nameless_file() {
  const char* folder = std::getenv("TMPDIR");
  std::string name = concat(folder && *folder ? folder : "/tmp", "/switchback-stream-XXXXXX");
  const int file = mkostemp(name.data(), O_CLOEXEC);
  if (file < 0)
    fail("cannot make a temporary file ", name, " for a stream: ", std::strerror(errno), " (see TMPDIR)");
  unlink(name.c_str());
  return file;
}

// A shell's command whose output is read. Ended with all that it started when it goes out of scope.
class Command {
 public:
  explicit Command(const std::string& command) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) fail("cannot make a pipe: ", std::strerror(errno));
    // Made before the fork: between fork and exec nothing may allocate.
    const char* words[] = {"sh", "-c", command.c_str(), nullptr};
    process_ = fork();
    if (process_ == 0) {
      setpgid(0, 0);
      dup2(ends[1], 1);
      execv("/bin/sh", const_cast<char**>(words));
      _exit(127);
    }
    close(ends[1]);
    output_ = ends[0];
    if (process_ < 0) {
      close(output_);
      fail("cannot start a shell for ", command, ": ", std::strerror(errno));
    }
    setpgid(process_, process_);  // also here: who comes first
  }
  ~Command() {
    close(output_);
    if (process_ <= 0) return;
    kill(-process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  int output() const { return output_; }
  // After the end of its output: exit status, 128 + the signal.
  int wait() {
    int status = 0;
    while (waitpid(process_, &status, 0) < 0 && errno == EINTR) {
    }
    process_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t process_ = 0;
  int output_ = -1;
};

// Copies what can be read from `from` to the file, until its end.
void copy_all(const std::string& path, int from, int to, const std::atomic<bool>* stop) {
  std::vector<char> buffer(1 << 20);
  while (true) {
    if (stop && *stop) fail("reading ", path, " was given up");
    pollfd ready{from, POLLIN, 0};
    const int changed = poll(&ready, 1, 200);  // so that `stop` is seen
    if (changed == 0 || (changed < 0 && errno == EINTR)) continue;
    const ssize_t count = ::read(from, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot read ", path, ": ", std::strerror(errno));
    if (count == 0) return;
    for (ssize_t done = 0; done < count;) {
      const ssize_t written = ::write(to, buffer.data() + done, static_cast<size_t>(count - done));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0)
        fail("cannot keep ", path, " in a temporary file: ", std::strerror(errno),
             "; TMPDIR names a folder with room for the shards in use");
      done += written;
    }
  }
}

// The whole stream in a nameless file.
int spool(const std::string& path, const std::atomic<bool>* stop) {
  const std::string command = command_of(path);
  const int file = nameless_file();
  try {
    if (command.empty()) {
      copy_all("the standard input", 0, file, stop);
    } else {
      Command running(command);
      copy_all(path, running.output(), file, stop);
      const int status = running.wait();
      if (status != 0)
        fail(path, ": the command ended with status ", status, status == 127 ? " (not found)" : "", ": ",
             command);
    }
  } catch (...) {
    close(file);
    throw;
  }
  return file;
}

}  // namespace

bool is_stream(std::string_view path) {
  if (path == "-") return true;
  for (const char* scheme : {"pipe:", "http://", "https://", "s3://", "gs://"})
    if (path.starts_with(scheme)) return true;
  return false;
}

InputFile::InputFile(std::string path, const std::atomic<bool>* stop) : path_(std::move(path)) {
  if (is_stream(path_)) {
    descriptor_ = spool(path_, stop);
  } else {
    descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail("cannot open ", path_, ": ", std::strerror(errno));
  }
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
  std::promise<File> opened;
  std::shared_future<File> file;
  {
    std::lock_guard lock(mutex_);
    if (auto found = by_path_.find(path); found != by_path_.end()) {
      files_.splice(files_.begin(), files_, found->second);
      file = files_.front().file;
    } else {
      files_.push_front({path, opened.get_future().share()});
      by_path_[path] = files_.begin();
      evict();
    }
  }
  if (file.valid()) return file.get();  // waits for, or fails with, the thread that opens it
  // Opened without the lock: a slow stream must not stall the readers of other files.
  try {
    const auto result = std::make_shared<const InputFile>(path, &stopping_);
    opened.set_value(result);
    return result;
  } catch (...) {
    opened.set_exception(std::current_exception());
    std::lock_guard lock(mutex_);
    if (auto found = by_path_.find(path); found != by_path_.end()) {  // the next one tries again
      files_.erase(found->second);
      by_path_.erase(found);
    }
    throw;
  }
}

// Called with the lock held. The oldest go; never the standard input, which cannot be read again.
void OpenFiles::evict() {
  size_t files = 0, streams = 0;
  for (auto it = files_.begin(); it != files_.end();) {
    const bool stream = is_stream(it->path);
    const bool ready = it->file.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    if (++files <= limit_ && (!stream || ++streams <= stream_limit_)) {
      ++it;
    } else if (!ready || it->path == "-") {
      ++it;
    } else {
      by_path_.erase(it->path);
      it = files_.erase(it);
    }
  }
}

}  // namespace switchback
