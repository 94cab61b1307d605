#include "autograd/variable.h"

#include <utility>

#include "kernels/kernels.h"

namespace switchback {

Gradient::Gradient(Shape shape, DType dtype, Device device, bool needed) : node_(std::make_shared<Node>()) {
  node_->shape = shape;
  node_->dtype = dtype;
  node_->device = device;
  node_->needed = needed;
}

Sink Gradient::sink() const {
  if (!needed()) return {};
  Node& n = *node_;
  n.codes = {};
  CHECK(!n.row_sum_written || !n.written, "a gradient whose sum over rows is taken gets another part");
  if (!n.tensor.defined()) n.tensor = Tensor(n.shape, n.dtype, n.device);
  const bool add = std::exchange(n.written, true);
  if (add && !n.is_fixed && n.tensor.is_shared()) {  // an adopted gradient that somebody else still reads
    Tensor own(n.tensor.shape(), n.tensor.dtype(), n.tensor.device());
    kernels(own.device()).cast(own, n.tensor);
    n.tensor = std::move(own);
  }
  return {n.tensor, add};
}

Tensor Gradient::take() const {
  CHECK(written() && !node_->is_fixed, "no gradient to take");
  node_->written = false;
  node_->codes = {};
  return std::exchange(node_->tensor, {});
}

void Gradient::adopt(Tensor gradient) const {
  if (!needed()) return;
  Node& n = *node_;
  CHECK(gradient.shape() == n.shape, "gradient ", gradient.shape(), " for a value ", n.shape);
  if (!n.written && !n.is_fixed) {
    n.tensor = std::move(gradient);
    n.written = true;
  } else {
    kernels(gradient.device()).accumulate(sink(), gradient);
  }
}

void Gradient::set_codes(Codes codes) const {
  if (written()) node_->codes = std::move(codes);
}

Codes Gradient::take_codes() const { return node_ ? std::exchange(node_->codes, {}) : Codes(); }

void Gradient::move_to(const Gradient& other) const {
  if (!written()) return;
  Codes codes = take_codes();
  other.adopt(take());
  other.set_codes(std::move(codes));
  if (other.needed()) other.node_->row_sum_written = node_->row_sum_written;
}

void Gradient::sum_rows_into(Gradient bias) const {
  if (needed() && bias.needed()) node_->row_sum = std::move(bias.node_);
}

Sink Gradient::row_sum_sink() const {
  if (!needed() || !node_->row_sum || node_->written) return {};
  node_->row_sum_written = true;
  Gradient bias;
  bias.node_ = node_->row_sum;
  return bias.sink();
}

Variable::Variable(Tensor value, bool needs_grad)
    : value_(std::make_shared<Value>()), gradient_(value.shape(), value.dtype(), value.device(), needs_grad) {
  value_->tensor = std::move(value);
}

const Tensor& Variable::value() const {
  static const Tensor absent;
  if (!value_) return absent;
  if (!value_->tensor.defined() && value_->restore) value_->tensor = value_->restore();
  return value_->tensor;
}

void Variable::forget_value() const {
  value_->codes = {};
  if (value_->restore) value_->tensor = {};
}

const Gradient::Node& Variable::node() const {
  static const Gradient::Node absent;
  return gradient_.node_ ? *gradient_.node_ : absent;
}

}  // namespace switchback
