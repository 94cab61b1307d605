#include "models/flops.h"

namespace switchback {
namespace {

double tower(double tokens, double width, double mlp, double layers, double embed) {
  const double block = 2 * tokens * (4 * width * width + 2 * width * mlp) + 4 * tokens * tokens * width;
  return layers * block + 2 * width * embed;
}

int64_t block_parameters(int64_t width, int64_t mlp, bool layer_scale) {
  return 4 * width                             // ln_1, ln_2
         + 3 * width * width + 3 * width       // in_proj
         + width * width + width               // out_proj
         + 2 * width * mlp + mlp + width       // c_fc, c_proj
         + (layer_scale ? 2 * width : 0);
}

}  // namespace

ClipFlops nominal_flops(const ClipConfig& c) {
  const VisionConfig& v = c.vision;
  const double patches = static_cast<double>(v.patches());
  const double width = static_cast<double>(v.width), embed = static_cast<double>(c.embed_dim);
  ClipFlops f;
  f.image =
      tower(patches + 1, width, static_cast<double>(v.mlp_width()), static_cast<double>(v.layers), embed) +
      2 * patches * 3 * static_cast<double>(v.patch_size * v.patch_size) * width;
  f.text = tower(static_cast<double>(c.text.context_length), static_cast<double>(c.text.width),
                 static_cast<double>(c.text.mlp_width()), static_cast<double>(c.text.layers), embed);
  return f;
}

int64_t parameter_count(const ClipConfig& c) {
  const VisionConfig& v = c.vision;
  const TextConfig& t = c.text;
  const int64_t vision = v.width + (v.patches() + 1) * v.width + v.width * c.embed_dim +
                         v.width * 3 * v.patch_size * v.patch_size + 4 * v.width +
                         v.layers * block_parameters(v.width, v.mlp_width(), v.layer_scale.has_value());
  const int64_t text = t.context_length * t.width + t.width * c.embed_dim + t.vocab_size * t.width +
                       2 * t.width +
                       t.layers * block_parameters(t.width, t.mlp_width(), t.layer_scale.has_value());
  return vision + text + 1 + (c.init_logit_bias ? 1 : 0);
}

}  // namespace switchback
