#include "distributed/rendezvous.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "runtime/file.h"

namespace switchback {
namespace {

constexpr const char* protocol = "switchback ranks, form 1";
constexpr double greeting_seconds = 3;  // whoever connects says at once who he is
constexpr double linger_seconds = 2;    // rank 0 stays to tell late-comers why it ended
constexpr double agent_seconds = 0.5;   // torchrun's agent, met by mistake, never answers

struct Hello {
  std::string channel;  // "control" or "data"
  int rank = 0, world_size = 0;
  std::string session;
  Member member;
  Introduction introduction;

  std::vector<std::string> strings() const {
    std::vector<std::string> s{protocol, channel,     std::to_string(rank), std::to_string(world_size),
                               session,  member.host, member.process,       introduction.seat};
    for (const auto& [name, value] : introduction.must_agree) s.push_back(name), s.push_back(value);
    return s;
  }
  // False: these are no words of ours.
  bool parse(const std::vector<std::string>& s) {
    if (s.size() < 8 || s.size() % 2 || s[0] != protocol) return false;
    channel = s[1];
    rank = std::atoi(s[2].c_str());
    world_size = std::atoi(s[3].c_str());
    session = s[4];
    member = {s[5], s[6]};
    introduction.seat = s[7];
    for (size_t i = 8; i < s.size(); i += 2) introduction.must_agree.emplace_back(s[i], s[i + 1]);
    return rank >= 0;
  }
};

std::string value_of(const Introduction& introduction, const std::string& name) {
  for (const auto& [n, value] : introduction.must_agree)
    if (n == name) return value.empty() ? "none" : value;
  return "none";
}

// Why `other` cannot take part in the run of `leader`; empty when it can.
std::string objection(const Hello& leader, const Hello& other, const std::vector<Hello>& here) {
  const std::string who = concat("rank ", other.rank, " on ", other.member.host);
  if (other.world_size != leader.world_size)
    return concat(who, " was told of ", other.world_size, " ranks, rank 0 on ", leader.member.host, " of ",
                  leader.world_size, ": start all of them with the same WORLD_SIZE");
  if (other.rank >= leader.world_size || other.rank == 0)
    return concat("a second process, ", other.member.process, " on ", other.member.host,
                  ", calls itself rank ", other.rank, " of ", other.world_size,
                  ": every process needs its own RANK, or MASTER_PORT is that of "
                  "another run");
  for (const Hello& h : here)
    if (h.rank == other.rank)
      return concat("two processes call themselves rank ", h.rank, ": ", h.member.process, " on ",
                    h.member.host, " and ", other.member.process, " on ", other.member.host,
                    ": every process needs its own RANK");
  for (const Hello& h : here)
    if (!h.introduction.seat.empty() && h.introduction.seat == other.introduction.seat &&
        h.member.host == other.member.host)
      return concat("ranks ", h.rank, " and ", other.rank, " both want ", h.introduction.seat, " of ",
                    h.member.host, ": there are fewer GPUs than ranks on that host");
  for (const auto* side : {&leader, &other}) {
    for (const auto& [name, value] : side->introduction.must_agree) {
      const std::string ours = value_of(leader.introduction, name),
                        theirs = value_of(other.introduction, name);
      if (ours != theirs)
        return concat(who, " has ", name, " ", theirs, ", rank 0 on ", leader.member.host, " has ", ours,
                      ": all ranks need the same program and flags");
    }
  }
  return "";
}

std::string list_of(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size() && i < 16; ++i)
    text += concat(i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ", ranks[i]);
  return ranks.size() > 16 ? concat(text, " and ", ranks.size() - 16, " more") : text;
}

// ---- rank 0 ----------------------------------------------------------------------------------------------

Listener listen_at(const RankEnvironment& e) {
  if (e.listening_file) return Listener::adopt(*e.listening_file);
  const bool loopback = e.address == "127.0.0.1" || e.address == "localhost";
  for (int i = 0;; ++i) {
    try {
      return Listener::on_port(e.port + i, loopback);
    } catch (const Error&) {
      if (i + 1 == e.ports) throw;
    }
  }
}

// The next process that introduces itself; false when none does within `seconds`.
bool next_hello(const Listener& listener, double seconds, const std::string& session, Socket& socket,
                Hello& hello) {
  socket = listener.accept(seconds);
  if (!socket) return false;
  hello = {};
  try {
    const auto tick = give_up_at(steady_seconds() + greeting_seconds, "no greeting");
    if (!hello.parse(socket.receive_strings(tick))) return false;
    const bool ours = hello.session == session;
    socket.send_strings({ours ? "heard" : "another run"}, tick);
    return ours;
  } catch (const ConnectionClosed&) {
  } catch (const Error&) {  // a stranger: a port scanner, a browser
  }
  return false;
}

void refuse(const Listener& listener, std::vector<Socket>& sockets, int expected, const std::string& session,
            const std::string& why) {
  const auto tell = [&](Socket& s) {
    try {
      expected -= s ? 1 : 0;
      if (s) s.send_strings({"refused", why}, give_up_at(steady_seconds() + 1, "slow"));
    } catch (...) {
    }
  };
  for (Socket& s : sockets) tell(s);
  const double until = steady_seconds() + linger_seconds;
  while (expected > 0 && steady_seconds() < until) {
    Socket late;
    Hello hello;
    if (next_hello(listener, 0.1, session, late, hello)) tell(late);
  }
}

Meeting lead(const RankEnvironment& e, const Hello& own, double patience) {
  Listener listener = listen_at(e);
  const double deadline = steady_seconds() + patience;
  const auto world = static_cast<size_t>(e.world_size);
  Meeting meeting;
  meeting.control.resize(world);
  meeting.data.resize(world);
  std::vector<Hello> here{own};
  std::string trouble;
  while (trouble.empty() && here.size() < world) {
    if (steady_seconds() > deadline) {
      std::vector<int> missing;
      std::string present;
      for (int r = 0; r < e.world_size; ++r)
        if (std::ranges::find(here, r, &Hello::rank) == here.end()) missing.push_back(r);
      for (const Hello& h : here)
        present += concat(present.empty() ? "" : ", ", h.rank, " on ", h.member.host);
      trouble =
          concat("rank ", list_of(missing), " of ", e.world_size, " did not come to ", e.address, ":",
                 listener.port(), " within ", patience, " s (here: ", present, ")",
                 e.launcher == "srun" ? "; is the program started with srun, once for every rank?" : "");
      break;
    }
    Socket socket;
    Hello hello;
    if (!next_hello(listener, 0.2, e.session, socket, hello)) continue;
    trouble = objection(own, hello, here);
    if (!trouble.empty()) {
      meeting.control.push_back(std::move(socket));  // to be told, too
      break;
    }
    meeting.control[static_cast<size_t>(hello.rank)] = std::move(socket);
    here.push_back(hello);
  }
  if (!trouble.empty()) {
    refuse(listener, meeting.control, e.world_size - 1, e.session, trouble);
    fail(trouble);
  }
  std::ranges::sort(here, {}, &Hello::rank);
  std::vector<std::string> welcome{"welcome"};
  for (const Hello& h : here) {
    meeting.members.push_back(h.member);
    welcome.push_back(h.member.host);
    welcome.push_back(h.member.process);
  }
  for (size_t r = 1; r < world; ++r) {
    const std::string who = name_of_rank(static_cast<int>(r), meeting.members);
    try {
      meeting.control[r].send_strings(welcome,
                                      give_up_at(steady_seconds() + 10, concat(who, " does not listen")));
    } catch (const ConnectionClosed&) {
      fail(who, " ended while the ranks gathered");
    }
  }
  const double data_deadline = steady_seconds() + 30;
  for (size_t came = 1; came < world;) {
    if (steady_seconds() > data_deadline)
      fail("only ", came, " of ", world, " ranks opened their connection for data within 30 s");
    Socket socket;
    Hello hello;
    if (!next_hello(listener, 0.2, e.session, socket, hello)) continue;
    if (hello.channel != "data" || hello.rank <= 0 || hello.rank >= e.world_size) continue;
    meeting.data[static_cast<size_t>(hello.rank)] = std::move(socket);
    ++came;
  }
  return meeting;
}

// ---- the others ------------------------------------------------------------------------------------------

// Remembers the right one of e.ports ports in `port`.
Socket reach(const RankEnvironment& e, const Hello& hello, double deadline, double patience, int& port) {
  std::string why = "no answer";
  while (true) {
    if (steady_seconds() > deadline)
      fail("rank ", e.rank, " of ", e.world_size, " on ", this_host(), " could not reach rank 0 at ",
           e.address, ":", e.port, " within ", patience, " s (", why,
           "): is rank 0 running, and are MASTER_ADDR and MASTER_PORT its?");
    if (Socket s = connect_to(e.address, port, 5, why)) {
      try {
        const double wait = e.ports > 1 ? agent_seconds : greeting_seconds;
        const auto tick = give_up_at(steady_seconds() + wait, "no answer");
        s.send_strings(hello.strings(), tick);
        const std::vector<std::string> answer = s.receive_strings(tick);
        if (answer == std::vector<std::string>{"heard"}) return s;
        why = "the process there belongs to another run";
      } catch (const ConnectionClosed&) {
        why = "the process there hung up";
      } catch (const Error&) {
        why = "the process there is no rank of this program";
      }
    }
    port = e.port + (port - e.port + 1) % e.ports;
    std::this_thread::sleep_for(std::chrono::milliseconds(e.ports > 1 ? 20 : 100));
  }
}

Meeting follow(const RankEnvironment& e, Hello hello, double patience) {
  const double deadline = steady_seconds() + patience;
  Meeting meeting;
  hello.channel = "control";
  int port = e.port;
  meeting.control.push_back(reach(e, hello, deadline, patience, port));
  std::vector<std::string> answer;
  try {
    answer = meeting.control[0].receive_strings(give_up_at(
        deadline + 10, concat("rank 0 at ", e.address, ":", e.port, " waits for other ranks still")));
  } catch (const ConnectionClosed&) {
    throw PeerFailure(concat("rank 0 at ", e.address, ":", e.port, " ended while the ranks gathered"));
  }
  if (answer.size() == 2 && answer[0] == "refused") throw PeerFailure(answer[1]);
  CHECK(answer.size() == 1 + 2 * static_cast<size_t>(e.world_size) && answer[0] == "welcome",
        "rendezvous: ", answer.size(), " words from rank 0");
  for (size_t i = 1; i < answer.size(); i += 2) meeting.members.push_back({answer[i], answer[i + 1]});
  hello.channel = "data";
  meeting.data.push_back(reach(e, hello, steady_seconds() + 30, 30, port));
  return meeting;
}

}  // namespace

Meeting meet(const RankEnvironment& e, const Introduction& introduction, double patience_seconds) {
  const Hello own{"", e.rank, e.world_size, e.session, {this_host(), std::to_string(getpid())}, introduction};
  if (e.world_size == 1) return {{own.member}, {}, {}};
  return e.rank == 0 ? lead(e, own, patience_seconds) : follow(e, own, patience_seconds);
}

std::string program_fingerprint() {
  const MappedFile file("/proc/self/exe");
  uint64_t hash = 0xcbf29ce484222325 ^ file.size();  // FNV-1a, eight bytes at a time
  for (size_t i = 0; i + 8 <= file.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, file.bytes().data() + i, 8);
    hash = (hash ^ word) * 0x100000001b3;
    hash ^= hash >> 29;
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::string name_of_rank(int rank, const std::vector<Member>& members) {
  return concat("rank ", rank, " of ", members.size(), " on ", members.at(static_cast<size_t>(rank)).host,
                " (process ", members[static_cast<size_t>(rank)].process, ")");
}

}  // namespace switchback
