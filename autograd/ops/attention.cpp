// attention: out = softmax(q kᵀ/√D + mask) v per sample and head. Saves qkv, out and one number a row (lse):
// the T x T probabilities are computed again in the backward pass.
#include "autograd/ops.h"

namespace switchback {

// qkv (B, T, 3C), out (B, T, C), lse (B, H, T)
Variable attention(const Variable& qkv, int64_t heads, bool causal) {
  Kernels& k = kernels(qkv.device());
  const Shape& s = qkv.shape();
  CHECK(s.rank() == 3 && s[2] % (3 * heads) == 0, "attention: qkv ", s, " is not (B, T, 3 x heads x D) for ",
        heads, " heads");
  Tensor value({s[0], s[1], s[2] / 3}, qkv.dtype(), qkv.device());
  Tensor lse({s[0], heads, s[1]}, statistics_dtype(qkv.dtype()), qkv.device());
  k.attention_forward(value, lse, qkv.value(), heads, causal);
  Variable out = result_of(std::move(value), qkv);
  tape().record("attention", out, [&k, qkv, out, lse, heads, causal] {
    Tensor dout = out.take_grad();
    k.attention_backward(qkv.grad_sink(), dout, qkv.value(), out.value(), lse, heads, causal);
  });
  return out;
}

}  // namespace switchback
