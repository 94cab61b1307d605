// socket.h: TCP connections that carry whole messages, with deadlines everywhere.
//
// A message is a length (8 bytes) and that many bytes; a list of strings is a message with a 0 byte after
// each. Ranks are processes of the same program on machines of the same kind: numbers are sent as they are.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace switchback {

// The other end is gone: closed, reset or shut down.
struct ConnectionClosed {};

class Socket {
 public:
  Socket() = default;
  explicit Socket(int file) : file_(file) {}
  ~Socket();
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;

  explicit operator bool() const { return file_ >= 0; }
  int file() const { return file_; }
  void close();
  void shut_down() const;  // wakes whoever waits for it, here and there

  // Called about ten times a second while send() and receive() wait: throws to give up.
  using Tick = std::function<void()>;
  // Throw ConnectionClosed.
  void send(const void* data, size_t bytes, const Tick& tick) const;
  void receive(void* data, size_t bytes, const Tick& tick) const;
  void send_strings(const std::vector<std::string>& strings, const Tick& tick) const;
  std::vector<std::string> receive_strings(const Tick& tick) const;

 private:
  int file_ = -1;
};

// One attempt to reach host:port within `seconds`; an empty socket and the reason when it fails.
Socket connect_to(const std::string& host, int port, double seconds, std::string& why);

class Listener {
 public:
  // port 0: any free one. loopback_only: reachable from this machine alone. Errors: the port is in use.
  static Listener on_port(int port, bool loopback_only);
  // A socket that listens already (inherited from a launcher).
  static Listener adopt(int file);

  Socket accept(double seconds) const;  // empty after that time
  int port() const;
  int file() const { return socket_.file(); }
  void close() { socket_.close(); }

 private:
  explicit Listener(Socket socket) : socket_(std::move(socket)) {}
  Socket socket_;
};

// Seconds on a clock that never goes back.
double steady_seconds();
// A Tick that throws Error(what) from `deadline` (of steady_seconds) on.
Socket::Tick give_up_at(double deadline, std::string what);
std::string this_host();

}  // namespace switchback
