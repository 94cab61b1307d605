// gemm_int8_sm90.cu: which tile for which shape, and the entry point. Measured:
// docs/benchmarks/h100_int8_gemm.md.
#include <algorithm>

#include "kernels/cuda/gemm_int8_sm90.cuh"

namespace switchback {
namespace {

using namespace sm90;

using PingPong128 = Int8Tile<128, 128, 5, 4, Schedule::ping_pong>;
using PingPong160 = Int8Tile<128, 160, 5, 5, Schedule::ping_pong>;
using PingPong192 = Int8Tile<128, 192, 4, 3, Schedule::ping_pong>;
using Staggered256 = Int8Tile<128, 256, 4, 2, Schedule::staggered>;

// What a tile reaches where nothing is wasted, relative to the best, for short, long and very long K
// (measured at N a multiple of the tile; between these interpolated).
struct Efficiency {
  double at_1024, at_4096, at_16384;
};

template <class T>
double expected(const GemmInt8& a, Efficiency efficiency) {
  const double K = a.x.cols();
  const double length = std::clamp((K - 1024) / (4096 - 1024), 0.0, 1.0),
               further = std::clamp((K - 4096) / (16384 - 4096), 0.0, 1.0);
  return useful_part<T>(a.x.rows(), a.w.rows()) *
         (efficiency.at_1024 + length * (efficiency.at_4096 - efficiency.at_1024) +
          further * (efficiency.at_16384 - efficiency.at_4096));
}

template <class T>
void launch_tile(const GemmInt8& a, cudaStream_t stream) {
  const LaunchOptions options;
  const bool column_scale = a.weight_scale.size() > 1;
  const auto go = [&]<Extra kExtra>() {
    if constexpr (T::kTileN != 192) {
      if (column_scale) return launch_int8<T, kExtra, true>(a, options, stream);
    }
    launch_int8<T, kExtra, false>(a, options, stream);
  };
  switch (a.extra_kind) {
    case Extra::none:
      return go.template operator()<Extra::none>();
    case Extra::residual:
      if constexpr (T::kTileN != 192) return go.template operator()<Extra::residual>();
      break;
    case Extra::gelu_derivative:
      if constexpr (T::kTileN != 192) return go.template operator()<Extra::gelu_derivative>();
      break;
  }
}

}  // namespace

void gemm_int8_sm90(const GemmInt8& a, cudaStream_t stream) {
  check_gemm_int8(a);
  if (a.y.size() == 0) return;
  const double of_128 = expected<PingPong128>(a, {0.95, 0.92, 0.92});
  const double of_160 = expected<PingPong160>(a, {1.00, 1.00, 1.00});
  // Its 192 accumulators leave too few registers for the other epilogues and for a scale of each column.
  const bool plain = a.extra_kind == Extra::none && a.weight_scale.size() <= 1;
  const double of_192 = plain ? expected<PingPong192>(a, {1.00, 0.98, 0.95}) : 0;
  const double of_256 = expected<Staggered256>(a, {0.83, 0.995, 1.03});
  const double best = std::max({of_128, of_160, of_192, of_256});
  if (of_160 == best)
    launch_tile<PingPong160>(a, stream);
  else if (of_192 == best)
    launch_tile<PingPong192>(a, stream);
  else if (of_128 == best)
    launch_tile<PingPong128>(a, stream);
  else
    launch_tile<Staggered256>(a, stream);
}

}  // namespace switchback
