// rank_order.h: sums and copies of host memory, in order of ranks, for the communicators of the CPU.
//
//   to = ((part_0 + part_1) + part_2) + ...   in the type of statistics (f32 for bf16), rounded once
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "distributed/communicator.h"

namespace switchback {

// An empty view may have no memory at all, which memcpy must not see.
inline void copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

template <class T, class Wide>
void combine_parts(T* to, const std::vector<const void*>& parts, int64_t from, int64_t count,
                   Reduction reduction) {
  for (int64_t i = 0; i < count; ++i) {
    Wide value = static_cast<Wide>(static_cast<const T*>(parts[0])[from + i]);
    for (size_t p = 1; p < parts.size(); ++p) {
      const Wide more = static_cast<Wide>(static_cast<const T*>(parts[p])[from + i]);
      value = reduction == Reduction::sum ? static_cast<Wide>(value + more) : std::max(value, more);
    }
    to[i] = static_cast<T>(value);
  }
}

// to (count): elements [from, from + count) of all parts combined. `to` may be one of those places.
inline void combine_in_rank_order(void* to, const std::vector<const void*>& parts, int64_t from,
                                  int64_t count, DType dtype, Reduction reduction) {
  if (dtype == DType::i64)
    return combine_parts<int64_t, int64_t>(static_cast<int64_t*>(to), parts, from, count, reduction);
  if (dtype == DType::i32)
    return combine_parts<int32_t, int32_t>(static_cast<int32_t*>(to), parts, from, count, reduction);
  visit_float(dtype, "a sum over ranks", [&](auto tag) {
    using T = decltype(tag);
    combine_parts<T, Statistics<T>>(static_cast<T*>(to), parts, from, count, reduction);
  });
}

}  // namespace switchback
