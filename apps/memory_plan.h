// memory_plan.h: where a device's memory goes, in a line for the log.
#pragma once

#include <string>

#include "runtime/device.h"

namespace switchback {

// What each part of the run has needed at most so far (after TrainingStep::rehearse(): what a step will
// need), what the allocator holds beyond that, what is free.
//   Memory of cuda:0: parameters 0.8 GiB, gradients 0.6 GiB, optimizer 1.1 GiB, batch 294.0 MiB, activations
//   31.2 GiB; 34.9 GiB held (0.9 GiB between blocks), 0.7 GiB driver and libraries, 43.5 GiB of 79.1 GiB free
std::string memory_plan(Device device);

}  // namespace switchback
