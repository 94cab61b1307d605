// layernorm: y = gain x̂ + bias, x̂ = (x - mean) rstd over the last size. Saves x and two numbers a row.
// residual_layernorm: the same of sum = x + gamma branch, in one op. Saves sum; branch only for layer-scale.
//
// Their normalised results know how to come back after Variable::forget_value(): by the forward pass again.
#include "autograd/ops.h"

namespace switchback {
namespace {

// The forward pass of layernorm once more; x is kept for the backward pass anyhow.
void restore_by_layernorm(const Variable& y, const Variable& x, const Variable& gain, const Variable& bias,
                          double epsilon) {
  if (!y.needs_grad()) return;
  y.restore_with([x, gain, bias, epsilon] {
    Tensor value(x.shape(), x.dtype(), x.device());
    Tensor mean({value.rows()}, statistics_dtype(x.dtype()), x.device());
    Tensor rstd(mean.shape(), mean.dtype(), mean.device());
    kernels(x.device()).layernorm_forward(value, mean, rstd, x.value(), gain.value(), bias.value(), epsilon);
    return value;
  });
}

// Room for the codes of the rows of x; none for no format.
Codes row_codes(const Tensor& x, Format format) {
  if (format == Format::none) return {};
  return {Tensor(x.shape(), code_dtype(format, x.dtype()), x.device()),
          Tensor({x.rows()}, DType::f32, x.device()), format};
}

}  // namespace

// x, y (..., C), gain, bias (C); mean, rstd (rows)
Variable layernorm(const Variable& x, const Variable& gain, const Variable& bias, double epsilon) {
  Kernels& k = kernels(x.device());
  Tensor value(x.shape(), x.dtype(), x.device());
  Tensor mean({value.rows()}, statistics_dtype(x.dtype()), x.device());
  Tensor rstd(mean.shape(), mean.dtype(), mean.device());
  k.layernorm_forward(value, mean, rstd, x.value(), gain.value(), bias.value(), epsilon);
  Variable y = result_of(std::move(value), x, gain, bias);
  restore_by_layernorm(y, x, gain, bias, epsilon);
  tape().record("layernorm", y, [&k, x, gain, bias, result = y.gradient(), mean, rstd] {
    Tensor dy = result.take();
    k.layernorm_backward(x.grad_sink(), gain.grad_sink(), bias.grad_sink(), dy, x.value(), mean, rstd,
                         gain.value());
  });
  return y;
}

// x, branch, sum, normed (..., C), gamma, gain, bias (C); mean, rstd (rows).
//   dx = dsum + layernorm's gradient of dnormed, dbranch = gamma dx, dgamma = Σ_rows dx branch, and
//   Σ_rows dbranch for the bias of the product that made branch
Normed residual_layernorm(const Variable& x, const Variable& branch, const Variable& gamma,
                          const Variable& gain, const Variable& bias, double epsilon,
                          const RowFormats& formats) {
  Kernels& k = kernels(x.device());
  Tensor sum_value(x.shape(), x.dtype(), x.device()), value(x.shape(), x.dtype(), x.device());
  Tensor mean({value.rows()}, statistics_dtype(x.dtype()), x.device());
  Tensor rstd(mean.shape(), mean.dtype(), mean.device());
  const Codes codes = row_codes(value, formats.normed);
  k.residual_layernorm_forward(sum_value, value, mean, rstd, x.value(), branch.value(), gamma.value(),
                               gain.value(), bias.value(), epsilon, codes);
  Variable sum = result_of(std::move(sum_value), x, branch, gamma);
  Variable normed = result_of(std::move(value), sum, gain, bias);
  normed.set_codes(codes);
  restore_by_layernorm(normed, sum, gain, bias, epsilon);
  const Variable scaled = gamma.defined() ? branch : Variable();  // its value is wanted for dgamma alone
  tape().record("residual_layernorm", sum, normed,
                [&k, x = x.gradient(), branch = branch.gradient(), scaled, gamma, gain, bias, sum,
                 normed = normed.gradient(), mean, rstd, format = formats.dbranch] {
    Codes codes;  // of branch's gradient
    Tensor dx = sum.has_grad() ? sum.take_grad() : Tensor();
    if (normed.written()) {
      // With layer-scale the sum would be a sweep of its own, which the product does better.
      const Sink dbranch_sum = gamma.defined() ? Sink{} : branch.row_sum_sink();
      Tensor dnormed = normed.take(), dsum = std::move(dx);
      // In dsum's place, unless somebody else still reads it.
      dx = dsum.defined() && !dsum.is_shared() ? dsum : Tensor(sum.shape(), sum.dtype(), sum.device());
      const Sink dbranch = scaled.grad_sink();
      if (branch.needed() && !dbranch.accumulate) codes = row_codes(dx, format);
      k.residual_layernorm_backward(dx, dbranch, dbranch_sum, gamma.grad_sink(), gain.grad_sink(),
                                    bias.grad_sink(), dsum, dnormed, sum.value(), mean, rstd, gain.value(),
                                    scaled.value(), gamma.value(), codes);
    } else if (gamma.defined()) {
      k.residual_backward(scaled.grad_sink(), gamma.grad_sink(), dx, scaled.value(), gamma.value());
    }
    if (!gamma.defined()) branch.adopt(dx);  // shared with x until one of them adds to it (Gradient::sink)
    branch.set_codes(std::move(codes));
    x.adopt(std::move(dx));
  });
  return {sum, normed};
}

}  // namespace switchback
