// attention.cpp: per sample and head, out = softmax(q kᵀ/√D + mask) v.
//
// qkv (B, T, 3C) holds q, k, v side by side; head h owns columns [hD, (h+1)D) of each; out (B, T, C); lse (B,
// H, T). One thread works on one head of one sample: the scores (T, T) of that head live in its scratch
// memory and stay in the cache for any T of a CLIP (257 tokens: 264 KB in f32). Products are gemm.h's,
// straight on the packed layout.
//
// Forward:   s_ij = (q_i·k_j)/√D for j allowed (causal: j <= i);  lse_i = log Σ_j exp(s_ij);
//            p_ij = exp(s_ij - lse_i)
// Backward:  p from lse;  dv = pᵀ dout;  dp = dout vᵀ;  delta_i = Σ_d dout_id out_id;
//            ds = p (dp - delta)/√D;  dq = ds k;  dk = dsᵀ q
//
// Rows of scores are padded to whole vectors, and loops over a row run lane by lane over whole vectors, with
// -inf in place of what is masked or padding: scalar rests took 40 % of the time of 32 causal tokens.
#include <cmath>
#include <limits>

#include "kernels/cpu/access.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/math.h"

namespace switchback {
namespace {

// The (T, D) columns of one head in R: where they lie when T is R, else copied into `copy`.
template <class T>
MatrixView<Statistics<T>> head_of(const T* from, int64_t stride, const HeadSizes& s, Statistics<T>* copy) {
  using R = Statistics<T>;
  if constexpr (std::is_same_v<T, R>) {
    return {from, stride};
  } else {
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int64_t d = 0; d < s.head_size; ++d)
        copy[t * s.head_size + d] = static_cast<R>(from[t * stride + d]);
    return {copy, s.head_size};
  }
}

template <class R>
MatrixView<R> transposed(MatrixView<R> m) {
  return {m.data, m.stride, !m.transposed};
}

constexpr int64_t vector_elements = 16;
int64_t padded(int64_t count) { return (count + vector_elements - 1) / vector_elements * vector_elements; }

// The sum of 16 lanes as a tree: fifteen additions one after the other would take longer than the
// exponentials.
template <class R>
R sum_of(const R* lanes) {
  R half[8], quarter[4];
  for (int i = 0; i < 8; ++i) half[i] = lanes[i] + lanes[8 + i];
  for (int i = 0; i < 4; ++i) quarter[i] = half[i] + half[4 + i];
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// scores (T, T), rows `stride` apart: q_i·k_j -> probabilities, in place; entries that are masked become 0.
// lse (T).
template <class R>
void softmax_in_place(R* scores, int64_t stride, int64_t tokens, bool causal, R scale, R* lse) {
  for (int64_t i = 0; i < tokens; ++i) {
    R* row = scores + i * stride;
    const int64_t allowed = causal ? i + 1 : tokens, length = padded(allowed);
    const auto score = [=](int64_t j) { return j < allowed ? row[j] : -std::numeric_limits<R>::infinity(); };
    R most[vector_elements], sums[vector_elements] = {};
    std::fill_n(most, vector_elements, -std::numeric_limits<R>::infinity());
    for (int64_t j = 0; j < length; j += vector_elements)
#pragma omp simd
      for (int64_t lane = 0; lane < vector_elements; ++lane)
        most[lane] = std::max(most[lane], score(j + lane));
    R largest = most[0];
#pragma omp simd reduction(max : largest)
    for (int64_t lane = 0; lane < vector_elements; ++lane) largest = std::max(largest, most[lane]);
    for (int64_t j = 0; j < length; j += vector_elements)
#pragma omp simd
      for (int64_t lane = 0; lane < vector_elements; ++lane) {
        const R e = exp_of((score(j + lane) - largest) * scale);
        row[j + lane] = e;
        sums[lane] += e;
      }
    const R sum = sum_of(sums), inverse = R(1) / sum;
    for (int64_t j = 0; j < length; j += vector_elements)
#pragma omp simd
      for (int64_t lane = 0; lane < vector_elements; ++lane) row[j + lane] *= inverse;
    if (length < tokens) std::fill(row + length, row + tokens, R(0));
    lse[i] = largest * scale + std::log(sum);
  }
}

}  // namespace

void CpuKernels::attention_forward(View out, View lse, CView qkv, int64_t heads, bool causal) {
  const char* op = "attention_forward";
  const HeadSizes s = Require::attention_forward(op, out, lse, qkv, heads);
  visit_float(qkv.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* in = qkv.as<T>();
    T* to = out.as<T>();
    R* lses = lse.as<R>();
    const int64_t n = s.tokens, d = s.head_size, row = padded(n);
    const R scale = R(1) / std::sqrt(static_cast<R>(d));
    parallel_for(s.samples * heads, 1, [&](int64_t first, int64_t last) {
      Tensor scratch({n * row + 4 * n * d}, dtype_of<R>);  // scores, q, k, v, out
      R* scores = static_cast<R*>(scratch.data());
      R* copy = scores + n * row;
      std::fill_n(scores, n * row, R(0));  // the padding is read, then masked
      for (int64_t bh = first; bh < last; ++bh) {
        const int64_t b = bh / heads, h = bh % heads, stride = 3 * s.channels;
        const T* head = in + b * n * stride + h * d;
        const auto q = head_of<T>(head, stride, s, copy);
        const auto k = head_of<T>(head + s.channels, stride, s, copy + n * d);
        const auto v = head_of<T>(head + 2 * s.channels, stride, s, copy + 2 * n * d);
        multiply<R>({scores, row}, false, q, transposed(k), n, n, d);
        softmax_in_place(scores, row, n, causal, scale, lses + bh * n);
        T* result = to + b * n * s.channels + h * d;
        if constexpr (std::is_same_v<T, R>) {
          multiply<R>({result, s.channels}, false, {scores, row}, v, n, d, n);
        } else {
          R* wide = copy + 3 * n * d;
          multiply<R>({wide, d}, false, {scores, row}, v, n, d, n);
          for (int64_t t = 0; t < n; ++t)
            for (int64_t c = 0; c < d; ++c) result[t * s.channels + c] = static_cast<T>(wide[t * d + c]);
        }
      }
    });
  });
}

void CpuKernels::attention_backward(Sink dqkv, CView dout, CView qkv, CView out, CView lse, int64_t heads,
                                    bool causal) {
  if (!dqkv) return;
  const char* op = "attention_backward";
  const HeadSizes s = Require::attention_backward(op, dqkv, dout, qkv, out, lse, heads);
  visit_float(qkv.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *in = qkv.as<T>(), *gradient = dout.as<T>(), *result = out.as<T>();
    const R* lses = lse.as<R>();
    const int64_t n = s.tokens, d = s.head_size, row = padded(n), stride = 3 * s.channels;
    const R scale = R(1) / std::sqrt(static_cast<R>(d));
    const bool direct = dqkv.to.dtype == dtype_of<R>;
    parallel_for(s.samples * heads, 1, [&](int64_t first, int64_t last) {
      Tensor scratch({2 * n * row + 5 * n * d}, dtype_of<R>);  // p, dp, q, k, v, dout, one result
      R* p = static_cast<R*>(scratch.data());
      R* dp = p + n * row;
      R* copy = dp + n * row;
      std::fill_n(p, 2 * n * row, R(0));  // the padding is computed with, its results are never used
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

        multiply<R>({p, row}, false, q, transposed(k), n, n, d);
        multiply<R>({dp, row}, false, g, transposed(v), n, n, d);
        for (int64_t i = 0; i < n; ++i) {
          const R lse_i = lses[bh * n + i];
          R *p_row = p + i * row, *dp_row = dp + i * row;
          const int64_t allowed = causal ? i + 1 : n, length = padded(allowed);
          for (int64_t j = 0; j < length; j += vector_elements)
#pragma omp simd
            for (int64_t lane = 0; lane < vector_elements; ++lane) {
              const R probability = exp_of(p_row[j + lane] * scale - lse_i);
              p_row[j + lane] = j + lane < allowed ? probability : R(0);
            }
          R delta = 0;
#pragma omp simd reduction(+ : delta)
          for (int64_t c = 0; c < d; ++c)
            delta += g.data[i * g.stride + c] * static_cast<R>(result[at_out + i * s.channels + c]);
          for (int64_t j = 0; j < length; j += vector_elements)
#pragma omp simd
            for (int64_t lane = 0; lane < vector_elements; ++lane)  // now ds
              dp_row[j + lane] = p_row[j + lane] * (dp_row[j + lane] - delta) * scale;
          if (length < n) {
            std::fill(p_row + length, p_row + n, R(0));
            std::fill(dp_row + length, dp_row + n, R(0));
          }
        }
        emit(0, {dp, row}, k);
        emit(s.channels, {dp, row, true}, q);
        emit(2 * s.channels, {p, row, true}, g);
      }
    });
  });
}

}  // namespace switchback
