// quantize_beside.cuh: codes of rows and the sum over all rows, on a few multiprocessors, for as long as a
// matrix product keeps the others busy.
//
//   codes (M, C), scale (M): as quantize makes them by row, from x (M, C) bf16;  partials (count, C): partial
//   sums of the rows, to be added in order (add_partials); absent: codes alone (int8)
//
// The sweep moves 3 bytes an element and computes little, so alone it waits for memory while the tensor cores
// rest. Beside the product, it is to need as few multiprocessors as possible: it must not wait for memory,
// and spend few instructions on an element.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace switchback::cuda {

struct QuantizeBeside {
  void* codes = nullptr;  // absent: sums alone
  float* scale = nullptr;
  const void* x = nullptr;  // on a border of 16 bytes, like codes
  int64_t rows = 0, width = 0;
  Format format = Format::int8;
  int multiprocessors = 2;  // even: blocks come in pairs, as those of the product, so that none of its pairs
                            // finds a half of its place taken
};

// Numbers of multiprocessors that are worth a trial, the likeliest first; the last, 0, is one after the
// other. wanted: as many as end together with the product; 0: the product is too small. Only 0 on a chip that
// has none to spare. SWITCHBACK_BESIDE=N, for measurements and tests: N, an even number, alone.
std::vector<int> candidates_beside(double wanted);
constexpr int least_multiprocessors = 100;  // of a chip that has some to spare

// Whether the current device is a Hopper and the width is served: a multiple of 8, at most 16384.
bool quantize_beside_serves(const QuantizeBeside& a);
int64_t partials_beside(const QuantizeBeside& a);  // how many rows of partial sums there are
void quantize_beside(const QuantizeBeside& a, float* partials, cudaStream_t stream);

}  // namespace switchback::cuda
