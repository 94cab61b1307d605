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
  const int64_t rows = x.rows(), width = x.cols();
  check_place(op, "x", x, x.dtype);
  for (const auto& [name, view] :
       {std::pair("branch", branch), {"sum", CView(sum)}, {"normed", CView(normed)}})
    check_matrix(op, name, view, rows, width, x.dtype);
  for (const auto& [name, view] : {std::pair("gain", gain), {"bias", bias}})
    check_vector(op, name, view, width, x.dtype);
  if (gamma) check_vector(op, "gamma", gamma, width, x.dtype);
  check_vector(op, "mean", mean, rows, DType::f32);
  check_vector(op, "rstd", rstd, rows, DType::f32);
  if (codes) {
    check_matrix(op, "codes", codes.codes, rows, width, code_dtype(codes.format, x.dtype));
    check_vector(op, "scale", codes.scale, rows, DType::f32);
  }
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
  const int64_t rows = sum.rows(), width = sum.cols();
  check_place(op, "sum", sum, sum.dtype);
  for (const auto& [name, view] : {std::pair("dx", CView(dx)), {"dnormed", dnormed}})
    check_matrix(op, name, view, rows, width, sum.dtype);
  if (dsum) check_matrix(op, "dsum", dsum, rows, width, sum.dtype);
  if (branch) check_matrix(op, "branch", branch, rows, width, sum.dtype);
  if (gamma) check_vector(op, "gamma", gamma, width, sum.dtype);
  check_vector(op, "gain", gain, width, sum.dtype);
  check_vector(op, "mean", mean, rows, DType::f32);
  check_vector(op, "rstd", rstd, rows, DType::f32);
  check_sink(op, "dbranch", dbranch, rows, width, sum.dtype);
  check_sink_vector(op, "dbranch_sum", dbranch_sum, width, sum.dtype);
  check_sink_vector(op, "dgamma", dgamma, width, sum.dtype);
  check_sink_vector(op, "dgain", dgain, width, sum.dtype);
  check_sink_vector(op, "dbias", dbias, width, sum.dtype);
  if (codes) {
    check_matrix(op, "codes", codes.codes, rows, width, code_dtype(codes.format, sum.dtype));
    check_vector(op, "scale", codes.scale, rows, DType::f32);
  }
  const bool written = !gamma || (dbranch && !dbranch.accumulate);
  CHECK(!codes || written, op, ": codes of a branch's gradient that is not written here");
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
