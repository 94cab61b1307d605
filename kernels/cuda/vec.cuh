// vec.cuh: elements in and out, several at a time, as floats.
//
// A thread handles n neighbouring elements. Where they lie on a 16-byte border (8 for 8-byte groups) and are
// all there, they travel in one access; else one by one. So kernels take any alignment and any width, and are
// as wide as the memory system likes where it matters.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace switchback::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else return __float2bfloat16_rn(x);
}

template <int bytes> struct GroupOf { using type = uint4; };
template <> struct GroupOf<8> { using type = uint2; };
template <> struct GroupOf<4> { using type = uint32_t; };
template <> struct GroupOf<2> { using type = uint16_t; };

template <int n, class T>
struct Packed {  // n elements as the memory system sees them
  static constexpr int bytes = n * sizeof(T);
  using Group = typename GroupOf<(bytes < 16 ? bytes : 16)>::type;
  static constexpr int groups = bytes / sizeof(Group);
  union {
    Group group[groups];
    T element[n];
  };
  __device__ Packed() {}
  static __device__ __forceinline__ bool fits(const T* at) {
    return reinterpret_cast<uintptr_t>(at) % sizeof(Group) == 0;
  }
};

// to = from[0 .. n), of which `valid` exist: the others become 0.
template <int n, class T>
__device__ __forceinline__ void load(float (&to)[n], const T* from, int64_t valid) {
  if (valid >= n && Packed<n, T>::fits(from)) {
    Packed<n, T> p;
#pragma unroll
    for (int g = 0; g < Packed<n, T>::groups; ++g)
      p.group[g] = reinterpret_cast<const typename Packed<n, T>::Group*>(from)[g];
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = to_float(p.element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = i < valid ? to_float(from[i]) : 0.0f;
  }
}

// A destination: overwritten, or added to (the sum is taken in f32 and rounded once).
template <class To>
struct Out {
  To* to;
  bool accumulate;

  __device__ __forceinline__ void put(int64_t at, float value) const {
    to[at] = from_float<To>(accumulate ? value + to_float(to[at]) : value);
  }
  template <int n>
  __device__ __forceinline__ void store(int64_t at, const float (&values)[n], int64_t valid) const {
    To* first = to + at;
    if (valid >= n && Packed<n, To>::fits(first)) {
      float sum[n];
      if (accumulate) load(sum, first, n);
      Packed<n, To> p;
#pragma unroll
      for (int i = 0; i < n; ++i) p.element[i] = from_float<To>(accumulate ? values[i] + sum[i] : values[i]);
#pragma unroll
      for (int g = 0; g < Packed<n, To>::groups; ++g)
        reinterpret_cast<typename Packed<n, To>::Group*>(first)[g] = p.group[g];
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i)
        if (i < valid) put(at + i, values[i]);
    }
  }
};
template <class To>
Out<To> out_of(const Sink& sink) { return {data<To>(sink.to), sink.accumulate}; }
template <class To>
Out<To> out_of(const View& view) { return {data<To>(view), false}; }

// ---- loops over elements ----------------------------------------------------------------------------------
constexpr int elements_of_thread = 8, threads_of_block = 256;

// out[i] = f(i) for i < count, eight at a time: f(values, i, elements left from i on).
template <class To, class F>
__global__ void __launch_bounds__(threads_of_block) elementwise(Out<To> out, int64_t count, F f) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * threads_of_block + threadIdx.x) * elements_of_thread;
  if (i >= count) return;
  float values[elements_of_thread];
  f(values, i, count - i);
  out.store(i, values, count - i);
}
template <class To, class F>
void for_elements(const char* op, Out<To> out, int64_t count, const F& f, cudaStream_t stream) {
  if (count == 0) return;
  elementwise<<<blocks_for(count, elements_of_thread * threads_of_block), threads_of_block, 0, stream>>>(
      out, count, f);
  check_launch(op);
}

// out (rows, width): f(values, row, column, columns left from there on), eight columns at a time.
template <class To, class F>
__global__ void __launch_bounds__(threads_of_block) rowwise(Out<To> out, int64_t rows, int width, F f) {
  const int groups = (width + elements_of_thread - 1) / elements_of_thread;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads_of_block + threadIdx.x;
  const int64_t row = i / groups;
  if (row >= rows) return;
  const int column = static_cast<int>(i - row * groups) * elements_of_thread;
  float values[elements_of_thread];
  f(values, row, column, width - column);
  out.store(row * width + column, values, width - column);
}
template <class To, class F>
void for_rows(const char* op, Out<To> out, int64_t rows, int64_t width, const F& f, cudaStream_t stream) {
  if (rows * width == 0) return;
  const int64_t groups = (width + elements_of_thread - 1) / elements_of_thread;
  rowwise<<<blocks_for(rows * groups, threads_of_block), threads_of_block, 0, stream>>>(
      out, rows, static_cast<int>(width), f);
  check_launch(op);
}

}  // namespace switchback::cuda
