// gemm_bf16_gelu_sm90.cu: the two products of an MLP with GELU in their epilogues: fc's forward, w (N, K), and
// proj's gradient with respect to its input, w (K, N).
#include "kernels/cuda/gemm_bf16_sm90.cuh"

namespace switchback::sm90 {

void gemm_bf16_gelu(const GemmBf16& a, int tile, const LaunchOptions& options, cudaStream_t stream) {
  constexpr Weights n_by_k = Weights::n_by_k, k_by_n = Weights::k_by_n;
  if (a.after == After::gelu) {
    if (tile == 0) return launch_bf16<Bf16Tile128<n_by_k>, After::gelu>(a, options, stream);
    if (tile == 1) return launch_bf16<Bf16Tile160<n_by_k>, After::gelu>(a, options, stream);
    if (tile == 2) return launch_bf16<Bf16Tile192<n_by_k>, After::gelu>(a, options, stream);
  } else {
    if (tile == 0) return launch_bf16<Bf16Tile128<k_by_n>, After::gelu_backward>(a, options, stream);
    if (tile == 2) return launch_bf16<Bf16Tile192<k_by_n>, After::gelu_backward>(a, options, stream);
  }
}

}  // namespace switchback::sm90
