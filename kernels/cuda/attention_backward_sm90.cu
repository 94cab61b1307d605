// attention_backward_sm90.cu: attention_backward.cu on Hopper's warpgroup instructions, for sequences that
// shared memory holds whole and head sizes 64 and 80. Same formulas, same two kinds of tiles, of 64 rows
// instead of 16.
//
// What bounds it (512 x 12 heads x 197 x 64): 1240 MB, 413 us at 3 TB/s; 7 products of 256 x 208 x 64 for
// each head, 300 us at the tensor cores' peak. Copies alone take most of the first, so nothing may wait for
// them: a producer brings the next head by the copy engine and sums up its statistics, two consumer
// warpgroups compute.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attention_backward_common.cuh"
#include "kernels/cuda/attention_backward_sm90.cuh"
#include "kernels/cuda/attention_sm90.cuh"
#include "kernels/cuda/ptx/registers.cuh"

namespace switchback::cuda {
namespace {

// sum += (dp p) · X[row0 ...], rounded: ds times the rows. In halves, so that the first half's product runs
// while the second half is rounded. Leaves the products running.
template <int D, int n_tiles>
__device__ __forceinline__ void multiply_and_add(float (&sum)[D / 8][4], const float (&dp)[n_tiles][4],
                                                 const float (&p)[n_tiles][4], const SwizzledRows<D>& x,
                                                 int row0) {
  constexpr int half = n_tiles == 2 ? 2 : n_tiles / 2;
#pragma unroll
  for (int from = 0; from < n_tiles; from += half) {
    uint32_t ds[half / 2][4];
#pragma unroll
    for (int j = 0; j < half / 2; ++j) {
      float product[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) product[n][e] = dp[from + 2 * j + n][e] * p[from + 2 * j + n][e];
      }
      round_to_fragment(ds[j], product[0], product[1]);
    }
    hold(ds);
    wgmma_fence();
    issue_sums<D, half / 2>(sum, ds, x, row0 + 8 * from);
    wgmma_commit();
  }
}

// This warp's 16 queries of a tile of 64: dq.
template <int D, bool causal>
struct QueryTile {
  float dq[D / 8][4];
  float lse_log2[2], delta[2];  // of rows g and g + 8
  int tile_row0, row0;          // of the warpgroup, of the warp

  __device__ void start(const RowStatistics& statistics) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0;
    hold(dq);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lse_log2[half] = statistics.lse_log2[row0 + 8 * half + threadIdx.x % 32 / 4];
      delta[half] = statistics.delta[row0 + 8 * half + threadIdx.x % 32 / 4];
    }
  }

  // Keys key0 ... key0 + 8 n_tiles - 1. Leaves the product of dq running.
  template <int n_tiles>
  __device__ __forceinline__ void walk(const SwizzledRows<D>& q, const SwizzledRows<D>& dout,
                                       const SwizzledRows<D>& k, const SwizzledRows<D>& v, int key0,
                                       int tokens, float scale_log2) {
    float s[n_tiles][4], dp[n_tiles][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      dp[n][0] = dp[n][1] = -delta[0];
      dp[n][2] = dp[n][3] = -delta[1];
    }
    hold(dp);
    wgmma_fence();
    issue_scores<D, n_tiles>(s, q, tile_row0, k, key0, false);
    wgmma_commit();
    issue_scores<D, n_tiles>(dp, dout, tile_row0, v, key0, true);
    wgmma_commit();
    wgmma_wait<1>();
    hold(s);
    if (key0 + 8 * n_tiles > (causal ? min(tokens, row0 + 1) : tokens)) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = key0 + 8 * n + 2 * (threadIdx.x % 4) + (e & 1);
          const int query = row0 + threadIdx.x % 32 / 4 + 8 * (e >> 1);
          if (key >= tokens || (causal && key > query)) s[n][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = exp2_fast(fmaf(s[n][e], scale_log2, -lse_log2[e >> 1]));
    }
    wgmma_wait<0>();
    hold(dp);
    multiply_and_add<D, n_tiles>(dq, dp, s, k, key0);
  }
};

// This warp's 16 keys of a tile of 64: dk and dv.
template <int D, bool causal>
struct KeyTile {
  float dk[D / 8][4], dv[D / 8][4];
  int tile_row0, row0;  // of the warpgroup, of the warp

  __device__ void start() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0;
    }
    hold(dk), hold(dv);
  }

  // Queries query0 ... query0 + 8 n_tiles - 1. Leaves the products of dv and dk running.
  template <int n_tiles>
  __device__ __forceinline__ void walk(const SwizzledRows<D>& k, const SwizzledRows<D>& v,
                                       const SwizzledRows<D>& q, const SwizzledRows<D>& dout,
                                       const RowStatistics& statistics, int query0, float scale_log2) {
    const int t = threadIdx.x % 4;
    float s[n_tiles][4], dp[n_tiles][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(statistics.delta + query0 + 8 * n + 2 * t);
      dp[n][0] = dp[n][2] = -delta.x;
      dp[n][1] = dp[n][3] = -delta.y;
    }
    hold(dp);
    wgmma_fence();
    issue_scores<D, n_tiles>(s, k, tile_row0, q, query0, false);
    wgmma_commit();
    issue_scores<D, n_tiles>(dp, v, tile_row0, dout, query0, true);
    wgmma_commit();
    wgmma_wait<1>();
    hold(s);
    if (causal && query0 < row0 + 15) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int query = query0 + 8 * n + 2 * t + (e & 1),
                    key = row0 + threadIdx.x % 32 / 4 + 8 * (e >> 1);
          if (query < key) s[n][e] = -INFINITY;
        }
      }
    }
    // In halves: the first half's product runs while the second half's exponentials are computed.
    constexpr int half = n_tiles == 2 ? 2 : n_tiles / 2;
#pragma unroll
    for (int from = 0; from < n_tiles; from += half) {
      uint32_t p[half / 2][4];
#pragma unroll
      for (int n = from; n < from + half; ++n) {
        const float2 lse = *reinterpret_cast<const float2*>(statistics.lse_log2 + query0 + 8 * n + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) s[n][e] = exp2_fast(fmaf(s[n][e], scale_log2, e & 1 ? -lse.y : -lse.x));
      }
#pragma unroll
      for (int j = 0; j < half / 2; ++j) round_to_fragment(p[j], s[from + 2 * j], s[from + 2 * j + 1]);
      hold(p);
      wgmma_fence();
      issue_sums<D, half / 2>(dv, p, dout, query0 + 8 * from);
      wgmma_commit();
    }
    wgmma_wait<n_tiles / half>();  // dp; dv goes on
    hold(dp);
    multiply_and_add<D, n_tiles>(dk, dp, s, q, query0);
  }
};

constexpr int groups = 2;                    // consumers: exponentials of one, products of the other
constexpr int threads = 128 * (groups + 1);  // and a warpgroup that fetches
constexpr int most_tiles = 5;                // 320 tokens

// One block for each multiprocessor; it takes heads blockIdx.x, blockIdx.x + gridDim.x, ...
//
// Shared memory: a ring of `slots` >= 4 matrices, filled in the order q, dout, k, v of one head after the
// other, and the statistics of two heads. The producer fills for the next head what fits beside the four
// matrices of the current one (197 tokens of 64: all four; 257 of 64: two; 257 of 80: one) and computes its
// statistics while the consumers are busy; the rest follows when they are done with the current head.
template <int D, bool causal>
__global__ void __launch_bounds__(threads, 1)
    attention_backward_sm90_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out,
                                   const float* lse, const __grid_constant__ HeadMaps qkv_maps,
                                   const __grid_constant__ HeadMaps dout_maps, AttentionShape shape,
                                   int slots, bool accumulate) {
  extern __shared__ __align__(1024) unsigned char memory[];
  // Of heads of even and odd turn: all four matrices and the statistics are there; nobody needs them any
  // more.
  __shared__ uint64_t filled[2], emptied[2];
  const int T = shape.tokens, rows = shape.chunk_rows, tiles = (T + 63) / 64,
            heads = shape.batch * shape.heads;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // the same for the whole warp, and known to be
  const int bytes = SwizzledRows<D>::bytes(rows), stride = gridDim.x;
  const uint32_t base = shared_address(memory);
  float* floats = reinterpret_cast<float*>(memory + slots * bytes);
  auto statistics_of = [&](int turn) {
    float* lse_log2 = floats + turn % 2 * 128 * tiles;
    return RowStatistics{lse_log2, lse_log2 + 64 * tiles};
  };
  auto matrix = [&](int turn, int i) { return SwizzledRows<D>(base + (4 * turn + i) % slots * bytes, rows); };
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&filled[i], 1 + 128);  // the copies' bytes, and every thread of the producer
      ptx::mbarrier_init(&emptied[i], 128 * groups);
    }
    ptx::mbarrier_init_fence();
  }
  __syncthreads();

  if (group == groups) {  // ---- the producer ----
    ptx::give_back_registers<D <= 64 ? 72 : 40>();
    const bool copies = threadIdx.x == 128 * groups;
    int turn = 0;
    for (int number = blockIdx.x; number < heads; number += stride, ++turn) {
      const Head<D> head(dqkv, dout, qkv, out, lse, shape, number, accumulate);
      const int sample = number / shape.heads, column = number % shape.heads * D, C = shape.channels();
      auto copy = [&](int from, int to) {
        for (int i = from; i < to; ++i) {
          const int at = i == 0 || i == 1 ? column : i == 2 ? C + column : 2 * C + column;
          copy_matrix<D>(matrix(turn, i), i == 1 ? dout_maps : qkv_maps, at, sample, rows, &filled[turn % 2]);
        }
      };
      const int ahead = turn == 0 ? 4 : slots - 4;
      if (copies) {
        ptx::mbarrier_arrive_and_expect(&filled[turn % 2], 4 * rows * D * 2);
        copy(0, ahead);
      }
      __syncwarp();
      compute_statistics<D, 128, D <= 64 ? 2 : 1>(statistics_of(turn), head.dout, head.out, head.lse, head.C,
                                                  64 * tiles, T);
      if (turn > 0) {
        const int last = turn - 1;
        ptx::mbarrier_wait(&emptied[last % 2], last / 2 % 2, "attention producer", last % 2);
      }
      if (copies) copy(ahead, 4);
      __syncwarp();
      ptx::mbarrier_arrive(&filled[turn % 2]);
    }
  } else {  // ---- the consumers ----
    ptx::take_registers<D <= 64 ? 216 : 232>();
    const int warp_row = threadIdx.x % 128 / 32 * 16;
    int turn = 0;
    for (int number = blockIdx.x; number < heads; number += stride, ++turn) {
      const Head<D> head(dqkv, dout, qkv, out, lse, shape, number, accumulate);
      const SwizzledRows<D> q = matrix(turn, 0), g = matrix(turn, 1), k = matrix(turn, 2),
                            v = matrix(turn, 3);
      const RowStatistics statistics = statistics_of(turn);
      ptx::mbarrier_wait(&filled[turn % 2], turn / 2 % 2, "attention consumer", turn % 2);

      for (int tile = group; tile < tiles; tile += groups) {
        KeyTile<D, causal> own;
        own.tile_row0 = 64 * tile, own.row0 = 64 * tile + warp_row;
        own.start();
        for_each_step_of_64(causal ? 64 * tile : 0, T, [&](auto n_tiles, int query) {
          own.template walk<decltype(n_tiles)::value>(k, v, q, g, statistics, query, head.scale_log2);
        });
        wgmma_wait<0>();
        hold(own.dk);
        hold(own.dv);
        store_own_rows<D>(head.dk, head.pitch, own.row0, T, own.dk, head.scale, head.scale, accumulate);
        store_own_rows<D>(head.dv, head.pitch, own.row0, T, own.dv, 1, 1, accumulate);
      }
      for (int tile = (group + tiles) % groups; tile < tiles;
           tile += groups) {  // if odd: the other group first
        QueryTile<D, causal> own;
        own.tile_row0 = 64 * tile, own.row0 = 64 * tile + warp_row;
        own.start(statistics);
        for_each_step_of_64(0, causal ? min(T, 64 * tile + 64) : T, [&](auto n_tiles, int key) {
          own.template walk<decltype(n_tiles)::value>(q, g, k, v, key, T, head.scale_log2);
        });
        wgmma_wait<0>();
        hold(own.dq);
        store_own_rows<D>(head.dq, head.pitch, own.row0, T, own.dq, head.scale, head.scale, accumulate);
      }
      ptx::mbarrier_arrive(&emptied[turn % 2]);
    }
  }
}

template <int D, bool causal>
void launch_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                          AttentionShape shape, bool accumulate, cudaStream_t stream) {
  auto* kernel = attention_backward_sm90_kernel<D, causal>;
  choose_chunks<D>(shape, 4);
  const int matrix = SwizzledRows<D>::bytes(shape.chunk_rows);
  // Statistics; and a last tile of 64 rows reads past the end of the last matrix, 48 rows at most.
  const int beside = 16 * ((shape.tokens + 63) / 64 * 64) + (D == 64 ? 48 * 128 : 0);
  const int slots = std::min(8, (shared_memory_limit() - 1024 - beside) / matrix);
  CHECK(shape.chunks == 1 && slots >= 4, "attention: ", shape.tokens, " tokens on this path");
  allow_shared_memory(kernel, slots * matrix + beside);
  const HeadMaps qkv_maps =
      make_head_maps(qkv, shape.batch, shape.tokens, shape.qkv_pitch(), shape.chunk_rows);
  const HeadMaps dout_maps =
      make_head_maps(dout, shape.batch, shape.tokens, shape.channels(), shape.chunk_rows);
  const int blocks = std::min(shape.batch * shape.heads, free_multiprocessors());
  kernel<<<blocks, threads, slots * matrix + beside, stream>>>(dqkv, dout, qkv, out, lse, qkv_maps, dout_maps,
                                                               shape, slots, accumulate);
  check_launch(cudaGetLastError(), "attention_backward");
}

}  // namespace

bool attention_backward_sm90_serves(const AttentionShape& shape) {
  return (shape.head_size == 64 || shape.head_size == 80) && shape.tokens > 96 &&
         shape.tokens <= 64 * most_tiles && on_hopper();
}

void attention_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                             const AttentionShape& shape, bool causal, bool accumulate, cudaStream_t stream) {
  auto launch = shape.head_size == 64
                    ? (causal ? launch_backward_sm90<64, true> : launch_backward_sm90<64, false>)
                    : (causal ? launch_backward_sm90<80, true> : launch_backward_sm90<80, false>);
  launch(dqkv, dout, qkv, out, lse, shape, accumulate, stream);
}

}  // namespace switchback::cuda
