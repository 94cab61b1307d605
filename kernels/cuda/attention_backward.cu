// attention_backward.cu: see attention_backward.cuh for the formulas, attention_common.cuh for the plan.
//
// Two kinds of work, each all in registers but for the two matrices it walks over:
//   query tile, 3 products: own rows q, dout; walks over keys:    s = q kᵀ,  dp = dout vᵀ,  dq += ds k
//   key tile, 4 products:   own rows k, v;    walks over queries: sᵀ = k qᵀ, dpᵀ = v doutᵀ,
//                                                                 dv += pᵀ dout, dk += dsᵀ q
//
// So s and dp are computed twice: 7 products instead of 5. That is cheaper here than the alternatives.
// Passing ds from the key tiles to the query tiles would take a barrier for every few keys and as much shared
// memory traffic as the products themselves; float atomics would give other bits every run.
//
// Long sequences: a block does one kind for one head, with K and V (or Q and dout) in shared memory; the two
// blocks of a head are neighbours in the grid, so what the second reads is in the L2 cache. Short sequences:
// all four matrices fit several times over, one block does both kinds.
//
// On Hopper the vision towers' sequences go another way: attention_backward_sm90.cu.
#include <type_traits>

#include "kernels/cuda/attention_backward.cuh"
#include "kernels/cuda/attention_backward_common.cuh"
#include "kernels/cuda/attention_backward_sm90.cuh"
#include "kernels/cuda/attention_common.cuh"

namespace switchback::cuda {
namespace {

// m_tiles x 16 queries from row0 on: dq.
template <int D, bool causal, int m_tiles>
struct QueryTile {
  OwnRows<D> q[m_tiles], dout[m_tiles];
  float dq[m_tiles][D / 8][4];
  float lse_log2[m_tiles][2], delta[m_tiles][2];  // of rows g and g + 8
  int row0;

  // `statistics_row`: where row0's statistics stand.
  __device__ void start(const RowStatistics& statistics, int statistics_row) {
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) dq[i][n][0] = dq[i][n][1] = dq[i][n][2] = dq[i][n][3] = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = statistics_row + 16 * i + 8 * half + threadIdx.x % 32 / 4;
        lse_log2[i][half] = statistics.lse_log2[row];
        delta[i][half] = statistics.delta[row];
      }
    }
  }

  // Keys key0 ... key0 + 8 n_tiles - 1, whose rows stand in shared memory from `row` on; `tokens` exist.
  template <int n_tiles>
  __device__ __forceinline__ void walk(const SharedRows<D>& k, const SharedRows<D>& v, int row, int key0,
                                       int tokens, float scale_log2) {
    float s[m_tiles][n_tiles][4] = {}, dp[m_tiles][n_tiles][4];
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
        dp[i][n][0] = dp[i][n][1] = -delta[i][0];
        dp[i][n][2] = dp[i][n][3] = -delta[i][1];
      }
    }
    add_scores<D, m_tiles, n_tiles>(s, q, k, row);
    add_scores<D, m_tiles, n_tiles>(dp, dout, v, row);
    if (key0 + 8 * n_tiles > (causal ? min(tokens, row0 + 1) : tokens)) {
#pragma unroll
      for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = key0 + 8 * n + 2 * (threadIdx.x % 4) + (e & 1);
            const int query = row0 + 16 * i + threadIdx.x % 32 / 4 + 8 * (e >> 1);
            if (key >= tokens || (causal && key > query)) s[i][n][e] = -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < n_tiles; j += 2) {
      uint32_t ds[m_tiles][4];
#pragma unroll
      for (int i = 0; i < m_tiles; ++i) {
#pragma unroll
        for (int n = j; n < j + 2; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            dp[i][n][e] *= exp2_fast(fmaf(s[i][n][e], scale_log2, -lse_log2[i][e >> 1]));
        }
        round_to_fragment(ds[i], dp[i][j], dp[i][j + 1]);
      }
      add_sums<D, m_tiles>(dq, ds, k, row + 8 * j);
    }
  }
};

// 16 keys from row0 on: dk and dv.
template <int D, bool causal>
struct KeyTile {
  OwnRows<D> k[1], v[1];
  float dk[1][D / 8][4], dv[1][D / 8][4];
  int row0;

  __device__ void start() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[0][n][e] = dv[0][n][e] = 0;
    }
  }

  // Queries query0 ... query0 + 8 n_tiles - 1, whose rows and statistics stand in shared memory from `row`
  // on.
  template <int n_tiles>
  __device__ __forceinline__ void walk(const SharedRows<D>& q, const SharedRows<D>& dout,
                                       const RowStatistics& statistics, int row, int query0,
                                       float scale_log2) {
    const int t = threadIdx.x % 4;
    float s[1][n_tiles][4] = {}, dp[1][n_tiles][4];
#pragma unroll
    for (int n = 0; n < n_tiles; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(statistics.delta + row + 8 * n + 2 * t);
      dp[0][n][0] = dp[0][n][2] = -delta.x;
      dp[0][n][1] = dp[0][n][3] = -delta.y;
    }
    add_scores<D, 1, n_tiles>(s, k, q, row);
    add_scores<D, 1, n_tiles>(dp, v, dout, row);
    if (causal && query0 < row0 + 15) {
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int query = query0 + 8 * n + 2 * t + (e & 1);
          const int key = row0 + threadIdx.x % 32 / 4 + 8 * (e >> 1);
          if (query < key) s[0][n][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < n_tiles; j += 2) {
#pragma unroll
      for (int n = j; n < j + 2; ++n) {
        const float2 lse = *reinterpret_cast<const float2*>(statistics.lse_log2 + row + 8 * n + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[0][n][e] = exp2_fast(fmaf(s[0][n][e], scale_log2, e & 1 ? -lse.y : -lse.x));
          dp[0][n][e] *= s[0][n][e];
        }
      }
      uint32_t p[1][4], ds[1][4];
      round_to_fragment(p[0], s[0][j], s[0][j + 1]);
      add_sums<D, 1>(dv, p, dout, row + 8 * j);
      round_to_fragment(ds[0], dp[0][j], dp[0][j + 1]);
      add_sums<D, 1>(dk, ds, q, row + 8 * j);
    }
  }
};

// Rows of statistics that a block keeps: of a chunk (key tiles) or of its own rows (query tiles).
template <int m_tiles, int warps>
__host__ __device__ int statistics_rows(const AttentionShape& shape) {
  constexpr int tile_rows = 16 * m_tiles;
  const int own =
      shape.chunks == 1 ? (shape.tokens + tile_rows - 1) / tile_rows * tile_rows : warps * tile_rows;
  return own > shape.chunk_rows ? own : shape.chunk_rows;
}

// Walks in steps of 8 most_tiles rows, with last steps of 16 where those are enough.
template <int most_tiles, class Step>
__device__ __forceinline__ void for_each_step(int from, int end, Step step) {
  int at = from;
  if constexpr (most_tiles > 2) {
    for (; at + 16 < end; at += 8 * most_tiles) step(std::integral_constant<int, most_tiles>{}, at);
  }
  for (; at < end; at += 16) step(std::integral_constant<int, 2>{}, at);
}

// Short sequences: a block does one head; shared memory holds q, k, v, dout and the statistics. Steps
// of 16 rows need fewer registers, so that more blocks are resident: what counts here is that many heads load
// at once.
template <int D, bool causal, int warps, int blocks_per_multiprocessor, int step_tiles>
__global__ void __launch_bounds__(32 * warps, blocks_per_multiprocessor)
    attention_backward_short_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out,
                                    const float* lse, AttentionShape shape, bool accumulate) {
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr int threads = 32 * warps;
  const Head<D> head(dqkv, dout, qkv, out, lse, shape, blockIdx.x, accumulate);
  const int T = head.T, rows = shape.chunk_rows, bytes = rows * SharedLayout<D>::pitch;
  const uint32_t base = shared_address(memory);
  float* floats = reinterpret_cast<float*>(memory + 4 * bytes);
  const RowStatistics statistics{floats, floats + rows};
  const SharedRows<D> q(base), k(base + bytes), v(base + 2 * bytes), shared_dout(base + 3 * bytes);

  copy_rows_async<D, threads>(base, head.q, head.pitch, rows, T);
  copy_rows_async<D, threads>(base + bytes, head.k, head.pitch, rows, T);
  copy_rows_async<D, threads>(base + 2 * bytes, head.v, head.pitch, rows, T);
  copy_rows_async<D, threads>(base + 3 * bytes, head.dout, head.C, rows, T);
  commit_copies();
  compute_statistics<D, threads>(statistics, head.dout, head.out, head.lse, head.C, rows, T);
  wait_for_copies<0>();
  __syncthreads();

  // Key tiles first: they are the longer ones.
  const int tiles = (T + 15) / 16;
  for (int job = threadIdx.x / 32; job < 2 * tiles; job += warps) {
    if (job < tiles) {
      KeyTile<D, causal> own;
      own.row0 = 16 * job;
      own.start();
      for_each_step<step_tiles>(causal ? own.row0 : 0, T, [&](auto n_tiles, int query) {
        load_own_rows<D>(own.k[0], k, own.row0);  // anew each time: cheaper than the registers to keep them
        load_own_rows<D>(own.v[0], v, own.row0);
        own.template walk<decltype(n_tiles)::value>(q, shared_dout, statistics, query, query,
                                                    head.scale_log2);
      });
      store_own_rows<D>(head.dk, head.pitch, own.row0, T, own.dk[0], head.scale, head.scale, accumulate);
      store_own_rows<D>(head.dv, head.pitch, own.row0, T, own.dv[0], 1, 1, accumulate);
    } else {
      QueryTile<D, causal, 1> own;
      own.row0 = 16 * (job - tiles);
      load_own_rows<D>(own.q[0], q, own.row0);
      load_own_rows<D>(own.dout[0], shared_dout, own.row0);
      own.start(statistics, own.row0);
      for_each_step<step_tiles>(0, causal ? min(T, own.row0 + 16) : T, [&](auto n_tiles, int key) {
        own.template walk<decltype(n_tiles)::value>(k, v, key, key, T, head.scale_log2);
      });
      store_own_rows<D>(head.dq, head.pitch, own.row0, T, own.dq[0], head.scale, head.scale, accumulate);
    }
  }
}

// Key tiles of one block: q and dout in shared memory.
template <int D, bool causal, int warps>
__device__ __forceinline__ void backward_keys(const Head<D>& head, const AttentionShape& shape, uint32_t base,
                                              RowStatistics statistics) {
  constexpr int threads = 32 * warps;
  const int T = head.T, chunk_rows = shape.chunk_rows, warp = threadIdx.x / 32;
  const uint32_t dout_base = base + chunk_rows * SharedLayout<D>::pitch;
  const SharedRows<D> q(base), dout(dout_base);
  auto copy_chunk = [&](int first) {
    copy_rows_async<D, threads>(base, head.q + static_cast<int64_t>(first) * head.pitch, head.pitch,
                                chunk_rows, T - first);
    copy_rows_async<D, threads>(dout_base, head.dout + static_cast<int64_t>(first) * head.C, head.C,
                                chunk_rows, T - first);
    commit_copies();
    compute_statistics<D, threads>(statistics, head.dout + static_cast<int64_t>(first) * head.C,
                                   head.out + static_cast<int64_t>(first) * head.C, head.lse + first, head.C,
                                   chunk_rows, T - first);
  };
  const bool resident = shape.chunks == 1;
  if (resident) {
    copy_chunk(0);
    wait_for_copies<0>();
    __syncthreads();
  }
  const int group = blockIdx.y * warps * 16;
  const int tiles = resident ? (T + 15) / 16 : warps;
  for (int tile = resident ? (warp + blockIdx.x / 2) % warps : warp; tile < tiles; tile += warps) {
    KeyTile<D, causal> own;
    own.row0 = group + 16 * tile;
    load_own_rows<D>(own.k[0], head.k, head.pitch, own.row0, T);
    load_own_rows<D>(own.v[0], head.v, head.pitch, own.row0, T);
    own.start();
    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      const int first = chunk * chunk_rows, end = min(T, first + chunk_rows);
      if (!resident) {
        __syncthreads();  // all warps are done with the last chunk
        copy_chunk(first);
        wait_for_copies<0>();
        __syncthreads();
      }
      for_each_step<D <= 104 ? 4 : 2>(causal ? max(first, own.row0) : first, end,
                                      [&](auto n_tiles, int query) {
                                        own.template walk<decltype(n_tiles)::value>(
                                            q, dout, statistics, query - first, query, head.scale_log2);
                                      });
    }
    store_own_rows<D>(head.dk, head.pitch, own.row0, T, own.dk[0], head.scale, head.scale, head.accumulate);
    store_own_rows<D>(head.dv, head.pitch, own.row0, T, own.dv[0], 1, 1, head.accumulate);
  }
}

// Query tiles of one block: k and v in shared memory.
template <int D, bool causal, int m_tiles, int warps>
__device__ __forceinline__ void backward_queries(const Head<D>& head, const AttentionShape& shape,
                                                 uint32_t base, RowStatistics statistics) {
  constexpr int threads = 32 * warps, tile_rows = 16 * m_tiles;
  const int T = head.T, chunk_rows = shape.chunk_rows, warp = threadIdx.x / 32;
  const uint32_t v_base = base + chunk_rows * SharedLayout<D>::pitch;
  const SharedRows<D> k(base), v(v_base);
  auto copy_chunk = [&](int first) {
    copy_rows_async<D, threads>(base, head.k + static_cast<int64_t>(first) * head.pitch, head.pitch,
                                chunk_rows, T - first);
    copy_rows_async<D, threads>(v_base, head.v + static_cast<int64_t>(first) * head.pitch, head.pitch,
                                chunk_rows, T - first);
    commit_copies();
  };
  const bool resident = shape.chunks == 1;
  const int group = resident ? 0 : blockIdx.y * warps * tile_rows;
  if (group >= T) return;  // the grid is made for key tiles, which are smaller
  if (resident) copy_chunk(0);
  // The statistics of this block's own rows.
  const int own_rows = resident ? (T + tile_rows - 1) / tile_rows * tile_rows : warps * tile_rows;
  compute_statistics<D, threads>(statistics, head.dout + static_cast<int64_t>(group) * head.C,
                                 head.out + static_cast<int64_t>(group) * head.C, head.lse + group, head.C,
                                 own_rows, T - group);
  wait_for_copies<0>();
  __syncthreads();
  const int tiles = resident ? (T + tile_rows - 1) / tile_rows : warps;
  for (int tile = resident ? (warp + blockIdx.x / 2) % warps : warp; tile < tiles; tile += warps) {
    QueryTile<D, causal, m_tiles> own;
    own.row0 = group + tile_rows * tile;
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
      load_own_rows<D>(own.q[i], head.q, head.pitch, own.row0 + 16 * i, T);
      load_own_rows<D>(own.dout[i], head.dout, head.C, own.row0 + 16 * i, T);
    }
    own.start(statistics, own.row0 - group);
    const int keys = causal ? min(T, own.row0 + tile_rows) : T;
    for (int chunk = 0; chunk < shape.chunks; ++chunk) {
      const int first = chunk * chunk_rows, end = min(keys, first + chunk_rows);
      if (!resident) {
        __syncthreads();  // all warps are done with the last chunk
        copy_chunk(first);
        wait_for_copies<0>();
        __syncthreads();
      }
      for_each_step<D <= 104 ? 4 : 2>(first, end, [&](auto n_tiles, int key) {
        own.template walk<decltype(n_tiles)::value>(k, v, key - first, key, T, head.scale_log2);
      });
    }
#pragma unroll
    for (int i = 0; i < m_tiles; ++i) {
      store_own_rows<D>(head.dq, head.pitch, own.row0 + 16 * i, T, own.dq[i], head.scale, head.scale,
                        head.accumulate);
    }
  }
}

// Long sequences: even blocks do key tiles, odd blocks query tiles, of head blockIdx.x / 2.
template <int D, bool causal, int m_tiles, int warps, int blocks_per_multiprocessor>
__global__ void __launch_bounds__(32 * warps, blocks_per_multiprocessor)
    attention_backward_kernel(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out,
                              const float* lse, AttentionShape shape, bool accumulate) {
  extern __shared__ __align__(128) unsigned char memory[];
  const Head<D> head(dqkv, dout, qkv, out, lse, shape, blockIdx.x / 2, accumulate);
  float* floats = reinterpret_cast<float*>(memory + 2 * shape.chunk_rows * SharedLayout<D>::pitch);
  const RowStatistics statistics{floats, floats + statistics_rows<m_tiles, warps>(shape)};
  if (blockIdx.x % 2 == 0) {
    backward_keys<D, causal, warps>(head, shape, shared_address(memory), statistics);
  } else {
    backward_queries<D, causal, m_tiles, warps>(head, shape, shared_address(memory), statistics);
  }
}

template <int D, bool causal, int warps, int blocks_per_multiprocessor, int step_tiles = 2>
void launch_backward_short(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                           AttentionShape shape, bool accumulate, cudaStream_t stream) {
  auto* kernel = attention_backward_short_kernel<D, causal, warps, blocks_per_multiprocessor, step_tiles>;
  shape.chunks = 1;
  shape.chunk_rows = (shape.tokens + 15) / 16 * 16;
  const int bytes = shape.chunk_rows * (4 * SharedLayout<D>::pitch + 8);
  allow_shared_memory(kernel, bytes);
  kernel<<<shape.batch * shape.heads, 32 * warps, bytes, stream>>>(dqkv, dout, qkv, out, lse, shape,
                                                                   accumulate);
  check_launch(cudaGetLastError(), "attention_backward");
}

template <int D, bool causal, int m_tiles, int warps, int blocks_per_multiprocessor>
void launch_backward(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                     AttentionShape shape, bool accumulate, cudaStream_t stream) {
  auto* kernel = attention_backward_kernel<D, causal, m_tiles, warps, blocks_per_multiprocessor>;
  choose_chunks<D>(shape, 2);
  const int bytes =
      2 * shape.chunk_rows * SharedLayout<D>::pitch + 8 * statistics_rows<m_tiles, warps>(shape);
  allow_shared_memory(kernel, bytes);
  // Blocks of 16 m_tiles rows per warp for queries, of 16 for keys: the finer number covers both.
  const int rows_per_block = shape.chunks == 1 ? shape.tokens : warps * 16;
  dim3 grid(2 * shape.batch * shape.heads, (shape.tokens + rows_per_block - 1) / rows_per_block);
  kernel<<<grid, 32 * warps, bytes, stream>>>(dqkv, dout, qkv, out, lse, shape, accumulate);
  check_launch(cudaGetLastError(), "attention_backward");
}

}  // namespace

void attention_backward(Sink dqkv, CView dout, CView qkv, CView out, CView lse, int64_t heads, bool causal,
                        cudaStream_t stream) {
  AttentionShape shape = attention_shape(qkv, heads);
  const Shape rows{shape.batch, shape.tokens, shape.channels()};
  CHECK(dqkv.to.shape == qkv.shape && dqkv.to.dtype == DType::bf16, "attention: dqkv is ", dqkv.to.dtype, " ",
        dqkv.to.shape);
  CHECK(dout.shape == rows && dout.dtype == DType::bf16, "attention: dout is ", dout.dtype, " ", dout.shape);
  CHECK(out.shape == rows && out.dtype == DType::bf16, "attention: out is ", out.dtype, " ", out.shape);
  CHECK(lse.shape == Shape({shape.batch, shape.heads, shape.tokens}) && lse.dtype == DType::f32,
        "attention: lse is ", lse.dtype, " ", lse.shape);
  if (shape.batch == 0 || shape.tokens == 0) return;
  if (attention_backward_sm90_serves(shape)) {
    attention_backward_sm90(static_cast<bf16*>(dqkv.to.data), static_cast<const bf16*>(dout.data),
                            static_cast<const bf16*>(qkv.data), static_cast<const bf16*>(out.data),
                            static_cast<const float*>(lse.data), shape, causal, dqkv.accumulate, stream);
    return;
  }
  serve_head_size(shape.head_size, [&](auto size) {
    constexpr int D = decltype(size)::value;
    // As many blocks on a multiprocessor as the registers allow without spilling.
    constexpr int blocks = D <= 64 ? 4 : D <= 104 ? 3 : 2;
    auto launch = causal ? launch_backward<D, true, 1, 4, 2> : launch_backward<D, false, 1, 4, 2>;
    if (shape.tokens <= 96) {
      launch =
          causal ? launch_backward_short<D, true, 4, blocks> : launch_backward_short<D, false, 4, blocks>;
    }
    launch(static_cast<bf16*>(dqkv.to.data), static_cast<const bf16*>(dout.data),
           static_cast<const bf16*>(qkv.data), static_cast<const bf16*>(out.data),
           static_cast<const float*>(lse.data), shape, dqkv.accumulate, stream);
  });
}

}  // namespace switchback::cuda
