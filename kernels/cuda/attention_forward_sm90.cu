// attention_forward_sm90.cu: attention_forward.cu's online softmax on Hopper's warpgroup instructions, for
// sequences that shared memory holds whole and head sizes 64 and 80.
//
// One block for each multiprocessor, of some consumer warpgroups that compute and one producer that copies;
// the block takes heads blockIdx.x, blockIdx.x + gridDim.x, ... The consumers share out a head's tiles of 64
// queries. While one of them computes exponentials, another's products run. Shared memory is a ring of
// matrices in the order q, k, v of one head after the other; where two heads fit (257 tokens of 64: yes, of
// 80: five of six matrices) the next one is copied completely behind the current one, and a consumer may be a
// head ahead of another.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attention_forward_sm90.cuh"
#include "kernels/cuda/attention_sm90.cuh"
#include "kernels/cuda/ptx/registers.cuh"

namespace switchback::cuda {
namespace {

constexpr float rescale_threshold = 8;  // in powers of two, see attention_forward.cu

// This warp's 16 queries of a tile of 64, and what the online softmax knows about them.
template <int D, bool causal>
struct QueryTile {
  float o[D / 8][4];
  float m[2], l[2];     // of rows g and g + 8: largest score in units of log 2, this lane's part of the sum
  int tile_row0, row0;  // of the warpgroup, of the warp

  __device__ void start() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0;
    hold(o);
  }

  // Keys key0 ... key0 + 8 n_tiles - 1. Leaves the product with v running.
  template <int n_tiles>
  __device__ __forceinline__ void attend(const SwizzledRows<D>& q, const SwizzledRows<D>& k,
                                         const SwizzledRows<D>& v, int key0, int tokens, float scale_log2) {
    float s[n_tiles][4];
    wgmma_fence();
    issue_scores<D, n_tiles>(s, q, tile_row0, k, key0, false);
    wgmma_commit();
    wgmma_wait<0>();
    hold(s);
    hold(o);
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
    rescale(s, scale_log2);
    // In halves: the first half's product runs while the second half's exponentials are computed.
    constexpr int half = n_tiles == 2 ? 2 : n_tiles / 2;
#pragma unroll
    for (int from = 0; from < n_tiles; from += half) {
      uint32_t p[half / 2][4];
#pragma unroll
      for (int n = from; n < from + half; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = exp2_fast(fmaf(s[n][e], scale_log2, -m[e >> 1]));
          l[e >> 1] += s[n][e];
        }
      }
#pragma unroll
      for (int j = 0; j < half / 2; ++j) round_to_fragment(p[j], s[from + 2 * j], s[from + 2 * j + 1]);
      hold(p);
      if (from == 0) hold(o);
      wgmma_fence();
      issue_sums<D, half / 2>(o, p, v, key0 + 8 * from);
      wgmma_commit();
    }
  }

  template <int n_tiles>
  __device__ __forceinline__ void rescale(const float (&s)[n_tiles][4], float scale_log2) {
    float largest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = s[0][2 * half];
#pragma unroll
      for (int n = 0; n < n_tiles; ++n) x = fmaxf(x, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      largest[half] = quad_max(x) * scale_log2;
    }
    const bool rises = largest[0] > m[0] + rescale_threshold || largest[1] > m[1] + rescale_threshold;
    if (!__any_sync(~0u, rises)) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float raised = fmaxf(m[half], largest[half]);
      const float factor = exp2_fast(m[half] - raised);  // first keys: 2^-inf = 0, of sums that are 0
      m[half] = raised;
      l[half] *= factor;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[n][2 * half] *= factor;
        o[n][2 * half + 1] *= factor;
      }
    }
  }
};

template <int D, bool causal, int groups>
__global__ void __launch_bounds__(128 * (groups + 1), 1)
    attention_forward_sm90_kernel(bf16* out, float* lse, const __grid_constant__ HeadMaps qkv_maps,
                                  AttentionShape shape, int slots) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ uint64_t landed[2];  // of heads of even and odd turn: all three matrices are there
  using Hand = HandOver<128 * groups + 32>;
  const int T = shape.tokens, C = shape.channels(), rows = shape.chunk_rows;
  const int tiles = (T + 63) / 64, heads = shape.batch * shape.heads, stride = gridDim.x;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // the same for the whole warp, and known to be
  const int bytes = SwizzledRows<D>::bytes(rows);
  const uint32_t base = shared_address(memory);
  const bool two_heads = slots == 6;  // fit: the next one may arrive while the current one is used
  auto matrix = [&](int turn, int i) { return SwizzledRows<D>(base + (3 * turn + i) % slots * bytes, rows); };
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&landed[0], 1);
    ptx::mbarrier_init(&landed[1], 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();

  if (group == groups) {  // ---- the producer: one warp, one thread of which starts copies ----
    ptx::give_back_registers<groups == 4 ? 24 : 40>();
    if (threadIdx.x / 32 > 4 * groups) return;
    int turn = 0;
    for (int number = blockIdx.x; number < heads; number += stride, ++turn) {
      auto copy = [&](int from, int to) {
        if (threadIdx.x % 32 == 0) {
          for (int i = from; i < to; ++i) {
            copy_matrix<D>(matrix(turn, i), qkv_maps, i * C + number % shape.heads * D, number / shape.heads,
                           rows, &landed[turn % 2]);
          }
        }
        __syncwarp();
      };
      const int ahead = turn == 0 ? 3 : slots - 3;
      if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive_and_expect(&landed[turn % 2], 3 * rows * D * 2);
      copy(0, ahead);
      if (turn > 0 && !two_heads) Hand::wait_emptied(turn - 1);
      copy(ahead, 3);
      Hand::arrive_filled(turn);
      if (turn > 0 && two_heads) Hand::wait_emptied(turn - 1);  // the next head goes where that one was
    }
    if (two_heads && turn > 0) Hand::wait_emptied(turn - 1);
  } else {  // ---- the consumers ----
    ptx::take_registers<groups == 2 ? 232 : groups == 3 ? 152 : 112>();
    const float scale_log2 = shape.scale * log2_of_e;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x % 128 / 32 * 16;
    int turn = 0;
    for (int number = blockIdx.x; number < heads; number += stride, ++turn) {
      const SwizzledRows<D> q = matrix(turn, 0), k = matrix(turn, 1), v = matrix(turn, 2);
      Hand::wait_filled(turn);
      ptx::mbarrier_wait(&landed[turn % 2], turn / 2 % 2, "attention consumer", turn % 2);
      for (int tile = (group + turn) % groups; tile < tiles; tile += groups) {
        QueryTile<D, causal> own;
        own.tile_row0 = 64 * tile, own.row0 = 64 * tile + warp_row;
        own.start();
        for_each_step_of_64(0, causal ? min(T, 64 * tile + 64) : T, [&](auto n_tiles, int key) {
          own.template attend<decltype(n_tiles)::value>(q, k, v, key, T, scale_log2);
        });
        wgmma_wait<0>();
        hold(own.o);
        const float l0 = quad_sum(own.l[0]), l1 = quad_sum(own.l[1]);
        store_own_rows<D>(out + static_cast<int64_t>(number / shape.heads) * T * C + number % shape.heads * D,
                          C, own.row0, T, own.o, 1 / l0, 1 / l1, false);
        if (lane % 4 == 0) {
          float* place = lse + static_cast<int64_t>(number) * T;
          const int row = own.row0 + lane / 4;
          if (row < T) place[row] = (own.m[0] + log2f(l0)) * ln_of_2;
          if (row + 8 < T) place[row + 8] = (own.m[1] + log2f(l1)) * ln_of_2;
        }
      }
      if (two_heads || number + stride < heads) Hand::arrive_emptied(turn);
    }
  }
}

template <int D, bool causal, int groups>
void launch_forward_sm90(bf16* out, float* lse, const bf16* qkv, AttentionShape shape, cudaStream_t stream) {
  auto* kernel = attention_forward_sm90_kernel<D, causal, groups>;
  choose_chunks<D>(shape, 3);
  const int beside = 48 * 128;  // a last tile of 64 queries reads past the end of the last matrix
  const int matrix = SwizzledRows<D>::bytes(shape.chunk_rows);
  const int slots = std::min(6, (shared_memory_limit() - 1024 - beside) / matrix);
  CHECK(shape.chunks == 1 && slots >= 3, "attention: ", shape.tokens, " tokens on this path");
  allow_shared_memory(kernel, slots * matrix + beside);
  const HeadMaps qkv_maps =
      make_head_maps(qkv, shape.batch, shape.tokens, shape.qkv_pitch(), shape.chunk_rows);
  const int blocks = std::min(shape.batch * shape.heads, free_multiprocessors());
  kernel<<<blocks, 128 * (groups + 1), slots * matrix + beside, stream>>>(out, lse, qkv_maps, shape, slots);
  check_launch(cudaGetLastError(), "attention_forward");
}

}  // namespace

bool attention_forward_sm90_serves(const AttentionShape& shape) {
  return (shape.head_size == 64 || shape.head_size == 80) && shape.tokens > 96 && shape.tokens <= 320 &&
         on_hopper();
}

void attention_forward_sm90(bf16* out, float* lse, const bf16* qkv, const AttentionShape& shape, bool causal,
                            cudaStream_t stream) {
  // One consumer for each tile of 64 queries, as far as the registers go; five tiles are dealt out to three
  // in turn.
  const bool four_tiles = shape.tokens > 192 && shape.tokens <= 256;
  auto launch = causal ? launch_forward_sm90<64, true, 3> : launch_forward_sm90<64, false, 3>;
  if (shape.head_size == 64 && four_tiles) {
    launch = causal ? launch_forward_sm90<64, true, 4> : launch_forward_sm90<64, false, 4>;
  } else if (shape.head_size == 80) {
    launch = causal ? launch_forward_sm90<80, true, 3> : launch_forward_sm90<80, false, 3>;
  }
  launch(out, lse, qkv, shape, stream);
}

}  // namespace switchback::cuda
