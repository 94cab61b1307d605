// contrastive: the softmax loss of CLIP, over the batch of all ranks. The N x N logits are never stored;
// saved are two numbers a row.
//
// Every rank has B rows of the N = world B. It takes its own rows against the columns of all, which gives its
// share of the loss (shares add up) and, in the backward pass, the exact and complete gradient of its own
// features: the other ranks' rows enter through their lse, which is gathered like the features. Nothing is
// sent back.
#include "autograd/ops.h"
#include "distributed/communicator.h"

namespace switchback {
namespace {

// own (B, ...) of every rank, one after the other: (world B, ...). To be joined before it is read.
Tensor gathered(const Tensor& own, Communicator& ranks) {
  if (ranks.world_size() == 1) return own;
  Tensor all(own.shape().with_first(own.shape()[0] * ranks.world_size()), own.dtype(), own.device());
  ranks.all_gather(all, own);
  return all;
}

}  // namespace

// images, texts (B, E) normalised, logit_scale () -> loss ():  this rank's share of the mean of both
// directions' cross entropies over N rows
Variable contrastive_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                          Communicator& ranks) {
  Kernels& k = kernels(images.device());
  const int64_t batch = images.shape()[0], first_row = ranks.rank() * batch;
  Tensor value({}, images.dtype(), images.device());
  Tensor image_lse({batch}, images.dtype(), images.device());  // lse of row i over texts
  Tensor text_lse({batch}, images.dtype(), images.device());   // lse of column i over images
  Tensor all_images = gathered(images.value(), ranks);         // (N, E)
  Tensor all_texts = gathered(texts.value(), ranks);           // (N, E)
  ranks.join();
  k.contrastive_forward(value, image_lse, text_lse, images.value(), texts.value(), all_images, all_texts,
                        logit_scale.value(), first_row);
  Variable loss = result_of(std::move(value), images, texts, logit_scale);
  tape().record(
      "contrastive_loss", loss,
      [&k, &ranks, images, texts, logit_scale, loss, all_images, all_texts, image_lse, text_lse, first_row] {
        Tensor dloss = loss.take_grad();
        const Tensor all_image_lse = gathered(image_lse, ranks),
                     all_text_lse = gathered(text_lse, ranks);  // (N)
        ranks.join();
        k.contrastive_backward(images.grad_sink(), texts.grad_sink(), logit_scale.grad_sink(), dloss,
                               images.value(), texts.value(), all_images, all_texts, all_image_lse,
                               all_text_lse, logit_scale.value(), first_row);
      });
  return loss;
}

Variable contrastive_loss(const Variable& images, const Variable& texts, const Variable& logit_scale) {
  return contrastive_loss(images, texts, logit_scale, single_rank());
}

}  // namespace switchback
