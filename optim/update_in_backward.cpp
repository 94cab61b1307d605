#include "optim/update_in_backward.h"

#include <algorithm>

#include "autograd/tape.h"
#include "nn/parameter.h"
#include "optim/adamw.h"

namespace switchback {

UpdateInBackward::UpdateInBackward(ParameterArena& arena, AdamW& optimizer)
    : arena_(arena), optimizer_(optimizer), done_(arena.parts().size()) {
  CHECK(arena.shares_gradients(), "an update within the backward pass is for gradients that share memory");
  arena.listen([this](std::string_view name) { part_done(name); });
}

UpdateInBackward::~UpdateInBackward() { arena_.listen({}); }

void UpdateInBackward::part_done(std::string_view name) {
  const auto part = std::ranges::find(arena_.parts(), name, &ParameterArena::Part::name);
  if (part == arena_.parts().end() || !part->shares) return;  // a tower: behind the backward pass
  const auto number = static_cast<size_t>(part - arena_.parts().begin());
  CHECK(!done_[number], name, " runs twice in a step: its gradients are not final after the first pass");
  for (size_t i = part->range.first; i < part->range.first + part->range.count; ++i)
    arena_.finish_gradient(i);  // 0 where nobody wrote, not what another block left there
  optimizer_.update(part->range);
  done_[number] = true;
  Tape::part_done("optimizer", "of a block");
}

void UpdateInBackward::finish() {
  for (size_t i = 0; i < done_.size(); ++i)
    if (!done_[i]) optimizer_.update(arena_.parts()[i].range);
  optimizer_.finish_update();
  done_.assign(done_.size(), false);
}

bool update_in_backward(const std::string& choice, int64_t ranks, int64_t parts, double max_gradient_norm) {
  if (choice != "auto" && choice != "on" && choice != "off")
    fail("--optimizer-in-backward is ", choice, ": it must be auto, on or off");
  if (choice == "off") return false;
  const char* obstacle = max_gradient_norm > 0 ? "--grad-clip-norm, which wants all gradients first"
                         : parts > 1           ? "--accum-freq, whose parts all add to every gradient"
                         : ranks > 1           ? "several ranks, which add up their gradients first"
                                               : nullptr;
  if (obstacle && choice == "on") fail("--optimizer-in-backward on does not go with ", obstacle);
  return !obstacle;
}

}  // namespace switchback
