// coded_rows.cuh: codes of rows, and the sum over all rows in the same sweep. For kernels that quantise a
// gradient: that sum is a bias gradient, which then costs no sweep of its own and no products with ones.
//
//   codes (M, C), scale (M): as quantize makes them by row;   partials (blocks, C): Σ over a block's rows
//
// A row is the work of a block, `held` groups of 8 columns that of a thread, whose share of the sums stays in
// registers. Blocks stay and take `abreast` rows at a time, all of whose loads are under way before the first
// is looked at; there is one barrier each time, for the rows' absmax. The number of blocks depends on width
// and rows alone, and partials are added in order (add_partials): the same bits every time.
#pragma once

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {

constexpr int columns_of_group = 8;

// Source: Raw load(uint32_t at): what is read for group `at` of the matrix;  uint4 result(raw, at): its 8
// values in bf16, of which codes are made. Groups are counted in 32 bits: registers are scarce here.
template <Format format, int held, int abreast, class Source>
__device__ __forceinline__ void code_and_sum_rows(uint2* codes, float* scale, float* partials, uint32_t rows,
                                                  uint32_t groups, const Source& source) {
  __shared__ uint32_t most_of_warp[2][abreast][32];  // two sets in turn: one barrier is enough
  const auto column = [&](int g) { return g * blockDim.x + threadIdx.x; };
  float sums[held][columns_of_group] = {};
  int turn = 0;
  for (uint32_t first = blockIdx.x * abreast; first < rows; first += gridDim.x * abreast, turn ^= 1) {
    typename Source::Raw raw[abreast][held];
#pragma unroll
    for (int i = 0; i < abreast; ++i)
#pragma unroll
      for (int g = 0; g < held; ++g)
        if (first + i < rows && column(g) < groups) raw[i][g] = source.load((first + i) * groups + column(g));
    uint4 kept[abreast][held];
#pragma unroll
    for (int i = 0; i < abreast; ++i) {
      uint32_t most = 0;
#pragma unroll
      for (int g = 0; g < held; ++g) {
        const bool here = first + i < rows && column(g) < groups;
        kept[i][g] = here ? source.result(raw[i][g], (first + i) * groups + column(g)) : uint4{};
        most = larger_magnitudes(most, kept[i][g]);
        float v[columns_of_group];
        unpack(v, kept[i][g]);
#pragma unroll
        for (int e = 0; e < columns_of_group; ++e) sums[g][e] += v[e];
      }
      most = __reduce_max_sync(all_lanes, max(most >> 16, most & 0xffffu));
      if (threadIdx.x % 32 == 0) most_of_warp[turn][i][threadIdx.x / 32] = most;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < abreast; ++i) {
      const uint32_t lane = threadIdx.x % 32;
      const uint32_t most =
          __reduce_max_sync(all_lanes, lane < blockDim.x / 32 ? most_of_warp[turn][i][lane] : 0);
      if (first + i >= rows) continue;
      const Scaling s = scaling_of(most << 16, largest_of(format));
      if (threadIdx.x == 0) scale[first + i] = s.scale;
#pragma unroll
      for (int g = 0; g < held; ++g) {
        float v[columns_of_group];
        unpack(v, kept[i][g]);
        if (column(g) < groups) codes[(first + i) * groups + column(g)] = encode<format>(v, s.inverse);
      }
    }
  }
  const Out<float> out{partials + static_cast<int64_t>(blockIdx.x) * groups * columns_of_group, false};
#pragma unroll
  for (int g = 0; g < held; ++g)
    if (column(g) < groups) out.store(int64_t{column(g)} * columns_of_group, sums[g], columns_of_group);
}

inline bool counts_in_32_bits(const CView& x) { return x.size() / columns_of_group < int64_t{1} << 31; }

// Blocks of `threads` for rows of `groups`, as many as an H100 holds of them at once.
struct CodedRowsGrid {
  unsigned threads, blocks;
};
inline CodedRowsGrid coded_rows_grid(int64_t rows, int groups, int held, int abreast,
                                     int threads_of_multiprocessor) {
  constexpr int64_t multiprocessors = 132;  // elsewhere the same blocks, in more or fewer turns
  const int threads = ((groups + held - 1) / held + 31) / 32 * 32;
  const int64_t at_once = std::max(1, threads_of_multiprocessor / threads) * multiprocessors;
  return {static_cast<unsigned>(threads),
          static_cast<unsigned>(std::min<int64_t>(at_once, (rows + abreast - 1) / abreast))};
}

}  // namespace switchback::cuda
