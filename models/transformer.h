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
  Transformer(ParameterArena& arena, const std::string& prefix, int64_t layers, const BlockOptions& options)
      : whole_last_(options.whole_last) {
    for (int64_t i = 0; i < layers; ++i)
      blocks_.emplace_back(arena, prefix + ".resblocks." + std::to_string(i), options);
  }

  // x (B, T, C) -> the rows x[b, place[b]] of the result, (B, C); place (B) i32, undefined: row 0
  Variable operator()(Variable x, const Tensor& place, const Recomputation& recompute) const {
    if (blocks_.empty()) return pool(x, place);
    const Block& last = blocks_.back();
    Block::Stream stream = blocks_.front().enter(std::exchange(x, {}));
    size_t i = 0;
    for (; i + 1 < blocks_.size(); ++i) stream = blocks_[i](stream, &blocks_[i + 1], recompute.of_block(i));
    if (whole_last_) return pool(last(stream, nullptr, recompute.of_block(i)).sum, place);
    return last.last(stream, place, recompute.of_block(i));
  }

 private:
  std::vector<Block> blocks_;
  bool whole_last_;
};

}  // namespace switchback
