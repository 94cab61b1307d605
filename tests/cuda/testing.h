// testing.h: doctest, and what a test does without a GPU: it says so, and passes.
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

}  // namespace switchback
