// matmul.cpp: matrix products on all threads: matmul and the three products of a linear layer.
//
//   y = x wᵀ + bias,   dx = dy w,   dw = dyᵀ x,   dbias = Σ_rows dy
//
// A product is cut into pieces whose number depends on its shape only, never on the threads, so that results
// have the same bits on any machine with the same BLAS:
//   k much longer than m and n (weight gradients): pieces of k, each into its own partial c, added in order;
//   else pieces of the longer side of c.
//
// Rounding: sums in R (f32 for bf16), the bias is added to the finished sum, and the result is rounded to T
// once. bf16 operands are converted to f32 first, which is exact.
#include <bit>

#include "kernels/cpu/access.h"
#include "kernels/cpu/gemm.h"

namespace switchback {
namespace {

// The values of a tensor in R: the tensor itself, or a converted copy.
template <class T>
class InStatisticsType {
 public:
  using R = Statistics<T>;
  explicit InStatisticsType(const CView& x) : values_(static_cast<const R*>(x.data)) {
    if constexpr (!std::is_same_v<T, R>) {
      copy_ = Tensor({x.size()}, dtype_of<R>);
      R* to = static_cast<R*>(copy_.data());
      const T* from = x.as<T>();
      for_elements(x.size(), [=](int64_t i) { to[i] = static_cast<R>(from[i]); });
      values_ = to;
    }
  }
  const R* values() const { return values_; }

 private:
  Tensor copy_;
  const R* values_;
};

// The largest power of two <= most that leaves pieces of at least `least`. 256 rows reach 95 % of OpenBLAS's
// best rate (it packs the other operand anew for each piece), 64 rows 75 %.
int64_t pieces_of(int64_t length, int64_t least, int64_t most) {
  return std::clamp<int64_t>(std::bit_floor(static_cast<uint64_t>(length / least)), 1, most);
}

struct Range {
  int64_t from, to;
};
Range piece(int64_t length, int64_t pieces, int64_t i) {
  const auto cut = [&](int64_t p) { return p == pieces ? length : length * p / pieces / 16 * 16; };
  return {cut(i), cut(i + 1)};
}

constexpr double worth_splitting = 1 << 19;  // multiply-adds

// sink (m, n) = a b + bias;  a (m, k) and b (k, n) after transposition, bias (n) optional.
template <class T>
void product(const Sink& sink, const char* op, const CView& a, bool a_transposed, const CView& b,
             bool b_transposed, int64_t m, int64_t n, int64_t k, const T* bias = nullptr) {
  using R = Statistics<T>;
  const InStatisticsType<T> a_values(a), b_values(b);
  const int64_t a_stride = a_transposed ? m : k, b_stride = b_transposed ? k : n;
  const MatrixView<R> left{a_values.values(), a_stride, a_transposed},
      right{b_values.values(), b_stride, b_transposed};
  const bool worth = double(m) * double(n) * double(k) > worth_splitting;

  if (worth && k >= 4 * std::max(m, n) && k >= 1024 && !bias) {
    const int64_t pieces = pieces_of(k, 512, 16);
    Tensor partials({pieces, m, n}, dtype_of<R>);
    R* partial = static_cast<R*>(partials.data());
    parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        const auto [from, to] = piece(k, pieces, p);
        multiply<R>({partial + p * m * n, n}, false,
                    {left.data + from * (a_transposed ? a_stride : 1), a_stride, a_transposed},
                    {right.data + from * (b_transposed ? 1 : b_stride), b_stride, b_transposed}, m, n,
                    to - from);
      }
    });
    write_to<T>(sink, op, [&](auto out) {
      const int64_t size = m * n;
      for_elements(size, [=](int64_t i) {
        R sum = partial[i];
        for (int64_t p = 1; p < pieces; ++p) sum += partial[p * size + i];
        out.put(i, sum);
      });
    });
    return;
  }

  // In place when the sink is of R, else through a copy in R that is rounded piece by piece.
  const bool direct = sink.to.dtype == dtype_of<R>;
  Tensor copy;
  if (!direct) copy = Tensor({m, n}, dtype_of<R>);
  R* c = direct ? static_cast<R*>(sink.to.data) : static_cast<R*>(copy.data());
  const bool by_rows = m >= n;
  const int64_t length = by_rows ? m : n;
  const int64_t pieces = !worth ? 1 : length < 1024 ? pieces_of(length, 64, 4) : pieces_of(length, 256, 64);
  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      const Range rows = by_rows ? piece(m, pieces, p) : Range{0, m};
      const Range cols = by_rows ? Range{0, n} : piece(n, pieces, p);
      multiply<R>({c + rows.from * n + cols.from, n}, direct && sink.accumulate,
                  {left.data + rows.from * (a_transposed ? 1 : a_stride), a_stride, a_transposed},
                  {right.data + cols.from * (b_transposed ? b_stride : 1), b_stride, b_transposed},
                  rows.to - rows.from, cols.to - cols.from, k);
      if (bias) {
        for (int64_t row = rows.from; row < rows.to; ++row)
          for (int64_t col = cols.from; col < cols.to; ++col) c[row * n + col] += static_cast<R>(bias[col]);
      }
      if (!direct) {
        write_to<T>(sink, op, [&](auto out) {
          for (int64_t row = rows.from; row < rows.to; ++row)
            for (int64_t i = row * n + cols.from; i < row * n + cols.to; ++i) out.put(i, c[i]);
        });
      }
    }
  });
}

}  // namespace

void CpuKernels::matmul(Sink c, CView a, Transpose transpose_a, CView b, Transpose transpose_b) {
  if (!c) return;
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const char* op = "matmul";
  const auto [m, n, k] = Require::matmul(op, c, a, ta, b, tb);
  visit_float(a.dtype, op, [&](auto tag) { product<decltype(tag)>(c, op, a, ta, b, tb, m, n, k); });
}

void CpuKernels::linear_forward(View y, CView x, CView w, CView bias) {
  const char* op = "linear_forward";
  const auto [m, n, k] = Require::linear_forward(op, y, x, w, bias);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    product<T>({y, false}, op, x, false, w, true, m, n, k, bias.as<T>());
  });
}

void CpuKernels::linear_backward_input(Sink dx, CView dy, CView w) {
  if (!dx) return;
  const char* op = "linear_backward_input";
  const auto [m, n, k] = Require::linear_backward_input(op, dx, dy, w);
  visit_float(dy.dtype, op,
              [&](auto tag) { product<decltype(tag)>(dx, op, dy, false, w, false, m, n, k); });
}

void CpuKernels::linear_backward_weight(Sink dw, Sink dbias, CView dy, CView x) {
  const char* op = "linear_backward_weight";
  const auto [n, k, m] = Require::linear_backward_weight(op, dw, dbias, dy, x);  // of the product dyᵀ x
  visit_float(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    if (dw) product<T>(dw, op, dy, true, x, false, n, k, m);
    if (!dbias) return;
    const T* gradient = dy.as<T>();
    const Tensor sums = sum_rows<R>(m, n, [=](int64_t from, int64_t to, R* partial) {
      for (int64_t row = from; row < to; ++row)
        for (int64_t col = 0; col < n; ++col) partial[col] += static_cast<R>(gradient[row * n + col]);
    });
    write_all<T>(dbias, op, static_cast<const R*>(sums.data()));
  });
}

}  // namespace switchback
