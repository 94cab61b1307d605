// socket_communicator.h: ranks that are processes, on one or several hosts, without a GPU. Everything goes
// through rank 0: ranks send their data there, rank 0 combines them in order of ranks and sends back what
// each needs. Slow for large models, and simple; it carries tests, CPU training, and small numbers beside
// NCCL.
#pragma once

#include <memory>
#include <vector>

#include "distributed/communicator.h"
#include "distributed/socket.h"

namespace switchback {

class Watch;

// data: Meeting::data. watch: hears of failures while this rank waits; may be null. A rank that waits longer
// than patience_seconds for another fails with that one's number.
std::unique_ptr<Communicator> make_socket_communicator(int rank, int world_size, std::vector<Socket> data,
                                                       Watch* watch, double patience_seconds);

}  // namespace switchback
