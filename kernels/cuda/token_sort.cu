// token_sort.cu: one pass of the sort for a byte of the token number, over tiles of `tile` places:
//
//   count     counts[digit, tile] = how often the digit occurs in the tile
//   scan      counts become the first position of each (digit, tile): digits in order, tiles in order within
//             a digit
//   scatter   each place goes to that position plus the number of equal digits before it in its tile
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/token_sort.cuh"

namespace switchback::cuda {
namespace {

constexpr int digits = 256, threads = 256, rounds = 4, tile = rounds * threads, warps = threads / 32;

struct Input {
  const int32_t* tokens;       // of the first pass
  const SortedToken* sorted;   // of the later ones
  int count, vocabulary;
  __device__ SortedToken operator[](int i) const {
    if (sorted) return sorted[i];
    const int token = tokens[i];
    return {token >= 0 && token < vocabulary ? token : vocabulary, i};
  }
};

__global__ void __launch_bounds__(threads) count_digits(int* counts, Input in, int shift, int tiles) {
  __shared__ int own[digits];
  own[threadIdx.x] = 0;
  __syncthreads();
  for (int r = 0; r < rounds; ++r) {
    const int i = blockIdx.x * tile + r * threads + threadIdx.x;
    if (i < in.count)
      atomicAdd(&own[in[i].token >> shift & (digits - 1)], 1);  // integers: any order gives this sum
  }
  __syncthreads();
  counts[threadIdx.x * tiles + blockIdx.x] = own[threadIdx.x];
}

// Exclusive sums of counts (digits x tiles), by one block: thread d takes the row of digit d.
__global__ void __launch_bounds__(threads) scan_digits(int* counts, int tiles) {
  __shared__ int total[digits];
  int* row = counts + threadIdx.x * tiles;
  int sum = 0;
  for (int t = 0; t < tiles; ++t) sum += row[t];
  total[threadIdx.x] = sum;
  __syncthreads();
  int next = 0;
  for (int d = 0; d < static_cast<int>(threadIdx.x); ++d) next += total[d];
  for (int t = 0; t < tiles; ++t) {
    const int here = row[t];
    row[t] = next;
    next += here;
  }
}

__global__ void __launch_bounds__(threads)
    scatter(SortedToken* to, Input in, const int* first, int shift, int tiles) {
  __shared__ int next[digits];           // where the tile's next place of a digit goes
  __shared__ int of_warp[warps][digits]; // occurrences in each warp of this round
  next[threadIdx.x] = first[threadIdx.x * tiles + blockIdx.x];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = 0; r < rounds; ++r) {
    for (int w = 0; w < warps; ++w) of_warp[w][threadIdx.x] = 0;
    __syncthreads();
    const int i = blockIdx.x * tile + r * threads + threadIdx.x;
    const bool inside = i < in.count;
    const SortedToken here = inside ? in[i] : SortedToken{0, 0};
    const int digit =
        inside ? here.token >> shift & (digits - 1) : digits;  // `digits`: no place, equal to no other
    const unsigned same = __match_any_sync(0xffffffffu, digit);
    const int before = __popc(same & ((1u << lane) - 1));
    if (inside && before == 0) of_warp[warp][digit] = __popc(same);
    __syncthreads();
    if (inside) {
      int position = next[digit] + before;
      for (int w = 0; w < warp; ++w) position += of_warp[w][digit];
      to[position] = here;
    }
    __syncthreads();
    for (int w = 0; w < warps; ++w) next[threadIdx.x] += of_warp[w][threadIdx.x];
    // no barrier: thread d alone touches column d until the next round's first barrier
  }
}

}  // namespace

Tensor sort_tokens(const CudaKernels& k, const int32_t* tokens, int64_t count, int64_t vocabulary) {
  const int64_t tiles = (count + tile - 1) / tile;
  const Tensor counts = k.scratch({digits, tiles}, DType::i32);
  Tensor from, to = k.scratch({count}, DType::i64), other = k.scratch({count}, DType::i64);
  Input in{tokens, nullptr, static_cast<int>(count), static_cast<int>(vocabulary)};
  for (int shift = 0; shift == 0 || vocabulary >> shift > 0; shift += 8) {
    const unsigned blocks = blocks_for(tiles, 1);
    count_digits<<<blocks, threads, 0, k.stream()>>>(data<int>(counts), in, shift, static_cast<int>(tiles));
    scan_digits<<<1, threads, 0, k.stream()>>>(data<int>(counts), static_cast<int>(tiles));
    scatter<<<blocks, threads, 0, k.stream()>>>(data<SortedToken>(to), in, data<int>(counts), shift,
                                                static_cast<int>(tiles));
    check_launch("sort_tokens");
    in.sorted = data<SortedToken>(to);
    from = to;
    to = other;
    other = from;
  }
  return from;
}

}  // namespace switchback::cuda
