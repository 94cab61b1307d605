// block.h: the pre-norm transformer block that both towers are made of.
//
//   x = x + gamma_1 attention(ln_1(x))
//   x = x + gamma_2 mlp(ln_2(x)),       mlp = c_proj(gelu(c_fc(x)))
//
// gamma (C) is layer-scale (paper section 5): with initial value 0 the network starts as the identity, and
// its features stay small enough for tensor-wise fp8. Without it the branches are added as they are.
#pragma once

#include <optional>
#include <string>

#include "nn/layernorm.h"
#include "nn/linear.h"

namespace switchback {

struct BlockOptions {
  int64_t width = 0;      // C
  int64_t heads = 0;
  int64_t mlp_width = 0;  // hidden size of the mlp
  bool causal = false;
  Gelu gelu = Gelu::exact;
  std::optional<double> layer_scale;  // initial value of gamma

  // First values, which differ between the towers (models/initialization.h).
  Init qkv, out, fc, fc_bias, proj, proj_bias;
};

class Block {
 public:
  Block(ParameterArena& arena, const std::string& prefix, const BlockOptions& o)
      : name_(prefix),
        options_(o),
        ln_1_(arena, prefix + ".ln_1", o.width),
        qkv_(arena, {prefix + ".attn.in_proj_weight", prefix + ".attn.in_proj_bias"}, o.width, 3 * o.width,
             o.qkv, Init::zeros()),
        out_(arena, {prefix + ".attn.out_proj.weight", prefix + ".attn.out_proj.bias"}, o.width, o.width,
             o.out, Init::zeros()),
        gamma_1_(gamma(arena, prefix + ".ls_1.gamma", o)),
        ln_2_(arena, prefix + ".ln_2", o.width),
        fc_(arena, {prefix + ".mlp.c_fc.weight", prefix + ".mlp.c_fc.bias"}, o.width, o.mlp_width, o.fc,
            o.fc_bias),
        proj_(arena, {prefix + ".mlp.c_proj.weight", prefix + ".mlp.c_proj.bias"}, o.mlp_width, o.width,
              o.proj, o.proj_bias),
        gamma_2_(gamma(arena, prefix + ".ls_2.gamma", o)) {}

  // x (B, T, C) -> (B, T, C)
  Variable operator()(Variable x) const {
    Tape::Region region(name_);
    x = residual(x, out_(attention(qkv_(ln_1_(x)), options_.heads, options_.causal)), gamma_1_);
    return residual(x, proj_(gelu(fc_(ln_2_(x)), options_.gelu)), gamma_2_);
  }

 private:
  static Parameter gamma(ParameterArena& arena, const std::string& name, const BlockOptions& o) {
    return o.layer_scale ? arena.add(name, {o.width}, Init::value(*o.layer_scale)) : Parameter();
  }

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
