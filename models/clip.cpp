#include "models/clip.h"

#include <cmath>

#include "distributed/communicator.h"
#include "models/text_length.h"

namespace switchback {

Clip::Clip(ParameterArena& arena, const ClipConfig& config)
    : arena_(&arena),
      config_((check_config(config), config)),
      text_head_(TextTransformer::add_head(arena, config)),
      logit_scale_(arena.add("logit_scale", {}, Init::value(config.init_logit_scale), true)),
      logit_bias_(config.init_logit_bias
                      ? arena.add("logit_bias", {}, Init::value(*config.init_logit_bias), true)
                      : Parameter()),
      visual_(arena, config),
      text_(arena, config, text_head_) {}

Variable Clip::encode_image(const Tensor& images, const Options& options) const {
  Tape::Region region("visual");
  arena_->begin_part("visual");
  return l2_normalize(visual_(images, options.normalization, options.dropout, options.recompute));
}

Variable Clip::encode_text(const Tensor& tokens, const Options& options) const {
  Tape::Region region("text");
  arena_->begin_part("text");
  return l2_normalize(text_(tokens, options.recompute));
}

Tensor Clip::needed_columns(const Tensor& tokens) const {
  if (!text_may_stop(config_)) return tokens;
  const int64_t length = text_length(tokens);
  if (length == tokens.cols()) return tokens;
  Tensor needed({tokens.rows(), length}, tokens.dtype());
  copy_columns(needed, tokens);
  return needed;
}

Variable Clip::loss(const Variable& image_features, const Variable& text_features) const {
  return loss(image_features, text_features, single_rank());
}

Variable Clip::loss(const Variable& image_features, const Variable& text_features, Communicator& ranks) const {
  return logit_bias_.defined() ? siglip_loss(image_features, text_features, logit_scale_, logit_bias_, ranks)
                               : contrastive_loss(image_features, text_features, logit_scale_, ranks);
}

void Clip::clamp_logit_scale() const {
  kernels(logit_scale_.device()).clamp(logit_scale_.value(), 0, std::log(100.0));
}

}  // namespace switchback
