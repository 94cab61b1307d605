// quantize_tile.cuh: a tile of 64 x 64 values to codes, as they lie, transposed, or both, by a block of 256
// threads.
#pragma once

#include "kernels/cuda/codes.cuh"

namespace switchback::cuda {

constexpr int group = 8;  // elements of a thread at a time: 16 bytes of bf16, 8 of codes

template <class F>
void visit_codes(Format format, const char* op, F&& f) {
  switch (format) {
    case Format::int8:
      return f.template operator()<Format::int8>();
    case Format::e4m3:
      return f.template operator()<Format::e4m3>();
    case Format::e5m2:
      return f.template operator()<Format::e5m2>();
    default:
      fail(op, ": ", format, " has no codes on a GPU");
  }
}

constexpr int tile = 64;

struct Scales {
  const uint32_t* largest;
  Granularity by;
  float of_format;
  __device__ __forceinline__ Scaling at(int64_t row, int64_t column) const {
    return scaling_of(largest[by == Granularity::tensor ? 0
                              : by == Granularity::row  ? row
                                                        : column],
                      of_format);
  }
};

// 4 x 4 bytes the other way round: byte i of out[j] is byte j of in[i].
__device__ __forceinline__ void transpose_bytes(uint32_t (&out)[4], const uint32_t (&in)[4]) {
  const uint32_t low01 = __byte_perm(in[0], in[1], 0x5140), high01 = __byte_perm(in[0], in[1], 0x7362);
  const uint32_t low23 = __byte_perm(in[2], in[3], 0x5140), high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

using TileWords = uint32_t[tile][tile / 4 + 1];  // codes of a tile by rows, four in a word

// Of the tile's codes, once all of them are in `words`: transposed (cols, padded).
__device__ __forceinline__ void store_transposed(uint8_t* transposed, int64_t padded, const TileWords& words,
                                                 int64_t cols, int64_t first_row, int64_t first_column) {
  const int r = threadIdx.x % 16 * 4, c = threadIdx.x / 16 * 4;
  const uint32_t in[4] = {words[r][c / 4], words[r + 1][c / 4], words[r + 2][c / 4], words[r + 3][c / 4]};
  uint32_t out[4];
  transpose_bytes(out, in);
  const int64_t row = first_row + r;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int64_t column = first_column + c + e;
    if (column < cols && row < padded) store_word(transposed + column * padded + row, out[e], padded - row);
  }
}

// A tile of codes (rows, cols) the other way round: (cols, rows).
__device__ __forceinline__ void transpose_tile(uint8_t* transposed, const uint8_t* codes, int64_t rows,
                                               int64_t cols, int64_t first_row, int64_t first_column) {
  __shared__ TileWords words;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 8 + 32 * half, c = threadIdx.x % 8 * group;
    const int64_t row = first_row + r, column = first_column + c;
    const uint2 code = load_codes(codes + row * cols + column, row < rows ? cols - column : 0);
    words[r][c / 4] = code.x;
    words[r][c / 4 + 1] = code.y;
  }
  __syncthreads();
  store_transposed(transposed, rows, words, cols, first_row, first_column);
}

// A tile of x (rows, cols) by a block of 256 threads. Codes beyond the last row are 0: they pad `transposed`
// (cols, padded).
template <Format format, class T>
__device__ __forceinline__ void quantize_tile(uint8_t* codes, uint8_t* transposed, int64_t padded, const T* x,
                                              int64_t rows, int64_t cols, const Scales& scales,
                                              int64_t first_row, int64_t first_column) {
  __shared__ float inverses[tile];  // of the tile's rows, or of its columns
  __shared__ TileWords words;
  const bool by_column = scales.by == Granularity::column;
  if (threadIdx.x < tile) {
    const int64_t row = first_row + (by_column ? 0 : threadIdx.x),
                  column = first_column + (by_column ? threadIdx.x : 0);
    inverses[threadIdx.x] = row < rows && column < cols ? scales.at(row, column).inverse : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = threadIdx.x / 8 + 32 * half, c = threadIdx.x % 8 * group;
    const int64_t row = first_row + r, column = first_column + c, left = row < rows ? cols - column : 0;
    float v[group], inverse[group];
    load(v, x + row * cols + column, left);
#pragma unroll
    for (int e = 0; e < group; ++e) inverse[e] = inverses[by_column ? c + e : r];
    const uint2 code = encode_each<format>(v, inverse);
    words[r][c / 4] = code.x;
    words[r][c / 4 + 1] = code.y;
    if (codes && left > 0) store_codes(codes + row * cols + column, code, left);
  }
  if (!transposed) return;
  __syncthreads();
  store_transposed(transposed, padded, words, cols, first_row, first_column);
}

}  // namespace switchback::cuda
