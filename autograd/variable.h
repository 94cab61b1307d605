// variable.h: a tensor that takes part in differentiation: a value, and a gradient that is written where it
// is needed.
//
// A Variable is a shared handle: copies mean the same node. Its gradient comes into being on the first write:
//   grad_sink()   where to write it. The first writer overwrites, later ones add: no memset, no temporary sums.
//                 Empty when the variable needs no gradient: kernels skip the work.
//   take_grad()   moves it out when the op that made the variable runs backward: its last reader frees it.
//   adopt_grad()  gives the variable a gradient that exists already (the residual stream): moved, not copied;
//                 added when there is one. Several variables may adopt the same tensor: the first that must
//                 add to it takes a copy.
#pragma once

#include <memory>
#include <string>

#include "runtime/tensor.h"

namespace switchback {

class Variable {
 public:
  Variable() = default;  // absent: an optional operand that is not there
  // A result or an input. needs_grad: whether anything before it wants a gradient.
  explicit Variable(Tensor value, bool needs_grad = false);

  bool defined() const { return node_ != nullptr; }
  const Tensor& value() const;  // an undefined tensor (empty view) when absent
  const Shape& shape() const { return value().shape(); }
  DType dtype() const { return value().dtype(); }
  Device device() const { return value().device(); }

  bool needs_grad() const { return node_ && node_->needs_grad; }
  void set_needs_grad(bool needs) { node_->needs_grad = needs; }
  bool has_grad() const { return node_ && node_->grad_written; }

  Sink grad_sink() const;
  Tensor take_grad() const;
  void adopt_grad(Tensor grad) const;
  const Tensor& grad() const { return node_->grad; }

 protected:
  struct Node {
    std::string name;  // of parameters
    Tensor value;
    Tensor grad;  // of parameters: a fixed part of the arena
    bool needs_grad = false;
    bool grad_written = false;
    bool grad_is_fixed = false;  // memory belongs to the arena: take_grad is not for it, adopt_grad copies
  };
  std::shared_ptr<Node> node_;
};

}  // namespace switchback
