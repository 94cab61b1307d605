#include "distributed/watch.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

namespace switchback {
namespace {

constexpr double send_seconds = 2;      // a message that does not go out in that time is given up
constexpr double goodbye_seconds = 10;  // rank 0 waits for the others' goodbyes

// Where a rank is. Sent as strings: "at", place, seconds there, seconds allowed, waits.
struct Position {
  std::string place = "its start";
  double since = 0;  // steady_seconds of this process
  double allowed = std::numeric_limits<double>::infinity();
  bool waits = false;  // for other ranks
};

struct Peer {
  Socket socket;
  Position position;
  double heard = 0;
  bool left = false;  // said goodbye, or is gone and that has been dealt with
};

std::string rounded(double seconds) { return std::to_string(static_cast<long>(seconds + 0.5)); }

}  // namespace

struct Watch::State {
  const int rank;
  const std::vector<Member> members;
  const Options options;
  std::vector<Peer> peers;  // rank 0: (world), [0] unused; others: rank 0 alone

  mutable std::mutex mutex;  // guards the rest
  std::condition_variable changed;
  Position position;
  std::string fault;  // the first one, as everybody tells it
  bool fault_is_own = false;
  bool fault_sent = false;  // to rank 0, or by rank 0 to all
  double fault_at = 0;
  std::atomic<bool> lost_leader = false;  // rank 0 cannot print for us
  bool leaving = false, said_goodbye = false, stop = false;
  std::vector<std::function<void()>> wakes;
  std::vector<std::function<std::string()>> probes;
  std::thread thread;

  State(int rank_, std::vector<Member> members_, Options options_)
      : rank(rank_), members(std::move(members_)), options(options_) {}

  int world_size() const { return static_cast<int>(members.size()); }
  int rank_of(size_t peer) const { return rank == 0 ? static_cast<int>(peer) : 0; }

  bool send(Peer& peer, const std::vector<std::string>& strings) {
    try {
      peer.socket.send_strings(strings, give_up_at(steady_seconds() + send_seconds, "slow"));
      return true;
    } catch (const ConnectionClosed&) {
    } catch (const Error&) {
    }
    return false;
  }

  void set_fault(const std::string& what, bool own) {
    const std::lock_guard lock(mutex);
    if (!fault.empty() || leaving) return;
    fault = what;
    fault_is_own = own;
    fault_at = steady_seconds();
    changed.notify_all();
  }

  // ---- the thread ----

  void run() {
    for (Peer& p : peers) p.heard = steady_seconds();
    double beat_at = 0, said_at = 0;
    bool woken = false;
    // A place is told soon, so that a line about a rank that died says where; but rank 0 listens to all.
    const double soon = std::min(options.beat_seconds, std::max(0.1, 0.002 * world_size()));
    while (true) {
      listen();
      const double now = steady_seconds();
      std::string what;
      bool leaves = false, moved = false;
      {
        const std::lock_guard lock(mutex);
        if (stop) return;
        moved = position.since > said_at;
        what = fault;
        leaves = leaving;
      }
      if (what.empty() && !leaves) {
        if (now >= beat_at || (moved && now >= said_at + soon)) {
          beat_at = now + options.beat_seconds;
          said_at = now;
          beat();
        }
        look_for_trouble(now);
      }
      if (leaves && !said_goodbye) {
        for (Peer& peer : peers)
          if (peer.socket && !peer.left) send(peer, {"goodbye"});
        const std::lock_guard lock(mutex);
        said_goodbye = true;
        changed.notify_all();
      }
      if (!what.empty() && !woken) {
        woken = true;
        tell(what);
        std::vector<std::function<void()>> calls;
        {
          const std::lock_guard lock(mutex);
          calls = wakes;
        }
        for (const auto& wake : calls) wake();
      }
      if (woken && now > fault_at + options.leave_seconds) {
        if (rank == 0 || lost_leader) std::fprintf(stderr, "%s\n", what.c_str());
        std::fflush(stderr);
        _exit(1);  // the main thread hangs in something that nobody can wake: a kernel, a disk
      }
    }
  }

  // Reads what has come, for a tenth of a second at most.
  void listen() {
    std::vector<pollfd> waits;
    std::vector<size_t> who;
    for (size_t i = 0; i < peers.size(); ++i) {
      if (!peers[i].socket || peers[i].left) continue;
      waits.push_back({peers[i].socket.file(), POLLIN, 0});
      who.push_back(i);
    }
    const int milliseconds = static_cast<int>(std::min(100.0, 1000 * options.beat_seconds / 4));
    if (poll(waits.data(), waits.size(), milliseconds) <= 0) return;
    for (size_t w = 0; w < waits.size(); ++w)
      if (waits[w].revents) hear(who[w]);
  }

  void hear(size_t index) {
    Peer& peer = peers[index];
    try {
      const auto words = peer.socket.receive_strings(give_up_at(steady_seconds() + send_seconds, "slow"));
      if (words.empty()) return;
      peer.heard = steady_seconds();
      if (words[0] == "at" && words.size() == 5) {
        peer.position = {words[1], peer.heard - std::stod(words[2]), std::stod(words[3]), words[4] == "1"};
      } else if (words[0] == "fault" && words.size() == 2) {
        set_fault(words[1], false);
      } else if (words[0] == "goodbye") {
        part_with(peer);
      }
    } catch (const ConnectionClosed&) {
      part_with(peer);
      if (rank != 0 && !has_fault()) lost_leader = true;  // else it has printed the line and ended, as all do
      set_fault(concat(name_of_rank(rank_of(index), members),
                       " ended without a word; it was last at: ", peer.position.place,
                       ". Killed, out of memory or crashed: see the end of its own output"),
                false);
    } catch (const std::exception&) {  // half a message, or no numbers in it: silence will show
    }
  }

  bool has_fault() const {
    const std::lock_guard lock(mutex);
    return !fault.empty();
  }

  void part_with(Peer& peer) {
    const std::lock_guard lock(mutex);
    peer.left = true;
    changed.notify_all();
  }

  void beat() {
    Position own;
    std::vector<std::function<std::string()>> calls;
    {
      const std::lock_guard lock(mutex);
      own = position;
      calls = probes;
    }
    for (const auto& find_trouble : calls)
      if (const std::string trouble = find_trouble(); !trouble.empty())
        set_fault(concat(name_of_rank(rank, members), " failed at: ", own.place, ": ", trouble), true);
    const std::vector<std::string> words{"at", own.place, std::to_string(steady_seconds() - own.since),
                                         std::to_string(own.allowed), own.waits ? "1" : "0"};
    for (Peer& peer : peers)
      if (peer.socket && !peer.left) send(peer, words);
  }

  void look_for_trouble(double now) {
    for (size_t i = 0; i < peers.size(); ++i) {
      if (!peers[i].socket || peers[i].left || now - peers[i].heard < options.silence_seconds) continue;
      if (rank != 0) lost_leader = true;
      return set_fault(concat(name_of_rank(rank_of(i), members), " has been silent for ",
                              rounded(now - peers[i].heard), " s; it was last at: ", peers[i].position.place,
                              ". Its machine hangs, or the network between is down"),
                       false);
    }
    if (rank != 0) return;
    Position own;
    {
      const std::lock_guard lock(mutex);
      own = position;
    }
    double shortest = std::numeric_limits<double>::infinity();  // wait, when all wait
    for (int r = 0; r < world_size(); ++r) {
      const Position& p = r == 0 ? own : peers[static_cast<size_t>(r)].position;
      shortest = std::min(shortest, p.waits ? now - p.since : 0.0);
      if (p.waits || now - p.since < p.allowed || (r > 0 && peers[static_cast<size_t>(r)].left)) continue;
      return set_fault(
          concat(name_of_rank(r, members), " has been at: ", p.place, " for ", rounded(now - p.since), " s, ",
                 rounded(p.allowed), " s are allowed; the others wait for it"),
          r == 0);
    }
    if (shortest > options.standstill_seconds)
      set_fault(
          concat("all ranks have waited for each other for ", rounded(shortest), " s; rank 0 at: ", own.place,
                 ", rank 1 at: ", peers[1].position.place, ". The network between them, or a GPU, hangs"),
          true);
  }

  void tell(const std::string& what) {
    for (Peer& peer : peers)
      if (peer.socket && !peer.left && (rank == 0 || fault_is_own)) {
        if (!send(peer, {"fault", what}) && rank != 0) lost_leader = true;
      }
    const std::lock_guard lock(mutex);
    fault_sent = true;
    changed.notify_all();
  }
};

Watch::Watch(int rank, std::vector<Member> members, std::vector<Socket> control, Options options)
    : state_(std::make_unique<State>(rank, std::move(members), options)) {
  State& s = *state_;
  s.position.since = steady_seconds();
  for (Socket& socket : control) s.peers.push_back({std::move(socket), {}, 0, false});
  if (s.world_size() > 1) s.thread = std::thread([&s] { s.run(); });
}

Watch::~Watch() {
  State& s = *state_;
  if (!s.thread.joinable()) return;
  {
    std::unique_lock lock(s.mutex);
    if (s.fault.empty() && std::uncaught_exceptions() == 0) {
      s.leaving = true;
      const auto all_left = [&s] {
        if (!s.said_goodbye) return false;
        for (const Peer& p : s.peers)
          if (p.socket && !p.left) return false;
        return true;
      };
      s.changed.wait_for(lock, std::chrono::duration<double>(goodbye_seconds), all_left);
    } else if (!s.fault.empty()) {  // the others must hear of it before the connection closes
      s.changed.wait_for(lock, std::chrono::duration<double>(3), [&s] { return s.fault_sent; });
    }
    s.stop = true;
  }
  s.thread.join();
}

void Watch::at(std::string place, double allowed_seconds) {
  const std::lock_guard lock(state_->mutex);
  state_->position = {std::move(place), steady_seconds(), allowed_seconds, false};
}

void Watch::waiting(bool waits, const std::string& place) {
  const std::lock_guard lock(state_->mutex);
  Position& p = state_->position;
  p.waits = waits;
  p.since = steady_seconds();
  if (const size_t mark = p.place.find(", in "); mark != std::string::npos) p.place.resize(mark);
  if (waits && !place.empty()) p.place += ", in " + place;
}

void Watch::check() const {
  const std::lock_guard lock(state_->mutex);
  if (!state_->fault.empty()) throw PeerFailure(state_->fault);
}

void Watch::on_fault(std::function<void()> wake) {
  const std::lock_guard lock(state_->mutex);
  state_->wakes.push_back(std::move(wake));
}

void Watch::probe(std::function<std::string()> find_trouble) {
  const std::lock_guard lock(state_->mutex);
  state_->probes.push_back(std::move(find_trouble));
}

std::string Watch::last_words(const std::exception& error) {
  State& s = *state_;
  if (!s.thread.joinable()) return error.what();
  const bool from_peer = dynamic_cast<const PeerFailure*>(&error) != nullptr;
  if (!from_peer) {
    std::string place;
    {
      const std::lock_guard lock(s.mutex);
      place = s.position.place;
    }
    s.set_fault(concat(name_of_rank(s.rank, s.members), " failed at: ", place, ": ", error.what()), true);
  }
  std::unique_lock lock(s.mutex);
  s.changed.wait_for(lock, std::chrono::duration<double>(3), [&s] { return s.fault_sent; });
  if (s.rank == 0) return s.fault.empty() ? error.what() : s.fault;
  const bool first_left = s.rank == 1;  // rank 0 is gone: one of the others speaks
  return s.lost_leader ? (first_left || !from_peer ? s.fault : std::string()) : std::string();
}

}  // namespace switchback
