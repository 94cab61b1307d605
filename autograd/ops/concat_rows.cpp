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
  tape().record("concat_rows", y, [parts, y] {
    Tensor dy = y.take_grad();
    int64_t from = 0;
    for (const Variable& part : parts) {
      part.adopt_grad(dy.slice(from, part.shape()[0]));
      from += part.shape()[0];
    }
  });
  return y;
}

}  // namespace switchback
