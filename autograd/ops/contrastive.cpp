// contrastive: the two losses of a CLIP. Neither ever stores the N x N logits; both save one or two numbers a
// row.
#include "autograd/ops.h"

namespace switchback {

// images, texts (B, E) normalised, logit_scale () -> loss ():  mean of both directions' cross entropies
Variable contrastive_loss(const Variable& images, const Variable& texts, const Variable& logit_scale) {
  Kernels& k = kernels(images.device());
  const int64_t batch = images.shape()[0];
  Tensor value({}, images.dtype(), images.device());
  Tensor image_lse({batch}, images.dtype(), images.device());  // lse of row i over texts
  Tensor text_lse({batch}, images.dtype(), images.device());   // lse of column i over images
  k.contrastive_forward(value, image_lse, text_lse, images.value(), texts.value(), images.value(),
                        texts.value(), logit_scale.value(), 0);
  Variable loss = result_of(std::move(value), images, texts, logit_scale);
  tape().record("contrastive_loss", loss, [&k, images, texts, logit_scale, loss, image_lse, text_lse] {
    Tensor dloss = loss.take_grad();
    k.contrastive_backward(images.grad_sink(), texts.grad_sink(), logit_scale.grad_sink(), dloss,
                           images.value(), texts.value(), images.value(), texts.value(), image_lse, text_lse,
                           logit_scale.value(), 0);
  });
  return loss;
}

// images, texts (B, E) normalised, logit_scale (), logit_bias () -> loss ()
Variable siglip_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                     const Variable& logit_bias) {
  Kernels& k = kernels(images.device());
  Tensor value({}, images.dtype(), images.device());
  k.siglip_forward(value, images.value(), texts.value(), texts.value(), logit_scale.value(),
                   logit_bias.value(), 0);
  Variable loss = result_of(std::move(value), images, texts, logit_scale, logit_bias);
  tape().record("siglip_loss", loss, [&k, images, texts, logit_scale, logit_bias, loss] {
    Tensor dloss = loss.take_grad();
    k.siglip_backward(images.grad_sink(), texts.grad_sink(), logit_scale.grad_sink(), logit_bias.grad_sink(),
                      dloss, images.value(), texts.value(), images.value(), texts.value(),
                      logit_scale.value(), logit_bias.value(), 0);
  });
  return loss;
}

}  // namespace switchback
