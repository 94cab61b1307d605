#include "distributed/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr int tick_milliseconds = 100;
constexpr uint64_t longest_message = 1 << 24;  // of strings: what is longer is not ours

// True when `file` is ready for `events` (or broken, which the next call reports).
bool ready(int file, short events, int milliseconds) {
  pollfd p{file, events, 0};
  return poll(&p, 1, milliseconds) > 0;
}

void set_options(int file) {
  const int on = 1;
  setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(file, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  fcntl(file, F_SETFL, fcntl(file, F_GETFL) | O_NONBLOCK);
  fcntl(file, F_SETFD, FD_CLOEXEC);
}

}  // namespace

Socket::~Socket() { close(); }
Socket::Socket(Socket&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    file_ = std::exchange(other.file_, -1);
  }
  return *this;
}

void Socket::close() {
  if (file_ >= 0) ::close(std::exchange(file_, -1));
}

void Socket::shut_down() const {
  if (file_ >= 0) shutdown(file_, SHUT_RDWR);
}

void Socket::send(const void* data, size_t bytes, const Tick& tick) const {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(file_, from, bytes, MSG_NOSIGNAL);
    if (sent > 0) {
      from += sent;
      bytes -= static_cast<size_t>(sent);
    } else if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (!ready(file_, POLLOUT, tick_milliseconds) && tick) tick();
    } else {
      throw ConnectionClosed();
    }
  }
}

void Socket::receive(void* data, size_t bytes, const Tick& tick) const {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::recv(file_, to, bytes, 0);
    if (got > 0) {
      to += got;
      bytes -= static_cast<size_t>(got);
    } else if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      if (!ready(file_, POLLIN, tick_milliseconds) && tick) tick();
    } else {
      throw ConnectionClosed();
    }
  }
}

void Socket::send_strings(const std::vector<std::string>& strings, const Tick& tick) const {
  std::string body;
  for (const std::string& s : strings) body += s, body += '\0';
  const uint64_t length = body.size();
  std::string message(reinterpret_cast<const char*>(&length), sizeof length);
  message += body;
  send(message.data(), message.size(), tick);
}

std::vector<std::string> Socket::receive_strings(const Tick& tick) const {
  uint64_t length = 0;
  receive(&length, sizeof length, tick);
  if (length > longest_message) throw ConnectionClosed();
  std::string body(length, '\0');
  receive(body.data(), body.size(), tick);
  std::vector<std::string> strings;
  for (size_t from = 0, end; (end = body.find('\0', from)) != std::string::npos; from = end + 1)
    strings.push_back(body.substr(from, end - from));
  return strings;
}

Socket connect_to(const std::string& host, int port, double seconds, std::string& why) {
  addrinfo wanted{}, *found = nullptr;
  wanted.ai_socktype = SOCK_STREAM;
  if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &found)) {
    why = gai_strerror(error);
    return {};
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  for (const addrinfo* a = found; a; a = a->ai_next) {
    Socket s(socket(a->ai_family, a->ai_socktype, a->ai_protocol));
    if (!s) continue;
    set_options(s.file());
    int error = connect(s.file(), a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      if (!ready(s.file(), POLLOUT, static_cast<int>(seconds * 1000))) {
        why = "no answer";
        continue;
      }
      socklen_t size = sizeof error;
      getsockopt(s.file(), SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) return s;
    why = std::strerror(error);
  }
  return {};
}

Listener Listener::on_port(int port, bool loopback_only) {
  int error = 0;
  for (const int family : {AF_INET6, AF_INET}) {  // IPv6 takes IPv4, too; some containers have none
    if (loopback_only && family == AF_INET6) continue;
    Socket s(socket(family, SOCK_STREAM, 0));
    if (!s) continue;
    const int on = 1, off = 0;
    setsockopt(s.file(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_storage address{};
    socklen_t size = 0;
    if (family == AF_INET6) {
      setsockopt(s.file(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
      auto* a = reinterpret_cast<sockaddr_in6*>(&address);
      a->sin6_family = AF_INET6;
      a->sin6_addr = in6addr_any;
      a->sin6_port = htons(static_cast<uint16_t>(port));
      size = sizeof *a;
    } else {
      auto* a = reinterpret_cast<sockaddr_in*>(&address);
      a->sin_family = AF_INET;
      a->sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
      a->sin_port = htons(static_cast<uint16_t>(port));
      size = sizeof *a;
    }
    if (bind(s.file(), reinterpret_cast<sockaddr*>(&address), size) == 0 && listen(s.file(), 1024) == 0) {
      set_options(s.file());
      return Listener(std::move(s));
    }
    error = errno;
    if (error == EADDRINUSE) break;
  }
  if (error == EADDRINUSE)
    fail("port ", port, " of ", this_host(),
         " is in use (by another training run?): set MASTER_PORT to a free one "
         "on all ranks");
  fail("cannot listen on port ", port, " of ", this_host(), ": ", std::strerror(error),
       "; set MASTER_PORT to another one on all ranks");
}

Listener Listener::adopt(int file) {
  set_options(file);
  return Listener(Socket(file));
}

Socket Listener::accept(double seconds) const {
  if (!ready(socket_.file(), POLLIN, static_cast<int>(seconds * 1000))) return {};
  Socket s(::accept(socket_.file(), nullptr, nullptr));
  if (s) set_options(s.file());
  return s;
}

int Listener::port() const {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  getsockname(socket_.file(), reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Socket::Tick give_up_at(double deadline, std::string what) {
  return [deadline, what = std::move(what)] {
    if (steady_seconds() > deadline) fail(what);
  };
}

std::string this_host() {
  char name[256] = "?";
  gethostname(name, sizeof name - 1);
  return name;
}

}  // namespace switchback
