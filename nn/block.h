// block.h: the pre-norm transformer block that both towers are made of.
//
//   x = x + gamma_1 attention(ln_1(x))
//   x = x + gamma_2 mlp(ln_2(x)),       mlp = c_proj(gelu(c_fc(x)))
//
// gamma (C) is layer-scale (paper section 5): with initial value 0 the network starts as the identity, and
// its features stay small enough for tensor-wise fp8. Without it the branches are added as they are.
//
// Between two branches stand a residual connection and a layernorm: one op (residual_layernorm), also where
// the layernorm is the next block's. So blocks hand each other the stream with its normalised copy.
#pragma once

#include <optional>
#include <string>

#include "autograd/checkpoint.h"
#include "nn/layernorm.h"
#include "nn/linear.h"

namespace switchback {

struct BlockOptions {
  int64_t width = 0;  // C
  int64_t heads = 0;
  int64_t mlp_width = 0;  // hidden size of the mlp
  bool causal = false;
  Gelu gelu = Gelu::exact;
  std::optional<double> layer_scale;                // initial value of gamma
  const LinearRecipe* linear = &standard_recipe();  // of qkv, out, fc and proj
  bool whole_last = false;                          // a tower's last block computes rows that nobody reads

  // First values, which differ between the towers (models/initialization.h).
  Init qkv, out, fc, fc_bias, proj, proj_bias;
};

class Block {
 public:
  Block(ParameterArena& arena, const std::string& prefix, const BlockOptions& o)
      : arena_(&arena),
        name_(prefix),
        options_(o),
        ln_1_(arena, prefix + ".ln_1", o.width),
        qkv_(arena, {prefix + ".attn.in_proj_weight", prefix + ".attn.in_proj_bias"}, o.width, 3 * o.width,
             o.qkv, Init::zeros(), *o.linear),
        out_(arena, {prefix + ".attn.out_proj.weight", prefix + ".attn.out_proj.bias"}, o.width, o.width,
             o.out, Init::zeros(), *o.linear),
        gamma_1_(gamma(arena, prefix + ".ls_1.gamma", o)),
        ln_2_(arena, prefix + ".ln_2", o.width),
        fc_(arena, {prefix + ".mlp.c_fc.weight", prefix + ".mlp.c_fc.bias"}, o.width, o.mlp_width, o.fc,
            o.fc_bias, *o.linear),
        proj_(arena, {prefix + ".mlp.c_proj.weight", prefix + ".mlp.c_proj.bias"}, o.mlp_width, o.width,
              o.proj, o.proj_bias, *o.linear),
        gamma_2_(gamma(arena, prefix + ".ls_2.gamma", o)) {}

  // The stream, and what the next branch reads: ln_1 of it before a block, absent after the last one
  using Stream = Normed;

  Stream enter(const Variable& x) const {
    Tape::Region region(name_);
    arena_->begin_part(name_);
    return {x, ln_1_(x)};
  }
  // x (B, T, C) -> (B, T, C).  next: the block whose ln_1 follows, or nullptr
  Stream operator()(const Stream& s, const Block* next, Recompute recompute) const {
    Tape::Region region(name_);
    return finish(branch_off(s, nullptr, recompute), next);
  }
  // The last block of a tower, where one row of every sample is read (pool): what follows attention works row
  // by row, so it is done for these rows alone, 1/T of the work.
  // x (B, T, C), place (B) or undefined -> (B, C)
  Variable last(const Stream& s, const Tensor& place, Recompute recompute) const {
    Tape::Region region(name_);
    return finish(branch_off(s, &place, recompute), nullptr).sum;
  }
  // The block by itself: x (B, T, C) -> (B, T, C)
  Variable operator()(const Variable& x) const { return (*this)(enter(x), nullptr, Recompute::none).sum; }

  const std::string& name() const { return name_; }

 private:
  // The stream behind attention, and the MLP's branch that is to be added to it. place: which rows are read
  TwoVariables branch_off(const Stream& s, const Tensor* place, Recompute recompute) const {
    if (recompute != Recompute::blocks) return compute(s, place, recompute);
    const std::optional<Tensor> rows = place ? std::optional(*place) : std::nullopt;
    const TwoVariables y = checkpoint({s.sum, s.normed}, [this, rows](const TwoVariables& x) {
      Tape::Region region(name_);
      TwoVariables y = compute({x[0], x[1]}, rows ? &*rows : nullptr, Recompute::none);
      // Layer-scale's gradient wants the branch, which is not kept: so it is added where it is made again.
      if (gamma_2_.defined()) y = {residual(y[0], y[1], gamma_2_), {}};
      return y;
    });
    s.normed.forget_value();
    y[1].gradient().sum_rows_into(proj_.bias().gradient());
    return y;
  }
  TwoVariables compute(const Stream& x, const Tensor* place, Recompute recompute) const {
    const auto read = [place](const Variable& v) { return place ? pool(v, *place) : v; };
    const Variable heads = attention(qkv_(x.normed), options_.heads, options_.causal);
    if (recompute == Recompute::cheap) x.normed.forget_value();
    const Stream s = ln_2_(read(x.sum), out_(read(heads)), gamma_1_, formats());
    const Variable branch =
        mlp(s.normed, fc_.weight(), fc_.bias(), proj_.weight(), proj_.bias(), options_.gelu,
            recompute == Recompute::none, fc_.precision(), proj_.precision());
    if (recompute == Recompute::cheap) s.normed.forget_value();
    return {s.sum, branch};
  }
  // y: the stream and the branch that is to be added; without one it is added already
  Stream finish(const TwoVariables& y, const Block* next) const {
    const auto& [sum, branch] = y;
    if (!next) return {branch.defined() ? residual(sum, branch, gamma_2_) : sum, {}};
    arena_->begin_part(next->name_);  // its ln_1 is a part of the op that ends this block
    if (!branch.defined()) return {sum, next->ln_1_(sum)};
    return next->ln_1_(sum, branch, gamma_2_, formats());
  }
  // A layernorm leaves codes for the linear behind it, and on the way back for the one before it.
  RowFormats formats() const {
    return {options_.linear->input_row_codes(), options_.linear->gradient_row_codes()};
  }
  static Parameter gamma(ParameterArena& arena, const std::string& name, const BlockOptions& o) {
    return o.layer_scale ? arena.add(name, {o.width}, Init::value(*o.layer_scale)) : Parameter();
  }

  const ParameterArena* arena_;
  std::string name_;
  BlockOptions options_;
  LayerNorm ln_1_;
  Linear qkv_, out_;
  Parameter gamma_1_;
  LayerNorm ln_2_;
  Linear fc_, proj_;
  Parameter gamma_2_;
};

}  // namespace switchback
