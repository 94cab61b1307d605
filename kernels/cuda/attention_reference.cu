// attention_reference.cu: attention for every type and head size that the tuned kernels do not serve, and the
// choice between the two.
//
// Plain and slow: one block a query row (forward, dq) or a key row (dk, dv); the row of scores lies in shared
// memory. Everything is f32, nothing is rounded before the result.
//   s_ij = (q_i·k_j)/√D for j allowed (causal: j <= i),  lse_i = log Σ_j exp(s_ij),  p_ij = exp(s_ij - lse_i)
//   dp_ij = dout_i·v_j,  delta_i = dout_i·out_i,  ds_ij = p_ij (dp_ij - delta_i)/√D
//   dq_i = Σ_j ds_ij k_j,  dk_j = Σ_i ds_ij q_i,  dv_j = Σ_i p_ij dout_i
#include <cmath>

#include "kernels/cuda/attention_backward.cuh"
#include "kernels/cuda/attention_forward.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int threads = 128;

struct Heads {
  int64_t samples;
  int tokens, heads, head_size;
  bool causal;
  float scale;

  __device__ int channels() const { return heads * head_size; }
  // First element of a head's row in qkv (part 0: q, 1: k, 2: v) and in out.
  __device__ int64_t packed(int64_t b, int h, int t, int part) const {
    return ((b * tokens + t) * 3 + part) * channels() + h * head_size;
  }
  __device__ int64_t plain(int64_t b, int h, int t) const {
    return (b * tokens + t) * channels() + h * head_size;
  }
};

// This block's row: sample, head, token.
struct Place {
  int64_t b;
  int h, t;
  __device__ explicit Place(const Heads& s)
      : b(blockIdx.x / (static_cast<int64_t>(s.heads) * s.tokens)),
        h(static_cast<int>(blockIdx.x / s.tokens % s.heads)),
        t(static_cast<int>(blockIdx.x % s.tokens)) {}
};

template <class A, class B>
__device__ float dot(const A* a, const B* b, int size) {
  float sum = 0;
  for (int d = 0; d < size; ++d) sum += to_float(a[d]) * to_float(b[d]);
  return sum;
}

template <class T>
__global__ void __launch_bounds__(threads) forward(T* out, float* lse, const T* qkv, Heads s) {
  extern __shared__ float scores[];  // (T)
  const Place at(s);
  const int allowed = s.causal ? at.t + 1 : s.tokens;
  const T* q = qkv + s.packed(at.b, at.h, at.t, 0);
  float largest = -INFINITY;
  for (int j = threadIdx.x; j < allowed; j += threads) {
    scores[j] = s.scale * dot(q, qkv + s.packed(at.b, at.h, j, 1), s.head_size);
    largest = fmaxf(largest, scores[j]);
  }
  __shared__ float of_warp[threads / 32];
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < threads / 32; ++w) largest = fmaxf(largest, of_warp[w]);
  float sum = 0;
  for (int j = threadIdx.x; j < allowed; j += threads) sum += scores[j] = expf(scores[j] - largest);
  sum = block_sum<threads>(sum);  // its barriers also make the scores visible
  if (threadIdx.x == 0) lse[(at.b * s.heads + at.h) * s.tokens + at.t] = largest + logf(sum);
  for (int d = threadIdx.x; d < s.head_size; d += threads) {
    float value = 0;
    for (int j = 0; j < allowed; ++j) value += scores[j] * to_float(qkv[s.packed(at.b, at.h, j, 2) + d]);
    out[s.plain(at.b, at.h, at.t) + d] = from_float<T>(value / sum);
  }
}

// p_ij and ds_ij of one pair of rows.
struct Pair {
  float p, ds;
};
template <class T>
__device__ Pair pair_of(const T* qkv, const T* dout, const Heads& s, int64_t b, int h, int i, int j,
                        float lse, float delta) {
  const float score = s.scale * dot(qkv + s.packed(b, h, i, 0), qkv + s.packed(b, h, j, 1), s.head_size);
  const float p = expf(score - lse);
  const float dp = dot(dout + s.plain(b, h, i), qkv + s.packed(b, h, j, 2), s.head_size);
  return {p, p * (dp - delta) * s.scale};
}

template <class T, class To>
__global__ void __launch_bounds__(threads)
query_gradient(Out<To> dqkv, const T* dout, const T* qkv, const T* out, const float* lse, Heads s) {
  extern __shared__ float ds[];  // (T)
  const Place at(s);
  const int allowed = s.causal ? at.t + 1 : s.tokens;
  const int64_t own = s.plain(at.b, at.h, at.t);
  const float own_lse = lse[(at.b * s.heads + at.h) * s.tokens + at.t],
              delta = dot(dout + own, out + own, s.head_size);
  for (int j = threadIdx.x; j < allowed; j += threads)
    ds[j] = pair_of(qkv, dout, s, at.b, at.h, at.t, j, own_lse, delta).ds;
  __syncthreads();
  for (int d = threadIdx.x; d < s.head_size; d += threads) {
    float dq = 0;
    for (int j = 0; j < allowed; ++j) dq += ds[j] * to_float(qkv[s.packed(at.b, at.h, j, 1) + d]);
    dqkv.put(s.packed(at.b, at.h, at.t, 0) + d, dq);
  }
}

template <class T, class To>
__global__ void __launch_bounds__(threads)
key_gradients(Out<To> dqkv, const T* dout, const T* qkv, const T* out, const float* lse, Heads s) {
  extern __shared__ float shared[];  // p (T), ds (T)
  float *p = shared, *ds = shared + s.tokens;
  const Place at(s);
  const int first = s.causal ? at.t : 0;  // queries that see this key
  for (int i = first + threadIdx.x; i < s.tokens; i += threads) {
    const int64_t row = s.plain(at.b, at.h, i);
    const float delta = dot(dout + row, out + row, s.head_size);
    const Pair pair =
        pair_of(qkv, dout, s, at.b, at.h, i, at.t, lse[(at.b * s.heads + at.h) * s.tokens + i], delta);
    p[i] = pair.p;
    ds[i] = pair.ds;
  }
  __syncthreads();
  for (int d = threadIdx.x; d < s.head_size; d += threads) {
    float dk = 0, dv = 0;
    for (int i = first; i < s.tokens; ++i) {
      dk += ds[i] * to_float(qkv[s.packed(at.b, at.h, i, 0) + d]);
      dv += p[i] * to_float(dout[s.plain(at.b, at.h, i) + d]);
    }
    dqkv.put(s.packed(at.b, at.h, at.t, 1) + d, dk);
    dqkv.put(s.packed(at.b, at.h, at.t, 2) + d, dv);
  }
}

Heads heads_of(const HeadSizes& s, bool causal) {
  return {s.samples,
          static_cast<int>(s.tokens),
          static_cast<int>(s.heads),
          static_cast<int>(s.head_size),
          causal,
          1 / std::sqrt(static_cast<float>(s.head_size))};
}
size_t row_bytes(const char* op, const Heads& s, int rows) {
  // 16 bytes more: unrolled loops read whole groups of 16 and throw the rest away.
  const size_t bytes = sizeof(float) * static_cast<size_t>(rows) * static_cast<size_t>(s.tokens) + 16;
  if (bytes > 48 * 1024)
    fail(op, ": ", s.tokens, " tokens in heads of ", s.head_size, ": there is no kernel for these");
  return bytes;
}

}  // namespace

void CudaKernels::attention_forward(View out, View lse, CView qkv, int64_t heads, bool causal) {
  const char* op = "attention_forward";
  const Heads s = heads_of(Require::attention_forward(op, out, lse, qkv, heads), causal);
  const int64_t rows = s.samples * heads * s.tokens;
  if (rows == 0) return;
  if (qkv.dtype == DType::bf16 && attention_serves(s.head_size) && aligned(qkv.data) && aligned(out.data))
    return cuda::attention_forward(out, lse, qkv, heads, causal, stream_);
  visit(qkv.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    forward<<<blocks_for(rows, 1), threads, row_bytes(op, s, 1), stream_>>>(data<T>(out), data<float>(lse),
                                                                            data<T>(qkv), s);
    check_launch(op);
  });
}

void CudaKernels::attention_backward(Sink dqkv, CView dout, CView qkv, CView out, CView lse, int64_t heads,
                                     bool causal) {
  if (!dqkv) return;
  const char* op = "attention_backward";
  const Heads s = heads_of(Require::attention_backward(op, dqkv, dout, qkv, out, lse, heads), causal);
  const int64_t rows = s.samples * heads * s.tokens;
  if (rows == 0) return;
  if (qkv.dtype == DType::bf16 && dqkv.to.dtype == DType::bf16 && attention_serves(s.head_size) &&
      aligned(qkv.data) && aligned(dqkv.to.data) && aligned(dout.data) && aligned(out.data)) {
    dqkv.to.shape = qkv.shape;
    dout.shape = out.shape;
    return cuda::attention_backward(dqkv, dout, qkv, out, lse, heads, causal, stream_);
  }
  visit(qkv.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    visit_sink<T>(dqkv, op, [&](auto to) {
      const auto sink = out_of<decltype(to)>(dqkv);
      query_gradient<<<blocks_for(rows, 1), threads, row_bytes(op, s, 1), stream_>>>(
          sink, data<T>(dout), data<T>(qkv), data<T>(out), data<float>(lse), s);
      check_launch(op);
      key_gradients<<<blocks_for(rows, 1), threads, row_bytes(op, s, 2), stream_>>>(
          sink, data<T>(dout), data<T>(qkv), data<T>(out), data<float>(lse), s);
      check_launch(op);
    });
  });
}

}  // namespace switchback::cuda
