// elementwise.cu: fill, cast, accumulate, clamp. Bound by memory: one pass, 16-byte accesses, no temporaries.
#include "kernels/cuda/vec.cuh"

namespace switchback::cuda {
namespace {

// f64 only passes through here: scalars of a step, and what tests compare with.
template <class T>
__device__ T convert(double x) {
  if constexpr (std::is_same_v<T, double>) return x;
  else return from_float<T>(static_cast<float>(x));
}
__device__ double to_double(double x) { return x; }
__device__ double to_double(float x) { return x; }
__device__ double to_double(bf16 x) { return to_float(x); }

template <class To, class From>
__global__ void __launch_bounds__(threads_of_block)
    accumulate_doubles(To* to, const From* from, int64_t count, bool add) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads_of_block + threadIdx.x;
  if (i >= count) return;
  to[i] = convert<To>(to_double(from[i]) + (add ? to_double(to[i]) : 0.0));
}
template <class To, class From>
void launch_doubles(const Sink& sink, const CView& from, cudaStream_t stream) {
  accumulate_doubles<<<blocks_for(from.size(), threads_of_block), threads_of_block, 0, stream>>>(
      data<To>(sink.to), data<From>(from), from.size(), sink.accumulate);
  check_launch("accumulate");
}

template <class T>
struct Same {  // y = x
  const T* x;
  __device__ void operator()(float (&y)[elements_of_thread], int64_t i, int64_t valid) const {
    load(y, x + i, valid);
  }
};
struct Constant {
  float value;
  __device__ void operator()(float (&y)[elements_of_thread], int64_t, int64_t) const {
#pragma unroll
    for (float& v : y) v = value;
  }
};
template <class T>
struct Clamp {
  const T* x;
  float low, high;
  __device__ void operator()(float (&y)[elements_of_thread], int64_t i, int64_t valid) const {
    load(y, x + i, valid);
#pragma unroll
    for (float& v : y) v = v < low ? low : v > high ? high : v;  // NaN fails both comparisons and stays
  }
};

__global__ void fill_doubles(double* to, int64_t count, double value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads_of_block + threadIdx.x;
  if (i < count) to[i] = value;
}

}  // namespace

void CudaKernels::fill(View to, double value) {
  check_place("fill", "to", to, to.dtype);
  if (to.size() == 0) return;
  if (to.dtype == DType::f64) {
    fill_doubles<<<blocks_for(to.size(), threads_of_block), threads_of_block, 0, stream_>>>(data<double>(to),
                                                                                            to.size(), value);
    return check_launch("fill");
  }
  visit(to.dtype, "fill", [&](auto tag) {
    for_elements("fill", out_of<decltype(tag)>(to), to.size(), Constant{static_cast<float>(value)}, stream_);
  });
}

void CudaKernels::cast(View to, CView from) { accumulate({to, false}, from); }

void CudaKernels::accumulate(Sink to, CView from) {
  if (!to || from.size() == 0) return;
  const char* op = "accumulate";
  check_place(op, "from", from, from.dtype);
  check_vector(op, "to", to.to, from.size(), to.to.dtype);
  const bool wide_to = to.to.dtype == DType::f64, wide_from = from.dtype == DType::f64;
  if (wide_to && wide_from) return launch_doubles<double, double>(to, from, stream_);
  if (wide_to)
    return visit(from.dtype, op, [&](auto tag) { launch_doubles<double, decltype(tag)>(to, from, stream_); });
  visit(to.to.dtype, op, [&](auto to_tag) {
    using To = decltype(to_tag);
    if (wide_from) return launch_doubles<To, double>(to, from, stream_);
    visit(from.dtype, op, [&](auto tag) {
      using From = decltype(tag);
      for_elements(op, out_of<To>(to), from.size(), Same<From>{data<From>(from)}, stream_);
    });
  });
}

void CudaKernels::clamp(View x, double low, double high) {
  check_place("clamp", "x", x, x.dtype);
  visit(x.dtype, "clamp", [&](auto tag) {
    using T = decltype(tag);
    const Clamp<T> f{data<T>(x), static_cast<float>(low), static_cast<float>(high)};
    for_elements("clamp", out_of<T>(x), x.size(), f, stream_);
  });
}

}  // namespace switchback::cuda
