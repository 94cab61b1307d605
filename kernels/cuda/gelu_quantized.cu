// gelu_quantized.cu: the activation of the MLP and the codes of its rows in one sweep, both ways.
//   y = gelu(x)                       codes of y's rows
//   dx = dy gelu'(x), y once more     codes of dx's rows
// x, y, dy, dx (M, C) bf16. A row's results stay in registers, rounded to bf16, until its absmax is known:
// the codes are those that quantize would make of them. Widths and types beyond that take two sweeps.
#include "kernels/cuda/coded_rows.cuh"
#include "kernels/cuda/gelu.cuh"

namespace switchback::cuda {
namespace {

constexpr int group = 8;

__device__ __forceinline__ uint4 pack(const float (&v)[group]) {
  Packed<group, bf16> p;
#pragma unroll
  for (int e = 0; e < group; ++e) p.element[e] = __float2bfloat16_rn(v[e]);
  return p.group[0];
}

// A row is the work of a block; `held` groups of it that of a thread. make(g) gives the group's results.
template <Format format, int threads, int held, class Make>
__device__ __forceinline__ void quantize_row(uint2* codes, float* scale, int groups, const Make& make) {
  uint4 kept[held];
  uint32_t most = 0;
#pragma unroll
  for (int g = 0; g < held; ++g) {
    const int at = g * threads + threadIdx.x;
    kept[g] = at < groups ? make(at) : uint4{};
    most = larger_magnitudes(most, kept[g]);
  }
  const Scaling s = scaling_of(row_maximum<threads>(most), largest_of(format));
  if (threadIdx.x == 0) *scale = s.scale;
#pragma unroll
  for (int g = 0; g < held; ++g) {
    const int at = g * threads + threadIdx.x;
    float v[group];
    unpack(v, kept[g]);
    if (at < groups) codes[at] = encode<format>(v, s.inverse);
  }
}

template <Format format, int threads, int held>
__global__ void __launch_bounds__(threads)
    forward(uint4* y, uint2* codes, float* scale, const uint4* x, int groups, const bool exact) {
  const int64_t from = static_cast<int64_t>(blockIdx.x) * groups;
  quantize_row<format, threads, held>(codes + from, scale + blockIdx.x, groups, [&](int at) {
    float v[group];
    unpack(v, x[from + at]);
    gelu(v, v, exact);
    const uint4 result = pack(v);
    if (y) y[from + at] = result;
    return result;
  });
}

template <Format format, int threads, int held>
__global__ void __launch_bounds__(threads)
    backward(uint4* dx, uint2* codes, float* scale, uint4* y, const uint4* dy, const uint4* x, int groups,
             const bool exact) {
  const int64_t from = static_cast<int64_t>(blockIdx.x) * groups;
  quantize_row<format, threads, held>(codes + from, scale + blockIdx.x, groups, [&](int at) {
    float at_x[group], d[group], value[group];
    unpack(at_x, x[from + at]);
    unpack(d, dy[from + at]);
    gelu_and_times_slope(value, d, at_x, exact);
    const uint4 result = pack(d);
    dx[from + at] = result;
    if (y) y[from + at] = pack(value);
    return result;
  });
}

// The backward sweep with the sums of dx over the rows (coded_rows.cuh).
struct Slope {
  struct Raw {
    uint4 dy, x;
  };
  uint4 *dx, *y;  // dx may lie where dy does
  const uint4 *dy, *x;
  bool exact;
  __device__ __forceinline__ Raw load(uint32_t at) const { return {dy[at], x[at]}; }
  __device__ __forceinline__ uint4 result(const Raw& raw, uint32_t at) const {
    float at_x[group], d[group], value[group];
    unpack(at_x, raw.x);
    unpack(d, raw.dy);
    gelu_and_times_slope(value, d, at_x, exact);
    const uint4 result = pack(d);
    dx[at] = result;
    if (y) y[at] = pack(value);
    return result;
  }
};
template <Format format, int held, int most_threads, int blocks>
__global__ void __launch_bounds__(most_threads, blocks)
    backward_with_sums(uint2* codes, float* scale, float* partials, uint32_t rows, uint32_t groups,
                       Slope slope) {
  code_and_sum_rows<format, held, 1>(codes, scale, partials, rows, groups, slope);
}

// Calls f<format, threads, held> where a row fits; false where none does.
template <class F>
bool visit_rows(const CView& x, std::initializer_list<const void*> operands, Format format, const F& f) {
  const int64_t groups = x.cols() / group;
  if (x.dtype != DType::bf16 || x.cols() % group || groups > 1024 || x.size() == 0) return false;
  for (const void* operand : operands)
    if (reinterpret_cast<uintptr_t>(operand) % 16) return false;
  const auto with = [&]<Format of>() {
    if (groups <= 128 * 5)
      f.template operator()<of, 128, 5>();
    else
      f.template operator()<of, 256, 4>();
  };
  switch (format) {
    case Format::int8:
      with.template operator()<Format::int8>();
      return true;
    case Format::e4m3:
      with.template operator()<Format::e4m3>();
      return true;
    case Format::e5m2:
      with.template operator()<Format::e5m2>();
      return true;
    default:
      return false;
  }
}

}  // namespace

void CudaKernels::gelu_forward_quantized(View y, View codes, View scale, CView x, Format format, Gelu kind) {
  const char* op = "gelu_forward_quantized";
  const int64_t rows = x.rows(), width = x.cols();
  check_place(op, "x", x, x.dtype);
  if (y) check_matrix(op, "y", y, rows, width, x.dtype);
  check_matrix(op, "codes", codes, rows, width, code_dtype(format, x.dtype));
  check_vector(op, "scale", scale, rows, DType::f32);
  const int groups = static_cast<int>(width / group);
  if (visit_rows(x, {x.data, y.data, codes.data}, format, [&]<Format f, int threads, int held>() {
        forward<f, threads, held><<<blocks_for(rows, 1), threads, 0, stream_>>>(
            static_cast<uint4*>(y.data), static_cast<uint2*>(codes.data), data<float>(scale),
            static_cast<const uint4*>(x.data), groups, kind == Gelu::exact);
        check_launch(op);
      }))
    return;
  Tensor own;
  if (!y) y = own = scratch(x.shape, x.dtype);
  gelu_forward(y, x, kind);
  quantize(codes, {}, scale, y, {}, format, Granularity::row);
}

void CudaKernels::gelu_backward_quantized(View dx, View codes, View scale, View y, CView dy, CView x,
                                          Format format, Gelu kind, Sink sums) {
  const char* op = "gelu_backward_quantized";
  const int64_t rows = x.rows(), width = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "dy", dy, rows, width, x.dtype);
  check_matrix(op, "dx", dx, rows, width, x.dtype);
  if (y) check_matrix(op, "y", y, rows, width, x.dtype);
  check_matrix(op, "codes", codes, rows, width, code_dtype(format, x.dtype));
  check_vector(op, "scale", scale, rows, DType::f32);
  if (sums) check_sink_vector(op, "sums", sums, width, x.dtype);
  Sink in_sweep = counts_in_32_bits(x) ? sums : Sink{};
  const int groups = static_cast<int>(width / group);
  if (visit_rows(x, {x.data, y.data, dx.data, dy.data, codes.data}, format,
                 [&]<Format f, int threads, int held>() {
                   if (in_sweep) {
                     const auto with_sums = [&]<int of_thread, int most_threads, int blocks>() {
                       const CodedRowsGrid grid =
                           coded_rows_grid(rows, groups, of_thread, 1, blocks * most_threads);
                       const Tensor partials = scratch({grid.blocks, width});
                       backward_with_sums<f, of_thread, most_threads, blocks>
                           <<<grid.blocks, grid.threads, 0, stream_>>>(
                               static_cast<uint2*>(codes.data), data<float>(scale), data<float>(partials),
                               static_cast<uint32_t>(rows), static_cast<uint32_t>(groups),
                               Slope{static_cast<uint4*>(dx.data), static_cast<uint4*>(y.data),
                                     static_cast<const uint4*>(dy.data), static_cast<const uint4*>(x.data),
                                     kind == Gelu::exact});
                       check_launch(op);
                       add_partials(op, *this, {in_sweep}, data<float>(partials), grid.blocks, 1, width);
                     };
                     if (threads == 128)
                       with_sums.template operator()<2, 320, 3>();
                     else
                       with_sums.template operator()<2, 512, 2>();
                     return;
                   }
                   backward<f, threads, held><<<blocks_for(rows, 1), threads, 0, stream_>>>(
                       static_cast<uint4*>(dx.data), static_cast<uint2*>(codes.data), data<float>(scale),
                       static_cast<uint4*>(y.data), static_cast<const uint4*>(dy.data),
                       static_cast<const uint4*>(x.data), groups, kind == Gelu::exact);
                   check_launch(op);
                   if (sums) linear_backward_weight({}, sums, dx, dx);
                 }))
    return;
  if (y) gelu_forward(y, x, kind);
  gelu_backward({dx}, dy, x, kind);
  quantize(codes, {}, scale, dx, {}, format, Granularity::row, sums);
}

}  // namespace switchback::cuda
