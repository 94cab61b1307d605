// checkpoint.h: give up activations, compute them again when they are needed.
//
// y = f(x) runs without a tape, so it keeps only x and y. Its backward pass runs f once more with a tape of
// its own and walks that one back. Exact: f must compute the same both times (random numbers come from
// counters, so they do). Costs one extra forward pass of f; gradient accumulation over parts of a batch is
// checkpoint(tower) per part.
//
// f may have two arguments and two results, each of which may be absent. What is known of a result's gradient
// (codes of its rows, that its row sum is taken: variable.h) crosses the border with it: an op behind it and
// an op inside work together as if there were no border.
//
// Between "keep all" and "keep nothing" there are activations that cost little to make again. A Recompute
// level says which of a transformer block's are given up; the results have the same bits at every level. Per
// block, with B T tokens of width C and the usual 4 C in the MLP (2 bytes each in bf16):
//   none     16 B T C kept
//   gelu     12: the GELU's result is made again from its input, on the way back through it
//   cheap    10: the layernorms' results, too (one more sweep over their inputs)
//   blocks    1: the block's input alone, for one more forward pass
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string_view>

#include "autograd/tape.h"

namespace switchback {

enum class Recompute : uint8_t { none, gelu, cheap, blocks };

// A level for the first `blocks` blocks of each tower, when some of the memory is enough; the others keep
// all.
struct Recomputation {
  Recompute level;
  int64_t blocks;
  Recomputation(Recompute level = Recompute::none, int64_t blocks = std::numeric_limits<int64_t>::max())
      : level(level), blocks(blocks) {}
  Recompute of_block(int64_t i) const { return i < blocks ? level : Recompute::none; }
};
// "gelu": in all blocks, "gelu:8": in the first 8 of each tower. Fails when there is no such level.
Recomputation find_recompute(std::string_view text);

using TwoVariables = std::array<Variable, 2>;
TwoVariables checkpoint(const TwoVariables& x, const std::function<TwoVariables(const TwoVariables&)>& f);
Variable checkpoint(const Variable& x, const std::function<Variable(const Variable&)>& f);

}  // namespace switchback
