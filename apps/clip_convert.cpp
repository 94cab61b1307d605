// clip_convert: weights of a CLIP from one program's form to another's.
//
//   clip_convert logs/RUN/checkpoints/step_00000300 exported --to hugging-face
//   clip_convert epoch_32.pt exported --model ViT-B-32             open_clip's trainer -> open_clip's folder
//   clip_convert clip-vit-base-patch32 exported --image-size 336   transformers -> open_clip, positions
//   resized
//
// Read: open_clip's and transformers' folders, .safetensors, and the .pt/.bin files of torch.save (as data:
// no program in them is run). Written: a folder that open_clip (local-dir:FOLDER) or transformers
// (CLIPModel.from_pretrained) loads as it is.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "apps/flags.h"
#include "models/flops.h"
#include "models/interchange.h"
#include "runtime/check.h"
#include "runtime/program.h"

namespace switchback {
namespace {

int run(int argc, char** argv) {
  std::string from, to, model, layout = "open-clip", dtype = "f32";
  std::optional<int64_t> image_size, context_length;
  bool quick_gelu = false, overwrite = false;

  CLI::App app("clip_convert: reads weights of open_clip or transformers and writes either's folder.");
  app.get_formatter()->column_width(34);
  app.add_option("from", from, "folder or file: open_clip, transformers, .safetensors, .pt, .bin")
      ->required();
  app.add_option("folder", to, "the folder to write")->required();
  app.add_option("--to", layout, "open-clip or hugging-face")
      ->check(CLI::IsMember({"open-clip", "hugging-face"}))
      ->capture_default_str();
  app.add_option("--model", model,
                 "preset or model JSON (default: the config beside the weights, or their shapes)");
  app.add_option("--image-size", image_size, "resize the image tower's positions to this image size")
      ->check(positive());
  app.add_option("--context-length", context_length, "resize the text tower's positions to this many tokens")
      ->check(positive());
  app.add_option("--dtype", dtype, "f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app.add_flag("--force-quick-gelu", quick_gelu,
               "the weights were trained with x sigmoid(1.702 x), as OpenAI's were, and no config says so");
  app.add_flag("--overwrite", overwrite, "replace what is in the folder");
  if (!parse_flags(app, argc, argv)) return 0;

  const StoredModel stored = StoredModel::find(from);
  ClipConfig config = stored.config_or(model);
  if (image_size) config.vision.image_size = *image_size;
  if (context_length) config.text.context_length = *context_length;
  if (quick_gelu) config.quick_gelu = true;
  check_config(config);

  const bool hugging_face = layout == "hugging-face";
  const std::string written = to + (hugging_face ? "/model.safetensors" : "/open_clip_model.safetensors");
  if (!overwrite && std::filesystem::exists(written))
    fail(written, " exists already: choose another folder, or --overwrite");
  const Say say = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  const std::vector<NamedTensor> tensors = read_clip_weights(from, config, say);
  const DType type = dtype == "f32" ? DType::f32 : DType::bf16;
  if (hugging_face)
    write_hugging_face(to, config, stored.normalization, tensors, type, say);
  else
    write_open_clip(to, config, stored.normalization, tensors, type);
  std::printf("%s: %zu tensors, %lld parameters, %s\n", written.c_str(), tensors.size(),
              static_cast<long long>(parameter_count(config)), config.quick_gelu ? "QuickGELU" : "GELU");
  return 0;
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  return switchback::run_program("clip_convert", switchback::run, argc, argv);
}
