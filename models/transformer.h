// transformer.h: a stack of blocks, with or without recomputation in the backward pass.
#pragma once

#include <vector>

#include "autograd/checkpoint.h"
#include "nn/block.h"

namespace switchback {

class Transformer {
 public:
  // Parameters are named PREFIX.resblocks.{i}.*
  Transformer(ParameterArena& arena, const std::string& prefix, int64_t layers, const BlockOptions& options) {
    for (int64_t i = 0; i < layers; ++i)
      blocks_.emplace_back(arena, prefix + ".resblocks." + std::to_string(i), options);
  }

  // x (B, T, C) -> (B, T, C).  recompute: keep only the input of each block (--grad-checkpointing)
  Variable operator()(Variable x, bool recompute) const {
    for (const Block& block : blocks_)
      x = recompute ? checkpoint(x, [&block](const Variable& input) { return block(input); }) : block(x);
    return x;
  }

 private:
  std::vector<Block> blocks_;
};

}  // namespace switchback
