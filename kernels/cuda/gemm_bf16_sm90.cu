// gemm_bf16_sm90.cu: the bf16 product on Hopper: which tiles there are, which to take for which shape.
#include "kernels/cuda/gemm_bf16_sm90.cuh"

namespace switchback::cuda {
namespace {

using namespace sm90;

// The last two are tiles 0 and 2 with fresh sums (gemm_sm90.cuh), for the epilogue that computes most.
constexpr int tiles = 6;
constexpr const char* names[tiles] = {"ping-pong 128x128", "ping-pong 128x160",       "ping-pong 128x192",
                                      "staggered 128x256", "ping-pong 128x128 fresh", "ping-pong 128x192 fresh"};

// What a tile reaches where nothing is wasted, relative to the best; the rest of the choice is how much of it
// is wasted.
double expected(const GemmBf16& a, int tile) {
  const auto M = static_cast<double>(a.M), N = static_cast<double>(a.N);
  switch (tile) {
    case 0:
      return 0.95 * useful_part<Bf16Tile128<Major::k>>(M, N);
    case 1:
      return 0.99 * useful_part<Bf16Tile160<Major::k>>(M, N);
    case 2:
      return 1.00 * useful_part<Bf16Tile192<Major::k>>(M, N);
    case 3:
      return (a.K < 1536 ? 0.93 : 1.00) * useful_part<Bf16Tile256<Major::k>>(M, N);
    default:  // longer products hide more of the epilogue
      return (a.K < 1280 ? 1.05 : 0.98) * expected(a, tile == 4 ? 0 : 2);
  }
}

template <Major kMajorW>
void plain(const GemmBf16& a, int tile, cudaStream_t stream) {
  if (tile == 0) return launch_bf16<Bf16Tile128<kMajorW>, After::nothing>(a, {}, stream);
  if constexpr (kMajorW == Major::k) {
    if (tile == 1) return launch_bf16<Bf16Tile160<kMajorW>, After::nothing>(a, {}, stream);
  }
  if (tile == 2) return launch_bf16<Bf16Tile192<kMajorW>, After::nothing>(a, {}, stream);
  if (tile == 3) return launch_bf16<Bf16Tile256<kMajorW>, After::nothing>(a, {}, stream);
}

}  // namespace

int gemm_bf16_tiles() { return tiles; }

const char* gemm_bf16_name(int tile) { return names[tile]; }

bool gemm_bf16_has(const GemmBf16& a, int tile) {
  constexpr int64_t most = int64_t{1} << 31;
  if (tile < 0 || tile >= tiles) return false;
  if (a.N % 8 != 0 || a.K % 8 != 0 || a.K == 0 || a.M >= most || a.N >= most || a.K >= most) return false;
  for (const void* memory :
       {a.x, a.w, static_cast<const void*>(a.y), a.operand, static_cast<const void*>(a.second)}) {
    if (!aligned(memory)) return false;
  }
  if (reinterpret_cast<uintptr_t>(a.bias) % 4 != 0 || !on_hopper()) return false;
  switch (a.after) {
    case After::nothing:
      return tile < 4 && !(a.w_is_k_by_n && tile == 1);
    case After::gelu:
      return !a.w_is_k_by_n && (tile == 0 || tile == 2);
    case After::gelu_backward:
      return a.w_is_k_by_n && !a.bias && tile != 1 && tile != 3;
  }
  return false;
}

int gemm_bf16_choose(const GemmBf16& a) {
  int best = -1;
  for (int tile = 0; tile < tiles; ++tile) {
    if (gemm_bf16_has(a, tile) && (best < 0 || expected(a, tile) > expected(a, best))) best = tile;
  }
  return best;
}

void gemm_bf16(const GemmBf16& a, int tile, cudaStream_t stream) {
  CHECK(tile >= 0 && tile < tiles && gemm_bf16_has(a, tile), "bf16 product ", a.M, " x ", a.N, " x ", a.K,
        ": tile ", tile, " does not serve it");
  if (a.M == 0 || a.N == 0) return;
  if (a.after == After::gelu || a.after == After::gelu_backward) return gemm_bf16_gelu(a, tile, {}, stream);
  if (a.w_is_k_by_n)
    plain<Major::mn>(a, tile, stream);
  else
    plain<Major::k>(a, tile, stream);
}

}  // namespace switchback::cuda
