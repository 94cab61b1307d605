// interchange_config.cpp: the configs beside weights, and the names of their tensors.
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "models/interchange.h"
#include "runtime/check.h"
#include "runtime/file.h"

namespace switchback {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// 0.48145466: the shortest decimal that is this float, not the digits of its double.
double decimal(float value) {
  char digits[32];
  const auto written = std::to_chars(digits, digits + sizeof digits, value);
  return std::stod(std::string(digits, written.ptr));
}

using Triple = std::array<float, 3>;
Json triple(const Triple& values) { return {decimal(values[0]), decimal(values[1]), decimal(values[2])}; }

// "mean" and "std" (open_clip), "image_mean" and "image_std" (Hugging Face); absent: as they are
void read_normalization(const std::string& path, const nlohmann::json& json, const char* mean,
                        const char* std, PixelNormalization& to) {
  for (const auto& [key, values] : {std::pair<const char*, Triple*>{mean, &to.mean}, {std, &to.std}}) {
    const auto it = json.find(key);
    if (it == json.end()) continue;
    bool right = it->is_array() && it->size() == 3;
    for (size_t c = 0; c < 3 && right; ++c) right = (*it)[c].is_number();
    if (!right) fail(path, ": ", key, " is not three numbers");
    for (size_t c = 0; c < 3; ++c) (*values)[c] = (*it)[c].get<float>();
  }
}

nlohmann::json parse_file(const fs::path& path) {
  auto json = nlohmann::json::parse(read_file(path.string()), nullptr, false);
  if (!json.is_object()) fail(path.string(), " is not a JSON object");
  return json;
}

int64_t whole(const nlohmann::json& json, const std::string& where, const char* key, int64_t otherwise) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return otherwise;
  if (!it->is_number_integer())
    fail("model config ", where, ": \"", key, "\" is not a whole number: ", it->dump());
  return it->get<int64_t>();
}

// The recipes of low-precision linears, which lie beside model_cfg, back in their place.
nlohmann::json with_recipes(nlohmann::json json) {
  const auto recipes = json.find("linear");
  if (recipes == json.end() || !recipes->is_object() || !json.contains("model_cfg")) return json;
  const nlohmann::json all = *recipes;
  for (const char* tower : {"vision_cfg", "text_cfg"}) {
    auto& model = json["model_cfg"];
    if (all.contains(tower) && model.is_object() && model.contains(tower) && model[tower].is_object())
      model[tower]["linear"] = all[tower];
  }
  return json;
}

// A ratio that gives exactly this hidden size again, whatever the division rounds to.
double mlp_ratio(int64_t hidden, int64_t width) {
  const double ratio = static_cast<double>(hidden) / static_cast<double>(width);
  return static_cast<int64_t>(static_cast<double>(width) * ratio) == hidden
             ? ratio
             : (static_cast<double>(hidden) + 0.5) / static_cast<double>(width);
}

}  // namespace

std::string open_clip_config_text(const ClipConfig& config, const PixelNormalization& n) {
  Json json;
  json["model_cfg"] = Json::parse(model_config_json(config));
  json["preprocess_cfg"] = {{"mean", triple(n.mean)},
                            {"std", triple(n.std)},
                            {"interpolation", "bicubic"},
                            {"resize_mode", "shortest"}};
  // open_clip refuses keys it does not know below model_cfg, and does not look beside it.
  Json recipes;
  for (const char* tower : {"vision_cfg", "text_cfg"}) {
    auto& section = json["model_cfg"][tower];
    if (!section.contains("linear")) continue;
    recipes[tower] = section["linear"];
    section.erase("linear");
  }
  if (!recipes.empty()) json["linear"] = recipes;
  return json.dump(2) + "\n";
}

std::string preprocessor_config_text(int64_t size, const PixelNormalization& n) {
  Json json;
  json["image_processor_type"] = "CLIPImageProcessor";
  json["do_convert_rgb"] = true;
  json["do_resize"] = true;
  json["size"] = {{"shortest_edge", size}};
  json["resample"] = 3;  // Pillow's number of bicubic
  json["do_center_crop"] = true;
  json["crop_size"] = {{"height", size}, {"width", size}};
  json["do_rescale"] = true;
  json["rescale_factor"] = 1.0 / 255;
  json["do_normalize"] = true;
  json["image_mean"] = triple(n.mean);
  json["image_std"] = triple(n.std);
  return json.dump(2) + "\n";
}

std::string hugging_face_config_text(const ClipConfig& c) {
  const char* activation = c.quick_gelu ? "quick_gelu" : "gelu";
  Json json;
  json["architectures"] = {"CLIPModel"};
  json["model_type"] = "clip";
  json["projection_dim"] = c.embed_dim;
  json["logit_scale_init_value"] = c.init_logit_scale;
  json["text_config"] = {{"model_type", "clip_text_model"},
                         {"hidden_size", c.text.width},
                         {"intermediate_size", c.text.mlp_width()},
                         {"num_hidden_layers", c.text.layers},
                         {"num_attention_heads", c.text.heads},
                         {"max_position_embeddings", c.text.context_length},
                         {"vocab_size", c.text.vocab_size},
                         {"projection_dim", c.embed_dim},
                         {"hidden_act", activation},
                         {"layer_norm_eps", 1e-5},
                         {"bos_token_id", c.text.vocab_size - 2},
                         {"eos_token_id", c.text.vocab_size - 1},  // where it pools: our largest id
                         {"pad_token_id", 0}};
  json["vision_config"] = {{"model_type", "clip_vision_model"},
                           {"hidden_size", c.vision.width},
                           {"intermediate_size", c.vision.mlp_width()},
                           {"num_hidden_layers", c.vision.layers},
                           {"num_attention_heads", c.vision.heads()},
                           {"image_size", c.vision.image_size},
                           {"patch_size", c.vision.patch_size},
                           {"num_channels", 3},
                           {"projection_dim", c.embed_dim},
                           {"hidden_act", activation},
                           {"layer_norm_eps", 1e-5}};
  json["torch_dtype"] = "float32";
  return json.dump(2) + "\n";
}

ClipConfig parse_hugging_face_config(const std::string& text, const std::string& name) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) fail("model config ", name, " is not valid JSON");
  const auto type = json.find("model_type");
  if (type == json.end() || *type != "clip")
    fail("model config ", name, ": model_type is ", type == json.end() ? "missing" : type->dump(),
         ", only clip is supported");
  // What is left out has the defaults of transformers, those of ViT-B/32.
  const auto section = [&](const char* key) {
    const auto it = json.find(key);
    if (it == json.end() || it->is_null()) return nlohmann::json::object();
    if (!it->is_object()) fail("model config ", name, ": \"", key, "\" is not an object");
    return nlohmann::json(*it);
  };
  const auto text_section = section("text_config"), vision = section("vision_config");
  ClipConfig c;
  c.name = name;
  c.embed_dim = whole(json, name, "projection_dim", 512);
  c.vision.width = whole(vision, name, "hidden_size", 768);
  c.vision.layers = whole(vision, name, "num_hidden_layers", 12);
  c.vision.image_size = whole(vision, name, "image_size", 224);
  c.vision.patch_size = whole(vision, name, "patch_size", 32);
  const int64_t heads = whole(vision, name, "num_attention_heads", 12);
  c.text.width = whole(text_section, name, "hidden_size", 512);
  c.text.layers = whole(text_section, name, "num_hidden_layers", 12);
  c.text.heads = whole(text_section, name, "num_attention_heads", 8);
  c.text.context_length = whole(text_section, name, "max_position_embeddings", 77);
  c.text.vocab_size = whole(text_section, name, "vocab_size", 49408);
  if (heads < 1 || c.vision.width < 1 || c.vision.width % heads != 0 || c.text.width < 1)
    fail("model config ", name, ": ", heads, " heads do not divide the width ", c.vision.width);
  c.vision.head_width = c.vision.width / heads;
  c.vision.mlp_ratio = mlp_ratio(whole(vision, name, "intermediate_size", 3072), c.vision.width);
  c.text.mlp_ratio = mlp_ratio(whole(text_section, name, "intermediate_size", 2048), c.text.width);
  const auto activation = [&](const nlohmann::json& tower) {
    const auto it = tower.find("hidden_act");
    const std::string act = it == tower.end() || !it->is_string() ? "quick_gelu" : it->get<std::string>();
    if (act != "quick_gelu" && act != "gelu")
      fail("model config ", name, ": hidden_act ", act, " is not supported, only gelu and quick_gelu");
    return act;
  };
  if (activation(vision) != activation(text_section))
    fail("model config ", name, ": the towers have different activations (", activation(vision), ", ",
         activation(text_section), "), which is not supported");
  c.quick_gelu = activation(vision) == "quick_gelu";
  for (const auto& tower : {vision, text_section}) {
    const auto it = tower.find("layer_norm_eps");
    if (it != tower.end() && it->is_number() && std::abs(it->get<double>() - 1e-5) > 1e-9)
      fail("model config ", name, ": layer_norm_eps ", it->dump(), " is not supported, only 1e-5");
  }
  check_config(c);
  return c;
}

ClipConfig StoredModel::config_or(const std::string& model) const {
  if (!model.empty()) return find_model(model);
  return config ? *config : find_model(recognise_model(weights));
}

StoredModel StoredModel::find(const std::string& path) {
  StoredModel model;
  if (!fs::exists(path)) fail("there is no ", path, ": expected weights, or a folder of them");
  const bool is_folder = fs::is_directory(path);
  const fs::path folder = is_folder ? fs::path(path) : fs::path(path).parent_path();
  const fs::path open_clip = folder / "open_clip_config.json", hugging_face = folder / "config.json";
  // A bare file takes the config beside it only when its name says that the two belong together.
  const std::string file_name = fs::path(path).filename().string();
  const bool open_clip_file = file_name.starts_with("open_clip_");
  const bool hugging_face_file =
      file_name.starts_with("model.safetensors") || file_name == "pytorch_model.bin";
  const auto first_of = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (fs::exists(folder / name)) return (folder / name).string();
    std::string list;
    for (const char* name : names) list += (list.empty() ? "" : ", ") + std::string(name);
    fail(path, " has a config, but no weights: expected one of ", list);
  };
  if (fs::exists(open_clip) && (is_folder || open_clip_file)) {
    const auto json = parse_file(open_clip);
    model.config = parse_model_config(with_recipes(json).dump(), folder.filename().string());
    if (const auto it = json.find("preprocess_cfg"); it != json.end() && it->is_object())
      read_normalization(open_clip.string(), *it, "mean", "std", model.normalization);
    model.weights = is_folder ? first_of({"open_clip_model.safetensors", "open_clip_pytorch_model.bin",
                                          "model.safetensors", "pytorch_model.bin"})
                              : path;
  } else if (fs::exists(hugging_face) && (is_folder || hugging_face_file)) {
    model.config = parse_hugging_face_config(parse_file(hugging_face).dump(), folder.filename().string());
    const fs::path preprocessor = folder / "preprocessor_config.json";
    if (fs::exists(preprocessor))
      read_normalization(preprocessor.string(), parse_file(preprocessor), "image_mean", "image_std",
                         model.normalization);
    model.weights = is_folder
                        ? first_of({"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"})
                        : path;
  } else if (is_folder) {
    fail(path, " has neither an open_clip_config.json nor a config.json: give the file of weights itself");
  } else {
    model.weights = path;
  }
  return model;
}

HuggingFaceParts hugging_face_parts(const std::string& name) {
  const bool image = name.starts_with("visual.");
  const std::string tower = image ? "vision_model." : "text_model.";
  std::string rest = image ? name.substr(7) : name;
  const std::string embeddings = tower + "embeddings.";
  if (name == "logit_scale") return {{name}};
  if (rest == "positional_embedding") return {{embeddings + "position_embedding.weight"}};
  if (rest == "class_embedding") return {{embeddings + "class_embedding"}};
  if (rest == "conv1.weight") return {{embeddings + "patch_embedding.weight"}};
  if (rest == "token_embedding.weight") return {{embeddings + "token_embedding.weight"}};
  if (name == "visual.proj") return {{"visual_projection.weight"}, true};
  if (name == "text_projection") return {{"text_projection.weight"}, true};
  const auto replaced = [&](const char* from, const std::string& to) {
    const size_t length = std::string_view(from).size();
    if (!rest.starts_with(from)) return false;
    rest = to + rest.substr(length);
    return true;
  };
  if (replaced("ln_pre.", "pre_layrnorm.") ||  // as transformers spells it
      replaced("ln_post.", "post_layernorm.") || replaced("ln_final.", "final_layer_norm."))
    return {{tower + rest}};
  if (!replaced("transformer.resblocks.", "encoder.layers.")) return {};
  const size_t number = std::string_view("encoder.layers.").size(), dot = rest.find('.', number);
  if (dot == std::string::npos) return {};
  const std::string block = tower + rest.substr(0, dot + 1);
  rest = rest.substr(dot + 1);
  for (const char* kind : {"weight", "bias"})
    if (rest == std::string("attn.in_proj_") + kind)
      return {{block + "self_attn.q_proj." + kind, block + "self_attn.k_proj." + kind,
               block + "self_attn.v_proj." + kind}};
  if (replaced("attn.out_proj.", "self_attn.out_proj.") || replaced("ln_1.", "layer_norm1.") ||
      replaced("ln_2.", "layer_norm2.") || replaced("mlp.c_fc.", "mlp.fc1.") ||
      replaced("mlp.c_proj.", "mlp.fc2."))
    return {{block + rest}};
  return {};
}

}  // namespace switchback
