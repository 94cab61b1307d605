// layernorm_rows_backward.cu: gradients of layernorm with the residual connection before it, in one sweep
// (layernorm_rows.cuh). A block of `teams` warps a row, so that a thread has 8 columns only and its share of
// the sums over rows stays in registers; two rows abreast. Blocks stay and take every gridDim-th group of
// rows; their number depends on the width alone, so the sums have the same bits always. The blocks' sums are
// added in order by a second, small kernel.
#include "kernels/cuda/layernorm_rows_pieces.cuh"

namespace switchback::cuda {
namespace {

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
        dx.element[e] =
            from_float<T>(fmaf(rstd[i], fmaf(-unit, mean_gx, g - mean_g), to_float(dsum[i].element[e])));
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

// How many blocks share the rows of a backward pass.
int64_t blocks_of_rows(int64_t rows, int groups) {
  return std::min<int64_t>(multiprocessors * blocks_of_multiprocessor(groups),
                           (rows + abreast - 1) / abreast);
}

}  // namespace

bool normalize_rows_backward(const CudaKernels& k, const View& dx, const Sink& dbranch, const Sink& dx_sum,
                             const Sink& dgamma, const Sink& dgain, const Sink& dbias, const CView& dsum,
                             const CView& dnormed, const CView& sum, const CView& mean, const CView& rstd,
                             const CView& gain, const CView& branch, const CView& gamma,
                             const RowCodes& codes) {
  const char* op = "layernorm_backward";
  const int64_t rows = sum.rows(), width = sum.cols();
  const int groups = groups_of(rows, width, {dx, dbranch.to, dsum, dnormed, sum, gain, branch, gamma});
  if (groups == 0) return false;
  if (dx.dtype != sum.dtype || (dbranch && dbranch.to.dtype != sum.dtype)) return false;
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
    visit_groups(groups, [&](auto n) {
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
  const int64_t rows = dy.rows(), width = dy.cols();
  const int groups = groups_of(rows, width, {dbranch.to, dy, branch, gamma});
  if (groups == 0) return false;
  if (!gamma || !branch || (dbranch && dbranch.to.dtype != dy.dtype)) return false;
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
    visit_groups(groups, [&](auto n) {
      scale_backward<T, n><<<static_cast<unsigned>(blocks), 32 * n, 0, k.stream()>>>(b);
    });
    check_launch(op);
    add_partials(op, k, {dgamma}, data<float>(partials), blocks, 1, width);
  });
  return true;
}

}  // namespace switchback::cuda
