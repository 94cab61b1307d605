// layernorm_rows_forward.cu: [sum = x + gamma branch,]  normed = gain x̂(sum) + bias in one sweep
// (layernorm_rows.cuh). A warp a row; lane l holds columns 8 l ... 8 l + 7 of every 256.
#include "kernels/cuda/layernorm_rows_pieces.cuh"

namespace switchback::cuda {
namespace {

constexpr int forward_warps = 4;  // rows of a block

template <class T>
struct Forward {
  T *sum, *normed;
  float *mean, *rstd;
  const T *x, *branch, *gamma, *gain, *bias;
  int64_t rows;
  int width;
  float epsilon;
  RowCodesOut codes;
};

// width in ((groups - 1) 256, groups 256]: only the last piece may lie beyond the row. Left to itself (0),
// the compiler spills a pair of registers in one of these to have a block more.
template <class T, int groups, bool with_branch, bool coded>
__global__ void __launch_bounds__(32 * forward_warps, groups == 2 && coded ? 6 : 0)
    forward(const Forward<T> f) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * forward_warps + threadIdx.x / 32;
  if (row >= f.rows) return;
  const int first = threadIdx.x % 32 * group;
  const int64_t at = row * f.width + first;
  const bool last_there = first + (groups - 1) * stride < f.width;
  const auto there = [&](int g) { return g < groups - 1 || last_there; };

  Piece<T> x[groups], branch[groups], gain[groups], bias[groups];
#pragma unroll
  for (int g = 0; g < groups; ++g) {
    clear(x[g]);
    if (there(g)) load_piece(x[g], f.x + at + g * stride);
    if constexpr (with_branch) {
      clear(branch[g]);
      if (there(g)) load_piece(branch[g], f.branch + at + g * stride);
    }
  }
#pragma unroll
  for (int g = 0; g < groups; ++g)
    if (there(g)) {
      load_piece(gain[g], f.gain + first + g * stride);
      load_piece(bias[g], f.bias + first + g * stride);
    }

  float values[groups][group];
#pragma unroll
  for (int g = 0; g < groups; ++g) {
    if constexpr (with_branch) {
      Piece<T> gamma;
      const bool scaled = f.gamma && there(g);
      if (scaled) load_piece(gamma, f.gamma + first + g * stride);
#pragma unroll
      for (int e = 0; e < group; ++e) {
        const float factor = scaled ? to_float(gamma.element[e]) : 1.0f;
        x[g].element[e] =
            from_float<T>(fmaf(factor, to_float(branch[g].element[e]), to_float(x[g].element[e])));
      }
      if (there(g)) store_piece(f.sum + at + g * stride, x[g]);
    }
#pragma unroll
    for (int e = 0; e < group; ++e) values[g][e] = to_float(x[g].element[e]);
  }
  float sum = 0;
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int e = 0; e < group; ++e) sum += values[g][e];  // 0 beyond the row
  const float m = warp_sum(sum) / static_cast<float>(f.width);
  float squares = 0;
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int e = 0; e < group; ++e) {
      const float d = there(g) ? values[g][e] - m : 0.0f;
      squares = fmaf(d, d, squares);
    }
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(f.width) + f.epsilon);
  if (threadIdx.x % 32 == 0) {
    f.mean[row] = m;
    f.rstd[row] = r;
  }
  uint32_t most = 0;
#pragma unroll
  for (int g = 0; g < groups; ++g) {
    if (!there(g)) continue;
    Piece<T>& normed = x[g];  // no longer needed
#pragma unroll
    for (int e = 0; e < group; ++e)
      normed.element[e] = from_float<T>(
          fmaf((values[g][e] - m) * r, to_float(gain[g].element[e]), to_float(bias[g].element[e])));
    store_piece(f.normed + at + g * stride, normed);
    if constexpr (coded) most = larger_magnitudes(most, normed.group[0]);
  }
  if constexpr (coded) {
    const Scaling s = scaling_of(row_maximum<32>(most), largest_of(f.codes.format));
    if (threadIdx.x % 32 == 0) f.codes.scale[row] = s.scale;
#pragma unroll
    for (int g = 0; g < groups; ++g)
      if (there(g)) f.codes.store(at + g * stride, x[g], s.inverse);
  }
}

}  // namespace

bool can_code_rows(const RowCodes& codes, DType rows) {
  return codes && rows == DType::bf16 && has_codes(codes.format) && aligned(codes.codes.data);
}

bool normalize_rows(const CudaKernels& k, const View& sum, const View& normed, const View& mean,
                    const View& rstd, const CView& x, const CView& branch, const CView& gamma,
                    const CView& gain, const CView& bias, double epsilon, const RowCodes& codes) {
  const char* op = "layernorm_forward";
  const int64_t rows = x.rows(), width = x.cols();
  const int groups = groups_of(rows, width, {sum, normed, x, branch, gamma, gain, bias});
  if (groups == 0) return false;
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const Forward<T> f{data<T>(sum),
                       data<T>(normed),
                       data<float>(mean),
                       data<float>(rstd),
                       data<T>(x),
                       data<T>(branch),
                       data<T>(gamma),
                       data<T>(gain),
                       data<T>(bias),
                       rows,
                       static_cast<int>(width),
                       static_cast<float>(epsilon),
                       codes_out(codes)};
    const unsigned blocks = blocks_for(rows, forward_warps);
    visit_groups(groups, [&](auto n) {
      if constexpr (std::is_same_v<T, bf16>) {
        if (codes && branch)
          return forward<T, n, true, true><<<blocks, 32 * forward_warps, 0, k.stream()>>>(f);
        if (codes) return forward<T, n, false, true><<<blocks, 32 * forward_warps, 0, k.stream()>>>(f);
      }
      if (branch)
        forward<T, n, true, false><<<blocks, 32 * forward_warps, 0, k.stream()>>>(f);
      else
        forward<T, n, false, false><<<blocks, 32 * forward_warps, 0, k.stream()>>>(f);
    });
    check_launch(op);
  });
  return true;
}

}  // namespace switchback::cuda
