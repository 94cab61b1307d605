// gemm.h: one matrix product on one thread, with leading dimensions: the brick that matmul, attention and the
// contrastive losses are built of.
//
//   multiply(c, false, a, b):   c = a b        multiply(c, true, a, b):   c += a b
//
// A MatrixView is a window into row-major memory, possibly transposed. f32 and f64 only.
// Through OpenBLAS where it was found, else by our own register-blocked kernel.
#pragma once

#include <cstdint>

namespace switchback {

template <class R>
struct MatrixView {
  const R* data;
  int64_t stride;           // elements from one row of the memory to the next
  bool transposed = false;  // element (i, j) lies at data[j * stride + i]
};

template <class R>
struct MatrixOut {
  R* data;  // (m, n)
  int64_t stride;
};

// c (m, n), a (m, k), b (k, n)
template <class R>
void multiply(MatrixOut<R> c, bool accumulate, MatrixView<R> a, MatrixView<R> b, int64_t m, int64_t n,
              int64_t k);

// The same by our own loops, always: the fallback, and what tests compare with.
template <class R>
void multiply_blocked(MatrixOut<R> c, bool accumulate, MatrixView<R> a, MatrixView<R> b, int64_t m, int64_t n,
                      int64_t k);

}  // namespace switchback
