// Weights of other programs: open_clip's .pt and transformers' folder give the features that those programs
// compute; there and back changes nothing; damaged files end in one line.
#include <algorithm>
#include <cmath>

#include "models/clip.h"
#include "models/interchange.h"
#include "models/position_resize.h"
#include "models/state_dict.h"
#include "runtime/file.h"
#include "runtime/safetensors.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK
#include <doctest/doctest.h>

namespace switchback {
namespace {

// Made by scripts/check_interchange.py --golden with open_clip and transformers.
const std::string golden = "tests/golden/interchange/";

Tensor read(const SafetensorsFile& file, const std::string& name, DType dtype) {
  const auto& s = file.at(name).shape;
  Tensor t(s.size() == 4 ? Shape{s[0], s[1], s[2], s[3]} : Shape{s[0], s[1]}, dtype);
  file.load_into(name, t);
  return t;
}

double greatest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(double{a[i]} - double{b[i]}));
  return worst;
}

// Features of the weights at `path` against those in the golden file under `program`.
void check_features(const std::string& path, const ClipConfig& config, const std::string& program) {
  INFO(path);
  const SafetensorsFile expected(golden + "expected.safetensors");
  ParameterArena arena(DType::f32, cpu_device, 0);
  const Clip clip(arena, config);
  arena.allocate();
  load_clip_weights(path, arena);
  Tape::Pause pause;
  const Tensor image = clip.encode_image(read(expected, "images", DType::u8), {}).value();
  const Tensor text = clip.encode_text(read(expected, "tokens", DType::i32), {}).value();
  const auto of = [&](const char* name) { return read(expected, program + name, DType::f32); };
  CHECK(greatest_difference(image.span<float>(), of("/image_features").span<float>()) < 1e-5);
  CHECK(greatest_difference(text.span<float>(), of("/text_features").span<float>()) < 1e-5);
}

ClipConfig small() { return read_model_config(golden + "model.json"); }

bool has(const std::string& text, const std::string& part) { return contains(text, part); }

}  // namespace

TEST_CASE("open_clip's .pt: module. and text. before the names, an optimizer beside the weights") {
  check_features(golden + "custom_text.pt", small(), "open_clip");
}

TEST_CASE("transformers' folder: config and weights") {
  const StoredModel stored = StoredModel::find(golden + "hugging_face");
  REQUIRE(stored.config.has_value());
  CHECK(stored.config->quick_gelu);
  CHECK_EQ(stored.config->vision.mlp_width(), 72);
  CHECK_EQ(stored.config->text.mlp_width(), 40);
  check_features(golden + "hugging_face", *stored.config, "hugging_face");
}

TEST_CASE("written folders read back to the same weights, and compute the same features") {
  const TemporaryFolder folder;
  const ClipConfig config = small();
  const auto weights = read_clip_weights(golden + "custom_text.pt", config);
  PixelNormalization halves;
  halves.mean = halves.std = {0.5f, 0.48145466f, 0.1f};
  const std::string open_clip = folder.path() + "/open_clip", hugging_face = folder.path() + "/hugging_face";
  write_open_clip(open_clip, config, {}, weights, DType::f32);
  check_features(open_clip, *StoredModel::find(open_clip).config, "open_clip");
  write_hugging_face(hugging_face, config, halves, weights, DType::f32);
  const StoredModel stored = StoredModel::find(hugging_face);
  CHECK(StoredModel::find(open_clip).normalization.mean == PixelNormalization().mean);  // all digits
  CHECK(stored.normalization.mean == halves.mean);
  CHECK(stored.normalization.std == halves.std);
  check_features(hugging_face, *stored.config, "open_clip");
  const auto again = read_clip_weights(hugging_face, *stored.config);
  REQUIRE_EQ(again.size(), weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    CHECK_EQ(again[i].name, weights[i].name);
    CHECK(greatest_difference(again[i].values.span<float>(), weights[i].values.span<float>()) == 0);
  }
}

TEST_CASE("a CLIPModel has no layer-scale and no logit bias: the one is multiplied in, the other said") {
  const TemporaryFolder folder;
  ClipConfig config = find_model("tiny");
  config.vision.layer_scale = config.text.layer_scale = 0.5;
  config.init_logit_bias = -10;
  ParameterArena arena(DType::f32, cpu_device, 3);
  const Clip clip(arena, config);
  arena.allocate();
  std::vector<NamedTensor> weights;
  for (const auto& s : arena.segments()) weights.push_back({s.name, arena.master_of(s)});
  for (const NamedTensor& w : weights)  // another gain in every row
    if (w.name.ends_with("gamma"))
      for (size_t i = 0; i < w.values.span<float>().size(); ++i)
        w.values.span<float>()[i] = 0.3f + 0.01f * static_cast<float>(i);
  std::string said;
  write_hugging_face(folder.path(), config, {}, weights, DType::f32,
                     [&](const std::string& line) { said += line; });
  CHECK(has(said, "logit_bias"));
  CHECK(has(said, "layer-scale"));

  const StoredModel stored = StoredModel::find(folder.path());
  ParameterArena plain_arena(DType::f32, cpu_device, 0);
  const Clip plain(plain_arena, *stored.config);
  plain_arena.allocate();
  load_clip_weights(folder.path(), plain_arena);
  Tape::Pause pause;
  Tensor images({2, 16, 16, 3}, DType::u8), tokens({2, 12}, DType::i32);
  for (size_t i = 0; i < images.span<uint8_t>().size(); ++i)
    images.span<uint8_t>()[i] = static_cast<uint8_t>(i * 37);
  for (size_t i = 0; i < tokens.span<int32_t>().size(); ++i)
    tokens.span<int32_t>()[i] = static_cast<int32_t>(i * 7 % 250);
  CHECK(greatest_difference(clip.encode_image(images, {}).value().span<float>(),
                            plain.encode_image(images, {}).value().span<float>()) < 1e-6);
  CHECK(greatest_difference(clip.encode_text(tokens, {}).value().span<float>(),
                            plain.encode_text(tokens, {}).value().span<float>()) < 1e-6);
}

TEST_CASE(
    "a low-precision recipe stays out of what open_clip reads (it refuses keys it does not know), and comes "
    "back") {
  const TemporaryFolder folder;
  ClipConfig config = small();
  config.vision.linear = "switchback";
  write_open_clip(folder.path(), config, {}, read_clip_weights(golden + "custom_text.pt", config),
                  DType::f32);
  const std::string text = read_file(folder.path() + "/open_clip_config.json");
  CHECK(text.find("switchback") > text.find("preprocess_cfg"));
  CHECK_EQ(StoredModel::find(folder.path()).config->vision.linear, "switchback");
  CHECK_EQ(StoredModel::find(folder.path()).config->text.linear, "standard");
}

TEST_CASE("position embeddings are resized as PyTorch resizes them, and it is said") {
  const SafetensorsFile expected(golden + "expected.safetensors");
  for (const auto& [grid, length] : {std::pair<int64_t, int64_t>{7, 16}, {2, 7}}) {
    ClipConfig config = small();
    config.vision.image_size = 4 * grid;
    config.text.context_length = length;
    std::string said;
    const auto weights =
        read_clip_weights(golden + "custom_text.pt", config, [&](const std::string& line) { said += line; });
    CHECK(has(said, concat("from 4 x 4 to ", grid, " x ", grid)));
    CHECK(has(said, concat("from 10 to ", length, " tokens")));
    for (const NamedTensor& w : weights) {
      const bool image = w.name == "visual.positional_embedding";
      if (!image && w.name != "positional_embedding") continue;
      const Tensor wanted = read(
          expected, image ? concat("positions/image", grid) : concat("positions/text", length), DType::f32);
      CHECK(greatest_difference(w.values.span<float>(), wanted.span<float>()) < 2e-6);
    }
  }
  const std::vector<float> line{1, 2, 4};
  CHECK(resize_line(line, 3, 3, 1) == line);
  CHECK(resize_grid({5}, 1, 3, 1) == std::vector<float>(9, 5));  // a constant stays one
}

TEST_CASE("weights of another model: the first tensor that does not fit, and what may be the cure") {
  const TemporaryFolder folder;
  const auto load = [&](ClipConfig config) {
    return error_of([&] { read_clip_weights(golden + "custom_text.pt", config); });
  };
  ClipConfig other = small();
  other.text.layers = 3;
  CHECK(has(load(other), "has no tensor transformer.resblocks.2."));
  other = small();
  other.text.layers = 1;
  CHECK(has(load(other), "has a tensor transformer.resblocks.1."));
  other = small();
  other.vision.mlp_ratio = 2;
  CHECK(has(load(other), "mlp.c_fc"));
  other = small();
  other.embed_dim = 16;
  CHECK(has(load(other), "the model wants (16, 16)"));
  CHECK(has(error_of([&] { recognise_model(golden + "custom_text.pt"); }), "--model"));
  CHECK(has(error_of([&] { StoredModel::find(folder.path()); }),
            "neither an open_clip_config.json nor a config.json"));
  CHECK(has(error_of([&] { StoredModel::find(folder.path() + "/gone"); }), "there is no"));

  // A type that is no text, too (found by fuzzing).
  CHECK(has(error_of([&] { parse_hugging_face_config("{\"model_type\":12}", "config.json"); }),
            "model_type is 12, only clip"));
  CHECK(has(error_of([&] { parse_hugging_face_config("{}", "config.json"); }), "model_type is missing"));

  // The sigmoid loss: a bias that the model has and the file has not starts at 0, the reverse is an error.
  ClipConfig biased = small();
  biased.init_logit_bias = -10;
  const auto weights = read_clip_weights(golden + "custom_text.pt", biased);
  for (const NamedTensor& w : weights)
    if (w.name == "logit_bias") CHECK(w.values.span<float>()[0] == 0);
  write_open_clip(folder.path(), biased, {}, weights, DType::f32);
  CHECK(has(error_of([&] { read_clip_weights(folder.path(), small()); }), "add --siglip"));
}

TEST_CASE("the shapes of weights tell their preset") {
  const TemporaryFolder folder;
  const ClipConfig config = find_model("mini-28");
  ParameterArena arena(DType::f32, cpu_device, 3);
  const Clip clip(arena, config);
  arena.allocate();
  std::vector<NamedTensor> weights;
  for (const auto& s : arena.segments()) weights.push_back({s.name, arena.master_of(s)});
  write_open_clip(folder.path(), config, {}, weights, DType::bf16);
  CHECK_EQ(recognise_model(folder.path() + "/open_clip_model.safetensors"), "mini-28");
}

TEST_CASE(".pt files: damage anywhere ends in one line, never in a crash") {
  const TemporaryFolder folder;
  const std::string whole = read_file(golden + "custom_text.pt"), path = folder.path() + "/damaged.pt";
  const auto attempt = [&](const std::string& bytes) {
    write_file(path, bytes);
    return error_of([&] { StateDict::read(path); });
  };
  CHECK(attempt(whole).empty());
  for (size_t cut : {size_t{1}, size_t{10}, whole.size() / 3, whole.size() - 100, whole.size() - 1})
    CHECK_FALSE(attempt(whole.substr(0, cut)).empty());
  // Every byte of the pickle and of the directory changed once; numbers of weights may change unnoticed.
  const size_t pickle = whole.find("data.pkl"),
               directory = whole.size() - std::min<size_t>(whole.size(), 3000);
  size_t refused = 0;
  for (const size_t from : {pickle, directory})
    for (size_t at = from; at < std::min(from + 3000, whole.size()); at += 7) {
      std::string changed = whole;
      changed[at] = static_cast<char>(changed[at] ^ 0x55);
      const std::string error = attempt(changed);
      refused += !error.empty();
      CHECK(error.find('\n') == std::string::npos);
    }
  CHECK(refused > 100);
  CHECK(has(attempt("\x80\x02}q\x00."), "before version 1.6"));
  CHECK(has(attempt("PK\x03\x04 and then nothing"), "not a zip archive"));
}

}  // namespace switchback
