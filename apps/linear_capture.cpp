#include "apps/linear_capture.h"

#include <algorithm>
#include <map>
#include <utility>

#include "autograd/tape.h"
#include "kernels/transfer.h"

namespace switchback {
namespace {

// A copy (M, C) f32 in host memory: the tensor itself may be written to later.
Tensor copied(const Tensor& tensor) {
  const Tensor matrix = to_host(tensor).reshape({tensor.rows(), tensor.cols()});
  Tensor copy(matrix.shape(), DType::f32);
  kernels(cpu_device).cast(copy, matrix);
  return copy;
}

class Capture {
 public:
  Capture(const ParameterArena& arena, const std::vector<std::string>& blocks, Gelu gelu)
      : arena_(arena), blocks_(blocks), gelu_(gelu) {}

  void see(std::string_view region, std::string_view op, const Variable& result) {
    // `result` is what came of the linear's y: passed backwards, this mark finds dy complete.
    if (waiting_) tape().mark("capture", std::exchange(waiting_, {}));
    if (std::ranges::find(blocks_, region) != blocks_.end()) {
      const std::string block(region);
      if (op == "linear") {
        const bool first = !std::exchange(has_qkv_[block], true);
        waiting_ = [this, x = before_, y = result, block, first] {
          add(block + (first ? ".attn.in_proj" : ".attn.out_proj"),
              weight(block + (first ? ".attn.in_proj_weight" : ".attn.out_proj.weight")), x.value(),
              y.grad());
        };
      } else if (op == "mlp") {
        waiting_ = [this, x = before_, y = result, block] { add_mlp(block + ".mlp", x.value(), y.grad()); };
      }
    }
    before_ = result;
  }
  std::vector<LinearCapture> take() { return std::move(captured_); }

 private:
  const Parameter& parameter(const std::string& name) const {
    const ParameterArena::Segment* segment = arena_.find(name);
    CHECK(segment, "the model has no ", name);
    return segment->parameter;
  }
  const Tensor& weight(const std::string& name) const { return parameter(name).value(); }

  void add(const std::string& name, const Tensor& w, const Tensor& x, const Tensor& dy) {
    CHECK(dy.defined(), name, ": its result has no gradient");
    captured_.push_back({name, copied(x), copied(w), copied(dy)});
  }
  // g = gelu(u), u = x fcᵀ + b;  du = (dy proj) gelu'(u)
  void add_mlp(const std::string& prefix, const Tensor& x, const Tensor& dy) {
    CHECK(dy.defined(), prefix, ": its result has no gradient");
    const Tensor &fc = weight(prefix + ".c_fc.weight"), &proj = weight(prefix + ".c_proj.weight");
    const Tensor g(x.shape().with_cols(fc.rows()), x.dtype(), x.device());
    const Tensor u(g.shape(), x.dtype(), x.device()), du(g.shape(), x.dtype(), x.device());
    Kernels& k = kernels(x.device());
    k.linear_gelu_forward(g, u, x, fc, weight(prefix + ".c_fc.bias"), gelu_);
    k.linear_gelu_backward_input({du}, {}, dy, proj, u, gelu_);
    add(prefix + ".c_proj", proj, g, dy);
    add(prefix + ".c_fc", fc, x, du);
  }

  const ParameterArena& arena_;
  const std::vector<std::string>& blocks_;
  Gelu gelu_;
  Variable before_;                // the result of the op before
  std::function<void()> waiting_;  // for the next op, to be marked before it
  std::map<std::string, bool> has_qkv_;
  std::vector<LinearCapture> captured_;
};

}  // namespace

std::vector<LinearCapture> capture_linears(const ParameterArena& arena,
                                           const std::vector<std::string>& blocks, Gelu gelu,
                                           const std::function<void()>& step) {
  Capture capture(arena, blocks, gelu);
  Tape::observe([&](std::string_view region, std::string_view op, const Variable& result) {
    capture.see(region, op, result);
  });
  try {
    step();
  } catch (...) {
    Tape::observe({});
    throw;
  }
  Tape::observe({});
  return capture.take();
}

}  // namespace switchback
