// gemm.cpp: c = a b by register blocks.
//
// b is copied in panels of `panel` columns (k block x panel, padded with zeros), so that the innermost loop
// reads whole vectors whatever b's layout is. A block of c, `block_rows` x `panel`, stays in vector registers
// over the whole k block; per k it costs two vector loads and block_rows broadcasts of a. a is read where it
// lies.
//
// Rounding: sums run over k in blocks of k_block, multiply-adds fused (this file alone is compiled with
// -ffp-contract=fast); every element's order depends on k only.
#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#ifdef SWITCHBACK_OPENBLAS
#include <cblas.h>
#endif

namespace switchback {
namespace {

#ifdef __AVX512F__
constexpr int vector_bytes = 64, block_rows = 12;  // 24 sums in 32 registers
#else
constexpr int vector_bytes = 32, block_rows = 6;  // 12 sums in 16 registers
#endif
constexpr int64_t k_block = 256;

template <class R>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
};
template <class R>
using Vector = typename VectorOf<R>::type;
template <class R>
constexpr int lanes = vector_bytes / sizeof(R);
template <class R>
constexpr int panel = 2 * lanes<R>;

// Columns [0, cols) of k rows of b into (k, panel).
template <class R>
void pack(R* to, MatrixView<R> b, int64_t k, int64_t cols) {
  if (!b.transposed) {
    for (int64_t row = 0; row < k; ++row, to += panel<R>) {
      const R* from = b.data + row * b.stride;
      if (cols == panel<R>) {
        std::memcpy(to, from, panel<R> * sizeof(R));
      } else {
        for (int64_t j = 0; j < panel<R>; ++j) to[j] = j < cols ? from[j] : R(0);
      }
    }
  } else {
    for (int64_t j = 0; j < panel<R>; ++j) {
      const R* from = b.data + j * b.stride;
      for (int64_t row = 0; row < k; ++row) to[row * panel<R> + j] = j < cols ? from[row] : R(0);
    }
  }
}

// c (rows, cols) = or += a (rows, k) packed (k, panel); the second vector of the panel only when `vectors` is
// 2.
template <class R, int rows, int vectors>
void register_block(MatrixOut<R> c, bool accumulate, const R* a, int64_t a_row, int64_t a_col,
                    const R* packed, int64_t k, int64_t cols) {
  Vector<R> sum[rows][vectors] = {};
  for (int64_t p = 0; p < k; ++p, packed += panel<R>) {
    Vector<R> b[vectors];
    for (int v = 0; v < vectors; ++v) std::memcpy(&b[v], packed + v * lanes<R>, sizeof(Vector<R>));
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const R value = a[i * a_row + p * a_col];
      for (int v = 0; v < vectors; ++v) sum[i][v] += value * b[v];
    }
  }
  for (int i = 0; i < rows; ++i) {
    R* to = c.data + i * c.stride;
    R line[vectors * lanes<R>];
    std::memcpy(line, sum[i], sizeof(line));
    if (cols == vectors * lanes<R>) {
      for (int j = 0; j < vectors * lanes<R>; ++j) to[j] = accumulate ? to[j] + line[j] : line[j];
    } else {
      for (int64_t j = 0; j < cols; ++j) to[j] = accumulate ? to[j] + line[j] : line[j];
    }
  }
}

template <class R, int rows = block_rows>
void register_block_of(int64_t want, MatrixOut<R> c, bool accumulate, const R* a, int64_t a_row,
                       int64_t a_col, const R* packed, int64_t k, int64_t cols) {
  if constexpr (rows > 1) {
    if (want < rows)
      return register_block_of<R, rows - 1>(want, c, accumulate, a, a_row, a_col, packed, k, cols);
  }
  if (cols <= lanes<R>)
    register_block<R, rows, 1>(c, accumulate, a, a_row, a_col, packed, k, cols);
  else
    register_block<R, rows, 2>(c, accumulate, a, a_row, a_col, packed, k, cols);
}

#ifdef SWITCHBACK_OPENBLAS
// One thread inside OpenBLAS: switchback has its own.
const bool single_threaded = [] {
  openblas_set_num_threads(1);
  return true;
}();

void blas(MatrixOut<float> c, bool accumulate, MatrixView<float> a, MatrixView<float> b, int64_t m, int64_t n,
          int64_t k) {
  cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans,
              b.transposed ? CblasTrans : CblasNoTrans, m, n, k, 1.0f, a.data, a.stride, b.data, b.stride,
              accumulate ? 1.0f : 0.0f, c.data, c.stride);
}
void blas(MatrixOut<double> c, bool accumulate, MatrixView<double> a, MatrixView<double> b, int64_t m,
          int64_t n, int64_t k) {
  cblas_dgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans,
              b.transposed ? CblasTrans : CblasNoTrans, m, n, k, 1.0, a.data, a.stride, b.data, b.stride,
              accumulate ? 1.0 : 0.0, c.data, c.stride);
}
#endif

}  // namespace

template <class R>
void multiply_blocked(MatrixOut<R> c, bool accumulate, MatrixView<R> a, MatrixView<R> b, int64_t m, int64_t n,
                      int64_t k) {
  const int64_t a_row = a.transposed ? 1 : a.stride, a_col = a.transposed ? a.stride : 1;
  const int64_t b_row = b.transposed ? 1 : b.stride, b_col = b.transposed ? b.stride : 1;
  if (k == 0 && !accumulate) {
    for (int64_t i = 0; i < m; ++i) std::fill_n(c.data + i * c.stride, n, R(0));
  }
  alignas(64) R packed[k_block * panel<R>];
  for (int64_t p = 0; p < k; p += k_block) {
    const int64_t depth = std::min(k_block, k - p);
    const bool add = accumulate || p > 0;
    for (int64_t j = 0; j < n; j += panel<R>) {
      const int64_t cols = std::min<int64_t>(panel<R>, n - j);
      pack<R>(packed, {b.data + p * b_row + j * b_col, b.stride, b.transposed}, depth, cols);
      // Rows in equal blocks: 17 rows are 9 + 8, not 12 + 5.
      const int64_t blocks = (m + block_rows - 1) / block_rows;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t from = block * m / blocks, to = (block + 1) * m / blocks;
        register_block_of<R>(to - from, {c.data + from * c.stride + j, c.stride}, add,
                             a.data + from * a_row + p * a_col, a_row, a_col, packed, depth, cols);
      }
    }
  }
}

template <class R>
void multiply(MatrixOut<R> c, bool accumulate, MatrixView<R> a, MatrixView<R> b, int64_t m, int64_t n,
              int64_t k) {
  if (m == 0 || n == 0) return;
#ifdef SWITCHBACK_OPENBLAS
  // OpenBLAS for every size: on AVX-512 its small products (17 x 17 x 32) run at 60-150 GFLOP/s, ours at
  // 30-120, and from 64 x 64 x 64 on the two are within 10 % of each other.
  if (single_threaded && k > 0) return blas(c, accumulate, a, b, m, n, k);
#endif
  multiply_blocked(c, accumulate, a, b, m, n, k);
}

template void multiply(MatrixOut<float>, bool, MatrixView<float>, MatrixView<float>, int64_t, int64_t,
                       int64_t);
template void multiply(MatrixOut<double>, bool, MatrixView<double>, MatrixView<double>, int64_t, int64_t,
                       int64_t);
template void multiply_blocked(MatrixOut<float>, bool, MatrixView<float>, MatrixView<float>, int64_t, int64_t,
                               int64_t);
template void multiply_blocked(MatrixOut<double>, bool, MatrixView<double>, MatrixView<double>, int64_t,
                               int64_t, int64_t);

}  // namespace switchback
