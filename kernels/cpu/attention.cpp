// attention.cpp: per sample and head, out = softmax(q kᵀ/√D + mask) v.
//
// qkv (B, T, 3C) holds q, k, v side by side; head h owns columns [hD, (h+1)D) of each; out (B, T, C); lse (B, H, T).
// One thread works on one head of one sample: the scores (T, T) of that head live in its scratch memory and stay in
// the cache for any T of a CLIP (257 tokens: 264 KB in f32). Products are gemm.h's, straight on the packed layout.
//
// Forward:   s_ij = (q_i·k_j)/√D for j allowed (causal: j <= i),  lse_i = log Σ_j exp(s_ij),  p_ij = exp(s_ij - lse_i)
// Backward:  p from lse;  dv = pᵀ dout;  dp = dout vᵀ;  delta_i = Σ_d dout_id out_id;
//            ds = p (dp - delta)/√D;  dq = ds k;  dk = dsᵀ q
#include <cmath>

#include "kernels/cpu/access.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/math.h"

namespace switchback {
namespace {

struct Sizes {
  int64_t samples, tokens, channels, heads, head_size;
};

Sizes sizes_of(const char* op, const CView& qkv, int64_t heads) {
  CHECK(qkv.shape.rank() == 3 && qkv.cols() % 3 == 0, op, ": qkv is ", qkv.shape, ", it must be (B, T, 3C)");
  const int64_t channels = qkv.cols() / 3;
  CHECK(heads > 0 && channels % heads == 0, op, ": ", channels, " channels of qkv ", qkv.shape, " do not divide into ",
        heads, " heads");
  return {qkv.shape[0], qkv.shape[1], channels, heads, channels / heads};
}

// The (T, D) columns of one head in R: where they lie when T is R, else copied into `copy`.
template <class T>
MatrixView<Statistics<T>> head_of(const T* from, int64_t stride, const Sizes& s, Statistics<T>* copy) {
  using R = Statistics<T>;
  if constexpr (std::is_same_v<T, R>) {
    return {from, stride};
  } else {
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int64_t d = 0; d < s.head_size; ++d) copy[t * s.head_size + d] = static_cast<R>(from[t * stride + d]);
    return {copy, s.head_size};
  }
}

template <class R>
MatrixView<R> transposed(MatrixView<R> m) {
  return {m.data, m.stride, !m.transposed};
}

// scores (q_i·k_j) -> probabilities, in place; entries that are masked become 0.
template <class R>
R softmax_in_place(R* row, int64_t allowed, int64_t tokens, R scale) {
  R largest = row[0];
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < allowed; ++j) largest = std::max(largest, row[j]);
  R sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < allowed; ++j) {
    row[j] = exp_of((row[j] - largest) * scale);
    sum += row[j];
  }
  const R inverse = R(1) / sum;
#pragma omp simd
  for (int64_t j = 0; j < allowed; ++j) row[j] *= inverse;
  std::fill(row + allowed, row + tokens, R(0));
  return largest * scale + std::log(sum);
}

}  // namespace

void CpuKernels::attention_forward(View out, View lse, CView qkv, int64_t heads, bool causal) {
  const char* op = "attention_forward";
  const Sizes s = sizes_of(op, qkv, heads);
  check_place(op, "qkv", qkv, qkv.dtype);
  check_shape(op, "out", out, {s.samples, s.tokens, s.channels}, qkv.dtype);
  check_shape(op, "lse", lse, {s.samples, s.heads, s.tokens}, statistics_dtype(qkv.dtype));
  visit_float(qkv.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* in = qkv.as<T>();
    T* to = out.as<T>();
    R* lses = lse.as<R>();
    const int64_t n = s.tokens, d = s.head_size;
    const R scale = R(1) / std::sqrt(static_cast<R>(d));
    parallel_for(s.samples * heads, 1, [&](int64_t first, int64_t last) {
      Tensor scratch({n * n + 4 * n * d}, dtype_of<R>);  // scores, q, k, v, out
      R* scores = static_cast<R*>(scratch.data());
      R* copy = scores + n * n;
      for (int64_t bh = first; bh < last; ++bh) {
        const int64_t b = bh / heads, h = bh % heads, stride = 3 * s.channels;
        const T* head = in + b * n * stride + h * d;
        const auto q = head_of<T>(head, stride, s, copy);
        const auto k = head_of<T>(head + s.channels, stride, s, copy + n * d);
        const auto v = head_of<T>(head + 2 * s.channels, stride, s, copy + 2 * n * d);
        multiply<R>({scores, n}, false, q, transposed(k), n, n, d);
        for (int64_t i = 0; i < n; ++i)
          lses[bh * n + i] = softmax_in_place(scores + i * n, causal ? i + 1 : n, n, scale);
        T* result = to + b * n * s.channels + h * d;
        if constexpr (std::is_same_v<T, R>) {
          multiply<R>({result, s.channels}, false, {scores, n}, v, n, d, n);
        } else {
          R* wide = copy + 3 * n * d;
          multiply<R>({wide, d}, false, {scores, n}, v, n, d, n);
          for (int64_t t = 0; t < n; ++t)
            for (int64_t c = 0; c < d; ++c) result[t * s.channels + c] = static_cast<T>(wide[t * d + c]);
        }
      }
    });
  });
}

void CpuKernels::attention_backward(Sink dqkv, CView dout, CView qkv, CView out, CView lse, int64_t heads, bool causal) {
  if (!dqkv) return;
  const char* op = "attention_backward";
  const Sizes s = sizes_of(op, qkv, heads);
  check_place(op, "qkv", qkv, qkv.dtype);
  check_shape(op, "out", out, {s.samples, s.tokens, s.channels}, qkv.dtype);
  check_matrix(op, "dout", dout, s.samples * s.tokens, s.channels, qkv.dtype);
  check_shape(op, "lse", lse, {s.samples, s.heads, s.tokens}, statistics_dtype(qkv.dtype));
  check_sink(op, "dqkv", dqkv, s.samples * s.tokens, 3 * s.channels, qkv.dtype);
  visit_float(qkv.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *in = qkv.as<T>(), *gradient = dout.as<T>(), *result = out.as<T>();
    const R* lses = lse.as<R>();
    const int64_t n = s.tokens, d = s.head_size, stride = 3 * s.channels;
    const R scale = R(1) / std::sqrt(static_cast<R>(d));
    const bool direct = dqkv.to.dtype == dtype_of<R>;
    parallel_for(s.samples * heads, 1, [&](int64_t first, int64_t last) {
      Tensor scratch({2 * n * n + 5 * n * d}, dtype_of<R>);  // p, dp, q, k, v, dout, one result
      R* p = static_cast<R*>(scratch.data());
      R* dp = p + n * n;
      R* copy = dp + n * n;
      R* wide = copy + 4 * n * d;
      for (int64_t bh = first; bh < last; ++bh) {
        const int64_t b = bh / heads, h = bh % heads;
        const int64_t at = b * n * stride + h * d, at_out = b * n * s.channels + h * d;
        const auto q = head_of<T>(in + at, stride, s, copy);
        const auto k = head_of<T>(in + at + s.channels, stride, s, copy + n * d);
        const auto v = head_of<T>(in + at + 2 * s.channels, stride, s, copy + 2 * n * d);
        const auto g = head_of<T>(gradient + at_out, s.channels, s, copy + 3 * n * d);
        // (T, D) = a b into columns `column` of dqkv
        const auto emit = [&](int64_t column, MatrixView<R> a, MatrixView<R> b_matrix) {
          const int64_t to = at + column;
          if (direct) {
            multiply<R>({static_cast<R*>(dqkv.to.data) + to, stride}, dqkv.accumulate, a, b_matrix, n, d, n);
            return;
          }
          multiply<R>({wide, d}, false, a, b_matrix, n, d, n);
          write_to<T>(dqkv, op, [&](auto writer) {
            for (int64_t t = 0; t < n; ++t)
              for (int64_t c = 0; c < d; ++c) writer.put(to + t * stride + c, wide[t * d + c]);
          });
        };

        multiply<R>({p, n}, false, q, transposed(k), n, n, d);
        multiply<R>({dp, n}, false, g, transposed(v), n, n, d);
        for (int64_t i = 0; i < n; ++i) {
          const int64_t allowed = causal ? i + 1 : n;
          const R lse_i = lses[bh * n + i];
          R *p_row = p + i * n, *dp_row = dp + i * n;
#pragma omp simd
          for (int64_t j = 0; j < allowed; ++j) p_row[j] = exp_of(p_row[j] * scale - lse_i);
          std::fill(p_row + allowed, p_row + n, R(0));
          R delta = 0;
#pragma omp simd reduction(+ : delta)
          for (int64_t c = 0; c < d; ++c)
            delta += g.data[i * g.stride + c] * static_cast<R>(result[at_out + i * s.channels + c]);
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) dp_row[j] = p_row[j] * (dp_row[j] - delta) * scale;  // now ds
        }
        emit(0, {dp, n}, k);
        emit(s.channels, {dp, n, true}, q);
        emit(2 * s.channels, {p, n, true}, g);
      }
    });
  });
}

}  // namespace switchback
