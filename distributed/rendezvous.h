// rendezvous.h: how the ranks of a run find each other, and find out early that they do not fit.
//
// Rank 0 listens; every other rank connects twice, for control (watch.h) and for data
// (socket_communicator.h), and introduces itself. Rank 0 compares the introductions: number of ranks,
// program, flags, GPUs. When all have come and fit, everybody goes on; otherwise everybody gets the same line
// and ends.
//
//   rank 2 and 3 of 4 did not come to node1:29500 within 300 s (here: 0 on node1, 1 on node1)
//   rank 3 on node2 has --batch-size 64, rank 0 has 32: start all ranks with the same flags
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "distributed/environment.h"
#include "distributed/socket.h"
#include "runtime/check.h"

namespace switchback {

// What happened on another rank; that rank, or rank 0, has said so already.
class PeerFailure : public Error {
 public:
  using Error::Error;
};

struct Introduction {
  // Name and value of whatever must be the same on all ranks: the program's build, the flags.
  std::vector<std::pair<std::string, std::string>> must_agree;
  // What two ranks of one host cannot both have ("GPU 0000:1a:00.0"); empty: nothing.
  std::string seat;
};

struct Member {
  std::string host;
  std::string process;  // its number, for messages
};

struct Meeting {
  std::vector<Member> members;  // (world_size)
  // On rank 0 (world_size), [0] empty. On the others one: to rank 0.
  std::vector<Socket> control, data;
};

// Errors: see above; and rank 0 not being there within `patience_seconds`.
Meeting meet(const RankEnvironment& environment, const Introduction& introduction, double patience_seconds);

// Of the bytes of this program's file, 16 hexadecimal digits: ranks must run the same code.
std::string program_fingerprint();

// "rank 2 of 4 on node1 (process 4711)"
std::string name_of_rank(int rank, const std::vector<Member>& members);

}  // namespace switchback
