// The engine against PyTorch: features, loss, every gradient, and weights after optimizer steps, for one
// small CLIP with random values in all of its parameters. scripts/make_clip_golden.py says what is in the
// file. It was computed in f64, so the engine in f32 shows its own rounding (bar 1e-4, measured below 1e-5)
// and in f64 only that of the file (f32).
#include <algorithm>
#include <map>

#include "optim/stable_adamw.h"
#include "runtime/safetensors.h"
#include "tests/models/model_test.h"

namespace switchback {
namespace {

const SafetensorsFile& golden() {
  static const SafetensorsFile file("tests/golden/clip.safetensors");
  return file;
}

Tensor stored(const std::string& name) {
  const StoredTensor& s = golden().at(name);
  Shape shape;
  for (int64_t size : s.shape) shape.append(size);
  Tensor t(shape, s.dtype == "U8" ? DType::u8 : s.dtype == "I32" ? DType::i32 : DType::f32);
  golden().load_into(name, t);
  return t;
}

enum class Variant { exact, quick_gelu, layer_scale, siglip, patch_dropout };
const std::map<Variant, std::string> variants{{Variant::exact, "exact"},
                                              {Variant::quick_gelu, "quick_gelu"},
                                              {Variant::layer_scale, "layer_scale"},
                                              {Variant::siglip, "siglip"},
                                              {Variant::patch_dropout, "patch_dropout"}};

ClipConfig golden_config(Variant variant) {
  ClipConfig c;
  c.name = "golden";
  c.embed_dim = 12;
  c.vision = {.image_size = 16, .patch_size = 4, .width = 24, .layers = 2, .head_width = 12, .mlp_ratio = 2};
  c.text = {.context_length = 10, .vocab_size = 64, .width = 16, .heads = 2, .layers = 2, .mlp_ratio = 4};
  c.quick_gelu = variant == Variant::quick_gelu;
  if (variant == Variant::layer_scale) c.vision.layer_scale = c.text.layer_scale = 1.0;
  if (variant == Variant::siglip) c.init_logit_bias = -10;
  if (variant == Variant::patch_dropout) c.vision.patch_dropout = 0.4;
  return c;
}

// The model with the file's weights, and the file's batch.
struct Golden : Model {
  Tensor images = stored("images");  // (6, 16, 16, 3) u8
  Tensor tokens = stored("tokens");  // (6, 10) i32
  PatchDropout dropout{7'000'000'011, Tensor::of<int64_t>({}, {3}), 5};
  Clip::Options options;

  Golden(Variant variant, DType dtype) : Model(golden_config(variant), dtype) {
    for (const auto& s : arena.segments()) golden().load_into("weights/" + s.name, arena.master_of(s));
    arena.publish_masters();
    if (variant == Variant::patch_dropout) options.dropout = &dropout;
  }
};

// The tokens with row b + t in row b.
Tensor rolled(const Tensor& tokens, int64_t t) {
  Tensor result(tokens.shape(), DType::i32);
  const int64_t rows = tokens.rows(), cols = tokens.cols();
  for (int64_t b = 0; b < rows; ++b)
    std::copy_n(tokens.span<int32_t>().begin() + (b + t) % rows * cols, cols,
                result.span<int32_t>().begin() + b * cols);
  return result;
}

// Keeps the largest error of several comparisons, for the message.
class Worst {
 public:
  void compare(const std::string& name, const Tensor& ours, const Tensor& theirs, double bar) {
    const double error = relative_error(ours, theirs);
    INFO(name, ": relative error ", error);
    CHECK_EQ(ours.shape(), theirs.shape());
    CHECK_LE(error, bar);
    if (error > worst_) worst_ = error, name_ = name;
  }
  void report(const std::string& what) const {
    MESSAGE(what << ": largest relative error " << worst_ << " (" << name_ << ")");
  }

 private:
  double worst_ = 0;
  std::string name_;
};

void check_forward_and_gradients(Variant variant, DType dtype, double bar) {
  const std::string prefix = variants.at(variant) + "/";
  CAPTURE(prefix);
  Golden g(variant, dtype);
  Worst worst;
  Variable image, text;
  Variable loss;
  g.run([&] {
    image = g.clip.encode_image(g.images, g.options);
    text = g.clip.encode_text(g.tokens, g.options);
    loss = g.clip.loss(image, text);
    return loss;
  });
  worst.compare(prefix + "image_features", image.value(), stored(prefix + "image_features"), bar);
  worst.compare(prefix + "text_features", text.value(), stored(prefix + "text_features"), bar);
  worst.compare(prefix + "loss", loss.value(), stored(prefix + "loss"), bar);
  size_t gradients = 0;
  for (const auto& s : g.arena.segments()) {
    worst.compare(prefix + "gradient/" + s.name, g.arena.gradient_of(s),
                  stored(prefix + "gradient/" + s.name), bar);
    ++gradients;
  }
  const auto of_variant =
      std::count_if(golden().names().begin(), golden().names().end(),
                    [&](const std::string& name) { return name.starts_with(prefix + "gradient/"); });
  CHECK_EQ(gradients, static_cast<size_t>(of_variant));
  worst.report(concat(dtype, " ", prefix));
}

TEST_CASE("features, loss and every gradient agree with PyTorch") {
  for (const auto& [variant, name] : variants) {
    check_forward_and_gradients(variant, DType::f32, 1e-4);
    check_forward_and_gradients(variant, DType::f64, 2e-7);  // the file's own rounding is 6e-8
  }
}

TEST_CASE("patch dropout keeps the patches that the definition of its random numbers says") {
  const Golden g(Variant::patch_dropout, DType::f32);
  const Tensor expected = stored("keep");  // (6, 9)
  Tensor keep(expected.shape(), DType::i32);
  kernels(cpu_device).choose_patches(keep, 16, g.dropout.seed, g.dropout.step, g.dropout.first_sample);
  for (int64_t i = 0; i < keep.size(); ++i) CHECK_EQ(keep.span<int32_t>()[i], expected.span<int32_t>()[i]);
}

// weight decay as open_clip's version 3 had it, and PyTorch's AdamW; epsilon and betas of open_clip
AdamWOptions golden_optimizer(bool stable) {
  AdamWOptions o;
  o.beta1 = 0.9;
  o.beta2 = 0.98;
  o.weight_decay = 0.2;
  o.decay_rule = DecayRule::v3;
  o.update.epsilon = 1e-6;
  return stable ? stable_adamw(o) : o;
}

// Softmax ignores what all keys have in common, so the gradient of their bias is 0 but for rounding, which
// Adam divides by itself: in f32 that third (q, k, v) of in_proj_bias takes steps of random size. In f64 it
// is compared like the rest.
Tensor without_key_bias(const Tensor& bias) {
  const int64_t width = bias.size() / 3;
  std::vector<float> kept(bias.span<float>().begin(), bias.span<float>().end());
  kept.erase(kept.begin() + width, kept.begin() + 2 * width);
  return Tensor::of<float>({2 * width}, kept);
}

void check_training(bool stable, int64_t steps, DType dtype, double bar) {
  const std::string prefix = stable ? "exact/stable3/" : concat("exact/adamw", steps, "/");
  CAPTURE(prefix);
  Golden g(Variant::exact, dtype);
  AdamW optimizer(g.arena, golden_optimizer(stable));
  const double loss_factors[] = {1, 3, 9};
  for (int64_t t = 0; t < steps; ++t) {
    g.run([&] {
      return g.clip.loss(g.clip.encode_image(g.images, g.options),
                         g.clip.encode_text(rolled(g.tokens, t), g.options));
    });
    visit_float(dtype, "factor", [&](auto tag) {
      using T = decltype(tag);
      if constexpr (!std::is_same_v<T, bfloat16>)
        for (T& v : g.arena.gradients().span<T>()) v *= static_cast<T>(loss_factors[t]);
    });
    optimizer.step(0.01);
    g.clip.clamp_logit_scale();
  }
  if (stable) CHECK_GT(optimizer.report().largest_rms, 1.2);  // the clipping was in use
  Worst worst;
  for (const auto& s : g.arena.segments()) {
    Tensor ours = g.arena.master_of(s), theirs = stored(prefix + s.name);
    if (dtype == DType::f32 && s.name.ends_with("in_proj_bias")) {
      ours = without_key_bias(ours);
      theirs = without_key_bias(theirs);
    }
    worst.compare(prefix + s.name, ours, theirs, bar);
  }
  worst.report(concat(dtype, " ", prefix));
}

TEST_CASE("weights after AdamW and StableAdamW steps agree with PyTorch") {
  for (bool stable : {false, true})
    for (int64_t steps : {1, 3}) {
      if (stable && steps == 1) continue;
      check_training(stable, steps, DType::f32, 1e-4);
      check_training(stable, steps, DType::f64, 2e-7);
    }
}

}  // namespace
}  // namespace switchback
