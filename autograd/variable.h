// variable.h: a tensor that takes part in differentiation: a value, and a gradient that is written where it
// is needed.
//
// A Variable is a shared handle: copies mean the same value and the same Gradient. What a closure captures
// stays alive, so an op that wants no value in its backward pass captures the gradient alone (x.gradient()):
// the value goes when its last reader does.
//
// A gradient comes into being on the first write:
//   sink()    where to write it. The first writer overwrites, later ones add: no memset, no temporary sums.
//             Empty when nobody needs the gradient: kernels skip the work.
//   take()    moves it out when the op that made the variable runs backward: its last reader frees it.
//   adopt()   gives the variable a gradient that exists already (the residual stream): moved, not copied;
//             added when there is one. Several variables may adopt the same tensor: the first that must add
//             to it takes a copy.
//
// Beside a value or a gradient may lie the codes of its rows (kernels/formats.h), made by the op that made it
// for the one low-precision linear that reads it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "kernels/formats.h"

namespace switchback {

class Gradient {
 public:
  Gradient() = default;  // of an absent variable
  Gradient(Shape shape, DType dtype, Device device, bool needed);

  bool needed() const { return node_ && node_->needed; }
  bool written() const { return node_ && node_->written; }
  Sink sink() const;
  Tensor take() const;
  void adopt(Tensor gradient) const;
  // Codes of the gradient as it is now: whatever is written to it later drops them.
  void set_codes(Codes codes) const;
  Codes take_codes() const;
  // Another variable of the same value gets this gradient, with all that is known of it.
  void move_to(const Gradient& other) const;

  // The bias of the product that made the variable: its gradient is this gradient's sum over rows, and the op
  // that computes this gradient may have that sum for nothing. Such an op writes it into row_sum_sink(), at
  // most once and with the whole gradient, and the product finds row_sum_written().
  void sum_rows_into(Gradient bias) const;
  Sink row_sum_sink() const;
  bool row_sum_written() const { return node_ && node_->row_sum_written; }

 private:
  friend class Variable;
  friend class ParameterArena;
  struct Node {
    Shape shape;  // of value and gradient
    DType dtype = DType::f32;
    Device device;
    Tensor tensor;  // of parameters: a fixed part of the arena
    bool needed = false;
    bool written = false;
    bool is_fixed = false;  // memory belongs to the arena: take() is not for it, adopt() copies
    Codes codes;
    std::shared_ptr<Node> row_sum;
    bool row_sum_written = false;
  };
  std::shared_ptr<Node> node_;
};

class Variable {
 public:
  Variable() = default;  // absent: an optional operand that is not there
  // A result or an input. needs_grad: whether anything before it wants a gradient.
  explicit Variable(Tensor value, bool needs_grad = false);

  bool defined() const { return value_ != nullptr; }
  const Tensor& value() const;  // an undefined tensor (empty view) when absent
  const Shape& shape() const { return node().shape; }
  DType dtype() const { return node().dtype; }
  Device device() const { return node().device; }

  // Recomputation: forget_value() frees the value of a variable that knows how to restore it; the next
  // value() computes it again, the same bits, and keeps it. A variable that knows no way keeps its value.
  void restore_with(std::function<Tensor()> restore) const { value_->restore = std::move(restore); }
  void forget_value() const;
  void set_codes(Codes codes) const { value_->codes = std::move(codes); }
  Codes take_codes() const { return value_ ? std::exchange(value_->codes, {}) : Codes(); }

  const Gradient& gradient() const { return gradient_; }
  bool needs_grad() const { return gradient_.needed(); }
  void set_needs_grad(bool needs) { gradient_.node_->needed = needs; }
  bool has_grad() const { return gradient_.written(); }
  Sink grad_sink() const { return gradient_.sink(); }
  Tensor take_grad() const { return gradient_.take(); }
  void adopt_grad(Tensor gradient) const { gradient_.adopt(std::move(gradient)); }
  const Tensor& grad() const { return gradient_.node_->tensor; }

 protected:
  friend class ParameterArena;
  const Gradient::Node& node() const;
  struct Value {
    std::string name;  // of parameters
    Tensor tensor;
    Codes codes;
    std::function<Tensor()> restore;
  };
  std::shared_ptr<Value> value_;
  Gradient gradient_;
};

}  // namespace switchback
