// transformer.h: a stack of blocks, with as much recomputation in the backward pass as is asked for.
#pragma once

#include <utility>
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

  // x (B, T, C) -> (B, T, C)
  Variable operator()(Variable x, Recompute recompute) const {
    if (recompute == Recompute::blocks) {
      for (const Block& block : blocks_)
        x = checkpoint(x, [&block](const Variable& input) { return block(input); });
      return x;
    }
    if (blocks_.empty()) return x;
    Block::Stream stream = blocks_.front().enter(std::exchange(x, {}));
    for (size_t i = 0; i < blocks_.size(); ++i)
      stream = blocks_[i](std::move(stream), i + 1 < blocks_.size() ? &blocks_[i + 1] : nullptr, recompute);
    return stream.sum;
  }

 private:
  std::vector<Block> blocks_;
};

}  // namespace switchback
