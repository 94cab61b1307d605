// quantize_weights.cu: all weights of a model to codes, as they lie and transposed, one scale each: two
// launches for every 48 weights, once a step. The first sweep finds the scales, the second one writes; 10
// bytes a weight move. Where whoever wrote the weights (the optimizer) knows their maxima there is no first
// sweep: 6 bytes. Codes that came from another rank are only transposed: 2 bytes.
#include "kernels/cuda/quantize_tile.cuh"

namespace switchback::cuda {
namespace {

// The table travels with the launch: nothing lies on the device that could grow old.
struct WeightTable {
  static constexpr int most = 48;  // launches hold 4 KB of arguments
  struct Entry {
    uint8_t *codes, *transposed;
    float* scale;
    const void* w;
    const uint32_t* largest;
    int rows, cols, copies;
    int first_piece, first_tile;  // blocks before this weight's
  };
  Entry of[most];
  int count = 0, pieces = 0, tiles = 0;
};
constexpr int piece = 256 * group * 8;  // elements of a block

template <class First>
__device__ __forceinline__ int entry_of(const WeightTable& t, First first) {
  int low = 0, high = t.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first(t.of[middle]) <= static_cast<int>(blockIdx.x) ? low : high) = middle;
  }
  return low;
}
template <class T>
__global__ void __launch_bounds__(256)
    largest_of_weights(uint32_t* largest, const __grid_constant__ WeightTable t) {
  const int i = entry_of(t, [](const WeightTable::Entry& e) { return e.first_piece; });
  const WeightTable::Entry& e = t.of[i];
  const int64_t count = static_cast<int64_t>(e.rows) * e.cols;
  const int64_t from = static_cast<int64_t>(blockIdx.x - e.first_piece) * piece;
  const T* w = static_cast<const T*>(e.w);
  uint32_t most = 0;
#pragma unroll
  for (int turn = 0; turn < 8; ++turn) {
    const int64_t at = from + (turn * 256 + threadIdx.x) * group;
    float v[group];
    load(v, w + at, count - at);
#pragma unroll
    for (float value : v) most = max(most, magnitude_bits(value));
  }
  most = block_maximum<256>(most);
  if (threadIdx.x == 0) atomicMax(largest + i, most);
}
// For sm_80 the compiler spills a register, unless it is told that 7 blocks are to fit.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SWITCHBACK_BOUNDS __launch_bounds__(256, 7)
#else
#define SWITCHBACK_BOUNDS __launch_bounds__(256)
#endif
template <Format format, class T>
__global__ void SWITCHBACK_BOUNDS quantize_weight_tiles(const __grid_constant__ WeightTable t) {
  const int i = entry_of(t, [](const WeightTable::Entry& e) { return e.first_tile; });
  const WeightTable::Entry& e = t.of[i];
  const int own = blockIdx.x - e.first_tile, across = (e.cols + tile - 1) / tile;
  const Scales scales{e.largest, Granularity::tensor, largest_of(format)};
  if (own == 0)
    for (int c = threadIdx.x; c < e.copies; c += 256) e.scale[c] = scales.at(0, 0).scale;
  quantize_tile<format>(e.codes, e.transposed, e.rows, static_cast<const T*>(e.w), e.rows, e.cols, scales,
                        static_cast<int64_t>(own / across) * tile, static_cast<int64_t>(own % across) * tile);
}

#undef SWITCHBACK_BOUNDS
__global__ void __launch_bounds__(256) transpose_code_tiles(const __grid_constant__ WeightTable t) {
  const int i = entry_of(t, [](const WeightTable::Entry& e) { return e.first_tile; });
  const WeightTable::Entry& e = t.of[i];
  const int own = blockIdx.x - e.first_tile, across = (e.cols + tile - 1) / tile;
  transpose_tile(e.transposed, e.codes, e.rows, e.cols, static_cast<int64_t>(own / across) * tile,
                 static_cast<int64_t>(own % across) * tile);
}

}  // namespace

void CudaKernels::transpose_codes(std::span<const WeightCodes> weights) {
  const char* op = "transpose_codes";
  for (size_t from = 0; from < weights.size(); from += WeightTable::most) {
    WeightTable table;
    for (const WeightCodes& w :
         weights.subspan(from, std::min<size_t>(WeightTable::most, weights.size() - from))) {
      const int64_t rows = w.codes.rows(), cols = w.codes.cols();
      CHECK(size_of(w.codes.dtype) == 1, op, ": codes of ", w.codes.dtype);
      check_place(op, "codes", w.codes, w.codes.dtype);
      check_matrix(op, "transposed", w.transposed, cols, rows, w.codes.dtype);
      CHECK(rows * cols > 0 && rows < (1 << 24) && cols < (1 << 24), op, ": a weight ", w.codes.shape);
      WeightTable::Entry& e = table.of[table.count++] = {};
      e.codes = static_cast<uint8_t*>(w.codes.data);
      e.transposed = static_cast<uint8_t*>(w.transposed.data);
      e.rows = static_cast<int>(rows);
      e.cols = static_cast<int>(cols);
      e.first_tile = table.tiles;
      table.tiles += static_cast<int>(blocks_for(rows, tile) * blocks_for(cols, tile));
    }
    transpose_code_tiles<<<blocks_for(table.tiles, 1), 256, 0, stream_>>>(table);
    check_launch(op);
  }
}

void CudaKernels::quantize_weights(std::span<const WeightCodes> weights, Format format) {
  const char* op = "quantize_weights";
  for (size_t from = 0; from < weights.size(); from += WeightTable::most) {
    const auto part = weights.subspan(from, std::min<size_t>(WeightTable::most, weights.size() - from));
    const DType dtype = part[0].w.dtype;
    WeightTable table;
    for (const WeightCodes& w : part) {
      const int64_t rows = w.w.rows(), cols = w.w.cols();
      check_matrix(op, "w", w.w, rows, cols, dtype);
      check_matrix(op, "codes", w.codes, rows, cols, code_dtype(format, dtype));
      check_matrix(op, "transposed", w.transposed, cols, rows, code_dtype(format, dtype));
      check_vector(op, "scale", w.scale, w.scale.size(), DType::f32);
      if (w.largest) check_vector(op, "largest", w.largest, 1, DType::f32);
      CHECK(rows * cols > 0 && rows < (1 << 24) && cols < (1 << 24), op, ": a weight ", w.w.shape);
      table.of[table.count++] = {static_cast<uint8_t*>(w.codes.data),
                                 static_cast<uint8_t*>(w.transposed.data),
                                 data<float>(w.scale),
                                 w.w.data,
                                 static_cast<const uint32_t*>(w.largest.data),
                                 static_cast<int>(rows),
                                 static_cast<int>(cols),
                                 static_cast<int>(w.scale.size()),
                                 table.pieces,
                                 table.tiles};
      table.pieces += static_cast<int>(blocks_for(rows * cols, piece));
      table.tiles += static_cast<int>(blocks_for(rows, tile) * blocks_for(cols, tile));
    }
    const bool known =
        std::all_of(part.begin(), part.end(), [](const WeightCodes& w) { return !!w.largest; });
    const Tensor found = known ? Tensor() : scratch({table.count});
    auto* largest = static_cast<uint32_t*>(found.data());
    for (int i = 0; i < table.count && !known; ++i) table.of[i].largest = largest + i;
    visit(dtype, op, [&](auto tag) {
      using T = decltype(tag);
      if (!known) {
        CUDA_CHECK(cudaMemsetAsync(largest, 0, 4 * static_cast<size_t>(table.count), stream_));
        largest_of_weights<T><<<blocks_for(table.pieces, 1), 256, 0, stream_>>>(largest, table);
        check_launch(op);
      }
      visit_codes(format, op, [&]<Format f>() {
        quantize_weight_tiles<f, T><<<blocks_for(table.tiles, 1), 256, 0, stream_>>>(table);
        check_launch(op);
      });
    });
  }
}

}  // namespace switchback::cuda
