// residual_layernorm.cu: a residual connection and the layernorm behind it, in one sweep over the rows where
// layernorm_rows.cuh can, else one after the other: the same bits.
//   sum = x + gamma branch,   normed = gain x̂(sum) + bias
//   dx = dsum + layernorm_backward(dnormed),   dbranch = gamma dx,   dgamma = Σ_rows dx branch,
//   dbranch_sum = Σ_rows dbranch
// x, branch, sum, normed, dx (M, C), gamma, gain, bias (C), mean, rstd (M) f32.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layernorm_rows.cuh"

namespace switchback::cuda {

void CudaKernels::residual_layernorm_forward(View sum, View normed, View mean, View rstd, CView x,
                                             CView branch, CView gamma, CView gain, CView bias,
                                             double epsilon, RowCodes codes) {
  const char* op = "residual_layernorm_forward";
  Require::residual_layernorm_forward(op, sum, normed, mean, rstd, x, branch, gamma, gain, bias, codes);
  const bool along = can_code_rows(codes, x.dtype);
  const bool done = normalize_rows(*this, sum, normed, mean, rstd, x, branch, gamma, gain, bias, epsilon,
                                   along ? codes : RowCodes());
  if (!done) {
    residual_forward(sum, x, branch, gamma);
    layernorm_forward(normed, mean, rstd, sum, gain, bias, epsilon);
  }
  if (codes && !(done && along))
    quantize(codes.codes, {}, codes.scale, normed, {}, codes.format, Granularity::row);
}

void CudaKernels::residual_layernorm_backward(View dx, Sink dbranch, Sink dbranch_sum, Sink dgamma,
                                              Sink dgain, Sink dbias, CView dsum, CView dnormed, CView sum,
                                              CView mean, CView rstd, CView gain, CView branch, CView gamma,
                                              RowCodes codes) {
  const char* op = "residual_layernorm_backward";
  const auto [rows, width] =
      Require::residual_layernorm_backward(op, dx, dbranch, dbranch_sum, dgamma, dgain, dbias, dsum, dnormed,
                                           sum, mean, rstd, gain, branch, gamma, codes);
  const bool written = !gamma || (dbranch && !dbranch.accumulate);
  const bool along = can_code_rows(codes, sum.dtype);
  const bool done =
      normalize_rows_backward(*this, dx, gamma ? dbranch : Sink{}, dbranch_sum, dgamma, dgain, dbias, dsum,
                              dnormed, sum, mean, rstd, gain, branch, gamma, along ? codes : RowCodes());
  if (done) {
    if (!gamma) accumulate(dbranch, dx);
  } else {
    if (dsum && dsum.data != dx.data) cast(dx, dsum);
    layernorm_backward({dx, static_cast<bool>(dsum)}, dgain, dbias, dnormed, sum, mean, rstd, gain);
    residual_backward(dbranch, dgamma, dx, branch, gamma);
  }
  if (dbranch_sum && (gamma || !done)) {
    const Tensor apart = written ? Tensor() : scratch({rows, width}, sum.dtype);
    if (!written) residual_backward({apart}, {}, dx, branch, gamma);
    const CView of = !written ? CView(apart) : gamma ? CView(dbranch.to) : CView(dx);
    linear_backward_weight({}, dbranch_sum, of, of);
  }
  if (codes && !(done && along))
    quantize(codes.codes, {}, codes.scale, gamma ? dbranch.to : dx, {}, codes.format, Granularity::row);
}

}  // namespace switchback::cuda
