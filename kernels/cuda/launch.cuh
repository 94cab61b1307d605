// launch.cuh: what every launcher needs: element types, grids, the error of a launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/preconditions.h"

namespace switchback::cuda {

using bf16 = __nv_bfloat16;

// Preconditions (kernels/checks.h, kernels/preconditions.h): operands lie on a GPU.
using Require = Preconditions<Device::cuda>;
inline constexpr auto check_place = Checks<Device::cuda>::place;
inline constexpr auto check_matrix = Checks<Device::cuda>::matrix;
inline constexpr auto check_vector = Checks<Device::cuda>::vector;
inline constexpr auto check_scalar = Checks<Device::cuda>::scalar;
inline constexpr auto check_sink = Checks<Device::cuda>::sink;
inline constexpr auto check_sink_vector = Checks<Device::cuda>::sink_vector;

// Calls f(T{}) with the device's type of a dtype. f64 is the CPU's: gradient checks need no GPU.
template <class F>
void visit(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::bf16: return f(bf16{});
    default: fail(op, ": on a GPU the tensors are f32 or bf16, got ", dtype);
  }
}
// Calls f(To{}) with the type of a sink of tensors of T: T or f32. An empty sink is not visited.
template <class T, class F>
void visit_sink(const Sink& sink, const char* op, F&& f) {
  if (!sink) return;
  if (sink.to.dtype == DType::f32) return f(float{});
  if constexpr (!std::is_same_v<T, float>) {
    if (sink.to.dtype == DType::bf16) return f(T{});
  }
  fail(op, ": the sink is ", sink.to.dtype);
}

template <class T>
const T* data(const CView& x) { return static_cast<const T*>(x.data); }
template <class T>
T* data(const View& x) { return static_cast<T*>(x.data); }
template <class T>
T* data(const Tensor& x) { return static_cast<T*>(x.data()); }

inline unsigned blocks_for(int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  CHECK(blocks < (int64_t{1} << 31), "a launch of ", blocks, " blocks");
  return static_cast<unsigned>(blocks);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  CHECK(error == cudaSuccess, op, ": ", cudaGetErrorString(error));
}

}  // namespace switchback::cuda
