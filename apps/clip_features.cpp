// clip_features: what a CLIP makes of given inputs, as numbers in a file: for comparing with other programs,
// and for people who want features and no training.
//
//   clip_features --checkpoint FOLDER inputs.safetensors features.safetensors
//
//   inputs     images (B, S, S, 3) u8, RGB, and/or tokens (B, T) i32
//   features   image_features (B, E), text_features (B, E) f32, L2-normalised; logit_scale () f32, exp'd
// Images are those that the model sees (clip_preprocess makes them): bytes, before mean and deviation.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>

#include "apps/flags.h"
#include "kernels/transfer.h"
#include "models/clip.h"
#include "models/interchange.h"
#include "runtime/check.h"
#include "runtime/parallel.h"
#include "runtime/program.h"
#include "runtime/safetensors.h"

namespace switchback {
namespace {

// The tensor `name` (B, ...) of the file, whose other sizes must be these.
Tensor read_input(const SafetensorsFile& file, const std::string& name, std::vector<int64_t> sizes,
                  DType dtype) {
  const StoredTensor& stored = file.at(name);
  if (stored.shape.size() != sizes.size() + 1 || stored.shape[0] < 1 ||
      !std::equal(sizes.begin(), sizes.end(), stored.shape.begin() + 1)) {
    std::string wanted = "(B";
    for (const int64_t size : sizes) wanted += ", " + std::to_string(size);
    fail(file.path(), ": ", name, " must have the shape ", wanted, ") for this model");
  }
  const int64_t batch = stored.shape[0];
  Tensor tensor(sizes.size() == 3 ? Shape{batch, sizes[0], sizes[1], sizes[2]} : Shape{batch, sizes[0]},
                dtype);
  file.load_into(name, tensor);
  return tensor;
}

int run(int argc, char** argv) {
  std::string checkpoint, model, input, output;
  int64_t threads = 0, batch_size = 64;
  bool quick_gelu = false;
  CLI::App app("clip_features: image and text features of given pixels and token ids.");
  app.get_formatter()->column_width(34);
  app.add_option("--checkpoint", checkpoint, "folder or file of weights, of open_clip or transformers")
      ->required();
  app.add_option("--model", model,
                 "preset or model JSON (default: the config beside the weights, or their shapes)");
  app.add_flag("--force-quick-gelu", quick_gelu, "x sigmoid(1.702 x) instead of the exact GELU");
  app.add_option("--batch-size", batch_size, "rows at a time")->check(positive());
  app.add_option("--threads", threads, "CPU threads; 0: all cores")->check(not_negative());
  app.add_option("inputs", input, "safetensors with images and/or tokens")->required();
  app.add_option("features", output, "the safetensors file to write")->required();
  if (!parse_flags(app, argc, argv)) return 0;
  if (threads > 0) set_cpu_threads(static_cast<int>(threads));

  const StoredModel stored = StoredModel::find(checkpoint);
  ClipConfig config = stored.config_or(model);
  if (quick_gelu) config.quick_gelu = true;

  const SafetensorsFile inputs(input);
  Tensor images, tokens;
  const int64_t S = config.vision.image_size;
  if (inputs.contains("images")) images = read_input(inputs, "images", {S, S, 3}, DType::u8);
  if (inputs.contains("tokens"))
    tokens = read_input(inputs, "tokens", {config.text.context_length}, DType::i32);
  if (!images.defined() && !tokens.defined()) fail(input, " has neither images nor tokens");
  if (tokens.defined())
    for (const int32_t id : tokens.span<int32_t>())
      if (id < 0 || id >= config.text.vocab_size)
        fail(input, ": token ", id, ", but the model has ids from 0 to ", config.text.vocab_size - 1);

  ParameterArena arena(DType::f32, cpu_device, 0);
  Clip clip(arena, config);
  arena.allocate();
  load_clip_weights(checkpoint, arena,
                    [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  Clip::Options options;
  options.normalization = stored.normalization;
  Tape::Pause pause;
  const auto all = [&](const Tensor& rows, const auto& encode) {
    const int64_t total = rows.shape()[0];
    Tensor features({total, config.embed_dim}, DType::f32);
    for (int64_t from = 0; from < total; from += batch_size) {
      const int64_t count = std::min(batch_size, total - from);
      const Tensor part = encode(rows.slice(from, count)).value();
      std::copy_n(part.template span<float>().begin(), part.size(),
                  features.span<float>().begin() + from * config.embed_dim);
    }
    return features;
  };
  SafetensorsWriter writer;
  Tensor image_features, text_features;
  if (images.defined())
    writer.add("image_features", image_features = all(images, [&](const Tensor& part) {
                                   return clip.encode_image(part, options);
                                 }));
  if (tokens.defined())
    writer.add("text_features", text_features = all(tokens, [&](const Tensor& part) {
                                  return clip.encode_text(clip.needed_columns(part), options);
                                }));
  const Tensor scale =
      Tensor::of<float>({}, {static_cast<float>(std::exp(number(clip.logit_scale().value())))});
  writer.add("logit_scale", scale);
  writer.write(output);
  return 0;
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  return switchback::run_program("clip_features", switchback::run, argc, argv);
}
