// logits.h: what both contrastive losses share: a block of rows of the similarity matrix at a time.
//
// The N x N logits never exist as a whole: `logit_block_rows` own rows times all N columns do, in R.
#pragma once

#include <cmath>

#include "kernels/cpu/access.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/math.h"

namespace switchback {

inline constexpr int64_t logit_block_rows = 256;

// c (m, n) = or += a b on all threads, in pieces of rows that do not depend on the number of threads.
template <class R>
void multiply_in_parallel(MatrixOut<R> c, bool accumulate, MatrixView<R> a, MatrixView<R> b, int64_t m,
                          int64_t n, int64_t k) {
  constexpr int64_t rows = 32;
  parallel_for((m + rows - 1) / rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const int64_t from = p * rows, count = std::min(rows, m - from);
      const R* rows_of_a = a.data + from * (a.transposed ? 1 : a.stride);
      multiply<R>({c.data + from * c.stride, c.stride}, accumulate, {rows_of_a, a.stride, a.transposed}, b,
                  count, n, k);
    }
  });
}

// A () or (1) tensor of any floating-point type.
inline double scalar_of(const char* op, const char* name, const CView& x) {
  CHECK(x.data && x.size() == 1, op, ": ", name, " is ", x.shape, ", it must be one number");
  return visit_float(x.dtype, op, [&](auto tag) { return static_cast<double>(*x.as<decltype(tag)>()); });
}
inline void put_scalar(const char* op, const Sink& sink, double value) {
  if (!sink) return;
  CHECK(sink.to.size() == 1, op, ": the sink of a scalar is ", sink.to.shape);
  visit_float(sink.to.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    T* to = sink.to.as<T>();
    *to = static_cast<T>(value + (sink.accumulate ? static_cast<double>(*to) : 0.0));
  });
}

// Rows (own, E) against columns (all, E).
struct PairSizes {
  int64_t own, all, width;
};
inline PairSizes pair_sizes(const char* op, const CView& images, const CView& texts) {
  CHECK(images.dtype == DType::f64 || images.dtype == DType::f32, op, ": images are ", images.dtype,
        ", they must be f32 or f64");
  const PairSizes s{images.rows(), texts.rows(), images.cols()};
  check_place(op, "images", images, images.dtype);
  check_matrix(op, "the columns' texts", texts, s.all, s.width, images.dtype);
  return s;
}
// This rank's rows (B, E) and everybody's (N, E); own row i is global row first_row + i.
inline PairSizes pair_sizes(const char* op, const CView& images, const CView& texts, const CView& all_texts,
                            int64_t first_row) {
  const PairSizes s = pair_sizes(op, images, all_texts);
  check_matrix(op, "texts", texts, s.own, s.width, images.dtype);
  CHECK(first_row >= 0 && first_row + s.own <= s.all, op, ": own rows ", first_row, " to ", first_row + s.own,
        " of ", all_texts.shape);
  return s;
}

template <class F>
void visit_wide(DType dtype, F&& f) {
  if (dtype == DType::f64)
    f(double{});
  else
    f(float{});
}

// For blocks of own rows: logits (rows, N) = own rows times all rows; then each(i, row) for every own row i,
// on all threads, which may rewrite its row of N similarities; then done(first row, rows, block).
template <class R, class Each, class Done>
void for_logit_rows(const R* own, const R* all, const PairSizes& s, Each&& each, Done&& done) {
  Tensor block({std::min(logit_block_rows, s.own), s.all}, dtype_of<R>);
  R* logits = static_cast<R*>(block.data());
  for (int64_t from = 0; from < s.own; from += logit_block_rows) {
    const int64_t rows = std::min(logit_block_rows, s.own - from);
    multiply_in_parallel<R>({logits, s.all}, false, {own + from * s.width, s.width}, {all, s.width, true},
                            rows, s.all, s.width);
    for_rows(rows, 4 * s.all, [&](int64_t i) { each(from + i, logits + i * s.all); });
    done(from, rows, logits);
  }
}

// d own rows (rows, E) of a block, from block (rows, N) of dloss/d similarity and the other side's rows (N,
// E).
template <class R>
void block_gradient(const Sink& sink, int64_t from, int64_t rows, const R* block, const R* all,
                    const PairSizes& s) {
  if (!sink) return;
  multiply_in_parallel<R>({sink.to.as<R>() + from * s.width, s.width}, sink.accumulate, {block, s.all},
                          {all, s.width}, rows, s.width, s.all);
}

}  // namespace switchback
