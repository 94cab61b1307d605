// siglip: the pairwise sigmoid loss, over the batch of all ranks, as a ring.
//
// The N x N pairs fall into world x world tiles of B images against B texts, and every pair stands for
// itself, so a tile needs nothing from the others. Every rank keeps its images; the texts travel from rank to
// rank, and each computes its tile with the texts that it has just then. In the backward pass the texts
// travel once more, and their gradient behind them: each rank adds its tile's part and passes the sum on,
// until it is home. Beside its own features a rank holds five blocks of B x E, whatever the world; gathered
// features would be 2 world of them.
//
// While a tile is computed, the texts of the next one arrive, and so does what the ranks before have summed
// up for this one's texts. At step t = 0, 1, ... rank r has the texts of rank r - t, so the order of every
// sum is fixed: owner, the rank behind it, ...
#include <array>

#include "autograd/ops.h"
#include "distributed/communicator.h"

namespace switchback {
namespace {

// The texts as they come by: own ones first, then those of the rank before, and so on. Two blocks of memory.
class TextRing {
 public:
  TextRing(const Tensor& own, Communicator& ranks) : ranks_(ranks), own_(own), rows_(own.shape()[0]) {}

  int64_t step() const { return step_; }
  bool last() const { return step_ == ranks_.world_size() - 1; }
  const Tensor& texts() const { return step_ == 0 ? own_ : blocks_[step_ % 2]; }
  // These texts, row j, belong to image j - match() of this rank, if it has that many.
  int64_t match() const {
    const int64_t owner = (ranks_.rank() - step_ + ranks_.world_size()) % ranks_.world_size();
    return (ranks_.rank() - owner) * rows_;
  }
  // The next texts begin to travel, beside the kernels that read these.
  void send() {
    if (last()) return;
    Tensor& next = blocks_[(step_ + 1) % 2];
    if (!next.defined()) next = Tensor(own_.shape(), own_.dtype(), own_.device());
    ranks_.shift(next, texts());
  }
  // They are here. What is on its way is joined by the caller.
  void advance() { ++step_; }

 private:
  Communicator& ranks_;
  Tensor own_;  // (B, E)
  int64_t rows_, step_ = 0;
  std::array<Tensor, 2> blocks_;
};

Sink added(Sink sink, bool add) { return {sink.to, sink.accumulate || add}; }

}  // namespace

// images, texts (B, E) normalised, logit_scale (), logit_bias () -> loss (): this rank's share, its images'
Variable siglip_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                     const Variable& logit_bias, Communicator& ranks) {
  Kernels& k = kernels(images.device());
  const int64_t batch = images.shape()[0] * ranks.world_size();
  CHECK(texts.shape() == images.shape(), "SigLIP of images ", images.shape(), " and texts ", texts.shape());
  Tensor value({}, images.dtype(), images.device());
  for (TextRing ring(texts.value(), ranks);; ring.advance()) {
    ring.send();
    k.siglip_forward({value, ring.step() > 0}, images.value(), ring.texts(), logit_scale.value(),
                     logit_bias.value(), ring.match(), batch);
    ranks.join();
    if (ring.last()) break;
  }
  Variable loss = result_of(std::move(value), images, texts, logit_scale, logit_bias);
  tape().record("siglip_loss", loss, [&k, &ranks, images, texts, logit_scale, logit_bias, loss, batch] {
    const Tensor dloss = loss.take_grad();
    const Sink dimages = images.grad_sink(), dtexts = texts.grad_sink(), dscale = logit_scale.grad_sink(),
               dbias = logit_bias.grad_sink();
    const auto block = [&] { return Tensor(texts.shape(), texts.dtype(), texts.device()); };  // (B, E)
    const bool travels = dtexts && ranks.world_size() > 1;
    Tensor sum, arriving, part;
    if (travels) sum = block(), arriving = block(), part = block();
    for (TextRing ring(texts.value(), ranks);; ring.advance()) {
      const bool add = ring.step() > 0;
      if (travels && add) ranks.shift(arriving, sum);  // of this step's texts, by the ranks before
      ring.send();
      const Sink own_part = !dtexts ? Sink{} : !travels ? dtexts : Sink{add ? part : sum, false};
      k.siglip_backward(added(dimages, add), own_part, added(dscale, add), added(dbias, add), dloss,
                        images.value(), ring.texts(), logit_scale.value(), logit_bias.value(), ring.match(),
                        batch);
      ranks.join();
      if (travels && add) {
        std::swap(sum, arriving);
        k.accumulate({sum, true}, part);
      }
      if (ring.last()) break;
    }
    if (!travels) return;
    ranks.shift(arriving, sum);  // the texts here are the next rank's: home
    ranks.join();
    k.accumulate(dtexts, arriving);
  });
  return loss;
}

Variable siglip_loss(const Variable& images, const Variable& texts, const Variable& logit_scale,
                     const Variable& logit_bias) {
  return siglip_loss(images, texts, logit_scale, logit_bias, single_rank());
}

}  // namespace switchback
