// config.h: what a CLIP looks like: two transformer towers and the size of their common embedding.
//
// Names and defaults follow open_clip's model JSON. A config comes from a preset's name ("ViT-B-32"), or from
// such a JSON file (read_model_config).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchback {

struct VisionConfig {
  int64_t image_size = 224;
  int64_t patch_size = 32;
  int64_t width = 768;
  int64_t layers = 12;
  int64_t head_width = 64;
  double mlp_ratio = 4.0;
  double patch_dropout = 0;           // share of the patches left out in training
  std::optional<double> layer_scale;  // ls_init_value
  std::string linear = "standard";    // the recipe of the blocks' linears (kernels/recipe.h)

  int64_t heads() const { return width / head_width; }
  int64_t mlp_width() const { return static_cast<int64_t>(static_cast<double>(width) * mlp_ratio); }
  int64_t grid() const { return image_size / patch_size; }
  int64_t patches() const { return grid() * grid(); }
  // Patches left after dropout: max(1, int(N (1 - p)))
  int64_t kept_patches(double dropout) const;
};

struct TextConfig {
  int64_t context_length = 77;
  int64_t vocab_size = 49408;
  int64_t width = 512;
  int64_t heads = 8;
  int64_t layers = 12;
  double mlp_ratio = 4.0;
  std::optional<double> layer_scale;
  std::string linear = "standard";

  int64_t mlp_width() const { return static_cast<int64_t>(static_cast<double>(width) * mlp_ratio); }
};

struct ClipConfig {
  std::string name;  // the preset's name or the JSON file's stem
  int64_t embed_dim = 512;
  bool quick_gelu = false;
  VisionConfig vision;
  TextConfig text;
  double init_logit_scale = 2.6592600369327781;  // ln(1/0.07)
  std::optional<double> init_logit_bias;         // SigLIP: -10
  // The last block computes all rows, also those that nobody reads, as other programs do: for comparisons
  // alone.
  bool whole_last_block = false;
  // The text tower computes the whole context, also behind the longest caption of a batch (text_length.h).
  bool whole_text = false;
};

// A preset's config. Errors: unknown names list the nearest ones; ResNets and other non-ViT models of
// open_clip say that they are not supported.
ClipConfig find_model(const std::string& name_or_json_path);
std::vector<std::string> model_names();

// open_clip's model JSON. Errors name the file and the key.
ClipConfig read_model_config(const std::string& path);
ClipConfig parse_model_config(const std::string& json, const std::string& name);
std::string model_config_json(const ClipConfig& config);  // what read_model_config reads

// Errors when sizes do not fit together (patch does not divide the image, heads do not divide the width).
void check_config(const ClipConfig& config);

}  // namespace switchback
