// attention_sm90.cuh: what the two attention kernels for Hopper share: matrices that the bulk tensor copy
// engine brings, and the two products of attention_common.cuh on warpgroup instructions.
//
// A tile is 64 rows, 16 for each warp of a warpgroup. Scores take both operands from shared memory, sums take
// p from registers: no ldmatrix, and no instruction of a computing warp is spent on moving inputs.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/attention_common.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"

namespace switchback::cuda {

// ---- matrices ---------------------------------------------------------------------------------------------
// (rows, D) in shared memory: 64 columns in rows of 128 bytes, then, for D = 80, the last 16 in rows of 32
// bytes, each with the swizzle that wgmma reads. Starts on a border of 1024 bytes.
template <int D>
struct SwizzledRows {
  static_assert(D == 64 || D == 80);
  uint32_t base, last;  // of the first 64 columns, of the last 16

  static __host__ __device__ int bytes(int rows) { return (rows * D * 2 + 1023) / 1024 * 1024; }
  __device__ SwizzledRows(uint32_t base_, int rows) : base(base_), last(base_ + rows * 128) {}

  // Columns 16 k ... 16 k + 15 of rows from row0 (a multiple of 16) on.
  __device__ uint64_t columns(int row0, int k) const {
    return k < 4 ? describe_64_columns(base + row0 * 128 + 32 * k) : describe_16_columns(last + row0 * 32);
  }
};

// A (B, T, columns) bf16 tensor as the copy engine sees it, in boxes of half a sequence (a box has 256 rows
// at most) by 64 and by 16 columns. Rows from T on become zeros, they do not run into the next sample.
struct HeadMaps {
  CUtensorMap first, last;
};

inline HeadMaps make_head_maps(const bf16* tensor, int batch, int tokens, int columns, int rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check_launch(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &found),
                 "attention: cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
  }();
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(tokens),
                               static_cast<cuuint64_t>(batch)};
  const cuuint64_t pitches[2] = {sizes[0] * 2, sizes[0] * sizes[1] * 2};
  const cuuint32_t ones[3] = {1, 1, 1};
  HeadMaps maps;
  for (bool last : {false, true}) {
    const cuuint32_t box[3] = {last ? 16u : 64u, static_cast<cuuint32_t>(rows / 2), 1};
    const CUresult result =
        encode(last ? &maps.last : &maps.first, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
               const_cast<bf16*>(tensor), sizes, pitches, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
               last ? CU_TENSOR_MAP_SWIZZLE_32B : CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    CHECK(result == CUDA_SUCCESS, "attention: cuTensorMapEncodeTiled failed with ", static_cast<int>(result),
          " for (", batch, ", ", tokens, ", ", columns, ")");
  }
  return maps;
}

__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, int column, int row, int sample,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5}], [%2];" ::"r"(to),
      "l"(map), "r"(ptx::shared_address(barrier)), "r"(column), "r"(row), "r"(sample)
      : "memory");
}

// Starts the copy of one head's matrix, columns column ... column + D-1 of a sample; one thread does it.
// `barrier` must expect rows * D * 2 bytes.
template <int D>
__device__ __forceinline__ void copy_matrix(const SwizzledRows<D>& to, const HeadMaps& maps, int column,
                                            int sample, int rows, uint64_t* barrier) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = half * (rows / 2);
    copy_box(to.base + row * 128, &maps.first, column, row, sample, barrier);
    if (D == 80) copy_box(to.last + row * 32, &maps.last, column + 64, row, sample, barrier);
  }
}

// ---- products ---------------------------------------------------------------------------------------------
// s (64, 8 n_tiles) = or += Y[own_row0 ... own_row0+63] (64, D) · X[row0 ... row0 + 8 n_tiles]ᵀ. Rows of Y
// that do not exist are whatever follows in shared memory: they only reach rows of s that nobody stores.
template <int D, int n_tiles>
__device__ __forceinline__ void issue_scores(float (&s)[n_tiles][4], const SwizzledRows<D>& y, int own_row0,
                                             const SwizzledRows<D>& x, int row0, bool keep) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    if (k == 0 && !keep) {
      multiply_rows_fresh(s, y.columns(own_row0, 0), x.columns(row0, 0));
    } else {
      multiply_rows(s, y.columns(own_row0, k), x.columns(row0, k));
    }
  }
}

// sum (64, D) += p (64, 16 k_tiles) · X[row0 ... row0 + 16 k_tiles]
template <int D, int k_tiles>
__device__ __forceinline__ void issue_sums(float (&sum)[D / 8][4], const uint32_t (&p)[k_tiles][4],
                                           const SwizzledRows<D>& x, int row0) {
#pragma unroll
  for (int k = 0; k < k_tiles; ++k) {
    add_rows_64<0>(sum, p[k], x.columns(row0 + 16 * k, 0));
    if constexpr (D == 80) add_rows_16<8>(sum, p[k], x.columns(row0 + 16 * k, 4));
  }
}

// Walks in steps of 64 rows, with a last step of 16 where that is enough: step(n_tiles, at).
template <class Step>
__device__ __forceinline__ void for_each_step_of_64(int from, int end, Step step) {
  int at = from;
  for (; at + 16 < end; at += 64) step(std::integral_constant<int, 8>{}, at);
  if (at < end) step(std::integral_constant<int, 2>{}, at);
}

// ---- hand-over between the producer and the consumers -----------------------------------------------------
// Named barriers, one for heads of even and one for heads of odd turn, so that a consumer may be a head ahead
// of another: `filled` the producer arrives at and the consumers wait for, `emptied` the other way round.
// `threads`: of the consumers and of the producer together.
template <int threads>
struct HandOver {
  static __device__ void arrive_filled(int turn) { turn % 2 ? arrive<2>() : arrive<1>(); }
  static __device__ void wait_filled(int turn) { turn % 2 ? wait<2>() : wait<1>(); }
  static __device__ void arrive_emptied(int turn) { turn % 2 ? arrive<4>() : arrive<3>(); }
  static __device__ void wait_emptied(int turn) { turn % 2 ? wait<4>() : wait<3>(); }

 private:
  template <int number>
  static __device__ void arrive() {
    asm volatile("bar.arrive %0, %1;" ::"n"(number), "n"(threads) : "memory");
  }
  template <int number>
  static __device__ void wait() {
    asm volatile("bar.sync %0, %1;" ::"n"(number), "n"(threads) : "memory");
  }
};

}  // namespace switchback::cuda
