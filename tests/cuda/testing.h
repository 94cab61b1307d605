// testing.h: doctest; what a test does without a GPU (it says so, and passes); NaN in free memory.
#pragma once

#include <cstdio>

#include "tests/kernels/op_cases.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

namespace switchback {

inline constexpr Device gpu{Device::cuda, 0};

inline bool no_gpu() {
  if (cuda_available()) return false;
  std::printf("skipped: no GPU: %s\n", doctest::getContextOptions()->currentTest->m_name);
  return true;
}

// Free blocks that scratch tensors of small cases may come from are filled with NaN.
inline void poison_free_memory() {
  std::vector<Tensor> blocks;
  for (int64_t bytes = 256; bytes <= (int64_t{1} << 22); bytes *= 2)
    for (int i = 0; i < 3; ++i) {
      blocks.push_back(Tensor({bytes / 4}, DType::f32, gpu));
      kernels(gpu).fill(blocks.back(), NAN);
    }
}

}  // namespace switchback
