// interchange.h: weights of a CLIP as other programs keep them.
//
//   open_clip      open_clip_model.safetensors + open_clip_config.json; also .pt and .bin files of its
//   trainer, with
//                  or without "module." before every name and "text." before the text tower's
//                  (CustomTextCLIP)
//   Hugging Face   model.safetensors + config.json of transformers' CLIPModel: q, k and v apart, projections
//                  transposed, other names
// Our own names and layouts are open_clip's. What is read is checked whole: every tensor of the model must be
// there in its shape, and no tensor may be left over. Two exceptions, as in open_clip: position embeddings
// are resized to the model's image size and text length, and a missing logit_bias is 0.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "models/config.h"
#include "runtime/tensor.h"

namespace switchback {

class ParameterArena;
using Say = std::function<void(const std::string& line)>;

// What lies at a path: a file of weights, or a folder of one of the two kinds.
struct StoredModel {
  std::string weights;               // the file
  std::optional<ClipConfig> config;  // where a config lies beside it
  PixelNormalization normalization;  // from the config; CLIP's otherwise
  static StoredModel find(const std::string& path);
  // The config of the preset or model JSON `model`; when that is empty, the one beside the weights, else that
  // of the preset that has their shapes.
  ClipConfig config_or(const std::string& model) const;
};

// Fills a model's parameters from a file or folder. say: what was resized or filled in.
// Errors: the first tensor that is missing, left over, or of another shape, with the likely cause.
void load_clip_weights(const std::string& path, ParameterArena& arena, const Say& say = {});

// A whole model outside of an arena, for conversion.
struct NamedTensor {
  std::string name;
  Tensor values;  // f32, on the CPU
};
std::vector<NamedTensor> read_clip_weights(const std::string& path, const ClipConfig& config,
                                           const Say& say = {});

// The preset whose shapes are those of the weights; empty when none or several fit (they are said in the
// error).
std::string recognise_model(const std::string& weights_path);

// A folder that open_clip ('local-dir:FOLDER') or transformers (CLIPModel.from_pretrained) loads. dtype: f32
// or bf16. In the latter layer-scale is multiplied into the projections before it, and a logit_bias is left
// out.
void write_open_clip(const std::string& folder, const ClipConfig& config,
                     const PixelNormalization& normalization, const std::vector<NamedTensor>& tensors,
                     DType dtype);
void write_hugging_face(const std::string& folder, const ClipConfig& config,
                        const PixelNormalization& normalization, const std::vector<NamedTensor>& tensors,
                        DType dtype, const Say& say = {});

// The configs as text; the last one is transformers' preprocessor_config.json.
std::string open_clip_config_text(const ClipConfig& config, const PixelNormalization& normalization);
std::string hugging_face_config_text(const ClipConfig& config);
std::string preprocessor_config_text(int64_t image_size, const PixelNormalization& normalization);
ClipConfig parse_hugging_face_config(const std::string& json, const std::string& name);

// The tensors of a CLIPModel that one of our parameters is made of: rows of `names` one below the other.
struct HuggingFaceParts {
  std::vector<std::string> names;
  bool transposed = false;
};
HuggingFaceParts hugging_face_parts(const std::string& parameter);

}  // namespace switchback
