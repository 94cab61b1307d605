// nccl_communicator.h: collectives on GPU memory, one GPU a rank, through NCCL.
//
// Operations run on a stream of their own, beside the kernels: each begins after what the kernels' stream
// holds at the call, and join() makes the kernels' stream wait for all of them. Events only, so a step with
// its collectives can be captured as one CUDA graph; the fork and the join are part of it.
//
// The NCCL communicator does not block: a rank that waits for NCCL (set-up, launches) asks the watch in
// between, and when a rank has failed, the watch's thread aborts the communicator, which ends NCCL's kernels
// and with them every wait of the main thread for this GPU.
#pragma once

#include <memory>
#include <string>

#include "distributed/communicator.h"

namespace switchback {

class Watch;

// host: carries NCCL's id from rank 0. Errors: a program built without NCCL; whatever NCCL says, with its
// cure where it is known.
std::unique_ptr<Communicator> make_nccl_communicator(Device device, Communicator& host, Watch& watch);

// GPUs that this process sees; 0 without NCCL.
int visible_gpus();
// What two ranks of one host cannot both have: "GPU 0000:1a:00.0"; empty for the CPU.
std::string gpu_seat(Device device);

}  // namespace switchback
