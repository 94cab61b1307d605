#include "models/vision_transformer.h"

#include "models/initialization.h"

namespace switchback {

VisionTransformer::VisionTransformer(ParameterArena& arena, const ClipConfig& config)
    : config_(config.vision),
      class_embedding_(arena.add("visual.class_embedding", {config_.width},
                                 Init::normal_with(1 / std::sqrt(static_cast<double>(config_.width))))),
      positional_embedding_(arena.add("visual.positional_embedding", {config_.patches() + 1, config_.width},
                                      Init::normal_with(1 / std::sqrt(static_cast<double>(config_.width))))),
      proj_(arena.add("visual.proj", {config_.width, config.embed_dim},
                      Init::normal_with(1 / std::sqrt(static_cast<double>(config_.width))))),
      conv1_(arena.add("visual.conv1.weight", {config_.width, 3, config_.patch_size, config_.patch_size},
                       default_linear(3 * config_.patch_size * config_.patch_size))),
      ln_pre_(arena, "visual.ln_pre", config_.width),
      transformer_(arena, "visual.transformer", config_.layers, vision_block(config)),
      ln_post_(arena, "visual.ln_post", config_.width) {}

Variable VisionTransformer::operator()(const Tensor& pixels, const PixelNormalization& normalization,
                                       const PatchDropout* dropout, const Recomputation& recompute) const {
  const Shape& s = pixels.shape();
  CHECK(s.rank() == 4 && s[1] == config_.image_size && s[2] == config_.image_size && s[3] == 3, "images are ",
        s, ", the model wants (B, ", config_.image_size, ", ", config_.image_size, ", 3)");
  const int64_t batch = s[0];
  Kernels& k = kernels(pixels.device());

  Tensor keep;  // (B, K) numbers of the patches looked at; undefined: all
  if (dropout && config_.patch_dropout > 0) {
    keep = Tensor({batch, config_.kept_patches(config_.patch_dropout)}, DType::i32, pixels.device());
    k.choose_patches(keep, config_.patches(), dropout->seed, dropout->step, dropout->first_sample);
  }
  const int64_t kept = keep.defined() ? keep.shape()[1] : config_.patches();
  const int64_t patch_values = 3 * config_.patch_size * config_.patch_size;
  Tensor patches({batch * kept, patch_values}, conv1_.dtype(), pixels.device());
  k.extract_patches(patches, pixels, keep, config_.patch_size, normalization);

  Variable x = linear(Variable(patches), conv1_);                             // (B K, C)
  x = vision_embed(x, class_embedding_, positional_embedding_, keep, batch);  // (B, K+1, C)
  x = transformer_(ln_pre_(x), {}, recompute);                                // (B, C): the class tokens
  return project(ln_post_(x), proj_);                                         // (B, E)
}

}  // namespace switchback
