// attention_backward_sm90.cu: attention_backward.cu's long-sequence kernel on Hopper's warpgroup instructions, for
// sequences that shared memory holds whole and head sizes 64 and 80. Same formulas, same two kinds of tiles (of 64
// rows instead of 16), same division of labour: even blocks do key tiles, odd blocks query tiles.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attention_backward_common.cuh"
#include "kernels/cuda/attention_backward_sm90.cuh"
#include "kernels/cuda/attention_sm90.cuh"

namespace switchback::cuda {
namespace {

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
  __device__ __forceinline__ void walk(const ChunkedRows<D>& q, const ChunkedRows<D>& dout, const ChunkedRows<D>& k,
                                       const ChunkedRows<D>& v, int key0, int tokens, float scale_log2) {
    float s[n_tiles][4], dp[n_tiles][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      dp[n][0] = dp[n][1] = -delta[0];
      dp[n][2] = dp[n][3] = -delta[1];
    }
    hold(dp);
    warpgroup_fence();
    issue_scores<D, n_tiles>(s, q, tile_row0, k, key0, false);
    commit_products();
    issue_scores<D, n_tiles>(dp, dout, tile_row0, v, key0, true);
    commit_products();
    wait_for_products<1>();
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
    wait_for_products<0>();
    hold(dp);
    uint32_t ds[n_tiles / 2][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[n][e] *= s[n][e];
    }
#pragma unroll
    for (int j = 0; j < n_tiles / 2; ++j) round_to_fragment(ds[j], dp[2 * j], dp[2 * j + 1]);
    hold(ds);
    warpgroup_fence();
    issue_sums<D, n_tiles / 2>(dq, ds, k, key0);
    commit_products();
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
  __device__ __forceinline__ void walk(const ChunkedRows<D>& k, const ChunkedRows<D>& v, const ChunkedRows<D>& q,
                                       const ChunkedRows<D>& dout, const RowStatistics& statistics, int query0,
                                       float scale_log2) {
    const int t = threadIdx.x % 4;
    float s[n_tiles][4], dp[n_tiles][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(statistics.delta + query0 + 8 * n + 2 * t);
      dp[n][0] = dp[n][2] = -delta.x;
      dp[n][1] = dp[n][3] = -delta.y;
    }
    hold(dp);
    warpgroup_fence();
    issue_scores<D, n_tiles>(s, k, tile_row0, q, query0, false);
    commit_products();
    issue_scores<D, n_tiles>(dp, v, tile_row0, dout, query0, true);
    commit_products();
    wait_for_products<1>();
    hold(s);
    if (causal && query0 < row0 + 15) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int query = query0 + 8 * n + 2 * t + (e & 1), key = row0 + threadIdx.x % 32 / 4 + 8 * (e >> 1);
          if (query < key) s[n][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      const float2 lse = *reinterpret_cast<const float2*>(statistics.lse_log2 + query0 + 8 * n + 2 * t);
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] = exp2_fast(fmaf(s[n][e], scale_log2, e & 1 ? -lse.y : -lse.x));
    }
    uint32_t p[n_tiles / 2][4], ds[n_tiles / 2][4];
#pragma unroll
    for (int j = 0; j < n_tiles / 2; ++j) round_to_fragment(p[j], s[2 * j], s[2 * j + 1]);
    hold(p);
    warpgroup_fence();
    issue_sums<D, n_tiles / 2>(dv, p, dout, query0);
    commit_products();
    wait_for_products<1>();  // dp
    hold(dp);
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[n][e] *= s[n][e];
    }
#pragma unroll
    for (int j = 0; j < n_tiles / 2; ++j) round_to_fragment(ds[j], dp[2 * j], dp[2 * j + 1]);
    hold(ds);
    warpgroup_fence();
    issue_sums<D, n_tiles / 2>(dk, ds, q, query0);
    commit_products();
  }
};

constexpr int groups = 2, threads = 128 * groups;  // two warpgroups: one computes exponentials, the other products
constexpr int most_tiles = 5;                      // 320 tokens

// delta and lse of a head's rows. Four lanes share a row, all rows of a lane are asked for at once (`load`), before
// the wait for the copies of dout that `finish` multiplies them with.
template <int D>
struct StatisticsLoader {
  static constexpr int pieces = (D / 8 + 3) / 4;  // chunks of 8 columns for a lane
  uint4 out[most_tiles][pieces];
  float lse[most_tiles];

  __device__ __forceinline__ void load(const Head<D>& head) {
    const int part = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile) {
      const int row = 64 * tile + threadIdx.x / 4;
      const bool inside = row < head.T;
      lse[tile] = inside ? head.lse[row] * log2_of_e : INFINITY;  // p = 0 for rows that do not exist
#pragma unroll
      for (int i = 0; i < pieces; ++i) {
        const bool wanted = inside && 4 * i + part < D / 8;
        out[tile][i] = make_uint4(0, 0, 0, 0);
        if (wanted) out[tile][i] = reinterpret_cast<const uint4*>(head.out + row * head.C)[4 * i + part];
      }
    }
  }

  __device__ __forceinline__ void finish(RowStatistics to, const unsigned char* dout, int chunk_pitch, int rows,
                                         int tiles) {
    const int part = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile) {
      if (tile < tiles) {
        const int row = 64 * tile + threadIdx.x / 4;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < pieces; ++i) {
          if (row < rows && 4 * i + part < D / 8) {
            const uint4 x = out[tile][i];
            const uint4 y = *reinterpret_cast<const uint4*>(dout + (4 * i + part) * chunk_pitch + row * 16);
            sum += low_bf16(x.x) * low_bf16(y.x) + high_bf16(x.x) * high_bf16(y.x);
            sum += low_bf16(x.y) * low_bf16(y.y) + high_bf16(x.y) * high_bf16(y.y);
            sum += low_bf16(x.z) * low_bf16(y.z) + high_bf16(x.z) * high_bf16(y.z);
            sum += low_bf16(x.w) * low_bf16(y.w) + high_bf16(x.w) * high_bf16(y.w);
          }
        }
        sum = quad_sum(sum);
        if (part == 0) {
          to.delta[row] = sum;
          to.lse_log2[row] = lse[tile];
        }
      }
    }
  }
};

// One block for each multiprocessor; it takes heads blockIdx.x, blockIdx.x + gridDim.x, ...
// Shared memory: a ring of `slots` >= 4 matrices, filled in the order q, dout, k, v of one head after the other, and
// the statistics. What fits beside the current head's four is copied while that head is computed; the rest of the
// next head follows when the current one is done. 197 tokens of 64: all four; 257 of 64: two; 257 of 80: one.
template <int D, bool causal>
__global__ void __launch_bounds__(threads, 1)
    attention_backward_sm90_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                                   AttentionShape shape, int slots, bool accumulate) {
  extern __shared__ __align__(128) unsigned char memory[];
  const int T = shape.tokens, rows = shape.chunk_rows, tiles = (T + 63) / 64, heads = shape.batch * shape.heads;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // the same for the whole warp, and known to be
  const int warp_row = threadIdx.x % 128 / 32 * 16;
  const uint32_t base = shared_address(memory);
  const int bytes = ChunkedRows<D>::bytes(rows);
  float* floats = reinterpret_cast<float*>(memory + slots * bytes);
  const RowStatistics statistics{floats, floats + 64 * tiles};

  // Starts copying matrices from ... to-1 of a head (0: q, 1: dout, 2: k, 3: v) whose q stands in `first_slot`.
  auto copy = [&](int number, int first_slot, int from, int to) {
    if (number >= heads) return;
    const Head<D> head(dqkv, dout, qkv, out, lse, shape, number, accumulate);
    for (int i = from; i < to; ++i) {
      const ChunkedRows<D> matrix(base + (first_slot + i) % slots * bytes, rows);
      const bf16* source = i == 0 ? head.q : i == 1 ? head.dout : i == 2 ? head.k : head.v;
      matrix.template copy_async<threads>(source, i == 1 ? head.C : head.pitch, rows, T);
    }
    commit_copies();
  };

  const int ahead = slots - 4;  // matrices of the next head that fit
  int first_slot = 0;
  copy(blockIdx.x, 0, 0, 4);
  for (int number = blockIdx.x; number < heads; number += gridDim.x) {
    const Head<D> head(dqkv, dout, qkv, out, lse, shape, number, accumulate);
    auto slot = [&](int i) { return (first_slot + i) % slots * bytes; };
    const ChunkedRows<D> q(base + slot(0), rows), g(base + slot(1), rows), k(base + slot(2), rows),
        v(base + slot(3), rows);
    {
      StatisticsLoader<D> loader;
      loader.load(head);
      wait_for_copies<0>();
      publish_shared_memory();
      __syncthreads();
      loader.finish(statistics, memory + slot(1), g.chunk_pitch, rows, tiles);
      __syncthreads();
    }
    copy(number + gridDim.x, first_slot + 4, 0, ahead);

    for (int tile = group; tile < tiles; tile += groups) {
      KeyTile<D, causal> own;
      own.tile_row0 = 64 * tile, own.row0 = 64 * tile + warp_row;
      own.start();
      for_each_step_of_64(causal ? 64 * tile : 0, T, [&](auto n_tiles, int query) {
        own.template walk<decltype(n_tiles)::value>(k, v, q, g, statistics, query, head.scale_log2);
      });
      wait_for_products<0>();
      hold(own.dk);
      hold(own.dv);
      store_own_rows<D>(head.dk, head.pitch, own.row0, T, own.dk, head.scale, head.scale, accumulate);
      store_own_rows<D>(head.dv, head.pitch, own.row0, T, own.dv, 1, 1, accumulate);
    }
    for (int tile = (group + tiles) % groups; tile < tiles; tile += groups) {  // the other group begins if tiles is odd
      QueryTile<D, causal> own;
      own.tile_row0 = 64 * tile, own.row0 = 64 * tile + warp_row;
      own.start(statistics);
      for_each_step_of_64(0, causal ? min(T, 64 * tile + 64) : T, [&](auto n_tiles, int key) {
        own.template walk<decltype(n_tiles)::value>(q, g, k, v, key, T, head.scale_log2);
      });
      wait_for_products<0>();
      hold(own.dq);
      store_own_rows<D>(head.dq, head.pitch, own.row0, T, own.dq, head.scale, head.scale, accumulate);
    }
    __syncthreads();  // everybody is done with this head's shared memory
    copy(number + gridDim.x, first_slot + 4, ahead, 4);
    first_slot = (first_slot + 4) % slots;
  }
}

template <int D, bool causal>
void launch_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                          AttentionShape shape, bool accumulate, cudaStream_t stream) {
  auto* kernel = attention_backward_sm90_kernel<D, causal>;
  choose_chunks<D>(shape, 4);
  CHECK(shape.chunks == 1 && shape.tokens <= 64 * most_tiles, "attention: ", shape.tokens, " tokens on this path");
  const int matrix = ChunkedRows<D>::bytes(shape.chunk_rows), beside = 8 * ((shape.tokens + 63) / 64 * 64);
  const int slots = std::min(8, (shared_memory_limit - beside) / matrix);
  allow_shared_memory(kernel, slots * matrix + beside);
  const int blocks = std::min(shape.batch * shape.heads, multiprocessors());
  kernel<<<blocks, threads, slots * matrix + beside, stream>>>(dqkv, dout, qkv, out, lse, shape, slots, accumulate);
  check_launch(cudaGetLastError(), "attention_backward");
}

}  // namespace

bool attention_backward_sm90_serves(const AttentionShape& shape) {
  return (shape.head_size == 64 || shape.head_size == 80) && shape.tokens > 96 && shape.tokens <= 64 * most_tiles &&
         is_hopper();
}

void attention_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                             const AttentionShape& shape, bool causal, bool accumulate, cudaStream_t stream) {
  auto launch = shape.head_size == 64
                    ? (causal ? launch_backward_sm90<64, true> : launch_backward_sm90<64, false>)
                    : (causal ? launch_backward_sm90<80, true> : launch_backward_sm90<80, false>);
  launch(dqkv, dout, qkv, out, lse, shape, accumulate, stream);
}

}  // namespace switchback::cuda
