#include "models/text_transformer.h"

#include "models/initialization.h"

namespace switchback {

TextTransformer::Head TextTransformer::add_head(ParameterArena& arena, const ClipConfig& config) {
  const TextConfig& t = config.text;
  return {arena.add("positional_embedding", {t.context_length, t.width}, Init::normal_with(0.01)),
          arena.add("text_projection", {t.width, config.embed_dim},
                    Init::normal_with(1 / std::sqrt(static_cast<double>(t.width))))};
}

TextTransformer::TextTransformer(ParameterArena& arena, const ClipConfig& config, Head head)
    : head_(std::move(head)),
      transformer_(arena, "transformer", config.text.layers, text_block(config)),
      token_embedding_(arena.add("token_embedding.weight", {config.text.vocab_size, config.text.width},
                                 Init::normal_with(0.02))),
      ln_final_(arena, "ln_final", config.text.width) {}

Variable TextTransformer::operator()(const Tensor& tokens, const Recomputation& recompute) const {
  CHECK(tokens.shape().rank() == 2 && tokens.shape()[1] <= head_.positional_embedding.shape()[0],
        "tokens are ", tokens.shape(), ", the model wants (B, at most ",
        head_.positional_embedding.shape()[0], ")");
  Tensor end({tokens.shape()[0]}, DType::i32, tokens.device());  // place of the end-of-text token
  kernels(tokens.device()).find_largest_token(end, tokens);

  Variable x = text_embed(token_embedding_, head_.positional_embedding, tokens);  // (B, T, C)
  x = transformer_(std::exchange(x, {}), end, recompute);  // (B, C): the end-of-text tokens
  return project(ln_final_(x), head_.text_projection);     // (B, E)
}

}  // namespace switchback
