// layernorm_rows.cu: layernorm's rows in one sweep (layernorm_rows.cuh).
//
// These sweeps are bound by memory, so what counts is that enough loads are under way: all of a row's pieces
// are asked for before the first is looked at.
//   forward    a warp a row; lane l holds columns 8 l ... 8 l + 7 of every 256.
//   backward   a block of `teams` warps a row, so that a thread has 8 columns only and its share of the sums
//              over rows stays in registers; two rows abreast. Blocks stay and take every gridDim-th
//              group of rows; their number depends on the width alone, so the sums have the same bits always.
//              The blocks' sums are added in order by a second, small kernel.
// Products and sums are fused where fmaf says so and the compiler's choice does not matter: with and without
// a branch, with and without layer-scale, a row has the same bits.
#include "kernels/cuda/layernorm_rows.cuh"

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int group = 8;            // columns of a lane in one piece
constexpr int stride = 32 * group;  // columns of a warp in one piece
constexpr int most_groups = 7;
constexpr int forward_warps = 4;  // rows of a block

template <class T>
using Piece = Packed<group, T>;

template <class T>
__device__ __forceinline__ void load_piece(Piece<T>& piece, const T* from) {
#pragma unroll
  for (int g = 0; g < Piece<T>::groups; ++g)
    piece.group[g] = reinterpret_cast<const typename Piece<T>::Group*>(from)[g];
}
template <class T>
__device__ __forceinline__ void store_piece(T* to, const Piece<T>& piece) {
#pragma unroll
  for (int g = 0; g < Piece<T>::groups; ++g)
    reinterpret_cast<typename Piece<T>::Group*>(to)[g] = piece.group[g];
}
template <class T>
__device__ __forceinline__ void clear(Piece<T>& piece) {
#pragma unroll
  for (int g = 0; g < Piece<T>::groups; ++g) piece.group[g] = {};
}

// Codes of the rows that a kernel makes, from the rounded values (codes.cuh).
struct RowCodesOut {
  uint2* codes;
  float* scale;
  Format format;

  // piece: 8 elements of a row whose absmax is known
  template <class T>
  __device__ __forceinline__ void store(int64_t at, const Piece<T>& piece, float inverse) const {
    float v[group];
#pragma unroll
    for (int e = 0; e < group; ++e) v[e] = to_float(piece.element[e]);
    codes[at / group] = encode(format, v, inverse);
  }
};
RowCodesOut codes_out(const RowCodes& codes) {
  return {static_cast<uint2*>(codes.codes.data), data<float>(codes.scale), codes.format};
}
// ---- forward ----------------------------------------------------------------------------------------------
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

// width in ((groups - 1) 256, groups 256]: only the last piece may lie beyond the row. Left to itself (0), the
// compiler spills a pair of registers in one of these to have a block more.
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

// ---- backward ---------------------------------------------------------------------------------------------
template <class T>
struct Backward {
  T* dx;
  Out<T> dbranch;
  float* partials;  // (blocks, sums, width): Σ of dgain, dbias, and dgamma or dx over a block's rows
  const T *dsum, *dnormed, *sum;
  const float *mean, *rstd;
  const T *gain, *branch, *gamma;
  int64_t rows;
  int width;
  RowCodesOut codes;
};

// 16 warps of 128 registers (15 where a row has 3 or 5). With layer-scale or without, the same rows fall to
// the same blocks: a layernorm has the same bits alone and in one op with its residual.
constexpr int abreast = 2;
constexpr int blocks_of_multiprocessor(int teams) { return 16 / teams; }
constexpr int multiprocessors = 132;  // an H100's: elsewhere the same blocks, in more or fewer turns

// Before Hopper the code that does everything at once needs more than 128 registers.
template <bool scaled, bool coded>
constexpr int blocks_without_spilling(int teams) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (scaled && coded && teams > 1) return blocks_of_multiprocessor(teams) - 1;
#endif
  return blocks_of_multiprocessor(teams);
}

template <class T, int teams, bool scaled, bool coded>
__global__ void __launch_bounds__(32 * teams, blocks_without_spilling<scaled, coded>(teams))
    backward(const Backward<T> b) {
  __shared__ float2 of_warp[2][abreast][teams];  // two sets in turn: one barrier a group of rows is enough
  __shared__ uint32_t most_of_warp[abreast][teams];
  const int column = threadIdx.x * group, warp = threadIdx.x / 32;
  const bool there = column < b.width;
  float gain[group], gamma[group];
  float gain_sum[group] = {}, bias_sum[group] = {}, third_sum[group] = {};  // third: dgamma, or Σ dx
  load(gain, b.gain + column, there ? group : 0);
  if constexpr (scaled) load(gamma, b.gamma + column, there ? group : 0);

  int turn = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * abreast; first < b.rows;
       first += static_cast<int64_t>(gridDim.x) * abreast, turn ^= 1) {
    Piece<T> sum[abreast], dnormed[abreast], dsum[abreast], branch[abreast];
    float mean[abreast], rstd[abreast];
#pragma unroll
    for (int i = 0; i < abreast; ++i) {
      const bool here = there && first + i < b.rows;
      const int64_t at = (first + i) * b.width + column;
      clear(sum[i]);
      clear(dnormed[i]);
      clear(dsum[i]);
      if constexpr (scaled) clear(branch[i]);
      mean[i] = rstd[i] = 0;
      if (here) {
        load_piece(sum[i], b.sum + at);
        load_piece(dnormed[i], b.dnormed + at);
        if (b.dsum) load_piece(dsum[i], b.dsum + at);
        if constexpr (scaled) load_piece(branch[i], b.branch + at);
        mean[i] = b.mean[first + i];
        rstd[i] = b.rstd[first + i];
      }
    }
#pragma unroll
    for (int i = 0; i < abreast; ++i) {
      float sum_g = 0, sum_gx = 0;
#pragma unroll
      for (int e = 0; e < group; ++e) {
        const float d = to_float(dnormed[i].element[e]), g = d * gain[e];  // 0 beyond row and rows
        const float unit = (to_float(sum[i].element[e]) - mean[i]) * rstd[i];
        sum_g += g;
        sum_gx = fmaf(g, unit, sum_gx);
        gain_sum[e] = fmaf(d, unit, gain_sum[e]);
        bias_sum[e] += d;
      }
      sum_g = warp_sum(sum_g);
      sum_gx = warp_sum(sum_gx);
      if (threadIdx.x % 32 == 0) of_warp[turn][i][warp] = {sum_g, sum_gx};
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < abreast; ++i) {
      float2 total = of_warp[turn][i][0];
#pragma unroll
      for (int w = 1; w < teams; ++w) {
        total.x += of_warp[turn][i][w].x;
        total.y += of_warp[turn][i][w].y;
      }
      const float mean_g = total.x / static_cast<float>(b.width),
                  mean_gx = total.y / static_cast<float>(b.width);
      const bool here = there && first + i < b.rows;
      if constexpr (!coded)
        if (!here) continue;
      const int64_t at = (first + i) * b.width + column;
      Piece<T> dx;
      float dbranch[group];
#pragma unroll
      for (int e = 0; e < group; ++e) {
        const float g = to_float(dnormed[i].element[e]) * gain[e];
        const float unit = (to_float(sum[i].element[e]) - mean[i]) * rstd[i];
        dx.element[e] = from_float<T>(
            fmaf(rstd[i], fmaf(-unit, mean_gx, g - mean_g), to_float(dsum[i].element[e])));
        const float rounded = to_float(dx.element[e]);
        if constexpr (scaled) {
          dbranch[e] = gamma[e] * rounded;
          third_sum[e] = fmaf(rounded, to_float(branch[i].element[e]), third_sum[e]);
        } else {
          third_sum[e] += rounded;
        }
      }
      if (here) store_piece(b.dx + at, dx);
      if constexpr (scaled)
        if (b.dbranch.to && here) b.dbranch.store(at, dbranch, group);
      if constexpr (coded) {  // of branch's gradient; it waits in dsum's registers, which are free now
        if constexpr (scaled) {
#pragma unroll
          for (int e = 0; e < group; ++e) dx.element[e] = from_float<T>(dbranch[e]);
        }
        dsum[i] = dx;
        const uint32_t most = larger_magnitudes(0, dx.group[0]);
        const uint32_t warp_most = __reduce_max_sync(all_lanes, here ? max(most >> 16, most & 0xffffu) : 0);
        if (threadIdx.x % 32 == 0) most_of_warp[i][warp] = warp_most;
      }
    }
    if constexpr (coded) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < abreast; ++i) {
        uint32_t most = most_of_warp[i][0];
#pragma unroll
        for (int w = 1; w < teams; ++w) most = max(most, most_of_warp[i][w]);
        if (!there || first + i >= b.rows) continue;
        const Scaling s = scaling_of(most << 16, largest_of(b.codes.format));
        if (threadIdx.x == 0) b.codes.scale[first + i] = s.scale;
        b.codes.store((first + i) * b.width + column, dsum[i], s.inverse);
      }
    }
  }
  if (!there) return;
  constexpr int sums = 3;
  const Out<float> out{b.partials + static_cast<int64_t>(blockIdx.x) * sums * b.width, false};
  out.store(column, gain_sum, group);
  out.store(b.width + column, bias_sum, group);
  out.store(2 * b.width + column, third_sum, group);
}

// The part of it that is layer-scale's, by the same blocks and in the same order of rows.
template <class T, int teams>
__global__ void __launch_bounds__(32 * teams) scale_backward(const Backward<T> b) {
  constexpr int ahead = 2 * abreast;  // rows of a block that are asked for at once
  const int column = threadIdx.x * group;
  if (column >= b.width) return;
  float gamma[group], gamma_sum[group] = {};
  load(gamma, b.gamma + column, group);
  const int64_t step = static_cast<int64_t>(gridDim.x) * abreast;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * abreast; first < b.rows; first += 2 * step) {
    Piece<T> dy[ahead], branch[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const int64_t row = first + i / abreast * step + i % abreast;
      clear(dy[i]);
      clear(branch[i]);
      if (row >= b.rows) continue;
      load_piece(dy[i], b.dx + row * b.width + column);
      load_piece(branch[i], b.branch + row * b.width + column);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const int64_t row = first + i / abreast * step + i % abreast;
      if (row >= b.rows) continue;
      float dbranch[group];
#pragma unroll
      for (int e = 0; e < group; ++e) {
        const float rounded = to_float(dy[i].element[e]);
        dbranch[e] = gamma[e] * rounded;
        gamma_sum[e] = fmaf(rounded, to_float(branch[i].element[e]), gamma_sum[e]);
      }
      if (b.dbranch.to) b.dbranch.store(row * b.width + column, dbranch, group);
    }
  }
  const Out<float> out{b.partials + static_cast<int64_t>(blockIdx.x) * b.width, false};
  out.store(column, gamma_sum, group);
}

// Calls f(std::integral_constant<int, n>{}) for n = 1 ... most_groups.
template <int n = 1, class F>
void visit_groups(int groups, F&& f) {
  if (groups == n) return f(std::integral_constant<int, n>{});
  if constexpr (n < most_groups) visit_groups<n + 1>(groups, f);
}

// How many blocks share the rows of a backward pass.
int64_t blocks_of_rows(int64_t rows, int64_t groups) {
  return std::min<int64_t>(multiprocessors * blocks_of_multiprocessor(static_cast<int>(groups)),
                           (rows + abreast - 1) / abreast);
}

bool in_pieces(const CView& x) { return reinterpret_cast<uintptr_t>(x.data) % 16 == 0; }

}  // namespace

bool can_code_rows(const RowCodes& codes, DType rows) {
  return codes && rows == DType::bf16 && has_codes(codes.format) &&
         reinterpret_cast<uintptr_t>(codes.codes.data) % 16 == 0;
}

bool normalize_rows(const CudaKernels& k, const View& sum, const View& normed, const View& mean,
                    const View& rstd, const CView& x, const CView& branch, const CView& gamma,
                    const CView& gain, const CView& bias, double epsilon, const RowCodes& codes) {
  const char* op = "layernorm_forward";
  const int64_t rows = x.rows(), width = x.cols(), groups = (width + stride - 1) / stride;
  if (rows == 0 || width % group != 0 || groups > most_groups) return false;
  for (const CView& v : {CView(sum), CView(normed), x, branch, gamma, gain, bias})
    if (!in_pieces(v)) return false;
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
    visit_groups(static_cast<int>(groups), [&](auto n) {
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

bool normalize_rows_backward(const CudaKernels& k, const View& dx, const Sink& dbranch, const Sink& dx_sum,
                             const Sink& dgamma, const Sink& dgain, const Sink& dbias, const CView& dsum,
                             const CView& dnormed, const CView& sum, const CView& mean, const CView& rstd,
                             const CView& gain, const CView& branch, const CView& gamma,
                             const RowCodes& codes) {
  const char* op = "layernorm_backward";
  const int64_t rows = sum.rows(), width = sum.cols(), groups = (width + stride - 1) / stride;
  if (rows == 0 || width % group != 0 || groups > most_groups) return false;
  if (dx.dtype != sum.dtype || (dbranch && dbranch.to.dtype != sum.dtype)) return false;
  for (const CView& v : {CView(dx), CView(dbranch.to), dsum, dnormed, sum, gain, branch, gamma})
    if (!in_pieces(v)) return false;
  const bool scaled = static_cast<bool>(gamma);
  if (scaled && !branch) return false;
  visit(sum.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const int64_t blocks = blocks_of_rows(rows, groups), sums = 3;
    const Tensor partials = k.scratch({blocks, sums, width});
    const Backward<T> b{data<T>(dx),
                        out_of<T>(dbranch),
                        data<float>(partials),
                        data<T>(dsum),
                        data<T>(dnormed),
                        data<T>(sum),
                        data<float>(mean),
                        data<float>(rstd),
                        data<T>(gain),
                        data<T>(branch),
                        data<T>(gamma),
                        rows,
                        static_cast<int>(width),
                        codes_out(codes)};
    visit_groups(static_cast<int>(groups), [&](auto n) {
      const unsigned threads = 32 * n, grid = static_cast<unsigned>(blocks);
      if constexpr (std::is_same_v<T, bf16>) {
        if (codes && scaled) return backward<T, n, true, true><<<grid, threads, 0, k.stream()>>>(b);
        if (codes) return backward<T, n, false, true><<<grid, threads, 0, k.stream()>>>(b);
      }
      if (scaled)
        backward<T, n, true, false><<<grid, threads, 0, k.stream()>>>(b);
      else
        backward<T, n, false, false><<<grid, threads, 0, k.stream()>>>(b);
    });
    check_launch(op);
    add_partials(op, k, {dgain, dbias, scaled ? dgamma : dx_sum}, data<float>(partials), blocks, sums, width);
  });
  return true;
}

bool scale_rows_backward(const CudaKernels& k, const Sink& dbranch, const Sink& dgamma, const CView& dy,
                         const CView& branch, const CView& gamma) {
  const char* op = "residual_backward";
  const int64_t rows = dy.rows(), width = dy.cols(), groups = (width + stride - 1) / stride;
  if (rows == 0 || width % group != 0 || groups > most_groups) return false;
  if (!gamma || !branch || (dbranch && dbranch.to.dtype != dy.dtype)) return false;
  for (const CView& v : {CView(dbranch.to), dy, branch, gamma})
    if (!in_pieces(v)) return false;
  visit(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const int64_t blocks = blocks_of_rows(rows, groups);
    const Tensor partials = k.scratch({blocks, 1, width});
    Backward<T> b{};
    b.dx = const_cast<T*>(data<T>(dy));  // read only
    b.dbranch = out_of<T>(dbranch);
    b.partials = data<float>(partials);
    b.branch = data<T>(branch);
    b.gamma = data<T>(gamma);
    b.rows = rows;
    b.width = static_cast<int>(width);
    visit_groups(static_cast<int>(groups), [&](auto n) {
      scale_backward<T, n><<<static_cast<unsigned>(blocks), 32 * n, 0, k.stream()>>>(b);
    });
    check_launch(op);
    add_partials(op, k, {dgamma}, data<float>(partials), blocks, 1, width);
  });
  return true;
}

}  // namespace switchback::cuda
