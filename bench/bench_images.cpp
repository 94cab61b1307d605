// bench_images.cpp: how many pictures per second one core decodes, crops and resizes to 224 x 224.
//
//   bench_images FOLDER [SECONDS]      every .jpg, .png and .webp below FOLDER; 2 seconds per stage
//
// Files are read before the clock starts. bench/images_baseline.py runs Pillow over the same files beside it
// and prints the ratio.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "data/augment.h"
#include "data/image.h"
#include "runtime/check.h"
#include "runtime/program.h"

namespace {

using namespace switchback;

struct Random {
  double uniform_double() { return std::uniform_real_distribution<double>(0.0, 1.0)(engine); }
  uint64_t below(uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(engine); }
  std::mt19937_64 engine{1};
};

std::vector<std::vector<uint8_t>> read_files(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string extension = entry.path().extension();
    if (extension == ".jpg" || extension == ".png" || extension == ".webp") paths.push_back(entry.path());
  }
  if (paths.empty()) fail("no .jpg, .png or .webp below ", folder);
  std::sort(paths.begin(), paths.end());
  std::vector<std::vector<uint8_t>> files;
  for (const auto& path : paths) {
    std::ifstream in(path, std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return files;
}

// Images per second of processor time, in the fastest pass over the files: what else runs on the machine
// counts as little as possible.
double rate(size_t files, double seconds, const std::function<void(size_t file)>& work) {
  const auto now = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
  double best = 0.0;
  for (const double start = now(); best == 0.0 || now() - start < seconds;) {
    const double begin = now();
    for (size_t i = 0; i < files; ++i) work(i);
    best = std::max(best, static_cast<double>(files) / (now() - begin));
  }
  return best;
}

int run(int argc, char** argv) {
  if (argc < 2) fail("usage: bench_images FOLDER [SECONDS]");
  const double seconds = argc > 2 ? std::atof(argv[2]) : 2.0;
  const std::vector<std::vector<uint8_t>> files = read_files(argv[1]);
  Image image, square;
  const double decode = rate(files.size(), seconds, [&](size_t i) { decode_image(image, files[i]); });
  Random random;
  const double all = rate(files.size(), seconds, [&](size_t i) {
    decode_image(image, files[i]);
    train_transform(square, image, 224, {}, random);
  });
  std::printf("files %zu decode %.1f decode+crop+resize %.1f images/s\n", files.size(), decode, all);

  // --fast-decode of clip_train: how fast, and how far the pixels are from the exact ones.
  DecodeOptions fast;
  fast.fast_decode_edge = static_cast<int64_t>(std::ceil(224 / std::sqrt(CropOptions().scale[0])));
  const double sooner = rate(files.size(), seconds, [&](size_t i) {
    decode_image(image, files[i], fast);
    train_transform(square, image, 224, {}, random);
  });
  double sum = 0, count = 0, largest = 0;
  size_t parts = 0;
  for (const auto& file : files) {
    const Image exact = decode_image(file);
    decode_image(image, file, fast);
    parts += image.width < exact.width;
    const Image a = evaluation_transform(exact, 224), b = evaluation_transform(image, 224);
    for (size_t i = 0; i < a.pixels.size(); ++i) {
      const double difference = std::abs(a.pixels[i] - b.pixels[i]);
      sum += difference;
      largest = std::max(largest, difference);
    }
    count += static_cast<double>(a.pixels.size());
  }
  std::printf(
      "fast-decode: %zu of %zu files smaller, decode+crop+resize %.1f images/s, difference of 224 x 224 "
      "pixels: "
      "mean %.2f, largest %.0f of 255\n",
      parts, files.size(), sooner, sum / count, largest);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_program("bench_images", run, argc, argv); }
