// clip_preprocess, clip_convert, clip_features and clip_tokenize as programs.
#include "data/augment.h"
#include "runtime/safetensors.h"
#include "runtime/tensor.h"
#include "tests/apps/workshop.h"

using namespace switchback;

namespace {

Outcome run(const Workshop& w, const std::string& program, const Words& words) {
  return Program(program, words, w.file("tool")).wait();
}

std::vector<uint8_t> bytes_of(const std::string& path) {
  const std::string text = read_file(path);
  return {text.begin(), text.end()};
}

}  // namespace

TEST_CASE("clip_preprocess writes what the loader would hand to the model") {
  const Workshop w;
  const std::vector<uint8_t> png = noise_png(3, 40, 90);
  write_file(w.file("in.png"), std::string_view(reinterpret_cast<const char*>(png.data()), png.size()));
  const Image image = decode_image(png);

  Outcome done = run(w, "clip_preprocess", {w.file("in.png"), w.file("out.png"), "--size", "32"});
  INFO(done.output);
  REQUIRE_EQ(done.status, 0);
  CHECK(decode_image(bytes_of(w.file("out.png"))).pixels == evaluation_transform(image, 32).pixels);

  for (const char* position : {"0", "12"}) {
    done = run(w, "clip_preprocess",
               {w.file("in.png"), w.file("out.png"), "--size", "32", "--train", "--seed", "5", "--position",
                position, "--scale", "0.2", "1"});
    INFO(done.output);
    REQUIRE_EQ(done.status, 0);
    PhiloxStream random(5, RandomPurpose::augmentation, std::stoull(position));
    CropOptions crop;
    crop.scale[0] = 0.2;
    CHECK(decode_image(bytes_of(w.file("out.png"))).pixels ==
          train_transform(image, 32, crop, random).pixels);
    CHECK(done.output.find("crop of ") != std::string::npos);
  }
  CHECK_EQ(run(w, "clip_preprocess", {w.file("a.tar:100003"), w.file("out.png"), "--model", "tiny"}).status,
           0);
  CHECK_EQ(decode_image(bytes_of(w.file("out.png"))).width, 16);
  const Outcome missing = run(w, "clip_preprocess", {w.file("a.tar:1"), w.file("out.png")});
  CHECK_EQ(missing.status, 1);
  CHECK(missing.output.find("has no sample 1") != std::string::npos);
  const Outcome broken = run(w, "clip_preprocess", {w.file("a.tar"), w.file("out.png")});
  CHECK_EQ(broken.status, 1);
  CHECK(broken.output.find("not an image") != std::string::npos);
}

TEST_CASE(
    "clip_convert and clip_features: a checkpoint to transformers' folder and back, the same features") {
  Workshop w;
  REQUIRE_EQ(w.train("c", {"--max-steps", "2"}).status, 0);
  const std::string checkpoint = w.checkpoint("c", 2);
  const Outcome there = run(w, "clip_convert", {checkpoint, w.file("hf"), "--to", "hugging-face"});
  INFO(there.output);
  REQUIRE_EQ(there.status, 0);
  REQUIRE_EQ(run(w, "clip_convert", {w.file("hf"), w.file("back")}).status, 0);
  CHECK(read_file(w.file("back/open_clip_model.safetensors")) == w.weights("c", 2));

  const Tensor images({3, 16, 16, 3}, DType::u8), tokens({3, 12}, DType::i32);
  for (size_t i = 0; i < images.span<uint8_t>().size(); ++i)
    images.span<uint8_t>()[i] = static_cast<uint8_t>(i * 91);
  for (size_t i = 0; i < tokens.span<int32_t>().size(); ++i)
    tokens.span<int32_t>()[i] = static_cast<int32_t>(i % 259);
  SafetensorsWriter writer;
  writer.add("images", images);
  writer.add("tokens", tokens);
  writer.write(w.file("inputs.safetensors"));
  for (const std::string& from : {checkpoint, w.file("hf")}) {
    const Outcome done = run(w, "clip_features",
                             {"--checkpoint", from, "--batch-size", "2", w.file("inputs.safetensors"),
                              w.file("features.safetensors")});
    INFO(done.output);
    REQUIRE_EQ(done.status, 0);
    const SafetensorsFile features(w.file("features.safetensors"));
    CHECK(features.at("image_features").shape == std::vector<int64_t>{3, 16});
    CHECK(features.at("text_features").shape == std::vector<int64_t>{3, 16});
  }
  // Pretrained weights from either; another image size resizes the positions and says so.
  for (const std::string& from : {checkpoint, w.file("hf"), w.file("back/open_clip_model.safetensors")})
    CHECK_EQ(w.train(concat("p", w.runs), {"--max-steps", "1", "--pretrained", from}).status, 0);
  const Outcome larger =
      w.train("l", {"--max-steps", "1", "--pretrained", checkpoint, "--force-image-size", "32"});
  CHECK_EQ(larger.status, 0);
  CHECK(larger.output.find("from 2 x 2 to 4 x 4 patches") != std::string::npos);
  const Outcome again = run(w, "clip_convert", {w.file("hf"), w.file("back")});
  CHECK_EQ(again.status, 1);
  CHECK(again.output.find("--overwrite") != std::string::npos);
  check_fails(w.train("x", {"--pretrained", w.file("a.tar")}), {"a.tar"});
}

TEST_CASE("clip_convert: other sizes, half the bytes, the other GELU, and what cannot be") {
  Workshop w;
  REQUIRE_EQ(w.train("c", {"--max-steps", "1"}).status, 0);
  const std::string checkpoint = w.checkpoint("c", 1);
  const auto convert = [&](const std::string& to, const Words& flags) {
    Words words{checkpoint, w.file(to)};
    words.insert(words.end(), flags.begin(), flags.end());
    return run(w, "clip_convert", words);
  };
  const Outcome larger = convert("larger", {"--image-size", "24", "--context-length", "20"});
  INFO(larger.output);
  REQUIRE_EQ(larger.status, 0);
  CHECK(larger.output.find("from 2 x 2 to 3 x 3 patches") != std::string::npos);
  CHECK(larger.output.find("from 12 to 20 tokens") != std::string::npos);
  const SafetensorsFile weights(w.file("larger/open_clip_model.safetensors"));
  CHECK_EQ(weights.at("positional_embedding").shape[0], 20);
  CHECK_EQ(weights.at("visual.positional_embedding").shape[0], 10);
  CHECK(read_file(w.file("larger/open_clip_config.json")).find("24") != std::string::npos);

  REQUIRE_EQ(convert("half", {"--dtype", "bf16"}).status, 0);
  const SafetensorsFile half(w.file("half/open_clip_model.safetensors")),
      whole(checkpoint + "/open_clip_model.safetensors");
  for (const std::string& name : whole.names())
    CHECK_EQ(2 * half.at(name).bytes.size(), whole.at(name).bytes.size());
  CHECK_EQ(w.train("h", {"--max-steps", "1", "--pretrained", w.file("half")}).status, 0);

  CHECK(convert("quick", {"--force-quick-gelu"}).output.find("QuickGELU") != std::string::npos);
  CHECK(read_file(w.file("quick/open_clip_config.json")).find("quick_gelu\": true") != std::string::npos);

  for (const auto& [flags, message] :
       std::vector<std::pair<Words, std::string>>{{{"--image-size", "25"}, "8 does not divide image_size 25"},
                                                  {{"--image-size", "0"}, "--image-size"},
                                                  {{"--context-length", "1"}, "no room for start and end"},
                                                  {{"--dtype", "f16"}, "--dtype"},
                                                  {{"--to", "onnx"}, "--to"}}) {
    const Outcome refused = convert("refused", flags);
    INFO(refused.output);
    CHECK_EQ(refused.status, 1);
    CHECK(refused.output.find(message) != std::string::npos);
  }
}

TEST_CASE("clip_tokenize prints a line of ids for every line of text") {
  const Workshop w;
  write_file(w.file("text"), "Ab\n\na  b");
  const auto tokenize = [&](const Words& words) { return run(w, "clip_tokenize", words); };
  const Outcome done = tokenize({"--tokenizer", "bytes", "--context-length", "6", w.file("text")});
  CHECK_EQ(done.status, 0);
  CHECK_EQ(done.output, "257 66 99 258 0 0\n257 258 0 0 0 0\n257 98 33 33 99 258\n");
  CHECK_EQ(tokenize({"--voc", "bytes", "--context-length=3", w.file("text")}).output,
           "257 66 258\n257 258 0\n257 98 258\n");
  for (const auto& [words, message] : std::vector<std::pair<Words, std::string>>{
           {{"--tokenizer", "bytes", "--context-length", "1"}, "no room for start and end"},
           {{"--tokenizer", "bytes", "--context-length", "99999999999"}, "--context-length"},
           {{"--tokenizer", "bytes", "nowhere"}, "cannot open nowhere"},
           {{"--tokenizer", "nowhere", w.file("text")}, "nowhere"},
           {{"--context", "bytes", "--vocab"}, "--vocab"}}) {
    const Outcome refused = tokenize(words);
    INFO(refused.output);
    CHECK_EQ(refused.status, 1);
    CHECK(refused.output.starts_with("clip_tokenize: "));
    CHECK_EQ(std::count(refused.output.begin(), refused.output.end(), '\n'), 1);
    CHECK(refused.output.find(message) != std::string::npos);
  }
}

TEST_CASE("a locked tower keeps its weights to the bit, the other learns") {
  Workshop w;
  REQUIRE_EQ(w.train("free", {"--max-steps", "1", "--force-patch-dropout", "0"}).status, 0);
  const Outcome locked =
      w.train("locked", {"--max-steps", "3", "--lock-image", "--pretrained", w.checkpoint("free", 1), "--wd",
                         "0.2", "--force-patch-dropout", "0"});
  INFO(locked.output);
  REQUIRE_EQ(locked.status, 0);
  CHECK(locked.output.find("the image tower is locked") != std::string::npos);
  const SafetensorsFile before(w.checkpoint("free", 1) + "/open_clip_model.safetensors");
  const SafetensorsFile after(w.checkpoint("locked", 3) + "/open_clip_model.safetensors");
  for (const std::string& name : before.names()) {
    INFO(name);
    const auto a = before.at(name).bytes, b = after.at(name).bytes;
    CHECK_EQ(std::equal(a.begin(), a.end(), b.begin()), name.starts_with("visual."));
  }
}

TEST_CASE("a dry run says model, work, memory and time, and writes nothing") {
  Workshop w;
  const Outcome done =
      Program("clip_train",
              {"--dry-run", "--model", "ViT-L-14", "--dataset-type", "synthetic", "--train-num-samples",
               "3200000", "--epochs", "1", "--batch-size", "512", "--device", "cpu", "--logs", w.file("dry")},
              w.file("dry-output"))
          .wait();
  INFO(done.output);
  CHECK_EQ(done.status, 0);
  for (const char* part :
       {"427616513 parameters", "6250 in all", "1.683", "EFLOP", "Memory: ", "Expected time: at least"})
    CHECK(done.output.find(part) != std::string::npos);
  CHECK_FALSE(fs::exists(w.file("dry")));
}
