#include "models/config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/recipe.h"
#include "models/presets.h"
#include "runtime/check.h"
#include "runtime/suggest.h"

namespace switchback {
namespace {

using Json = nlohmann::json;

// Reads members of one JSON object; errors name the model and the key.
class Reader {
 public:
  Reader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) fail("model config ", where_, " is not a JSON object");
  }

  template <class T>
  void read(const char* key, T& to) const {
    auto it = object_.find(key);
    if (it == object_.end() || it->is_null()) return;
    const bool right = std::is_same_v<T, bool>          ? it->is_boolean()
                       : std::is_same_v<T, std::string> ? it->is_string()
                       : std::is_integral_v<T> ? it->is_number_integer()
                                               : it->is_number();
    if (!right) fail("model config ", where_, ": \"", key, "\" has the wrong type: ", it->dump());
    to = it->get<T>();
  }
  void read(const char* key, std::optional<double>& to) const {
    double value = 0;
    auto it = object_.find(key);
    if (it == object_.end() || it->is_null()) return;
    read(key, value);
    to = value;
  }
  // Keys that change what the model computes in ways a plain ViT CLIP does not have.
  void refuse(std::initializer_list<const char*> keys) const {
    for (const char* key : keys) {
      auto it = object_.find(key);
      if (it == object_.end() || it->is_null() || *it == false || *it == 0 || *it == "" || *it == "none")
        continue;
      fail("model config ", where_, ": \"", key,
           "\" is not supported: switchback trains plain ViT CLIP towers");
    }
  }
  // Keys that must have the one value that a plain ViT CLIP has, or be absent.
  void require(const char* key, const Json& only) const {
    auto it = object_.find(key);
    if (it == object_.end() || it->is_null() || *it == only) return;
    fail("model config ", where_, ": \"", key, "\" is ", it->dump(), ", only ", only.dump(), " is supported");
  }
  Reader section(const char* key) const {
    auto it = object_.find(key);
    if (it == object_.end()) fail("model config ", where_, " has no \"", key, "\"");
    return Reader(*it, where_ + "." + key);
  }
  bool has(const char* key) const { return object_.contains(key); }
  const Json& json() const { return object_; }

 private:
  const Json& object_;
  std::string where_;
};

}  // namespace

int64_t VisionConfig::kept_patches(double dropout) const {
  return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(patches()) * (1 - dropout)));
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const ClipConfig& c : presets()) names.push_back(c.name);
  return names;
}

ClipConfig find_model(const std::string& name) {
  if (name.size() > 5 && name.ends_with(".json")) return read_model_config(name);
  std::string plain = name;  // OpenAI writes ViT-B/32
  std::replace(plain.begin(), plain.end(), '/', '-');
  for (const ClipConfig& c : presets())
    if (c.name == plain) return c;
  if (plain.starts_with("RN") || plain.starts_with("convnext") || plain.starts_with("coca") ||
      plain.find("SigLIP") != std::string::npos || plain.find("CLIPA") != std::string::npos)
    fail("model ", name,
         " is not supported: switchback trains plain ViT CLIP towers, for example --model ViT-B-32");
  fail("unknown model ", name, "; did you mean ", nearest(plain, model_names()),
       "? (or give an open_clip model JSON: --model my.json)");
}

ClipConfig parse_model_config(const std::string& text, const std::string& name) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) fail("model config ", name, " is not valid JSON");
  if (json.is_object() && json.contains("model_cfg")) json = json["model_cfg"];  // an open_clip_config.json

  ClipConfig c;
  c.name = name;
  const Reader top(json, name);
  top.refuse({"multimodal_cfg", "audio_cfg", "vision_tower", "hf_model_name", "nonscalar_logit_scale"});
  top.read("embed_dim", c.embed_dim);
  top.read("quick_gelu", c.quick_gelu);
  top.read("init_logit_scale", c.init_logit_scale);
  top.read("init_logit_bias", c.init_logit_bias);

  const Reader vision = top.section("vision_cfg");
  vision.refuse({"timm_model_name", "attentional_pool", "no_ln_pre", "final_ln_after_pool", "input_patchnorm",
                 "output_tokens", "block_type", "qk_norm", "scaled_cosine_attn"});
  vision.require("pool_type", "tok");
  vision.require("pos_embed_type", "learnable");
  vision.require("norm_kwargs", Json::object());
  vision.require("act_kwargs", Json::object());
  if (vision.has("layers") && vision.json()["layers"].is_array())
    fail("model ", name, " is a ResNet, which is not supported: use a ViT, for example --model ViT-B-32");
  vision.read("image_size", c.vision.image_size);
  vision.read("patch_size", c.vision.patch_size);
  vision.read("width", c.vision.width);
  vision.read("layers", c.vision.layers);
  vision.read("head_width", c.vision.head_width);
  vision.read("mlp_ratio", c.vision.mlp_ratio);
  vision.read("patch_dropout", c.vision.patch_dropout);
  vision.read("ls_init_value", c.vision.layer_scale);
  vision.read("linear", c.vision.linear);

  const Reader text_section = top.section("text_cfg");
  text_section.refuse({"hf_model_name", "embed_cls", "no_causal_mask", "final_ln_after_pool", "proj_bias",
                       "block_type", "qk_norm"});
  text_section.require("pool_type", "argmax");
  text_section.require("proj_type", "linear");
  text_section.require("norm_kwargs", Json::object());
  text_section.require("act_kwargs", Json::object());
  text_section.read("context_length", c.text.context_length);
  text_section.read("vocab_size", c.text.vocab_size);
  text_section.read("width", c.text.width);
  text_section.read("heads", c.text.heads);
  text_section.read("layers", c.text.layers);
  text_section.read("mlp_ratio", c.text.mlp_ratio);
  text_section.read("ls_init_value", c.text.layer_scale);
  text_section.read("linear", c.text.linear);
  check_config(c);
  return c;
}

ClipConfig read_model_config(const std::string& path) {
  std::ifstream in(path);
  if (!in) fail("cannot read model config ", path);
  std::ostringstream text;
  text << in.rdbuf();
  try {
    return parse_model_config(text.str(), std::filesystem::path(path).stem().string());
  } catch (const Error& error) {
    fail(path, ": ", error.what());
  }
}

std::string model_config_json(const ClipConfig& c) {
  nlohmann::ordered_json json;
  json["embed_dim"] = c.embed_dim;
  if (c.quick_gelu) json["quick_gelu"] = true;
  if (c.init_logit_bias || c.init_logit_scale != ClipConfig().init_logit_scale)
    json["init_logit_scale"] = c.init_logit_scale;
  if (c.init_logit_bias) json["init_logit_bias"] = *c.init_logit_bias;
  auto& vision = json["vision_cfg"];
  vision["image_size"] = c.vision.image_size;
  vision["layers"] = c.vision.layers;
  vision["width"] = c.vision.width;
  vision["head_width"] = c.vision.head_width;
  vision["mlp_ratio"] = c.vision.mlp_ratio;
  vision["patch_size"] = c.vision.patch_size;
  if (c.vision.patch_dropout > 0) vision["patch_dropout"] = c.vision.patch_dropout;
  if (c.vision.layer_scale) vision["ls_init_value"] = *c.vision.layer_scale;
  if (c.vision.linear != "standard") vision["linear"] = c.vision.linear;
  auto& text = json["text_cfg"];
  text["context_length"] = c.text.context_length;
  text["vocab_size"] = c.text.vocab_size;
  text["width"] = c.text.width;
  text["heads"] = c.text.heads;
  text["layers"] = c.text.layers;
  if (c.text.mlp_ratio != 4.0) text["mlp_ratio"] = c.text.mlp_ratio;
  if (c.text.layer_scale) text["ls_init_value"] = *c.text.layer_scale;
  if (c.text.linear != "standard") text["linear"] = c.text.linear;
  return json.dump(2);
}

void check_config(const ClipConfig& c) {
  auto positive = [&](int64_t value, const char* key) {
    if (value <= 0) fail("model ", c.name, ": ", key, " must be positive, got ", value);
  };
  positive(c.embed_dim, "embed_dim");
  linear_recipe(c.vision.linear);
  linear_recipe(c.text.linear);
  positive(c.vision.image_size, "vision image_size");
  positive(c.vision.patch_size, "vision patch_size");
  positive(c.vision.width, "vision width");
  positive(c.vision.layers, "vision layers");
  positive(c.vision.head_width, "vision head_width");
  positive(c.vision.mlp_width(), "vision mlp width");
  positive(c.text.context_length, "text context_length");
  if (c.text.context_length < 2)
    fail("model ", c.name, ": a text context_length of 1 has no room for start and end; use at least 2");
  positive(c.text.vocab_size, "text vocab_size");
  positive(c.text.width, "text width");
  positive(c.text.heads, "text heads");
  positive(c.text.layers, "text layers");
  positive(c.text.mlp_width(), "text mlp width");
  if (c.vision.image_size < c.vision.patch_size)
    fail("model ", c.name, ": patch_size ", c.vision.patch_size, " is larger than image_size ",
         c.vision.image_size);
  if (c.vision.image_size % c.vision.patch_size != 0)
    fail("model ", c.name, ": patch_size ", c.vision.patch_size, " does not divide image_size ",
         c.vision.image_size);
  if (c.vision.width % c.vision.head_width != 0)
    fail("model ", c.name, ": vision width ", c.vision.width, " is not a multiple of head_width ",
         c.vision.head_width);
  if (c.text.width % c.text.heads != 0)
    fail("model ", c.name, ": text width ", c.text.width, " is not a multiple of heads ", c.text.heads);
  if (c.vision.patch_dropout < 0 || c.vision.patch_dropout >= 1)
    fail("model ", c.name, ": patch dropout must be in [0, 1), got ", c.vision.patch_dropout);
}

}  // namespace switchback
