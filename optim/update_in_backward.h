// update_in_backward.h: the optimizer's update within the backward pass, one transformer block at a time.
//
// A block's gradients are final when the backward pass has left the block, and nothing behind that place
// reads its weights. Updated there, its gradients are done with before those of the next block but one are
// begun, and the gradients of all blocks fit into two buffers (ParameterArena::share_gradients): ViT-L/14
// needs 1.3 GiB less, ViT-H/14 3.3. What lies outside of blocks is updated behind the backward pass.
//
//   UpdateInBackward update(arena, optimizer);   // from before the forward pass
//   arena.begin_backward();
//   ... forward, tape().backward(loss) ...       // blocks are updated meanwhile
//   arena.finish_backward();
//   update.finish();                             // the rest; in place of optimizer.update()
//
// The bits are those of an update behind the backward pass: a tensor's update reads nothing of other tensors
// (the RMS of StableAdamW, the test for an Inf or a NaN and the norms in the log are per tensor). Not so with
// a global norm that clips (all gradients come before the first update), with parts of a batch (the gradients
// of all blocks are begun before the first one is final) and with several ranks (gradients are summed up
// first, some of them behind the backward pass).
//
// A step that fails halfway through its backward pass, for lack of memory, has updated some of the blocks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchback {

class AdamW;
class ParameterArena;

class UpdateInBackward {
 public:
  // While it lives, it is the arena's listener. The gradients of the arena's blocks share memory.
  UpdateInBackward(ParameterArena& arena, AdamW& optimizer);
  ~UpdateInBackward();
  UpdateInBackward(const UpdateInBackward&) = delete;

  void finish();

 private:
  void part_done(std::string_view name);

  ParameterArena& arena_;
  AdamW& optimizer_;
  std::vector<bool> done_;  // by part of the arena
};

// What --optimizer-in-backward auto, on or off means for this run. Fails where it is on and cannot be.
bool update_in_backward(const std::string& choice, int64_t ranks, int64_t parts, double max_gradient_norm);

}  // namespace switchback
