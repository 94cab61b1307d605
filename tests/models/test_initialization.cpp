// First values: distribution of every class of parameters, as open_clip draws them. Means and deviations are
// compared within five standard errors, so a formula that is off by a few per cent fails.
#include "models/flops.h"
#include "tests/models/model_test.h"

namespace switchback {
namespace {

ClipConfig medium_config() {
  ClipConfig c;
  c.name = "medium";
  c.embed_dim = 80;
  c.vision = {.image_size = 64, .patch_size = 8, .width = 128, .layers = 3, .head_width = 32, .mlp_ratio = 3};
  c.text = {.context_length = 40, .vocab_size = 500, .width = 96, .heads = 3, .layers = 5, .mlp_ratio = 2};
  c.vision.layer_scale = 0.25;
  return c;
}

struct Moments {
  double mean = 0, deviation = 0, largest = 0;
  double size = 0;
};

Moments statistics(const Tensor& t) {
  Moments s;
  s.size = static_cast<double>(t.size());
  for (double v : doubles(t)) s.mean += v / s.size, s.largest = std::max(s.largest, std::fabs(v));
  for (double v : doubles(t)) s.deviation += (v - s.mean) * (v - s.mean) / s.size;
  s.deviation = std::sqrt(s.deviation);
  return s;
}

void check_normal(const Model& m, const std::string& name, double deviation) {
  const Moments s = statistics(m.master(name));
  INFO(name, ": mean ", s.mean, ", deviation ", s.deviation, ", expected ", deviation);
  CHECK_LE(std::fabs(s.mean), 5 * deviation / std::sqrt(s.size));
  CHECK_LE(std::fabs(s.deviation / deviation - 1), 5 / std::sqrt(2 * s.size));
  if (s.size > 1000) CHECK_GT(s.largest, 3 * deviation);  // a uniform one would end at 1.73
}

void check_uniform(const Model& m, const std::string& name, double bound) {
  const Moments s = statistics(m.master(name));
  INFO(name, ": mean ", s.mean, ", deviation ", s.deviation, ", largest ", s.largest, ", expected bound ",
       bound);
  CHECK_LE(s.largest, bound * (1 + 1e-6));
  CHECK_GE(s.largest, bound * (1 - 10 / s.size));
  CHECK_LE(std::fabs(s.mean), 5 * bound / std::sqrt(3 * s.size));
  CHECK_LE(std::fabs(s.deviation / bound * std::sqrt(3.0) - 1), 5 * std::sqrt(0.2 / s.size));
}

void check_constant(const Model& m, const std::string& name, double value) {
  INFO(name);
  for (double v : doubles(m.master(name))) REQUIRE_EQ(v, static_cast<double>(static_cast<float>(value)));
}

TEST_CASE("every parameter starts as open_clip's does") {
  const ClipConfig c = medium_config();
  const Model m(c, DType::f32, 17);
  const double w = 128, h = 384, tw = 96, th = 192, layers = 5;

  for (const char* name : {"visual.class_embedding", "visual.positional_embedding", "visual.proj"})
    check_normal(m, name, std::pow(w, -0.5));
  check_uniform(m, "visual.conv1.weight", 1 / std::sqrt(3 * 8 * 8.0));
  check_normal(m, "token_embedding.weight", 0.02);
  check_normal(m, "positional_embedding", 0.01);
  check_normal(m, "text_projection", std::pow(tw, -0.5));
  check_constant(m, "logit_scale", std::log(1 / 0.07));

  for (int i = 0; i < 3; ++i) {
    const std::string b = concat("visual.transformer.resblocks.", i, ".");
    check_uniform(m, b + "attn.in_proj_weight", std::sqrt(6 / (4 * w)));
    check_uniform(m, b + "attn.out_proj.weight", 1 / std::sqrt(w));
    check_uniform(m, b + "mlp.c_fc.weight", 1 / std::sqrt(w));
    check_uniform(m, b + "mlp.c_fc.bias", 1 / std::sqrt(w));
    check_uniform(m, b + "mlp.c_proj.weight", 1 / std::sqrt(h));
    check_uniform(m, b + "mlp.c_proj.bias", 1 / std::sqrt(h));
    check_constant(m, b + "attn.in_proj_bias", 0);
    check_constant(m, b + "attn.out_proj.bias", 0);
    check_constant(m, b + "ls_1.gamma", 0.25);
    check_constant(m, b + "ls_2.gamma", 0.25);
  }
  for (int i = 0; i < 5; ++i) {
    const std::string b = concat("transformer.resblocks.", i, ".");
    check_normal(m, b + "attn.in_proj_weight", std::pow(tw, -0.5));
    check_normal(m, b + "attn.out_proj.weight", std::pow(tw, -0.5) * std::pow(2 * layers, -0.5));
    check_normal(m, b + "mlp.c_proj.weight", std::pow(tw, -0.5) * std::pow(2 * layers, -0.5));
    check_normal(m, b + "mlp.c_fc.weight", std::pow(2 * tw, -0.5));
    check_uniform(m, b + "mlp.c_fc.bias", 1 / std::sqrt(tw));
    check_uniform(m, b + "mlp.c_proj.bias", 1 / std::sqrt(th));
    check_constant(m, b + "attn.in_proj_bias", 0);
    check_constant(m, b + "attn.out_proj.bias", 0);
  }
  for (const auto& s : m.arena.segments()) {
    const bool norm = s.name.find("ln_") != std::string::npos;
    if (norm) check_constant(m, s.name, s.name.ends_with("weight") ? 1 : 0);
  }
}

TEST_CASE("SigLIP's temperature and bias come from the config") {
  ClipConfig c = tiny_config();
  c.init_logit_scale = std::log(10.0);
  c.init_logit_bias = -10;
  const Model m(c, DType::f32);
  check_constant(m, "logit_scale", std::log(10.0));
  check_constant(m, "logit_bias", -10);
}

TEST_CASE("first values depend on the seed and on the parameter, and on nothing else") {
  const Model a(tiny_config(), DType::f32, 3), b(tiny_config(), DType::f32, 3),
      other(tiny_config(), DType::f32, 4);
  ClipConfig deeper = tiny_config();
  deeper.vision.layers = 3;
  const Model longer(deeper, DType::f32, 3);
  for (const auto& s : a.arena.segments()) {
    CAPTURE(s.name);
    CHECK_EQ(doubles(a.master(s.name)), doubles(b.master(s.name)));
    CHECK_EQ(doubles(a.master(s.name)), doubles(longer.master(s.name)));
    if (s.init.kind != Init::constant) CHECK_NE(doubles(a.master(s.name)), doubles(other.master(s.name)));
  }
  const std::string block = "visual.transformer.resblocks.";
  CHECK_NE(doubles(a.master(block + "0.mlp.c_fc.weight")), doubles(a.master(block + "1.mlp.c_fc.weight")));
}

}  // namespace
}  // namespace switchback
