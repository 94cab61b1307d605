// layernorm_rows_pieces.cuh: what the sweeps of layernorm_rows_forward.cu and layernorm_rows_backward.cu have
// in common: rows in pieces of 8 columns, a lane's share of what travels at once, and the codes of their
// results.
//
// The sweeps are bound by memory, so what counts is that enough loads are under way: all of a row's pieces
// are asked for before the first is looked at. Products and sums are fused where fmaf says so and the
// compiler's choice does not matter: with and without a branch, with and without layer-scale, a row has the
// same bits.
#pragma once

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/layernorm_rows.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {

inline constexpr int group = 8;            // columns of a lane in one piece
inline constexpr int stride = 32 * group;  // columns of a warp in one piece
inline constexpr int most_groups = 7;

template <class T>
using Piece = Packed<group, T>;

template <class T>
__device__ __forceinline__ void load_piece(Piece<T>& piece, const T* from) {
#pragma unroll
  for (int g = 0; g < Piece<T>::groups; ++g)
    piece.group[g] = reinterpret_cast<const typename Piece<T>::Group*>(from)[g];
}
template <class T>
__device__ __forceinline__ void store_piece(T* to, const Piece<T>& piece) {
#pragma unroll
  for (int g = 0; g < Piece<T>::groups; ++g)
    reinterpret_cast<typename Piece<T>::Group*>(to)[g] = piece.group[g];
}
template <class T>
__device__ __forceinline__ void clear(Piece<T>& piece) {
#pragma unroll
  for (int g = 0; g < Piece<T>::groups; ++g) piece.group[g] = {};
}

// Codes of the rows that a kernel makes, from the rounded values (codes.cuh).
struct RowCodesOut {
  uint2* codes;
  float* scale;
  Format format;

  // piece: 8 elements of a row whose absmax is known
  template <class T>
  __device__ __forceinline__ void store(int64_t at, const Piece<T>& piece, float inverse) const {
    float v[group];
#pragma unroll
    for (int e = 0; e < group; ++e) v[e] = to_float(piece.element[e]);
    codes[at / group] = encode(format, v, inverse);
  }
};
inline RowCodesOut codes_out(const RowCodes& codes) {
  return {static_cast<uint2*>(codes.codes.data), data<float>(codes.scale), codes.format};
}

// Calls f(std::integral_constant<int, n>{}) for n = 1 ... most_groups.
template <int n = 1, class F>
void visit_groups(int groups, F&& f) {
  if (groups == n) return f(std::integral_constant<int, n>{});
  if constexpr (n < most_groups) visit_groups<n + 1>(groups, f);
}

// How many pieces of a warp a row has; 0: rows that are not for these sweeps.
inline int groups_of(int64_t rows, int64_t width, std::initializer_list<CView> operands) {
  const int64_t groups = (width + stride - 1) / stride;
  if (rows == 0 || width % group != 0 || groups > most_groups) return 0;
  for (const CView& x : operands)
    if (!aligned(x.data)) return 0;
  return static_cast<int>(groups);
}

}  // namespace switchback::cuda
