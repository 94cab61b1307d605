#include "distributed/launcher.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "distributed/socket.h"
#include "runtime/check.h"

namespace switchback {
namespace {

constexpr std::array forwarded{SIGTERM, SIGINT, SIGUSR1};
volatile std::sig_atomic_t pending_signal = 0;
void on_signal(int signal) { pending_signal = signal; }

struct Child {
  pid_t process = 0;
  bool running = true;
};

// Does not return on success of exec. Between fork and exec: system calls only.
[[noreturn]] void become_rank(const LaunchOptions& options, int rank, const Listener& listener,
                              std::vector<char*>& words, pid_t parent) {
  setpgid(0, 0);  // Ctrl-C reaches the launcher alone, which forwards it once
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  const std::string number = std::to_string(rank);
  setenv("RANK", number.c_str(), 1);
  setenv("LOCAL_RANK", number.c_str(), 1);
  if (rank == 0) {
    fcntl(listener.file(), F_SETFD, 0);  // rank 0 inherits it: no other program can take the port in between
    setenv("SWITCHBACK_LISTENING_FILE", std::to_string(listener.file()).c_str(), 1);
  }
  execv(options.program.c_str(), words.data());
  std::fprintf(stderr, "cannot start %s: %s\n", options.program.c_str(), std::strerror(errno));
  _exit(127);
}

}  // namespace

int launch(const LaunchOptions& options) {
  const int n = options.processes;
  Listener listener = Listener::on_port(0, true);
  const std::string size = std::to_string(n);
  setenv("WORLD_SIZE", size.c_str(), 1);
  setenv("LOCAL_WORLD_SIZE", size.c_str(), 1);
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", std::to_string(listener.port()).c_str(), 1);
  setenv("SWITCHBACK_SESSION", concat(getpid(), " at ", steady_seconds()).c_str(), 1);
  unsetenv("TORCHELASTIC_USE_AGENT_STORE");
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  setenv("SWITCHBACK_CPU_THREADS", std::to_string(std::max(1, cores / n)).c_str(),
         0);  // 0: a user's value stays

  std::vector<char*> words{const_cast<char*>(options.program.c_str())};
  for (const std::string& a : options.arguments) words.push_back(const_cast<char*>(a.c_str()));
  words.push_back(nullptr);
  pending_signal = 0;
  std::array<struct sigaction, forwarded.size()> before{};
  struct sigaction action {};
  action.sa_handler = on_signal;
  for (size_t i = 0; i < forwarded.size(); ++i) sigaction(forwarded[i], &action, &before[i]);

  int status = 0;
  std::vector<Child> children(static_cast<size_t>(n));
  const pid_t self = getpid();
  for (int rank = 0; rank < n; ++rank) {
    const pid_t process = fork();
    if (process == 0) become_rank(options, rank, listener, words, self);
    if (process < 0) {
      std::fprintf(stderr, "cannot start rank %d of %d: %s\n", rank, n, std::strerror(errno));
      for (const Child& c : children)
        if (c.process > 0) kill(c.process, SIGKILL);
      status = 1;
    }
    children[static_cast<size_t>(rank)] = {process, process > 0};
  }
  listener.close();

  double kill_at = 0;    // 0: all is well
  bool killing = false;  // by this launcher
  const auto any_running = [&] { return std::ranges::any_of(children, &Child::running); };
  const auto send_all = [&](int signal) {
    for (const Child& c : children)
      if (c.running) kill(c.process, signal);
  };
  while (any_running()) {
    if (const int signal = pending_signal) {
      pending_signal = 0;
      send_all(signal);
    }
    for (int rank = 0; rank < n; ++rank) {
      Child& child = children[static_cast<size_t>(rank)];
      int ended = 0;
      if (!child.running || waitpid(child.process, &ended, WNOHANG) == 0) continue;
      child.running = false;
      if (WIFEXITED(ended) && WEXITSTATUS(ended) == 0) continue;
      const int code = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended);
      // Whoever ends after the first ends because of it; but a killed one may be seen after those it brought
      // down.
      const bool killed_by_others = WIFSIGNALED(ended) && !killing;
      if (kill_at > 0 && !killed_by_others) continue;
      status = code;
      if (kill_at == 0) kill_at = steady_seconds() + options.leave_seconds;
      if (WIFSIGNALED(ended))
        std::fprintf(stderr,
                     "rank %d of %d (process %d) was killed by signal %d (%s)%s; ending the other ranks\n",
                     rank, n, static_cast<int>(child.process), WTERMSIG(ended), strsignal(WTERMSIG(ended)),
                     WTERMSIG(ended) == SIGKILL ? ", by hand or because memory ran out (see dmesg)" : "");
    }
    if (kill_at > 0 && steady_seconds() > kill_at) {
      for (int rank = 0; rank < n; ++rank)
        if (children[static_cast<size_t>(rank)].running)
          std::fprintf(stderr, "rank %d of %d (process %d) did not end within %g s: killed\n", rank, n,
                       static_cast<int>(children[static_cast<size_t>(rank)].process), options.leave_seconds);
      send_all(SIGKILL);
      killing = true;
      kill_at = steady_seconds() + 3600;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  for (size_t i = 0; i < forwarded.size(); ++i) sigaction(forwarded[i], &before[i], nullptr);
  return status;
}

std::optional<int> launch_if_asked(int argc, char** argv) {
  LaunchOptions options;
  std::string number;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--nproc") {
      if (i + 1 == argc) fail("--nproc needs a number: how many GPUs of this host to use");
      number = argv[++i];
    } else if (word.starts_with("--nproc=")) {
      number = word.substr(8);
    } else {
      options.arguments.push_back(word);
    }
  }
  if (number.empty()) return std::nullopt;
  char* end = nullptr;
  const long processes = std::strtol(number.c_str(), &end, 10);
  if (*end || processes < 1 || processes > 1024)
    fail("--nproc ", number,
         ": it must be a whole number from 1 to 1024 (how many GPUs of this host to use)");
  for (const char* name : {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"})
    if (std::getenv(name))
      fail("--nproc ", number, " starts the ranks itself, but ", name,
           " is set: torchrun or mpirun has started this one; "
           "use one of the two");
  options.program = std::filesystem::read_symlink("/proc/self/exe").string();
  options.processes = static_cast<int>(processes);
  return launch(options);
}

}  // namespace switchback
