// attention_forward.cu: see attention_forward.cuh for the formula, attention_common.cuh for the plan.
//
// A block holds K and V of one head in shared memory; a warp takes m_tiles x 16 queries at a time and walks
// over the keys 64 by 64 with the online softmax:
//
//   m = largest score so far, l = Σ exp(s - m), o = Σ exp(s - m) v;     out = o / l, lse = m + log l
//
// When a block of keys raises m, what was summed before must be scaled by exp(m_old - m_new). The result does
// not depend on which m is subtracted, only overflow does, so m is left alone until it would rise by more
// than 2^8: after the first keys that is rare, and the scaling is skipped by the whole warp.
//
// The sequences that come here (50 and 77 tokens) are bound by memory traffic: several blocks live on a
// multiprocessor, one's copies run under the other's products. On Hopper the vision towers' longer sequences
// go another way: attention_forward_sm90.cu.
#include <type_traits>

#include "kernels/cuda/attention_common.cuh"
#include "kernels/cuda/attention_forward.cuh"
#include "kernels/cuda/attention_forward_sm90.cuh"

namespace switchback::cuda {
namespace {

constexpr float rescale_threshold = 8;  // in powers of two: probabilities stay below 2^8

// m_tiles x 16 queries, from row0 on, of one head, and what the online softmax knows about them.
template <int D, bool causal, int m_tiles>
struct QueryTile {
  OwnRows<D> q[m_tiles];
  float o[m_tiles][D / 8][4];
  float m[m_tiles][2];  // of rows g and g + 8; in units of log 2, like everything that goes into exp2
  float l[m_tiles][2];  // this lane's part
  int row0;

  __device__ void start() {
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0;
      m[i][0] = m[i][1] = -INFINITY;
      l[i][0] = l[i][1] = 0;
    }
  }

  // Keys key0 ... key0 + 8 n_tiles - 1, whose rows stand in shared memory from `row` on; `tokens` exist.
  template <int n_tiles, bool masked>
  __device__ __forceinline__ void attend(const SharedRows<D>& k, const SharedRows<D>& v, int row, int key0,
                                         int tokens, float scale_log2) {
    int lane = threadIdx.x % 32;
    float s[m_tiles][n_tiles][4] = {};
    add_scores<D, m_tiles, n_tiles>(s, q, k, row);
    if constexpr (masked) {
#pragma unroll
      for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            int key = key0 + 8 * n + 2 * (lane % 4) + (e & 1);
            int query = row0 + 16 * i + lane / 4 + 8 * (e >> 1);
            if (key >= tokens || (causal && key > query)) s[i][n][e] = -INFINITY;
          }
        }
      }
    }
    rescale(s, scale_log2);
#pragma unroll
    for (int j = 0; j < n_tiles; j += 2) {
      uint32_t p[m_tiles][4];
#pragma unroll
      for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
        for (int n = j; n < j + 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s[i][n][e] = exp2_fast(fmaf(s[i][n][e], scale_log2, -m[i][e >> 1]));
            l[i][e >> 1] += s[i][n][e];
          }
        }
        round_to_fragment(p[i], s[i][j], s[i][j + 1]);
      }
      add_sums<D, m_tiles>(o, p, v, row + 8 * j);
    }
  }

  template <int n_tiles>
  __device__ __forceinline__ void rescale(const float (&s)[m_tiles][n_tiles][4], float scale_log2) {
    float largest[m_tiles][2];
    bool rises = false;
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = s[i][0][2 * half];
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) x = fmaxf(x, fmaxf(s[i][n][2 * half], s[i][n][2 * half + 1]));
        largest[i][half] = quad_max(x) * scale_log2;
        rises |= largest[i][half] > m[i][half] + rescale_threshold;
      }
    }
    if (!__any_sync(~0u, rises)) return;
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float raised = fmaxf(m[i][half], largest[i][half]);
        float factor = exp2_fast(m[i][half] - raised);  // first block: 2^-inf = 0, of sums that are 0
        m[i][half] = raised;
        l[i][half] *= factor;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[i][n][2 * half] *= factor;
          o[i][n][2 * half + 1] *= factor;
        }
      }
    }
  }
};

// Before Hopper five warps of heads of 64 need registers that three blocks on a multiprocessor would not
// leave.
template <int D, int warps, int blocks>
constexpr int without_spilling() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (D == 64 && warps == 5) return blocks - 1;
#endif
  return blocks;
}

// Block: (head of sample, group of rows). Shared memory: K and V, chunk_rows each.
template <int D, bool causal, int m_tiles, int warps, int blocks_per_multiprocessor>
__global__ void __launch_bounds__(32 * warps, without_spilling<D, warps, blocks_per_multiprocessor>())
    attention_forward_kernel(bf16* out, float* lse, const bf16* qkv, AttentionShape shape) {
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr int tile_rows = 16 * m_tiles, threads = 32 * warps;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int T = shape.tokens, C = shape.channels(), pitch = shape.qkv_pitch(), chunk_rows = shape.chunk_rows;
  const int sample = blockIdx.x / shape.heads, head = blockIdx.x % shape.heads;
  const bf16* q = qkv + static_cast<int64_t>(sample) * T * pitch + head * D;
  const bf16* k = q + C;
  const bf16* v = k + C;
  const uint32_t k_base = shared_address(memory), v_base = k_base + chunk_rows * SharedLayout<D>::pitch;
  const SharedRows<D> shared_k(k_base), shared_v(v_base);
  const float scale_log2 = shape.scale * log2_of_e;

  auto copy_chunk = [&](int chunk) {
    int first = chunk * chunk_rows;
    copy_rows_async<D, threads>(k_base, k + static_cast<int64_t>(first) * pitch, pitch, chunk_rows,
                                T - first);
    copy_rows_async<D, threads>(v_base, v + static_cast<int64_t>(first) * pitch, pitch, chunk_rows,
                                T - first);
    commit_copies();
  };
  const bool resident = shape.chunks == 1;
  if (resident) copy_chunk(0);

  // Resident: the block's warps share out all tiles; the head's number decides who gets the odd one, so that
  // the four schedulers of a multiprocessor end up equally loaded. Otherwise: one tile for each warp.
  const int group = blockIdx.y * warps * tile_rows;
  const int rows_here = resident ? T : min(warps * tile_rows, T - group);
  const int tiles = resident ? (rows_here + tile_rows - 1) / tile_rows : warps;
  const int first_tile = resident ? (warp + blockIdx.x) % warps : warp;
  bool copied = false;

  for (int tile = first_tile; tile < tiles; tile += warps) {
    QueryTile<D, causal, m_tiles> own;
    own.row0 = group + tile * tile_rows;
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) load_own_rows<D>(own.q[i], q, pitch, own.row0 + 16 * i, T);
    own.start();
    const int keys = causal ? min(T, own.row0 + tile_rows) : T;

    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      if (!resident) {
        __syncthreads();  // all warps are done with the last chunk
        copy_chunk(chunk);
      }
      if (!copied) {
        wait_for_copies<0>();
        __syncthreads();
        copied = resident;
      }
      const int first = chunk * chunk_rows, end = min(keys, first + chunk_rows);
      int key = first;
      // Whole blocks of 64 keys that no mask touches, then the rest.
      for (const int clear_end = causal ? min(end, own.row0 + 1) : end; key + 64 <= clear_end; key += 64) {
        own.template attend<8, false>(shared_k, shared_v, key - first, key, T, scale_log2);
      }
      while (key < end) {
        if (end - key > 16) {
          own.template attend<8, true>(shared_k, shared_v, key - first, key, T, scale_log2);
          key += 64;
        } else {
          own.template attend<2, true>(shared_k, shared_v, key - first, key, T, scale_log2);
          key += 16;
        }
      }
    }

#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
      const int row0 = own.row0 + 16 * i;
      const float l0 = quad_sum(own.l[i][0]), l1 = quad_sum(own.l[i][1]);
      store_own_rows<D>(out + static_cast<int64_t>(sample) * T * C + head * D, C, row0, T, own.o[i], 1 / l0,
                        1 / l1, false);
      if (lane % 4 == 0) {
        float* place = lse + static_cast<int64_t>(blockIdx.x) * T;
        const int row = row0 + lane / 4;
        if (row < T) place[row] = (own.m[i][0] + log2f(l0)) * ln_of_2;
        if (row + 8 < T) place[row + 8] = (own.m[i][1] + log2f(l1)) * ln_of_2;
      }
    }
  }
  if (!copied && resident) wait_for_copies<0>();
}

template <int D, bool causal, int m_tiles, int warps, int blocks_per_multiprocessor>
void launch_forward(bf16* out, float* lse, const bf16* qkv, AttentionShape shape, cudaStream_t stream) {
  auto* kernel = attention_forward_kernel<D, causal, m_tiles, warps, blocks_per_multiprocessor>;
  choose_chunks<D>(shape, 2);
  const int bytes = 2 * shape.chunk_rows * SharedLayout<D>::pitch;
  allow_shared_memory(kernel, bytes);
  const int rows_per_block = shape.chunks == 1 ? shape.tokens : warps * m_tiles * 16;
  dim3 grid(shape.batch * shape.heads, (shape.tokens + rows_per_block - 1) / rows_per_block);
  kernel<<<grid, 32 * warps, bytes, stream>>>(out, lse, qkv, shape);
  check_launch(cudaGetLastError(), "attention_forward");
}

}  // namespace

bool attention_serves(int64_t head_size) {
  return serve_head_size(head_size, [](auto) {});
}

void attention_forward(View out, View lse, CView qkv, int64_t heads, bool causal, cudaStream_t stream) {
  AttentionShape shape = attention_shape(qkv, heads);
  CHECK(out.shape == Shape({shape.batch, shape.tokens, shape.channels()}), "attention: out is ", out.shape);
  CHECK(lse.shape == Shape({shape.batch, shape.heads, shape.tokens}), "attention: lse is ", lse.shape);
  CHECK(out.dtype == DType::bf16 && lse.dtype == DType::f32, "attention: out is ", out.dtype, ", lse ",
        lse.dtype);
  if (shape.batch == 0 || shape.tokens == 0) return;
  if (attention_forward_sm90_serves(shape)) {
    attention_forward_sm90(static_cast<bf16*>(out.data), static_cast<float*>(lse.data),
                           static_cast<const bf16*>(qkv.data), shape, causal, stream);
    return;
  }
  serve_head_size(shape.head_size, [&](auto size) {
    constexpr int D = decltype(size)::value;
    // 65 ... 80 tokens are five tiles of 16: five warps. Blocks as the registers allow without spilling.
    constexpr int blocks = D <= 64 ? 3 : 2;
    auto launch = causal ? launch_forward<D, true, 1, 4, blocks> : launch_forward<D, false, 1, 4, blocks>;
    if (shape.tokens > 64 && shape.tokens <= 96) {
      constexpr int of_five = D <= 64 ? 3 : D <= 88 ? 2 : 1;
      launch = causal ? launch_forward<D, true, 1, 5, of_five> : launch_forward<D, false, 1, 5, of_five>;
    }
    launch(static_cast<bf16*>(out.data), static_cast<float*>(lse.data), static_cast<const bf16*>(qkv.data),
           shape, stream);
  });
}

}  // namespace switchback::cuda
