// parallel.h: a loop over the CPU's cores.
//
// parallel_for(count, grain, f) calls f(from, to) on disjoint ranges that cover [0, count). The ranges depend
// on `count`, `grain` and cpu_threads() only, and every element is computed by one call, so results have the
// same bits for any number of threads as long as f treats elements independently. f must not throw across
// threads silently: the first exception is rethrown in the caller. Nested calls run serially in the calling
// thread.
#pragma once

#include <cstdint>
#include <functional>

namespace switchback {

int cpu_threads();              // SWITCHBACK_CPU_THREADS, else the cores this process may use
void set_cpu_threads(int threads);

// grain: the fewest elements worth handing to another thread.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t from, int64_t to)>& f);

}  // namespace switchback
