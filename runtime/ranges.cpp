#include "runtime/ranges.h"

#include <atomic>
#include <string>

#ifdef SWITCHBACK_CUDA
#include <nvtx3/nvToolsExt.h>
#endif

namespace switchback {
namespace {

std::atomic<bool> wanted{false};
thread_local int open_ranges = 0;  // begun while they were wanted

}  // namespace

void enable_ranges(bool enabled) { wanted = enabled; }

void begin_range([[maybe_unused]] std::string_view name) {
  if (!wanted) return;
  ++open_ranges;
#ifdef SWITCHBACK_CUDA
  nvtxRangePushA(std::string(name).c_str());
#endif
}

void end_range() {
  if (open_ranges == 0) return;
  --open_ranges;
#ifdef SWITCHBACK_CUDA
  nvtxRangePop();
#endif
}

}  // namespace switchback
