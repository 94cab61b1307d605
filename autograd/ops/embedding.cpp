// embedding: the two ways into a transformer: patches with a class token, and token ids. Both add positions.
#include "autograd/ops.h"

namespace switchback {

// patches (B K, C), class_embedding (C), positions (N+1, C), keep (B, K) -> x (B, K+1, C)
Variable vision_embed(const Variable& patches, const Variable& class_embedding, const Variable& positions,
                      const Tensor& keep, int64_t batch) {
  Kernels& k = kernels(patches.device());
  CHECK(patches.value().rows() % batch == 0, "vision_embed: ", patches.value().rows(), " patches for ", batch,
        " images");
  Tensor value({batch, patches.value().rows() / batch + 1, patches.value().cols()}, patches.dtype(),
               patches.device());
  k.vision_embed_forward(value, patches.value(), class_embedding.value(), positions.value(), keep);
  Variable x = result_of(std::move(value), patches, class_embedding, positions);
  tape().record("vision_embed", x, [&k, dpatches = patches.gradient(), class_embedding, positions, keep,
                                   dx = x.gradient()] {
    k.vision_embed_backward(dpatches.sink(), class_embedding.grad_sink(), positions.grad_sink(), dx.take(),
                            keep);
  });
  return x;
}

// tokens (B, T), table (V, C), positions (≥ T, C) -> x (B, T, C)
Variable text_embed(const Variable& table, const Variable& positions, const Tensor& tokens) {
  Kernels& k = kernels(table.device());
  Tensor value({tokens.shape()[0], tokens.shape()[1], table.value().cols()}, table.dtype(), table.device());
  k.text_embed_forward(value, table.value(), positions.value(), tokens);
  Variable x = result_of(std::move(value), table, positions);
  tape().record("text_embed", x, [&k, table, positions, tokens, dx = x.gradient()] {
    k.text_embed_backward(table.grad_sink(), positions.grad_sink(), dx.take(), tokens);
  });
  return x;
}

}  // namespace switchback
