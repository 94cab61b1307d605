// world.h: this process's place among the ranks of a run, and its ways to talk to them.
//
//   World world(rank_environment(), {.must_agree = {{"--batch-size", "64"}, ...}});
//   try {
//     auto communicator = world.communicator(device);     // collectives on that device's tensors
//     world.at("forward of step 12");                     // for the watch: who is where
//     ...
//   } catch (const std::exception& error) {
//     if (auto line = world.last_words(error); !line.empty()) print(line);
//   }
//
// With one rank everything here does nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "distributed/communicator.h"
#include "distributed/environment.h"
#include "distributed/watch.h"

namespace switchback {

class World {
 public:
  struct Options {
    double gather_seconds = 300;      // for all ranks to come
    double place_seconds = 30;        // a rank may be at one place, where at() says nothing else
    double patience_seconds = 86400;  // in one operation of host(); the watch knows much earlier
    Watch::Options watch;
  };

  // Meets the other ranks. Errors: rendezvous.h.
  World(RankEnvironment environment, const Introduction& introduction, Options options);
  World(RankEnvironment environment, const Introduction& introduction)
      : World(std::move(environment), introduction, Options()) {}
  // Waits for the other ranks, but not during an exception.
  ~World();

  int rank() const { return environment_.rank; }
  int size() const { return environment_.world_size; }
  bool leads() const { return rank() == 0; }  // writes files and the log
  const RankEnvironment& environment() const { return environment_; }
  std::string name() const { return name_of_rank(rank(), members_); }

  // Collectives on host memory, through sockets.
  Communicator& host() { return *host_; }
  // Rank 0's text, on every rank.
  std::string agree(const std::string& text);
  // Collectives on `device`'s memory: host() itself for the CPU, NCCL for a GPU. Call it once.
  Communicator& communicator(Device device);

  void at(std::string place) { at(std::move(place), options_.place_seconds); }
  void at(std::string place, double allowed_seconds) { watch_.at(std::move(place), allowed_seconds); }
  Watch& watch() { return watch_; }

  // What to print when this rank ends with an error; empty when another rank prints it.
  std::string last_words(const std::exception& error) { return watch_.last_words(error); }

 private:
  World(RankEnvironment environment, Meeting meeting, Options options);

  RankEnvironment environment_;
  Options options_;
  std::vector<Member> members_;
  Watch watch_;
  std::unique_ptr<Communicator> own_host_, own_device_;
  Communicator* host_;
};

}  // namespace switchback
