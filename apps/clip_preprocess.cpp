// clip_preprocess: what the model would see of an image, as a PNG. For people who debug a data set.
//
//   clip_preprocess photo.jpg seen.png --size 224                     as in evaluation
//   clip_preprocess photo.jpg crop.png --train --seed 3 --position 7  the crop that sample number 7 of a run
//   with
//                                                                     --seed 3 would get if it were this
//                                                                     image
//   clip_preprocess shard.tar:000000012 seen.png                      a sample of a shard
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "apps/flags.h"
#include "data/augment.h"
#include "data/input_file.h"
#include "data/png_writer.h"
#include "data/shards.h"
#include "models/config.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "runtime/philox.h"
#include "runtime/program.h"

namespace switchback {
namespace {

// The encoded image: a file, or "shard.tar:key".
std::vector<uint8_t> read_encoded(const std::string& name) {
  const size_t colon = name.rfind(".tar:");
  if (std::filesystem::exists(name) || colon == std::string::npos) {
    const std::string bytes = read_file(name);
    return {bytes.begin(), bytes.end()};
  }
  const std::string shard = name.substr(0, colon + 4), key = name.substr(colon + 5);
  Reasons reasons;
  SampleNeeds needs;
  needs.caption = false;
  const ShardIndex index(shard, needs, std::make_shared<OpenFiles>(), reasons);
  RawSample sample;
  for (int64_t i = 0; i < index.size(); ++i) {
    if (index.key(i) != key) continue;
    index.read(i, sample);
    return {sample.image.begin(), sample.image.end()};
  }
  fail(shard, " has no sample ", key, " with an image; its first is ",
       index.size() ? index.key(0) : "missing, it is empty");
}

int run(int argc, char** argv) {
  std::string input, output, model, resize_mode = "shortest", interpolation = "bicubic";
  int64_t size = 224, seed = 0, position = 0;
  bool train = false;
  std::vector<double> scale{0.9, 1.0}, ratio{3.0 / 4, 4.0 / 3};
  CLI::App app("clip_preprocess: writes the square that the model would see of an image.");
  app.get_formatter()->column_width(34);
  app.add_option("image", input, "JPEG, PNG or WebP file, or shard.tar:key")->required();
  app.add_option("png", output, "the PNG file to write")->required();
  app.add_option("--model", model, "take the size of this preset or model JSON");
  app.add_option("--size", size, "image size")->check(CLI::Range(1, 16384))->capture_default_str();
  app.add_flag("--train", train, "a training crop instead of the evaluation's");
  app.add_option("--seed", seed, "training: the run's --seed");
  app.add_option("--position", position, "training: number of the sample in the run's stream")
      ->check(not_negative());
  app.add_option("--scale", scale, "training: share of the area that is kept, two numbers")->expected(2);
  app.add_option("--ratio", ratio, "training: width / height of the crop, two numbers")->expected(2);
  app.add_option("--image-resize-mode", resize_mode, "evaluation: shortest, longest or squash")
      ->capture_default_str();
  app.add_option("--image-interpolation", interpolation, "evaluation: bicubic or bilinear")
      ->capture_default_str();
  if (!parse_flags(app, argc, argv)) return 0;
  if (!model.empty()) size = find_model(model).vision.image_size;
  for (const auto* pair : {&scale, &ratio})
    if (!((*pair)[0] > 0) || (*pair)[0] > (*pair)[1])
      fail("--scale and --ratio take two positive numbers in ascending order, got ", (*pair)[0], " ",
           (*pair)[1]);

  Image image;
  try {
    decode_image(image, read_encoded(input));
  } catch (const Error& error) {
    fail(input, ": ", error.what());
  }
  Image seen;
  if (train) {
    CropOptions crop;
    for (size_t i = 0; i < 2; ++i) crop.scale[i] = scale[i], crop.ratio[i] = ratio[i];
    PhiloxStream random(static_cast<uint64_t>(seed), RandomPurpose::augmentation,
                        static_cast<uint64_t>(position));
    const CropBox box = random_resized_crop(image.height, image.width, crop, random);
    resize(seen, image, box, size, size, Interpolation::bicubic);
    std::printf("%s: %lld x %lld, crop of %lld x %lld at (%lld, %lld)\n", input.c_str(),
                static_cast<long long>(image.width), static_cast<long long>(image.height),
                static_cast<long long>(box.width), static_cast<long long>(box.height),
                static_cast<long long>(box.left), static_cast<long long>(box.top));
  } else {
    evaluation_transform(seen, image, size, parse_resize_mode(resize_mode),
                         parse_interpolation(interpolation));
    std::printf("%s: %lld x %lld\n", input.c_str(), static_cast<long long>(image.width),
                static_cast<long long>(image.height));
  }
  const std::vector<uint8_t> png = encode_png(seen.pixels, size, size, 3);
  write_file(output, std::string_view(reinterpret_cast<const char*>(png.data()), png.size()));
  return 0;
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  return switchback::run_program("clip_preprocess", switchback::run, argc, argv);
}
