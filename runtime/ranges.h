// ranges.h: names of stretches of work on the host's time line, for a profiler that watches (NVTX: Nsight
// Systems shows them above the kernels). They cost nothing until enable_ranges(true), and do nothing in a
// build without CUDA.
#pragma once

#include <string_view>

namespace switchback {

void enable_ranges(bool enabled);
void begin_range(std::string_view name);  // nests; by thread
void end_range();

}  // namespace switchback
