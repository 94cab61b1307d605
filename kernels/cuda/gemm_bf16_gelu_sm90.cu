// gemm_bf16_gelu_sm90.cu: the two products of an MLP with GELU in their epilogues: fc's forward, w (N, K),
// and proj's gradient with respect to its input, w (K, N).
#include "kernels/cuda/gemm_bf16_sm90.cuh"

namespace switchback::sm90 {
namespace {

template <Gelu kGelu>
void launch_forward(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream) {
  if (tile == 0) return launch_bf16<Bf16Tile128<Major::k>, After::gelu, kGelu>(a, options, stream);
  if (tile == 2) return launch_bf16<Bf16Tile192<Major::k>, After::gelu, kGelu>(a, options, stream);
}

template <Gelu kGelu>
void launch_backward(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream) {
  constexpr After after = After::gelu_backward;
  if (tile == 0) return launch_bf16<Bf16Tile128<Major::mn>, after, kGelu>(a, options, stream);
  if (tile == 2) return launch_bf16<Bf16Tile192<Major::mn>, after, kGelu>(a, options, stream);
}

template <Gelu kGelu, bool kSecond>
void launch_fresh_backward(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream) {
  constexpr After after = After::gelu_backward;
  if (tile == 4) return launch_bf16<Bf16Tile128<Major::mn>, after, kGelu, kSecond, true>(a, options, stream);
  if (tile == 5) return launch_bf16<Bf16Tile192<Major::mn>, after, kGelu, kSecond, true>(a, options, stream);
}

template <Gelu kGelu>
void launch_gelu(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream) {
  if (a.after == After::gelu) return launch_forward<kGelu>(a, tile, options, stream);
  if (tile < 4) return launch_backward<kGelu>(a, tile, options, stream);
  if (a.second) return launch_fresh_backward<kGelu, true>(a, tile, options, stream);
  launch_fresh_backward<kGelu, false>(a, tile, options, stream);
}

}  // namespace

void gemm_bf16_gelu(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream) {
  if (a.gelu == Gelu::exact)
    launch_gelu<Gelu::exact>(a, tile, options, stream);
  else
    launch_gelu<Gelu::quick>(a, tile, options, stream);
}

}  // namespace switchback::sm90
