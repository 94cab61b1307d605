// gemm_weight_gradient_sm90.cu: gemm_sm90.cuh with both operands transposed on the way, K split, and sums
// that go to memory as they are; and the kernel that adds the parts.
#include "kernels/cuda/gemm_sm90_launch.cuh"
#include "kernels/cuda/gemm_weight_gradient.cuh"

namespace switchback::cuda {
namespace {

using namespace sm90;

using GradientTile =
    Tile<__nv_bfloat16, 128, 256, 4, 1, Schedule::staggered, /*w:*/ Major::mn, /*x:*/ Major::mn>;

// The kernel's x is dy (M and K of the walk are the layer's N and M), its w is x.
template <class T>
struct PartialSums {
  struct Arguments {
    float* sums;      // (splits, walk.M, walk.N)
    float* row_sums;  // (splits, walk.M); may be absent
  };
  const Arguments& arguments;
  const Walk& walk;
  int lane, row, column, split;

  __device__ PartialSums(const Arguments& arguments, const Walk& walk, uint8_t (*)[T::kPieceBytes], uint64_t*,
                         int lane)
      : arguments(arguments), walk(walk), lane(lane) {}

  static __device__ void prepare(uint8_t* buffer) {
    if (threadIdx.x < 256) reinterpret_cast<uint32_t*>(buffer)[threadIdx.x] = 0x3f803f80u;
    ptx::fence_async_proxy();
  }
  __device__ void prefetch(int first_row, int first_column, int part) {
    row = first_row, column = first_column, split = part;
  }

  // Another column of tiles for each part and row, so that nobody has more of this than others.
  __device__ bool wants_row_sums() const {
    return arguments.row_sums != nullptr &&
           (row / (2 * T::kTileM) + split) % walk.column_units == column / T::kTileN;
  }
  __device__ void finish_row_sums(const float (&sums)[T::kBlocksM][4]) const {
    if (lane % 4 != 0) return;  // all eight columns are the same
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4;
        if (m < walk.M) arguments.row_sums[int64_t{split} * walk.M + m] = sums[block][2 * half];
      }
    }
  }
  __device__ __forceinline__ void finish(const float (&acc)[T::kBlocksM][T::kSums]) const {
#pragma unroll
    for (int block = 0; block < T::kBlocksM; ++block) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = row + 64 * block + 8 * half + lane / 4, n = column + 2 * (lane % 4);
        if (m >= walk.M) continue;
        float* to = arguments.sums + (int64_t{split} * walk.M + m) * walk.N + n;
#pragma unroll
        for (int j = 0; j < T::kTileN / 8; ++j) {
          if (n + 8 * j < walk.N)
            *reinterpret_cast<float2*>(to + 8 * j) = {acc[block][4 * j + 2 * half],
                                                      acc[block][4 * j + 2 * half + 1]};
        }
      }
    }
  }
};

// to = [to +] the parts, in order. Blocks of row 0 of the grid add dw, one block row more adds dbias.
__global__ void __launch_bounds__(256)
    add_parts(float4* dw, const float4* parts, int64_t count, bool accumulate_dw, float* dbias,
              const float* bias_parts, int rows, bool accumulate_dbias, int splits) {
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  if (blockIdx.y == 0) {
    if (i >= count) return;
    float4 sum = accumulate_dw ? dw[i] : float4{0, 0, 0, 0};
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const float4 part = parts[s * count + i];
      sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
    }
    dw[i] = sum;
  } else if (i < rows) {
    float sum = accumulate_dbias ? dbias[i] : 0.0f;
    for (int s = 0; s < splits; ++s) sum += bias_parts[s * int64_t{rows} + i];
    dbias[i] = sum;
  }
}

size_t bytes_of(const GemmWeightGradient& a, int splits) {
  return static_cast<size_t>(splits) * static_cast<size_t>(a.N * a.K + a.N) * sizeof(float);
}

// The number of parts that takes the least time: units in whole rounds over the chip, each k_blocks stages
// long, and the parts to be written and read again.
int best_splits(const GemmWeightGradient& a, size_t workspace_bytes) {
  using T = GradientTile;
  const double clusters = multiprocessor_count() / T::kClusterSize;
  const double tiles = std::ceil(a.N / (2.0 * T::kTileM)) * std::ceil(a.K / static_cast<double>(T::kTileN));
  const double stages = std::ceil(a.M / static_cast<double>(T::kBlockK));
  constexpr double stage_clocks = 1100, clock = 1.5e9, epilogue_stages = 6, bandwidth = 2.5e12;
  int best = 1;
  double least = 1e30;
  for (int splits = 1; splits <= 32 && splits <= stages; ++splits) {
    if (splits > 1 && bytes_of(a, splits) > workspace_bytes) break;
    const double rounds = std::ceil(tiles * splits / clusters);
    const double time = rounds * (std::ceil(stages / splits) + epilogue_stages) * stage_clocks / clock +
                        static_cast<double>(bytes_of(a, splits)) * 1.5 / bandwidth;
    if (time < least) least = time, best = splits;
  }
  return best;
}

}  // namespace

bool gemm_weight_gradient_serves(const GemmWeightGradient& a, size_t workspace_bytes) {
  constexpr int64_t most = int64_t{1} << 31;
  return on_hopper() && a.N % 8 == 0 && a.K % 8 == 0 && a.M > 0 && a.N > 0 && a.K > 0 && a.M < most &&
         a.N < most && a.K < most && aligned(a.dy) && aligned(a.x) && aligned(a.dw) &&
         bytes_of(a, 1) <= workspace_bytes;
}

void gemm_weight_gradient(const GemmWeightGradient& a, void* workspace, size_t workspace_bytes,
                          cudaStream_t stream) {
  CHECK(gemm_weight_gradient_serves(a, workspace_bytes), "weight gradient of ", a.M, " x ", a.N, " x ", a.K,
        ": no kernel serves it");
  const int splits = best_splits(a, workspace_bytes);
  auto* parts = static_cast<float*>(workspace);
  float* bias_parts = parts + static_cast<int64_t>(splits) * a.N * a.K;
  LaunchOptions options;
  options.splits = splits;
  launch<GradientTile, PartialSums<GradientTile>>(static_cast<int>(a.N), static_cast<int>(a.K),
                                                  static_cast<int>(a.M), a.dy, a.x,
                                                  {parts, a.dbias ? bias_parts : nullptr}, options, stream);
  const int64_t count = a.N * a.K / 4;
  const dim3 grid(static_cast<unsigned>((count + 255) / 256), a.dbias ? 2 : 1);
  add_parts<<<grid, 256, 0, stream>>>(reinterpret_cast<float4*>(a.dw), reinterpret_cast<const float4*>(parts),
                                      count, a.accumulate_dw, a.dbias, bias_parts, static_cast<int>(a.N),
                                      a.accumulate_dbias, splits);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace switchback::cuda
