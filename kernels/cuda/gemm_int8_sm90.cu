// gemm_int8_sm90.cu: which tile for which shape, and the entry point. Measured: docs/benchmarks/h100_int8_gemm.md.
#include "kernels/cuda/gemm_int8_sm90.cuh"

namespace switchback {
namespace {

using namespace sm90;

using Long = Tile<128, 256, 4, 2, Schedule::staggered, Pair::rows>;
using Short = Tile<128, 128, 5, 4, Schedule::ping_pong, Pair::rows>;

template <class T>
void launch_tile(const GemmInt8& a, const LaunchOptions& options, cudaStream_t stream) {
  const bool column_scale = a.weight_scale.size() > 1;
  const auto go = [&]<Extra kExtra>() {
    if (column_scale) launch<T, kExtra, true>(a, options, stream);
    else launch<T, kExtra, false>(a, options, stream);
  };
  switch (a.extra_kind) {
    case Extra::none: return go.template operator()<Extra::none>();
    case Extra::residual: return go.template operator()<Extra::residual>();
    case Extra::gelu_derivative: return go.template operator()<Extra::gelu_derivative>();
  }
}

}  // namespace

void gemm_int8_sm90(const GemmInt8& a, cudaStream_t stream) {
  check_gemm_int8(a);
  const LaunchOptions options;
  if (a.x.cols() > 2048 && a.w.rows() >= 256) launch_tile<Long>(a, options, stream);
  else launch_tile<Short>(a, options, stream);
}

}  // namespace switchback
