// Sizes of the presets: parameter totals and FLOPs of open_clip's model profile, names and shapes of the
// state dict, the model JSON. The numbers are those of open_clip's documentation, to the last digit.
#include <filesystem>
#include <fstream>

#include "models/flops.h"
#include "models/presets.h"
#include "tests/models/model_test.h"

namespace switchback {
namespace {

struct Profile {
  const char* name;
  int64_t parameters;
  double image, text;        // GFLOP forward
  double forward, training;  // GFLOP
};
constexpr Profile profiles[] = {
    {"ViT-S-32", 63085825, 2.29, 3.38, 5.66, 17.0},
    {"ViT-S-16", 62257537, 9.20, 3.38, 12.58, 37.7},
    {"ViT-B-32", 151277313, 8.82, 5.96, 14.78, 44.3},
    {"ViT-B-16", 149620737, 35.13, 5.96, 41.09, 123.3},
    {"ViT-L-14", 427616513, 162.03, 13.30, 175.33, 526.0},
    {"ViT-L-14-336", 427944193, 381.92, 13.30, 395.22, 1185.7},
    {"ViT-H-14", 986109441, 334.59, 47.09, 381.68, 1145.0},
    {"ViT-g-14", 1366678273, 534.06, 47.09, 581.15, 1743.5},
    {"ViT-bigG-14", 2539567105, 967.50, 97.86, 1065.36, 3196.1},
};

TEST_CASE("parameter totals are those of open_clip's model profile") {
  for (const Profile& p : profiles) {
    CAPTURE(p.name);
    CHECK_EQ(parameter_count(find_model(p.name)), p.parameters);
    ParameterArena arena(DType::f32, cpu_device, 1);  // the table of segments only: nothing is allocated
    const Clip clip(arena, find_model(p.name));
    CHECK_EQ(arena.parameter_count(), p.parameters);
  }
  CHECK_EQ(parameter_count(find_model("ViT-H-14-quickgelu")), 986109441);
}

TEST_CASE("arithmetic and construction count the same parameters for every preset") {
  for (ClipConfig config : presets()) {
    for (bool extras : {false, true}) {
      if (extras) config.vision.layer_scale = config.text.layer_scale = 0, config.init_logit_bias = -10;
      CAPTURE(config.name);
      ParameterArena arena(DType::f32, cpu_device, 1);
      const Clip clip(arena, config);
      CHECK_EQ(arena.parameter_count(), parameter_count(config));
    }
  }
}

TEST_CASE("FLOPs are those of open_clip's model profile") {
  for (const Profile& p : profiles) {
    CAPTURE(p.name);
    const ClipFlops f = nominal_flops(find_model(p.name));
    CHECK(std::fabs(f.image / 1e9 - p.image) <= 0.0051);
    CHECK(std::fabs(f.text / 1e9 - p.text) <= 0.0051);
    CHECK(std::fabs(f.forward() / 1e9 - p.forward) <= 0.0051);
    CHECK(std::fabs(f.training() / 1e9 - p.training) <= 0.051);
  }
}

// The state dict of an open_clip CLIP in named_parameters() order, written down once more.
std::vector<std::pair<std::string, Shape>> state_dict(const ClipConfig& c) {
  std::vector<std::pair<std::string, Shape>> all;
  const auto tower = [&](const std::string& prefix, int64_t layers, int64_t w, int64_t h, bool scaled) {
    for (int64_t i = 0; i < layers; ++i) {
      const std::string b = prefix + "transformer.resblocks." + std::to_string(i) + ".";
      all.insert(all.end(), {{b + "ln_1.weight", {w}}, {b + "ln_1.bias", {w}}});
      all.insert(all.end(), {{b + "attn.in_proj_weight", {3 * w, w}}, {b + "attn.in_proj_bias", {3 * w}}});
      all.insert(all.end(), {{b + "attn.out_proj.weight", {w, w}}, {b + "attn.out_proj.bias", {w}}});
      if (scaled) all.push_back({b + "ls_1.gamma", {w}});
      all.insert(all.end(), {{b + "ln_2.weight", {w}}, {b + "ln_2.bias", {w}}});
      all.insert(all.end(), {{b + "mlp.c_fc.weight", {h, w}}, {b + "mlp.c_fc.bias", {h}}});
      all.insert(all.end(), {{b + "mlp.c_proj.weight", {w, h}}, {b + "mlp.c_proj.bias", {w}}});
      if (scaled) all.push_back({b + "ls_2.gamma", {w}});
    }
  };
  const int64_t vw = c.vision.width, tw = c.text.width, p = c.vision.patch_size;
  all.insert(all.end(),
             {{"positional_embedding", {c.text.context_length, tw}}, {"text_projection", {tw, c.embed_dim}}});
  all.push_back({"logit_scale", {}});
  if (c.init_logit_bias) all.push_back({"logit_bias", {}});
  all.insert(all.end(), {{"visual.class_embedding", {vw}},
                         {"visual.positional_embedding", {c.vision.patches() + 1, vw}}});
  all.insert(all.end(), {{"visual.proj", {vw, c.embed_dim}}, {"visual.conv1.weight", {vw, 3, p, p}}});
  all.insert(all.end(), {{"visual.ln_pre.weight", {vw}}, {"visual.ln_pre.bias", {vw}}});
  tower("visual.", c.vision.layers, vw, c.vision.mlp_width(), c.vision.layer_scale.has_value());
  all.insert(all.end(), {{"visual.ln_post.weight", {vw}}, {"visual.ln_post.bias", {vw}}});
  tower("", c.text.layers, tw, c.text.mlp_width(), c.text.layer_scale.has_value());
  all.push_back({"token_embedding.weight", {c.text.vocab_size, tw}});
  all.insert(all.end(), {{"ln_final.weight", {tw}}, {"ln_final.bias", {tw}}});
  return all;
}

TEST_CASE("names, shapes and order are those of open_clip's state dict") {
  ClipConfig b32 = find_model("ViT-B-32"), siglip = b32, scaled = tiny_config();
  siglip.init_logit_bias = -10;
  scaled.vision.layer_scale = 1e-4;
  for (const ClipConfig& c : {b32, siglip, scaled, tiny_config(), find_model("ViT-g-14")}) {
    CAPTURE(c.name);
    ParameterArena arena(DType::f32, cpu_device, 1);
    const Clip clip(arena, c);
    const auto expected = state_dict(c);
    REQUIRE_EQ(arena.segments().size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK_EQ(arena.segments()[i].name, expected[i].first);
      CHECK_EQ(arena.segments()[i].shape, expected[i].second);
    }
  }
  CHECK_EQ(state_dict(b32).size(), 302);
  CHECK_EQ(state_dict(siglip).size(), 303);
}

TEST_CASE("sizes that other programs rely on") {
  const ClipConfig g = find_model("ViT-g-14"), big = find_model("ViT-bigG-14"), h = find_model("ViT-H-14");
  CHECK_EQ(g.vision.mlp_width(), 6144);
  CHECK_EQ(big.vision.mlp_width(), 8192);
  CHECK_EQ(h.vision.heads(), 16);
  CHECK_EQ(g.vision.heads(), 16);
  CHECK_EQ(big.vision.heads(), 16);
  CHECK_EQ(find_model("ViT-B/32").name, "ViT-B-32");  // as OpenAI writes it
  CHECK(find_model("ViT-L-14-quickgelu").quick_gelu);
  CHECK_FALSE(find_model("ViT-L-14").quick_gelu);
  CHECK_EQ(find_model("ViT-L-14-336").vision.patches(), 576);
}

TEST_CASE("a config survives its JSON") {
  std::vector<ClipConfig> configs = presets();
  ClipConfig all = tiny_config();
  all.name = "everything";
  all.quick_gelu = true;
  all.vision.layer_scale = 0;  // the paper's value: present, and not the same as absent
  all.text.layer_scale = 1e-4;
  all.text.mlp_ratio = 3;
  all.vision.patch_dropout = 0.5;
  all.init_logit_scale = std::log(10.0);
  all.vision.linear = "switchback";
  all.text.linear = "fp8";
  configs.push_back(all);  // another temperature without a bias
  all.init_logit_bias = -10;
  configs.push_back(all);
  for (const ClipConfig& c : configs) {
    CAPTURE(c.name);
    const ClipConfig r = parse_model_config(model_config_json(c), c.name);
    CHECK_EQ(r.name, c.name);
    CHECK_EQ(r.embed_dim, c.embed_dim);
    CHECK_EQ(r.quick_gelu, c.quick_gelu);
    CHECK_EQ(r.init_logit_scale, c.init_logit_scale);
    CHECK(r.init_logit_bias == c.init_logit_bias);
    CHECK_EQ(r.vision.image_size, c.vision.image_size);
    CHECK_EQ(r.vision.patch_size, c.vision.patch_size);
    CHECK_EQ(r.vision.width, c.vision.width);
    CHECK_EQ(r.vision.layers, c.vision.layers);
    CHECK_EQ(r.vision.head_width, c.vision.head_width);
    CHECK_EQ(r.vision.mlp_ratio, c.vision.mlp_ratio);
    CHECK_EQ(r.vision.patch_dropout, c.vision.patch_dropout);
    CHECK(r.vision.layer_scale == c.vision.layer_scale);
    CHECK_EQ(r.text.context_length, c.text.context_length);
    CHECK_EQ(r.text.vocab_size, c.text.vocab_size);
    CHECK_EQ(r.text.width, c.text.width);
    CHECK_EQ(r.text.heads, c.text.heads);
    CHECK_EQ(r.text.layers, c.text.layers);
    CHECK_EQ(r.text.mlp_ratio, c.text.mlp_ratio);
    CHECK(r.text.layer_scale == c.text.layer_scale);
    CHECK_EQ(r.vision.linear, c.vision.linear);
    CHECK_EQ(r.text.linear, c.text.linear);
  }
}

TEST_CASE("a JSON of open_clip is read, with its defaults, alone or inside an open_clip_config.json") {
  const std::string sizes = R"({"embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32, "pool_type": "tok", "ls_init_value": null},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "norm_kwargs": {}}})";
  for (const std::string& text :
       {sizes, R"({"model_cfg": )" + sizes + R"(, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})"}) {
    const std::filesystem::path path =
        std::filesystem::temp_directory_path() / "switchback-test-my-model.json";
    std::ofstream(path) << text;
    const ClipConfig c = find_model(path.string());
    std::filesystem::remove(path);
    CHECK_EQ(c.name, "switchback-test-my-model");
    CHECK_EQ(parameter_count(c), 151277313);
    CHECK_EQ(c.vision.head_width, 64);
    CHECK_FALSE(c.vision.layer_scale.has_value());
  }
}

// The error of a small config after `change`, a JSON merge patch.
std::string error_after(const std::string& from, const std::string& to) {
  std::string json =
      R"({"embed_dim": 8, "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
                         "text_cfg": {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1}})";
  const size_t at = json.find(from);
  REQUIRE(at != std::string::npos);
  json.replace(at, from.size(), to);
  return error_of([&] { parse_model_config(json, "mine"); });
}

TEST_CASE("bad model configs are refused by name, key and value") {
  const auto mentions = [](const std::string& message, std::initializer_list<const char*> parts) {
    CAPTURE(message);
    CHECK_FALSE(message.empty());
    CHECK(message.find('\n') == std::string::npos);
    for (const char* part : parts) CHECK(message.find(part) != std::string::npos);
  };
  CHECK_EQ(error_after("16", "16"), "");
  mentions(error_after("{\"embed_dim\"", "{{\"embed_dim\""), {"mine", "JSON"});
  mentions(error_after("\"text_cfg\"", "\"text\""), {"mine", "text_cfg"});
  mentions(error_after("\"width\": 16", "\"width\": \"16\""), {"mine", "vision_cfg", "width", "\"16\""});
  mentions(error_after("\"width\": 16", "\"width\": 16.5"), {"width", "16.5"});
  mentions(error_after("\"width\": 16", "\"width\": 20"), {"20", "head_width", "8"});
  mentions(error_after("\"heads\": 2", "\"heads\": 3"), {"text width", "8", "3"});
  mentions(error_after("\"heads\": 2", "\"heads\": 2, \"linear\": \"int4\""), {"int4", "switchback-m"});
  mentions(error_after("\"heads\": 2", "\"heads\": 2, \"linear\": 8"), {"mine", "text_cfg", "linear", "8"});
  mentions(error_after("\"heads\": 2", "\"heads\": 0"), {"heads", "0"});
  mentions(error_after("\"layers\": 1", "\"layers\": -1"), {"layers", "-1"});
  mentions(error_after("\"layers\": 1", "\"layers\": [3, 4, 6, 3]"), {"ResNet"});
  mentions(error_after("\"patch_size\": 8", "\"patch_size\": 7"), {"patch_size", "7", "16"});
  mentions(error_after("\"patch_size\": 8", "\"patch_size\": 32"), {"patch_size", "32", "16"});
  mentions(error_after("\"patch_size\": 8", "\"patch_size\": 8, \"patch_dropout\": 1.0"), {"dropout", "1"});
  mentions(error_after("\"patch_size\": 8", "\"patch_size\": 8, \"timm_model_name\": \"vit\""),
           {"timm_model_name"});
  mentions(error_after("\"patch_size\": 8", "\"patch_size\": 8, \"pool_type\": \"avg\""),
           {"pool_type", "avg"});
  mentions(error_after("\"patch_size\": 8", "\"patch_size\": 8, \"pos_embed_type\": \"sin_cos_2d\""),
           {"pos_embed_type"});
  mentions(error_after("\"heads\": 2", "\"heads\": 2, \"norm_kwargs\": {\"eps\": 1e-6}"),
           {"norm_kwargs", "1e-06"});
  mentions(error_after("\"heads\": 2", "\"heads\": 2, \"pool_type\": \"last\""), {"pool_type", "last"});
  mentions(error_after("\"heads\": 2", "\"heads\": 2, \"hf_model_name\": \"roberta\""), {"hf_model_name"});
  CHECK_EQ(error_after("\"patch_size\": 8", "\"patch_size\": 8, \"pos_embed_type\": \"learnable\""), "");

  mentions(error_of([] { find_model("ViT-B-33"); }), {"ViT-B-33", "ViT-B-32"});
  mentions(error_of([] { find_model("RN50"); }), {"RN50", "not supported"});
  mentions(error_of([] { find_model("/nowhere/x.json"); }), {"/nowhere/x.json"});
}

}  // namespace
}  // namespace switchback
