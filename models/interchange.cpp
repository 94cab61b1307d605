#include "models/interchange.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "kernels/transfer.h"
#include "models/clip.h"
#include "models/position_resize.h"
#include "models/presets.h"
#include "models/state_dict.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"

namespace switchback {
namespace {

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

std::vector<int64_t> sizes(const Shape& shape) {
  std::vector<int64_t> all;
  for (int i = 0; i < shape.rank(); ++i) all.push_back(shape[i]);
  return all;
}

// What a program writes that is no weight.
bool is_no_weight(const std::string& name) {
  for (const char* end : {"attn_mask", "position_ids"})
    if (name.ends_with(end)) return true;
  return name == "input_resolution" || name == "context_length" || name == "vocab_size";
}

// One of our parameters out of somebody's file.
class Weights {
 public:
  Weights(const std::string& file, const Say& say) : state_(StateDict::read(file)), say_(say) {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : state_.tensors()) names.push_back(name);
    for (const std::string& name : names) {
      std::string plain = name;
      for (const char* prefix : {"module.", "_orig_mod."})
        if (plain.starts_with(prefix)) plain = plain.substr(std::string_view(prefix).size());
      for (const char* text : {"text.positional_embedding", "text.text_projection", "text.transformer.",
                               "text.token_embedding.", "text.ln_final."})
        if (plain.starts_with(text)) plain = plain.substr(5);
      state_.rename(name, plain);
      if (is_no_weight(plain)) state_.remove(plain);
    }
    hugging_face_ = state_.contains("text_model.embeddings.token_embedding.weight");
    for (const auto& [name, tensor] : state_.tensors()) left_.insert(name);
  }

  const StateDict& state() const { return state_; }
  bool hugging_face() const { return hugging_face_; }
  HuggingFaceParts parts(const std::string& name) const {
    return hugging_face_ ? hugging_face_parts(name) : HuggingFaceParts{{name}};
  }

  // The values of parameter `name`, for a model that has it in `shape`.
  std::vector<float> take(const std::string& name, const std::vector<int64_t>& shape) {
    const HuggingFaceParts from = parts(name);
    if (name == "logit_bias" && !state_.contains(name)) {
      if (say_) say_(state_.path() + " has no logit_bias: it starts at 0");
      return {0};
    }
    if (from.names.empty())
      fail(state_.path(), " (layout of transformers) cannot hold ", name,
           ": the model has no such thing there");
    std::vector<float> values;
    std::vector<int64_t> stored;  // the shape, parts together
    for (const std::string& part : from.names) {
      if (!state_.contains(part))
        fail(state_.path(), " has no tensor ", part, ": it belongs to another model (see --model)");
      const StateTensor& tensor = state_.at(part);
      if (stored.empty())
        stored = tensor.shape;
      else if (!stored.empty() && !tensor.shape.empty())
        stored[0] += tensor.shape[0];
      const std::vector<float> more = state_.floats(part);
      values.insert(values.end(), more.begin(), more.end());
      left_.erase(part);
    }
    if (from.transposed && stored.size() == 2) {
      values = transpose(values, stored[0], stored[1]);
      std::swap(stored[0], stored[1]);
    }
    if (name == "visual.positional_embedding") return fit_grid(name, values, stored, shape);
    if (name == "positional_embedding") return fit_line(name, values, stored, shape);
    const bool scalar = shape.empty() && values.size() == 1;  // () and (1) mean the same
    if (stored != shape && !scalar)
      fail(state_.path(), ": ", name, " has shape ", text_of(stored), ", the model wants ", text_of(shape),
           ": it belongs to another model (see --model)");
    return values;
  }

  void expect_nothing_left() const {
    if (left_.empty()) return;
    const std::string& name = *left_.begin();
    const char* cure = "it belongs to another model (see --model)";
    if (name == "logit_bias") cure = "it was trained with the sigmoid loss: add --siglip";
    if (name.find(".ls_1.") != std::string::npos)
      cure = "it was trained with layer-scale: add --layer-scale 0";
    fail(state_.path(), " has a tensor ", name, " that this model does not have: ", cure);
  }

  static std::vector<float> transpose(const std::vector<float>& from, int64_t rows, int64_t columns) {
    std::vector<float> to(from.size());
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        to[static_cast<size_t>(j * rows + i)] = from[static_cast<size_t>(i * columns + j)];
    return to;
  }

 private:
  void expect_width(const std::string& name, const std::vector<int64_t>& stored,
                    const std::vector<int64_t>& shape) {
    if (stored.size() != 2 || stored[1] != shape[1] || stored[0] < 1)
      fail(state_.path(), ": ", name, " has shape ", text_of(stored), ", the model wants ", text_of(shape),
           ": it belongs to another model (see --model)");
  }

  std::vector<float> fit_grid(const std::string& name, const std::vector<float>& values,
                              const std::vector<int64_t>& stored, const std::vector<int64_t>& shape) {
    expect_width(name, stored, shape);
    if (stored == shape) return values;
    const int64_t width = shape[1];
    const int64_t old_grid = std::lround(std::sqrt(static_cast<double>(stored[0] - 1)));
    const int64_t new_grid = std::lround(std::sqrt(static_cast<double>(shape[0] - 1)));
    if (old_grid * old_grid + 1 != stored[0] || old_grid < 1)
      fail(state_.path(), ": ", name, " has ", stored[0],
           " rows, which is no class token and a square of patches");
    const std::vector<float> grid(values.begin() + width, values.end());
    std::vector<float> fitted(values.begin(), values.begin() + width);
    const std::vector<float> resized = resize_grid(grid, old_grid, new_grid, width);
    fitted.insert(fitted.end(), resized.begin(), resized.end());
    if (say_)
      say_(concat(name, " is resized from ", old_grid, " x ", old_grid, " to ", new_grid, " x ", new_grid,
                  " patches (bicubic)"));
    return fitted;
  }

  std::vector<float> fit_line(const std::string& name, const std::vector<float>& values,
                              const std::vector<int64_t>& stored, const std::vector<int64_t>& shape) {
    expect_width(name, stored, shape);
    if (stored == shape) return values;
    if (say_) say_(concat(name, " is resized from ", stored[0], " to ", shape[0], " tokens (linear)"));
    return resize_line(values, stored[0], shape[0], shape[1]);
  }

  StateDict state_;
  const Say& say_;
  bool hugging_face_ = false;
  std::set<std::string> left_;  // not asked for yet
};

void write_all(const std::string& path, const std::vector<NamedTensor>& tensors, DType dtype) {
  SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  std::vector<Tensor> converted;
  for (const NamedTensor& t : tensors) {
    converted.push_back(t.values);
    if (dtype != t.values.dtype()) {
      converted.back() = Tensor(t.values.shape(), dtype);
      kernels(cpu_device).cast(converted.back(), t.values);
    }
    writer.add(t.name, converted.back());
  }
  writer.write(path);
}

void make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("cannot make the folder ", folder, ": ", error.message());
}

// Multiplies row r of a matrix, or element r of a vector, by gains[r].
void scale_rows(Tensor& values, const Tensor& gains) {
  const int64_t rows = gains.size(), columns = values.size() / rows;
  for (int64_t i = 0; i < values.size(); ++i) values.span<float>()[i] *= gains.span<float>()[i / columns];
}

}  // namespace

void load_clip_weights(const std::string& path, ParameterArena& arena, const Say& say) {
  Weights weights(StoredModel::find(path).weights, say);
  std::vector<Tensor> hosts;  // nothing is changed before all of them are there
  for (const auto& segment : arena.segments()) {
    const std::vector<float> values = weights.take(segment.name, sizes(segment.shape));
    Tensor& host = hosts.emplace_back(segment.shape, arena.masters().dtype());
    if (host.dtype() == DType::f64)
      std::copy(values.begin(), values.end(), host.span<double>().begin());
    else
      std::copy(values.begin(), values.end(), host.span<float>().begin());
  }
  weights.expect_nothing_left();
  size_t i = 0;
  for (const auto& segment : arena.segments())
    kernels(arena.device()).upload(arena.master_of(segment), hosts[i++]);
  arena.publish_masters();
}

std::vector<NamedTensor> read_clip_weights(const std::string& path, const ClipConfig& config,
                                           const Say& say) {
  ParameterArena arena(DType::f32, cpu_device, 0);  // never allocated: for names and shapes
  const Clip clip(arena, config);
  Weights weights(StoredModel::find(path).weights, say);
  std::vector<NamedTensor> all;
  for (const auto& segment : arena.segments()) {
    const std::vector<float> values = weights.take(segment.name, sizes(segment.shape));
    Tensor tensor(segment.shape, DType::f32);
    std::copy(values.begin(), values.end(), tensor.span<float>().begin());
    all.push_back({segment.name, tensor});
  }
  weights.expect_nothing_left();
  return all;
}

std::string recognise_model(const std::string& path) {
  const Weights weights(path, {});
  const auto shape_of = [&](const std::string& name) {
    const HuggingFaceParts parts = weights.parts(name);
    return parts.names.empty() || !weights.state().contains(parts.names[0])
               ? std::vector<int64_t>{}
               : weights.state().at(parts.names[0]).shape;
  };
  const auto layers = [&](const std::string& tower) {
    int64_t n = 0;
    while (!shape_of(concat(tower, "transformer.resblocks.", n, ".ln_1.weight")).empty()) ++n;
    return n;
  };
  const auto patches = shape_of("visual.conv1.weight"), places = shape_of("visual.positional_embedding"),
             words = shape_of("token_embedding.weight"), text_places = shape_of("positional_embedding");
  const int64_t vision_layers = layers("visual."), text_layers = layers("");
  std::vector<std::string> fitting;
  for (const ClipConfig& c : presets()) {
    const std::vector<int64_t> conv{c.vision.width, 3, c.vision.patch_size, c.vision.patch_size};
    if (patches == conv && places == std::vector<int64_t>{c.vision.patches() + 1, c.vision.width} &&
        words == std::vector<int64_t>{c.text.vocab_size, c.text.width} &&
        text_places == std::vector<int64_t>{c.text.context_length, c.text.width} &&
        vision_layers == c.vision.layers && text_layers == c.text.layers)
      fitting.push_back(c.name);
  }
  if (fitting.size() == 1) return fitting[0];
  std::string list;
  for (const std::string& name : fitting) list += (list.empty() ? "" : " or ") + name;
  fail(path, ": no config lies beside it; say which --model it is",
       list.empty() ? " (its shapes are those of no preset: give a model JSON)"
                    : " (by its shapes " + list + ")");
}

void write_open_clip(const std::string& folder, const ClipConfig& config,
                     const PixelNormalization& normalization, const std::vector<NamedTensor>& tensors,
                     DType dtype) {
  make_folder(folder);
  write_all(folder + "/open_clip_model.safetensors", tensors, dtype);
  write_file(folder + "/open_clip_config.json", open_clip_config_text(config, normalization));
}

void write_hugging_face(const std::string& folder, const ClipConfig& config, const PixelNormalization& n,
                        const std::vector<NamedTensor>& tensors, DType dtype, const Say& say) {
  std::map<std::string, Tensor> gammas;  // "visual.transformer.resblocks.0.ls_1"
  for (const NamedTensor& t : tensors)
    if (t.name.ends_with(".gamma")) gammas[t.name.substr(0, t.name.size() - 6)] = t.values;
  std::vector<NamedTensor> written;
  for (const NamedTensor& t : tensors) {
    if (t.name.ends_with(".gamma")) continue;
    if (t.name == "logit_bias") {
      if (say)
        say("logit_bias is left out: a CLIPModel has none (features and similarities do not depend on it)");
      continue;
    }
    const HuggingFaceParts parts = hugging_face_parts(t.name);
    CHECK(!parts.names.empty(), "no name for ", t.name);
    Tensor values(t.values.shape(), DType::f32);
    std::copy_n(t.values.span<float>().begin(), values.size(), values.span<float>().begin());
    for (const auto& [projection, scale] :
         {std::pair{".attn.out_proj.", ".ls_1"}, {".mlp.c_proj.", ".ls_2"}}) {
      const size_t at = t.name.find(projection);
      if (at == std::string::npos) continue;
      if (const auto gamma = gammas.find(t.name.substr(0, at) + scale); gamma != gammas.end())
        scale_rows(values, gamma->second);
    }
    if (parts.transposed) {
      const int64_t rows = values.shape()[0], columns = values.shape()[1];
      const std::vector<float> plain(values.span<float>().begin(), values.span<float>().end());
      const std::vector<float> turned = Weights::transpose(plain, rows, columns);
      values = Tensor({columns, rows}, DType::f32);
      std::copy(turned.begin(), turned.end(), values.span<float>().begin());
    }
    const int64_t count = std::ssize(parts.names);
    if (count == 1) {
      written.push_back({parts.names[0], values});
      continue;
    }
    const int64_t rows = values.shape()[0] / count;
    for (int64_t i = 0; i < count; ++i)
      written.push_back({parts.names[static_cast<size_t>(i)], values.slice(i * rows, rows)});
  }
  if (!gammas.empty() && say)
    say("layer-scale is multiplied into the projections before it: a CLIPModel has none");
  make_folder(folder);
  write_all(folder + "/model.safetensors", written, dtype);
  write_file(folder + "/config.json", hugging_face_config_text(config));
  write_file(folder + "/preprocessor_config.json", preprocessor_config_text(config.vision.image_size, n));
}

}  // namespace switchback
