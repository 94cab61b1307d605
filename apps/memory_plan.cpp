#include "apps/memory_plan.h"

#include <algorithm>
#include <vector>

#include "runtime/allocator.h"

namespace switchback {

std::string memory_plan(Device device) {
  const MemoryStatistics statistics = allocator(device).statistics();
  // In the order in which they come to be; what has no name of its own last.
  const std::vector<std::string> order{"parameters", "gradients", "optimizer", "batch", "activations"};
  std::string line = concat("Memory of ", device, ":");
  const char* separator = " ";
  const auto add = [&](const std::string& name, size_t bytes) {
    if (bytes == 0) return;
    line += concat(separator, name, " ", readable_bytes(bytes));
    separator = ", ";
  };
  for (const std::string& name : order)
    if (const auto found = statistics.contexts.find(name); found != statistics.contexts.end())
      add(name, found->second.peak);
  for (const auto& [name, context] : statistics.contexts)
    if (std::ranges::find(order, name) == order.end()) add(name, context.peak);
  line += concat("; ", readable_bytes(statistics.held), " held (",
                 readable_bytes(statistics.held - std::min(statistics.held, statistics.peak_used)),
                 " between blocks)");
  if (statistics.room) {
    const size_t in_use = statistics.room->total - statistics.room->free;
    line += concat(", ", readable_bytes(in_use - std::min(in_use, statistics.held)),
                   " driver and libraries, ", readable_bytes(statistics.room->free), " of ",
                   readable_bytes(statistics.room->total), " free");
  }
  return line;
}

}  // namespace switchback
