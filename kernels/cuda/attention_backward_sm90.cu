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
  OwnRows<D> q, dout;
  float dq[D / 8][4];
  float lse_log2[2], delta[2];  // of rows g and g + 8
  int row0;                     // of the warp

  __device__ void start(const RowStatistics& statistics) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0;
    hold(dq), hold(q.whole), hold(dout.whole);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      lse_log2[half] = statistics.lse_log2[row0 + 8 * half + threadIdx.x % 32 / 4];
      delta[half] = statistics.delta[row0 + 8 * half + threadIdx.x % 32 / 4];
    }
  }

  // Keys key0 ... key0 + 8 n_tiles - 1. Leaves the product of dq running.
  template <int n_tiles>
  __device__ __forceinline__ void walk(const ChunkedRows<D>& k, const ChunkedRows<D>& v, int key0, int tokens,
                                       float scale_log2) {
    float s[n_tiles][4], dp[n_tiles][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      dp[n][0] = dp[n][1] = -delta[0];
      dp[n][2] = dp[n][3] = -delta[1];
    }
    hold(dp);
    warpgroup_fence();
    issue_scores<D, n_tiles>(s, q, k, key0, false);
    commit_products();
    issue_scores<D, n_tiles>(dp, dout, v, key0, true);
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
  OwnRows<D> k, v;
  float dk[D / 8][4], dv[D / 8][4];
  int row0;  // of the warp

  __device__ void start() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[n][e] = dv[n][e] = 0;
    }
    hold(dk), hold(dv), hold(k.whole), hold(v.whole);
  }

  // Queries query0 ... query0 + 8 n_tiles - 1. Leaves the products of dv and dk running.
  template <int n_tiles>
  __device__ __forceinline__ void walk(const ChunkedRows<D>& q, const ChunkedRows<D>& dout,
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
    warpgroup_fence();
    issue_scores<D, n_tiles>(s, k, q, query0, false);
    commit_products();
    issue_scores<D, n_tiles>(dp, v, dout, query0, true);
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

// Persistent blocks; each takes heads blockIdx.x, blockIdx.x + gridDim.x, ... Shared memory: q, k, v, dout whole,
// and the statistics. The warpgroups share out the key tiles, then the query tiles. While they compute, the L2 cache
// fetches the next head, so that a head's copies to shared memory, which nothing hides, are short.
template <int D, bool causal, int groups, int blocks_per_multiprocessor, bool prefetch>
__global__ void __launch_bounds__(128 * groups, blocks_per_multiprocessor)
    attention_backward_sm90_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                                   AttentionShape shape, bool accumulate) {
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr int threads = 128 * groups;
  const int T = shape.tokens, rows = shape.chunk_rows, tiles = (T + 63) / 64, heads = shape.batch * shape.heads;
  const int group = groups == 1 ? 0 : __shfl_sync(~0u, threadIdx.x / 128, 0);  // uniform, and known to be
  const int warp_row = threadIdx.x % 128 / 32 * 16;
  const uint32_t base = shared_address(memory);
  const int bytes = ChunkedRows<D>::bytes(rows);
  const ChunkedRows<D> q(base, rows), k(base + bytes, rows), v(base + 2 * bytes, rows), g(base + 3 * bytes, rows);
  float* floats = reinterpret_cast<float*>(memory + 4 * bytes);
  const RowStatistics statistics{floats, floats + 64 * tiles};

  for (int number = blockIdx.x; number < heads; number += gridDim.x) {
    const Head<D> head(dqkv, dout, qkv, out, lse, shape, number, accumulate);
    q.template copy_async<threads>(head.q, head.pitch, rows, T);
    g.template copy_async<threads>(head.dout, head.C, rows, T);
    k.template copy_async<threads>(head.k, head.pitch, rows, T);
    v.template copy_async<threads>(head.v, head.pitch, rows, T);
    commit_copies();
    compute_statistics<D, threads>(statistics, head.dout, head.out, head.lse, head.C, 64 * tiles, T);
    wait_for_copies<0>();
    publish_shared_memory();
    __syncthreads();
    if (prefetch && number + gridDim.x < heads) {
      const Head<D> next(dqkv, dout, qkv, out, lse, shape, number + gridDim.x, accumulate);
      prefetch_rows<D, threads>(next.q, head.pitch, T);
      prefetch_rows<D, threads>(next.dout, head.C, T);
      prefetch_rows<D, threads>(next.k, head.pitch, T);
      prefetch_rows<D, threads>(next.v, head.pitch, T);
      prefetch_rows<D, threads>(next.out, head.C, T);
    }

    for (int tile = group; tile < tiles; tile += groups) {
      KeyTile<D, causal> own;
      own.row0 = 64 * tile + warp_row;
      load_own_rows<D>(own.k, k, own.row0, rows);
      load_own_rows<D>(own.v, v, own.row0, rows);
      own.start();
      for_each_step_of_64(causal ? 64 * tile : 0, T, [&](auto n_tiles, int query) {
        own.template walk<decltype(n_tiles)::value>(q, g, statistics, query, head.scale_log2);
      });
      wait_for_products<0>();
      hold(own.dk);
      hold(own.dv);
      store_own_rows<D>(head.dk, head.pitch, own.row0, T, own.dk, head.scale, head.scale, accumulate);
      store_own_rows<D>(head.dv, head.pitch, own.row0, T, own.dv, 1, 1, accumulate);
    }
    for (int tile = (group + tiles) % groups; tile < tiles; tile += groups) {
      QueryTile<D, causal> own;
      own.row0 = 64 * tile + warp_row;
      load_own_rows<D>(own.q, q, own.row0, rows);
      load_own_rows<D>(own.dout, g, own.row0, rows);
      own.start(statistics);
      for_each_step_of_64(0, causal ? min(T, 64 * tile + 64) : T, [&](auto n_tiles, int key) {
        own.template walk<decltype(n_tiles)::value>(k, v, key, T, head.scale_log2);
      });
      wait_for_products<0>();
      hold(own.dq);
      store_own_rows<D>(head.dq, head.pitch, own.row0, T, own.dq, head.scale, head.scale, accumulate);
    }
    __syncthreads();  // everybody is done with this head's shared memory
  }
}

template <int D, bool causal, int groups, int blocks_per_multiprocessor, bool prefetch>
void launch_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                          AttentionShape shape, bool accumulate, cudaStream_t stream) {
  auto* kernel = attention_backward_sm90_kernel<D, causal, groups, blocks_per_multiprocessor, prefetch>;
  choose_chunks<D>(shape, 4);
  const int bytes = 4 * ChunkedRows<D>::bytes(shape.chunk_rows) + 8 * ((shape.tokens + 63) / 64 * 64);
  allow_shared_memory(kernel, bytes);
  const int blocks = std::min(shape.batch * shape.heads, blocks_per_multiprocessor * multiprocessors());
  kernel<<<blocks, 128 * groups, bytes, stream>>>(dqkv, dout, qkv, out, lse, shape, accumulate);
  check_launch(cudaGetLastError(), "attention_backward");
}

}  // namespace

void attention_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                             const AttentionShape& shape, bool causal, bool accumulate, cudaStream_t stream) {
  auto launch = shape.head_size == 64
                    ? (causal ? launch_backward_sm90<64, true, 2, 1, true> : launch_backward_sm90<64, false, 2, 1, true>)
                    : (causal ? launch_backward_sm90<80, true, 2, 1, true> : launch_backward_sm90<80, false, 2, 1, true>);
  launch(dqkv, dout, qkv, out, lse, shape, accumulate, stream);
}

}  // namespace switchback::cuda
