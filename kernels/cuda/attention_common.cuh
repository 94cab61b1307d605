// attention_common.cuh: what attention's forward and backward kernels share: where a head lies in global
// memory, how its rows lie in shared memory, and the two products that everything is made of.
//
// The plan of all attention kernels here. CLIP's sequences are short (50 ... 257 tokens), so one block of
// threads takes one head of one sample and keeps two whole matrices of it, X and Y (T, D), in shared memory:
// K and V where the rows of the result are queries, Q and dout where they are keys. Each warp owns tiles of
// 16 result rows. It holds its own rows as fragments in registers, walks over the rows of X and Y, and never
// writes a score anywhere:
//
//     s   = own · Xᵀ          add_scores: X's rows become columns                       (16, 8 n)
//     p   = f(s)              elementwise, in registers
//     sum = sum + p · X       add_sums:   X's rows are what is summed over              (16, D)
//
// On Hopper, tiles of 64 rows on warpgroup instructions do the same for 97 ... 320 tokens:
// attention_sm90.cuh. Longer sequences take X and Y in parts ("chunks") of as many rows as fit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/spared.h"
#include "runtime/check.h"
#include "runtime/view.h"

namespace switchback::cuda {

using bf16 = __nv_bfloat16;

constexpr float log2_of_e = 1.4426950408889634f;
constexpr float ln_of_2 = 0.6931471805599453f;

// ---- one head in global memory ----------------------------------------------------------------------------
// The sizes of a problem, as every kernel gets them. Rows of qkv (B T, 3 C) hold q, k, v one after the other,
// each of H heads of D: a head's matrix is a column band, its row pitch is 3 C (C for out and dout).
struct AttentionShape {
  int batch, tokens, heads, head_size;
  int chunk_rows;  // rows of X and Y that shared memory holds at a time; a multiple of 16
  int chunks;      // 1: the whole sequence is resident and a block serves all its rows
  float scale;     // of the scores: 1/√D

  __host__ __device__ int channels() const { return heads * head_size; }
  __host__ __device__ int qkv_pitch() const { return 3 * channels(); }
};

// ---- rows in shared memory --------------------------------------------------------------------------------
// A matrix (rows, D) without padding. ldmatrix wants the same 16-byte chunk of 8 consecutive rows in
// different banks; the 8 rows start D/8 chunks apart, so D/8 odd is fine by itself and for the rest the chunk
// number is xor-ed with bits of the row: as many bits as 2 divides D/8, three at most.
template <int D>
struct SharedLayout {
  static_assert(D % 8 == 0, "rows are moved in chunks of 16 bytes");
  static constexpr int chunks = D / 8;
  static constexpr int period = chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : chunks % 2 == 0 ? 2 : 1;
  static constexpr int pitch = D * 2;  // bytes

  static __device__ uint32_t offset(int row, int chunk) {
    return row * pitch + ((chunk ^ (row / (8 / period) % period)) * 16);
  }
  // offset(row, chunk + 2 k) from address = base + offset(row, chunk), for chunk 0 or 1: the swizzle touches
  // only the low bits, which a constant xor can flip. Bases are multiples of 128.
  static __device__ uint32_t advance(uint32_t address, int k) {
    return (address ^ (2 * k % period * 16)) + 2 * k / period * period * 16;
  }
};

// Starts copying `rows` rows of D from global memory (pitch in elements); those from `valid` on become zeros.
template <int D, int threads>
__device__ __forceinline__ void copy_rows_async(uint32_t to, const bf16* from, int pitch, int rows,
                                                int valid) {
  using Layout = SharedLayout<D>;
  for (int i = threadIdx.x; i < rows * Layout::chunks; i += threads) {
    int row = i / Layout::chunks, chunk = i % Layout::chunks;
    bool inside = row < valid;
    copy_16_async(to + Layout::offset(row, chunk), from + (inside ? row * pitch + chunk * 8 : 0), inside);
  }
}

// One lane's view of a matrix in shared memory: the two ways to read a 16 x 16 part of it as B fragments.
template <int D>
class SharedRows {
  using Layout = SharedLayout<D>;

 public:
  __device__ explicit SharedRows(uint32_t base) {
    int lane = threadIdx.x % 32;
    as_columns_ = base + Layout::offset((lane & 7) + ((lane & 16) >> 1), (lane >> 3) & 1);
    as_rows_ = base + Layout::offset(lane & 15, lane >> 4);
  }

  // B = X[row0 ... row0+15][16 k ... 16 k+15]ᵀ: b[0], b[1] for the first 8 rows, b[2], b[3] for the others.
  __device__ void load_columns(uint32_t (&b)[4], int row0, int k) const {
    ldmatrix_x4(b, Layout::advance(as_columns_ + row0 * Layout::pitch, k));
  }
  // The last 8 dims of an odd D/8, for m16n8k8: b[0] for the first 8 rows, b[1] for the others.
  __device__ void load_last_columns(uint32_t (&b)[2], int row0) const {
    ldmatrix_x2(b, Layout::advance(as_rows_ + row0 * Layout::pitch, D / 16));
  }
  // B = X[row0 ... row0+15][16 j ... 16 j+15]: b[0], b[1] for the first 8 dims, b[2], b[3] for the others.
  __device__ void load_rows(uint32_t (&b)[4], int row0, int j) const {
    ldmatrix_x4_transposed(b, Layout::advance(as_rows_ + row0 * Layout::pitch, j));
  }
  __device__ void load_last_rows(uint32_t (&b)[2], int row0) const {
    ldmatrix_x2_transposed(b, Layout::advance(as_rows_ + row0 * Layout::pitch, D / 16));
  }
  // A = X[row0 ... row0+15][16 k ... 16 k+15]
  __device__ void load_own(uint32_t (&a)[4], int row0, int k) const {
    ldmatrix_x4(a, Layout::advance(as_rows_ + row0 * Layout::pitch, k));
  }

 private:
  uint32_t as_columns_, as_rows_;  // addresses of this lane's 16 bytes at row0 = 0, k = 0
};

// ---- a warp's own rows, in registers ----------------------------------------------------------------------
// 16 rows of D as A fragments; `last` is the half step of an odd D/8.
template <int D>
struct OwnRows {
  uint32_t whole[D / 16][4];
  uint32_t last[2];
};

// From global memory: rows row0 ... row0+15, zeros from `valid` on. A lane reads 8 bytes, so that a quad
// reads one whole 32-byte sector of a row, and swaps 4 of them with its neighbour (lane ^ 1) to get the
// fragments' order.
template <int D>
__device__ __forceinline__ void load_own_rows(OwnRows<D>& own, const bf16* from, int pitch, int row0,
                                              int valid) {
  int lane = threadIdx.x % 32, t = lane % 4;
  bool odd = t & 1;
  uint2 read[2][D / 16];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = row0 + lane / 4 + 8 * half;
    const bf16* place = from + row * pitch;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      read[half][k] = make_uint2(0, 0);
      if (row < valid) {
        read[half][k] = *reinterpret_cast<const uint2*>(place + 16 * k + (odd ? 8 : 0) + (t >> 1) * 4);
      }
    }
    if constexpr (D % 16) {
      own.last[half] = row < valid ? *reinterpret_cast<const uint32_t*>(place + D / 16 * 16 + 2 * t) : 0u;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint2 r = read[half][k];
      uint32_t swapped = __shfl_xor_sync(~0u, odd ? r.x : r.y, 1);
      own.whole[k][half] = odd ? swapped : r.x;
      own.whole[k][half + 2] = odd ? r.y : swapped;
    }
  }
}

// From a matrix in shared memory (its padding rows are zeros).
template <int D>
__device__ __forceinline__ void load_own_rows(OwnRows<D>& own, const SharedRows<D>& from, int row0) {
#pragma unroll
  for (int k = 0; k < D / 16; ++k) from.load_own(own.whole[k], row0, k);
  if constexpr (D % 16) from.load_last_columns(own.last, row0);
}

// Writes 16 rows of sums, times `factor` (of rows g and g + 8), as bf16; rows from `valid` on are left alone.
// The same neighbour swap as above makes 8-byte stores that fill whole sectors.
template <int D>
__device__ __forceinline__ void store_own_rows(bf16* to, int pitch, int row0, int valid,
                                               float (&sum)[D / 8][4], float factor_0, float factor_1,
                                               bool accumulate) {
  int lane = threadIdx.x % 32, t = lane % 4;
  bool odd = t & 1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int row = row0 + lane / 4 + 8 * half;
    bool inside = row < valid;
    float factor = half ? factor_1 : factor_0;
    bf16* place = to + static_cast<int64_t>(row) * pitch;
    uint32_t rounded[D / 8];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      float low = sum[n][2 * half] * factor, high = sum[n][2 * half + 1] * factor;
      if (accumulate && inside) {
        uint32_t before = *reinterpret_cast<const uint32_t*>(place + 8 * n + 2 * t);
        low += low_bf16(before);
        high += high_bf16(before);
      }
      rounded[n] = pack_bf16(low, high);
    }
    if (accumulate) __syncwarp();  // the neighbour's reads come before this lane's stores
#pragma unroll
    for (int n = 0; n + 1 < D / 8; n += 2) {
      uint32_t swapped = __shfl_xor_sync(~0u, odd ? rounded[n] : rounded[n + 1], 1);
      uint2 value = odd ? make_uint2(swapped, rounded[n + 1]) : make_uint2(rounded[n], swapped);
      if (inside) *reinterpret_cast<uint2*>(place + 8 * n + (odd ? 8 : 0) + (t >> 1) * 4) = value;
    }
    if constexpr (D % 16) {
      if (inside) *reinterpret_cast<uint32_t*>(place + D / 16 * 16 + 2 * t) = rounded[D / 8 - 1];
    }
  }
}

// ---- the two products -------------------------------------------------------------------------------------
// s[m] (16, 8 n_tiles) += own[m] (16, D) · X[row0 ... row0 + 8 n_tiles]ᵀ. Several m share each read of X.
template <int D, int m_tiles, int n_tiles>
__device__ __forceinline__ void add_scores(float (&s)[m_tiles][n_tiles][4], const OwnRows<D> (&own)[m_tiles],
                                           const SharedRows<D>& x, int row0) {
  static_assert(n_tiles % 2 == 0);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int n = 0; n < n_tiles; n += 2) {
      uint32_t b[4];
      x.load_columns(b, row0 + 8 * n, k);
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        mma_m16n8k16(s[m][n], own[m].whole[k], b[0], b[1]);
        mma_m16n8k16(s[m][n + 1], own[m].whole[k], b[2], b[3]);
      }
    }
  }
  if constexpr (D % 16) {
#pragma unroll
    for (int n = 0; n < n_tiles; n += 2) {
      uint32_t b[2];
      x.load_last_columns(b, row0 + 8 * n);
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        mma_m16n8k8(s[m][n], own[m].last, b[0]);
        mma_m16n8k8(s[m][n + 1], own[m].last, b[1]);
      }
    }
  }
}

// sum[m] (16, D) += p[m] (16, 16) · X[row0 ... row0+15]
template <int D, int m_tiles>
__device__ __forceinline__ void add_sums(float (&sum)[m_tiles][D / 8][4], const uint32_t (&p)[m_tiles][4],
                                         const SharedRows<D>& x, int row0) {
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    uint32_t b[4];
    x.load_rows(b, row0, j);
#pragma unroll
    for (int m = 0; m < m_tiles; ++m) {
      mma_m16n8k16(sum[m][2 * j], p[m], b[0], b[1]);
      mma_m16n8k16(sum[m][2 * j + 1], p[m], b[2], b[3]);
    }
  }
  if constexpr (D % 16) {
    uint32_t b[2];
    x.load_last_rows(b, row0);
#pragma unroll
    for (int m = 0; m < m_tiles; ++m) mma_m16n8k16(sum[m][D / 8 - 1], p[m], b[0], b[1]);
  }
}

// Two neighbouring score tiles, rounded: the A fragment of the next product.
__device__ __forceinline__ void round_to_fragment(uint32_t (&a)[4], const float (&left)[4],
                                                  const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

__device__ __forceinline__ float quad_max(float x) {  // over the 4 lanes that share a row
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// ---- host side --------------------------------------------------------------------------------------------
inline void check_launch(cudaError_t status, const char* what) {
  CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

// Calls f(std::integral_constant<int, D>) for a head size that has kernels; false for others. 64 is ViT-B and
// ViT-L and every text tower, 80 ViT-H, 88 ViT-g, 104 ViT-bigG; 32 and 128 serve small and odd models.
template <class F>
bool serve_head_size(int64_t head_size, F&& f) {
  switch (head_size) {
    case 32:
      f(std::integral_constant<int, 32>{});
      return true;
    case 64:
      f(std::integral_constant<int, 64>{});
      return true;
    case 80:
      f(std::integral_constant<int, 80>{});
      return true;
    case 88:
      f(std::integral_constant<int, 88>{});
      return true;
    case 104:
      f(std::integral_constant<int, 104>{});
      return true;
    case 128:
      f(std::integral_constant<int, 128>{});
      return true;
    default:
      return false;
  }
}

// Checks qkv (B, T, 3C) bf16 against the number of heads.
inline AttentionShape attention_shape(const CView& qkv, int64_t heads) {
  CHECK(qkv.shape.rank() == 3 && heads > 0 && qkv.cols() % (3 * heads) == 0, "attention: qkv is ", qkv.shape,
        ", not (B, T, 3 x ", heads, " heads x D)");
  CHECK(qkv.dtype == DType::bf16 && qkv.device.kind == Device::cuda, "attention: qkv is ", qkv.dtype, " on ",
        qkv.device);
  const int64_t head_size = qkv.cols() / (3 * heads);
  if (!serve_head_size(head_size, [](auto) {})) {
    fail("attention: no CUDA kernel for heads of ", head_size,
         "; there are some for 32, 64, 80, 88, 104 and 128: ", "change the width or the number of heads");
  }
  AttentionShape shape{};
  shape.batch = static_cast<int>(qkv.shape[0]);
  shape.tokens = static_cast<int>(qkv.shape[1]);
  shape.heads = static_cast<int>(heads);
  shape.head_size = static_cast<int>(head_size);
  shape.scale = 1 / std::sqrt(static_cast<float>(head_size));
  return shape;
}

// For a persistent kernel.
inline int free_multiprocessors() { return std::max(1, multiprocessor_count() - spared_multiprocessors()); }
// Bytes that a block may ask for: 227 KiB on Hopper, 163 on an A100, 99 on cards of 8.6 and 8.9.
inline int shared_memory_limit() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// The rows of `matrices` matrices that `limit` bytes take at a time: the whole sequence where that fits, else
// as few and as equal parts as possible. Rows come in 64s, but a rest of up to 16 is a 16.
template <int D>
void choose_chunks(AttentionShape& shape, int matrices, int limit = shared_memory_limit()) {
  constexpr int bytes_beside = 8;  // for each row: f32 lse and delta, in the backward pass
  const int most = limit / (matrices * D * 2 + bytes_beside) / 64 * 64;
  const int rest = shape.tokens % 64;
  const int whole = shape.tokens - rest + (rest == 0 ? 0 : rest <= 16 ? 16 : 64);
  const bool fits = whole * (matrices * D * 2 + bytes_beside) <= limit;
  shape.chunks = fits ? 1 : (shape.tokens + most - 1) / most;
  shape.chunk_rows = fits ? whole : (shape.tokens / shape.chunks + 63) / 64 * 64;
  if (!fits) shape.chunks = (shape.tokens + shape.chunk_rows - 1) / shape.chunk_rows;
}

template <class Kernel>
void allow_shared_memory(Kernel* kernel, int bytes) {
  check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
               "attention: shared memory");
}

}  // namespace switchback::cuda
