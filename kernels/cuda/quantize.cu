// quantize.cu: quantisers, with the CPU's bits (kernels/quantize.h).
//
//   by row, bf16       one sweep: the row stays in registers between its absmax and its codes; 3 bytes an
//                      element move, and the memory is what it waits for
//                      With sums over the rows: blocks of whole rows (coded_rows.cuh)
//   everything else    absmax first (one sweep, integer maxima: any order gives the same bits), then tiles of
//                      64 x 64 that are written as they lie, transposed, or both
#include "kernels/cuda/coded_rows.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/quantize_tile.cuh"

namespace switchback::cuda {
namespace {

// ---- rows of bf16, held in registers ----------------------------------------------------------------------
// x (rows, 8 groups), codes the same; a row is the work of `threads` threads, `held` groups each.
template <Format format, int threads, int held>
__global__ void __launch_bounds__(threads < 128 ? 128 : threads)
    quantize_held_rows(uint2* codes, float* scale, const uint4* x, int64_t rows, int groups) {
  constexpr int rows_of_block = threads < 128 ? 128 / threads : 1;
  const int lane = threadIdx.x % threads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * rows_of_block + threadIdx.x / threads;
  if (row >= rows) return;  // whole warps, and whole blocks where a row has more than one
  const uint4* from = x + row * groups;
  uint4 kept[held];
#pragma unroll
  for (int g = 0; g < held; ++g) kept[g] = g * threads + lane < groups ? from[g * threads + lane] : uint4{};
  uint32_t most = 0;
#pragma unroll
  for (int g = 0; g < held; ++g) most = larger_magnitudes(most, kept[g]);
  const Scaling s = scaling_of(row_maximum<threads>(most), largest_of(format));
  if (lane == 0) scale[row] = s.scale;
  uint2* to = codes + row * groups;
#pragma unroll
  for (int g = 0; g < held; ++g) {
    float v[group];
    unpack(v, kept[g]);
    if (g * threads + lane < groups) to[g * threads + lane] = encode<format>(v, s.inverse);
  }
}

struct Values {  // a source of code_and_sum_rows
  using Raw = uint4;
  const uint4* x;
  __device__ __forceinline__ Raw load(uint32_t at) const { return x[at]; }
  __device__ __forceinline__ uint4 result(const Raw& raw, uint32_t) const { return raw; }
};
template <Format format, int held, int abreast, int most_threads, int blocks>
__global__ void __launch_bounds__(most_threads, blocks)
    quantize_and_sum_rows(uint2* codes, float* scale, float* partials, uint32_t rows, uint32_t groups,
                          Values x) {
  code_and_sum_rows<format, held, abreast>(codes, scale, partials, rows, groups, x);
}

// Whether the rows of x can be held in registers, and move 16 bytes at a time.
bool holds_rows(const View& codes, const CView& x) {
  return x.dtype == DType::bf16 && x.cols() % group == 0 && x.cols() <= 16384 && aligned(x.data) &&
         aligned(codes.data);
}

template <Format format>
void quantize_and_sum(CudaKernels& k, View codes, View scale, const CView& x, Sink sums) {
  const int64_t rows = x.rows(), width = x.cols();
  const int groups = static_cast<int>(width / group);
  const auto launch = [&]<int held, int abreast, int most_threads, int blocks>() {
    const CodedRowsGrid grid = coded_rows_grid(rows, groups, held, abreast, blocks * most_threads);
    const Tensor partials = k.scratch({grid.blocks, width});
    quantize_and_sum_rows<format, held, abreast, most_threads, blocks>
        <<<grid.blocks, grid.threads, 0, k.stream()>>>(
            static_cast<uint2*>(codes.data), data<float>(scale), data<float>(partials),
            static_cast<uint32_t>(rows), static_cast<uint32_t>(groups),
            Values{static_cast<const uint4*>(x.data)});
    check_launch("quantize");
    add_partials("quantize", k, {sums}, data<float>(partials), grid.blocks, 1, width);
  };
  if (groups <= 640)
    launch.template operator()<1, 2, 640, 2>();
  else if (groups <= 1024)
    launch.template operator()<2, 1, 512, 2>();
  else
    launch.template operator()<4, 1, 512, 1>();
}

template <Format format>
bool try_held_rows(const CudaKernels& k, View codes, View scale, const CView& x) {
  if (!holds_rows(codes, x)) return false;
  const int64_t rows = x.rows(), width = x.cols();
  const int groups = static_cast<int>(width / group);
  const auto launch = [&]<int threads, int held>() {
    constexpr int rows_of_block = threads < 128 ? 128 / threads : 1;
    quantize_held_rows<format, threads, held>
        <<<blocks_for(rows, rows_of_block), threads < 128 ? 128 : threads, 0, k.stream()>>>(
            static_cast<uint2*>(codes.data), data<float>(scale), static_cast<const uint4*>(x.data), rows,
            groups);
    check_launch("quantize");
  };
  if (groups <= 32 * 4)
    launch.template operator()<32, 4>();
  else if (groups <= 32 * 5)
    launch.template operator()<32, 5>();
  else if (groups <= 128 * 4)
    launch.template operator()<128, 4>();
  else if (groups <= 128 * 5)
    launch.template operator()<128, 5>();
  else
    launch.template operator()<256, 8>();
  return true;
}

// ---- absmax -----------------------------------------------------------------------------------------------
// Magnitudes as integers: their maximum lets NaN through (quantize.h).
template <class T>
__global__ void __launch_bounds__(256) largest_of_all(uint32_t* largest, const T* x, int64_t count) {
  uint32_t most = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * 256 * group;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * group; i < count; i += stride) {
    float v[group];
    load(v, x + i, count - i);
#pragma unroll
    for (float value : v) most = max(most, magnitude_bits(value));
  }
  most = block_maximum<256>(most);
  if (threadIdx.x == 0) atomicMax(largest, most);
}
template <class T>
__global__ void __launch_bounds__(128) largest_of_rows(uint32_t* largest, const T* x, int width) {
  const T* row = x + static_cast<int64_t>(blockIdx.x) * width;
  uint32_t most = 0;
  for (int c = threadIdx.x * group; c < width; c += 128 * group) {
    float v[group];
    load(v, row + c, width - c);
#pragma unroll
    for (float value : v) most = max(most, magnitude_bits(value));
  }
  most = block_maximum<128>(most);
  if (threadIdx.x == 0) largest[blockIdx.x] = most;
}
constexpr int column_lanes = 8, rows_of_chunk = 256;
// Blocks of 256 columns and a chunk of rows; largest was 0.
template <class T>
__global__ void __launch_bounds__(32 * column_lanes)
    largest_of_columns(uint32_t* largest, const T* x, int64_t rows, int width) {
  const int column = (blockIdx.x * 32 + threadIdx.x) * group;
  const int64_t from = static_cast<int64_t>(blockIdx.y) * rows_of_chunk, to = min(rows, from + rows_of_chunk);
  uint32_t most[group] = {};
  if (column < width) {
    for (int64_t row = from + threadIdx.y; row < to; row += column_lanes) {
      float v[group];
      load(v, x + row * width + column, width - column);
#pragma unroll
      for (int e = 0; e < group; ++e) most[e] = max(most[e], magnitude_bits(v[e]));
    }
  }
  __shared__ uint32_t shared[column_lanes][32 * group + 1];
#pragma unroll
  for (int e = 0; e < group; ++e) shared[threadIdx.y][threadIdx.x * group + e] = most[e];
  __syncthreads();
  const int own = threadIdx.y * 32 + threadIdx.x, at = blockIdx.x * 32 * group + own;
  if (at >= width) return;
  uint32_t of_column = shared[0][own];
#pragma unroll
  for (int lane = 1; lane < column_lanes; ++lane) of_column = max(of_column, shared[lane][own]);
  atomicMax(largest + at, of_column);
}

int64_t scales_of(const CView& x, Granularity by) {
  return by == Granularity::tensor ? 1 : by == Granularity::row ? x.rows() : x.cols();
}

// ---- any matrix -------------------------------------------------------------------------------------------
// scale[i] for all i; one scale goes to as many places as there are.
static __global__ void __launch_bounds__(256) write_scales(float* scale, int64_t count, Scales scales) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < count) scale[i] = scales.at(i, i).scale;
}

template <Format format, class T>
__global__ void __launch_bounds__(256) quantize_tiles(uint8_t* codes, uint8_t* transposed, int64_t padded,
                                                      const T* x, int64_t rows, int64_t cols, Scales scales) {
  quantize_tile<format>(codes, transposed, padded, x, rows, cols, scales,
                        static_cast<int64_t>(blockIdx.x) * tile, static_cast<int64_t>(blockIdx.y) * tile);
}

// ---- values back ------------------------------------------------------------------------------------------
template <Format format>
struct Dequantize {
  const uint8_t* codes;
  const float* scale;
  int width;
  bool by_row;
  __device__ void operator()(float (&v)[group], int64_t row, int column, int valid) const {
    decode<format>(v, codes + row * width + column, valid);
    const float own = scale[by_row ? row : 0];
#pragma unroll
    for (float& value : v) value = dequantized(value, own);
  }
};

template <Format format, class T>
struct RoundToGrid {
  const T* x;
  Scales scales;
  int width;
  __device__ void operator()(float (&v)[group], int64_t row, int column, int valid) const {
    load(v, x + row * width + column, valid);
    Scaling s = scales.at(row, column);
#pragma unroll
    for (int e = 0; e < group; ++e) {
      if (scales.by == Granularity::column && e > 0 && e < valid) s = scales.at(row, column + e);
      float on;
      if constexpr (format == Format::int8)
        on = static_cast<float>(int8_of(v[e], s.inverse));
      else
        on = on_grid<format>(rounded::multiply(v[e], s.inverse));
      v[e] = dequantized(s.inverse == 0 ? 0.0f : on, s.scale);
    }
  }
};

// The absolute maximum, where it is not known already.
CView find_largest(CudaKernels& k, Tensor& scratch, const CView& x, const CView& largest, Granularity by) {
  if (largest) return largest;
  scratch = k.scratch({std::max<int64_t>(1, scales_of(x, by))});
  k.absolute_maximum(View{scratch.data(), {scales_of(x, by)}, DType::f32, scratch.device()}, x, by);
  return scratch;
}

}  // namespace

void CudaKernels::absolute_maximum(View largest, CView x, Granularity by) {
  const char* op = "absolute_maximum";
  check_place(op, "x", x, x.dtype);
  check_vector(op, "largest", largest, scales_of(x, by), DType::f32);
  if (largest.size() == 0) return;
  uint32_t* to = static_cast<uint32_t*>(largest.data);
  const int64_t rows = x.rows(), cols = x.cols();
  if (by != Granularity::row || x.size() == 0) CUDA_CHECK(cudaMemsetAsync(to, 0, largest.bytes(), stream_));
  if (x.size() == 0) return;
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    if (by == Granularity::tensor) {
      const int64_t blocks = std::clamp<int64_t>(x.size() / (256 * group * 4), 1, 132 * 8);
      largest_of_all<<<blocks_for(blocks, 1), 256, 0, stream_>>>(to, data<T>(x), x.size());
    } else if (by == Granularity::row) {
      largest_of_rows<<<blocks_for(rows, 1), 128, 0, stream_>>>(to, data<T>(x), static_cast<int>(cols));
    } else {
      const dim3 grid(blocks_for(cols, 32 * group), blocks_for(rows, rows_of_chunk));
      CHECK(grid.y < 65536, op, ": ", rows, " rows are too many");
      largest_of_columns<<<grid, dim3(32, column_lanes), 0, stream_>>>(to, data<T>(x), rows,
                                                                       static_cast<int>(cols));
    }
    check_launch(op);
  });
}

void CudaKernels::quantize(View codes, View transposed, View scale, CView x, CView largest, Format format,
                           Granularity by, Sink sums) {
  const char* op = "quantize";
  const int64_t rows = x.rows(), cols = x.cols(), padded = transposed ? transposed.cols() : rows;
  const DType code = code_dtype(format, x.dtype);
  check_place(op, "x", x, x.dtype);
  if (codes) check_matrix(op, "codes", codes, rows, cols, code);
  if (transposed) check_matrix(op, "transposed", transposed, cols, padded, code);
  CHECK(padded >= rows, op, ": transposed is ", transposed.shape, " for x ", x.shape);
  const bool spread = by == Granularity::tensor;
  check_vector(op, "scale", scale, spread ? scale.size() : scales_of(x, by), DType::f32);
  if (largest) check_vector(op, "largest", largest, scales_of(x, by), DType::f32);
  if (sums) check_sink_vector(op, "sums", sums, cols, x.dtype);
  const bool plain_rows = by == Granularity::row && codes && !transposed && rows > 0;
  if (sums && !(plain_rows && holds_rows(codes, x) && counts_in_32_bits(x))) {
    linear_backward_weight({}, sums, x, x);
    sums = {};
  }
  visit_codes(format, op, [&]<Format f>() {
    if (sums) return quantize_and_sum<f>(*this, codes, scale, x, sums);
    if (plain_rows &&
        try_held_rows<f>(*this, codes, scale, x))
      return;
    Tensor scratch;
    const Scales scales{static_cast<const uint32_t*>(find_largest(*this, scratch, x, largest, by).data), by,
                        largest_of(f)};
    if (scale.size() > 0) {
      write_scales<<<blocks_for(scale.size(), 256), 256, 0, stream_>>>(data<float>(scale), scale.size(),
                                                                       scales);
      check_launch(op);
    }
    if (padded * cols == 0) return;
    visit(x.dtype, op, [&](auto tag) {
      using T = decltype(tag);
      const dim3 grid(blocks_for(padded, tile), blocks_for(cols, tile));
      CHECK(grid.y < 65536, op, ": ", cols, " columns are too many");
      quantize_tiles<f><<<grid, 256, 0, stream_>>>(static_cast<uint8_t*>(codes.data),
                                                   static_cast<uint8_t*>(transposed.data), padded, data<T>(x),
                                                   rows, cols, scales);
      check_launch(op);
    });
  });
}

void CudaKernels::dequantize(View x, CView codes, CView scale, Format format, Granularity by) {
  const char* op = "dequantize";
  const int64_t rows = x.rows(), cols = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "codes", codes, rows, cols, code_dtype(format, x.dtype));
  CHECK(by != Granularity::column, op, ": scales by column are not needed");
  CHECK(by == Granularity::tensor || scale.size() == rows, op, ": ", scale.size(), " scales for ", rows,
        " rows");
  visit_codes(format, op, [&]<Format f>() {
    visit(x.dtype, op, [&](auto tag) {
      const Dequantize<f> values{static_cast<const uint8_t*>(codes.data), data<float>(scale),
                                 static_cast<int>(cols), by == Granularity::row};
      for_rows(op, out_of<decltype(tag)>(x), rows, cols, values, stream_);
    });
  });
}

void CudaKernels::round_to_grid(View y, CView x, CView largest, Format format, Granularity by) {
  const char* op = "round_to_grid";
  const int64_t rows = x.rows(), cols = x.cols();
  check_place(op, "x", x, x.dtype);
  check_matrix(op, "y", y, rows, cols, y.dtype);
  if (largest) check_vector(op, "largest", largest, scales_of(x, by), DType::f32);
  Tensor scratch;
  const Scales scales{static_cast<const uint32_t*>(find_largest(*this, scratch, x, largest, by).data), by,
                      largest_of(format)};
  const auto all = [&]<Format f>() {
    visit(x.dtype, op, [&](auto from) {
      visit(y.dtype, op, [&](auto to) {
        const RoundToGrid<f, decltype(from)> values{data<decltype(from)>(x), scales, static_cast<int>(cols)};
        for_rows(op, out_of<decltype(to)>(y), rows, cols, values, stream_);
      });
    });
  };
  switch (format) {
    case Format::e4m3:
      return all.template operator()<Format::e4m3>();
    case Format::e5m2:
      return all.template operator()<Format::e5m2>();
    case Format::paper_e4m3:
      return all.template operator()<Format::paper_e4m3>();
    case Format::paper_e5m2:
      return all.template operator()<Format::paper_e5m2>();
    case Format::int8:
      return all.template operator()<Format::int8>();
    default:
      fail(op, ": ", format, " is not a grid");
  }
}

}  // namespace switchback::cuda
