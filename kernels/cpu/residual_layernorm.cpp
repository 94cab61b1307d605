// residual_layernorm.cpp: a residual connection and the layernorm behind it, as one op because one kernel can
// do both in one sweep. Here it is what it means: one after the other.
//   sum = x + gamma branch,   normed = gain x̂(sum) + bias
//   dx = dsum + layernorm_backward(dnormed),   dbranch = gamma dx,   dgamma = Σ_rows dx branch,
//   dbranch_sum = Σ_rows dbranch
// x, branch, sum, normed, dx (M, C), gamma, gain, bias (C), mean, rstd (M) in R.
#include "kernels/cpu/access.h"

namespace switchback {

void CpuKernels::residual_layernorm_forward(View sum, View normed, View mean, View rstd, CView x,
                                            CView branch, CView gamma, CView gain, CView bias, double epsilon,
                                            RowCodes codes) {
  const char* op = "residual_layernorm_forward";
  Require::residual_layernorm_forward(op, sum, normed, mean, rstd, x, branch, gamma, gain, bias, codes);
  residual_forward(sum, x, branch, gamma);
  layernorm_forward(normed, mean, rstd, sum, gain, bias, epsilon);
  if (codes) quantize(codes.codes, {}, codes.scale, normed, {}, codes.format, Granularity::row);
}

void CpuKernels::residual_layernorm_backward(View dx, Sink dbranch, Sink dbranch_sum, Sink dgamma, Sink dgain,
                                             Sink dbias, CView dsum, CView dnormed, CView sum, CView mean,
                                             CView rstd, CView gain, CView branch, CView gamma,
                                             RowCodes codes) {
  const char* op = "residual_layernorm_backward";
  Require::residual_layernorm_backward(op, dx, dbranch, dbranch_sum, dgamma, dgain, dbias, dsum, dnormed, sum,
                                       mean, rstd, gain, branch, gamma, codes);
  if (dsum && dsum.data != dx.data) cast(dx, dsum);
  layernorm_backward({dx, static_cast<bool>(dsum)}, dgain, dbias, dnormed, sum, mean, rstd, gain);
  residual_backward(dbranch, dgamma, dx, branch, gamma);
  const bool written = !gamma || (dbranch && !dbranch.accumulate);
  if (dbranch_sum) {
    const Tensor apart = written ? Tensor() : Tensor(sum.shape, sum.dtype);
    if (!written) residual_backward({apart}, {}, dx, branch, gamma);
    const CView of = !written ? CView(apart) : gamma ? CView(dbranch.to) : CView(dx);
    linear_backward_weight({}, dbranch_sum, of, of);
  }
  if (codes)
    quantize(codes.codes, {}, codes.scale, gamma ? dbranch.to : dx, {}, codes.format, Granularity::row);
}

}  // namespace switchback
