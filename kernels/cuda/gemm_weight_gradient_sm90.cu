// gemm_weight_gradient_sm90.cu: gemm_sm90.cuh with both operands transposed on the way and sums that go to
// memory as they are; how its tiles are divided among multiprocessors; the kernel that adds parts.
#include "kernels/cuda/gemm_sm90_launch.cuh"
#include "kernels/cuda/gemm_weight_gradient.cuh"

namespace switchback::cuda {
namespace {

using namespace sm90;

using GradientTile =
    Tile<__nv_bfloat16, 128, 256, 4, 1, Schedule::staggered, /*w:*/ Major::mn, /*x:*/ Major::mn>;
constexpr int pair_rows = GradientTile::kClusterSize * GradientTile::kTileM;  // of the blocks of a cluster
constexpr int tile_columns = GradientTile::kTileN;
constexpr int64_t tile_sums = int64_t{pair_rows} * tile_columns;

// The kernel's x is dy (M and K of the walk are the layer's N and M), its w is x.
template <class T>
struct GradientSums {
  using TakesParts = void;
  struct Arguments {
    float* dw;  // (walk.M, walk.N): whole tiles go there
    bool accumulate;
    float* parts;     // (other tiles, walk.parts, pair_rows, tile_columns)
    float* row_sums;  // (walk.parts, walk.M); may be absent
  };
  const Arguments& arguments;
  const Walk& walk;
  int lane, row, column, part;

  __device__ GradientSums(const Arguments& arguments, const Walk& walk, uint8_t (*)[T::kPieceBytes],
                          uint64_t*, int lane)
      : arguments(arguments), walk(walk), lane(lane) {}

  static __device__ void prepare(uint8_t* buffer) {
    if (threadIdx.x < 256) reinterpret_cast<uint32_t*>(buffer)[threadIdx.x] = 0x3f803f80u;
    ptx::fence_async_proxy();
  }
  __device__ void prefetch(int first_row, int first_column, int which_part) {
    row = first_row, column = first_column, part = which_part;
  }

  // Another column of tiles for each row of them, so that nobody has more of this than others.
  __device__ bool wants_row_sums() const {
    return arguments.row_sums != nullptr && row / pair_rows % walk.column_units == column / tile_columns;
  }
  // A whole tile's are the first part, and the others are 0.
  __device__ void finish_row_sums(const float (&sums)[T::kBlocksM][4]) const {
    if (lane % 4 != 0) return;  // all eight columns are the same
    const int first = part < 0 ? 0 : part % walk.parts, end = part < 0 ? walk.parts : first + 1;
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4;
        for (int p = first; p < end && m < walk.M; ++p)
          arguments.row_sums[int64_t{p} * walk.M + m] = p == first ? sums[block][2 * half] : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void finish(const float (&acc)[T::kBlocksM][T::kSums]) const {
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4, n = column + 2 * (lane % 4);
        if (part < 0 && m >= walk.M) continue;
        float* to =
            part < 0 ? arguments.dw + int64_t{m} * walk.N + n
                     : arguments.parts + part * tile_sums + m % pair_rows * tile_columns + n % tile_columns;
        const bool add = part < 0 && arguments.accumulate;
#pragma unroll
        for (int j = 0; j < T::kTileN / 8; ++j) {
          if (part < 0 && n + 8 * j >= walk.N) continue;
          float2 sum = {acc[block][4 * j + 2 * half], acc[block][4 * j + 2 * half + 1]};
          if (add) {
            const float2 before = *reinterpret_cast<const float2*>(to + 8 * j);
            sum = {before.x + sum.x, before.y + sum.y};
          }
          *reinterpret_cast<float2*>(to + 8 * j) = sum;
        }
      }
    }
  }
};

// dw = [dw +] the parts, in order, of the tiles that have some. Grid: (fours of a tile's sums, other tiles).
__global__ void __launch_bounds__(256) add_parts(float* dw, const float4* parts, Walk walk, bool accumulate) {
  const int at = blockIdx.x * 256 + threadIdx.x, other = blockIdx.y;  // at: which four of the tile
  const TilePosition tile = tile_position<GradientTile, true>(walk, walk.whole + other, 0);
  const int m = tile.m + at / (tile_columns / 4), n = tile.n + at % (tile_columns / 4) * 4;
  if (m >= walk.M || n >= walk.N) return;
  float4& to = *reinterpret_cast<float4*>(dw + int64_t{m} * walk.N + n);
  float4 sum = accumulate ? to : float4{0, 0, 0, 0};
#pragma unroll 4
  for (int p = 0; p < walk.parts; ++p) {
    const float4 part = parts[(int64_t{other} * walk.parts + p) * (tile_sums / 4) + at];
    sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
  }
  to = sum;
}
__global__ void __launch_bounds__(256)
    add_row_sums(float* dbias, const float* sums, int rows, int parts, bool accumulate) {
  const int row = blockIdx.x * 256 + threadIdx.x;
  if (row >= rows) return;
  float sum = accumulate ? dbias[row] : 0.0f;
  for (int p = 0; p < parts; ++p) sum += sums[p * int64_t{rows} + row];
  dbias[row] = sum;
}

// Tiles are dealt out in rounds, one to each cluster. Those that fill no round are cut along K, so that all
// clusters have a share of them: `parts` of each.
struct Division {
  int whole, parts;
};

// The division that takes the least time: units in rounds over the chip, each as many stages long, and the
// parts to be written and read again. It depends on the shape and on `left` alone, and so do the bits.
Division best_division(const GemmWeightGradient& a, size_t workspace_bytes) {
  const auto ceil_div = [](int64_t n, int64_t d) { return static_cast<int>((n + d - 1) / d); };
  const int clusters = std::max(1, (multiprocessor_count() - a.left) / GradientTile::kClusterSize);
  const int tiles = ceil_div(a.N, pair_rows) * ceil_div(a.K, tile_columns), rounds = tiles / clusters;
  const int stages = ceil_div(a.M, GradientTile::kBlockK);
  constexpr double stage_seconds = 0.7e-6, bandwidth = 2.5e12, launch_seconds = 2e-6;
  constexpr int epilogue_stages = 6;
  Division best{tiles, 1};
  double least = ceil_div(tiles, clusters) * (stages + epilogue_stages) * stage_seconds;
  for (int whole : {rounds * clusters, (rounds - 1) * clusters}) {
    const int others = tiles - whole;
    if (whole < 0 || others == 0) continue;
    for (int parts = 2; parts <= 32; ++parts) {
      const int part_stages = ceil_div(stages, parts);
      if (ceil_div(stages, part_stages) != parts) continue;  // the last would be empty
      const double sums = static_cast<double>(others) * tile_sums * sizeof(float);
      const size_t row_sums = a.dbias ? static_cast<size_t>(parts * a.N) * sizeof(float) : 0;
      if (static_cast<size_t>(sums) * parts + row_sums > workspace_bytes) break;
      const double time = (whole / clusters * (stages + epilogue_stages) +
                           ceil_div(int64_t{others} * parts, clusters) * (part_stages + epilogue_stages)) *
                              stage_seconds +
                          launch_seconds + (parts + 1) * sums / bandwidth;
      if (time < least) least = time, best = {whole, parts};
    }
  }
  return best;
}

}  // namespace

bool gemm_weight_gradient_serves(const GemmWeightGradient& a, size_t workspace_bytes) {
  constexpr int64_t most = int64_t{1} << 31;
  return on_hopper() && a.N % 8 == 0 && a.K % 8 == 0 && a.M > 0 && a.N > 0 && a.K > 0 && a.M < most &&
         a.N < most && a.K < most && aligned(a.dy) && aligned(a.x) && aligned(a.dw) &&
         static_cast<size_t>(a.N) * sizeof(float) <= workspace_bytes;
}

void gemm_weight_gradient(const GemmWeightGradient& a, void* workspace, size_t workspace_bytes,
                          cudaStream_t stream) {
  CHECK(gemm_weight_gradient_serves(a, workspace_bytes), "weight gradient of ", a.M, " x ", a.N, " x ", a.K,
        ": no kernel serves it");
  const Division division = best_division(a, workspace_bytes);
  const int rows = static_cast<int>(a.N);
  LaunchOptions options;
  options.whole = division.whole, options.parts = division.parts, options.left = a.left;
  options.group = least_group;
  auto* parts = static_cast<float*>(workspace);
  const Walk walk = walk_of<GradientTile>(rows, static_cast<int>(a.K), static_cast<int>(a.M), options);
  const int others = walk.tiles() - walk.whole;
  float* row_sums = a.dbias ? parts + others * walk.parts * tile_sums : nullptr;
  launch<GradientTile, GradientSums<GradientTile>>(rows, static_cast<int>(a.K), static_cast<int>(a.M), a.dy,
                                                   a.x, {a.dw, a.accumulate_dw, parts, row_sums}, options,
                                                   stream);
  if (others > 0) {
    const dim3 grid(static_cast<unsigned>(tile_sums / 4 / 256), static_cast<unsigned>(others));
    add_parts<<<grid, 256, 0, stream>>>(a.dw, reinterpret_cast<const float4*>(parts), walk, a.accumulate_dw);
  }
  if (a.dbias)
    add_row_sums<<<static_cast<unsigned>((rows + 255) / 256), 256, 0, stream>>>(
        a.dbias, row_sums, rows, walk.parts, a.accumulate_dbias);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::cuda
