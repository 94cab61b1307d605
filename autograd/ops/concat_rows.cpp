// concat_rows: parts of a batch joined again, so that the loss sees all of it (gradient accumulation).
#include "autograd/ops.h"

namespace switchback {

// parts[i] (B_i, ...) -> (Σ B_i, ...).   Each part's gradient is a slice of the whole's: nothing is copied
Variable concat_rows(const std::vector<Variable>& parts) {
  CHECK(!parts.empty(), "concat_rows: no parts");
  if (parts.size() == 1) return parts[0];
  Kernels& k = kernels(parts[0].device());
  int64_t rows = 0;
  bool needs_grad = false;
  for (const Variable& part : parts) {
    rows += part.shape()[0];
    needs_grad |= part.needs_grad();
  }
  Tensor value(parts[0].shape().with_first(rows), parts[0].dtype(), parts[0].device());
  int64_t from = 0;
  for (const Variable& part : parts) {
    k.cast(value.slice(from, part.shape()[0]), part.value());
    from += part.shape()[0];
  }
  Variable y(std::move(value), needs_grad && !Tape::paused());
  std::vector<std::pair<Gradient, int64_t>> gradients;  // and the rows of each part
  for (const Variable& part : parts) gradients.emplace_back(part.gradient(), part.shape()[0]);
  tape().record("concat_rows", y, [gradients, result = y.gradient()] {
    Tensor dy = result.take();
    int64_t from = 0;
    for (const auto& [gradient, rows] : gradients) {
      gradient.adopt(dy.slice(from, rows));
      from += rows;
    }
  });
  return y;
}

}  // namespace switchback
