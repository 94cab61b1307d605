// patches.cpp: pixels into patch rows, and the choice of patches for patch dropout.
#include <algorithm>
#include <vector>

#include "kernels/cpu/access.h"
#include "runtime/philox.h"

namespace switchback {
// keep (B, K) i32. The key of patch n of sample s at step t: component n % 4 of
// Philox(counter = (n/4, s low, s high, t low), key = seed with the purpose "patch dropout" in its top byte).
// The K largest keys win, ties go to the lower n.
void CpuKernels::choose_patches(View keep, int64_t patches, uint64_t seed, CView step, int64_t first_sample) {
  const char* op = "choose_patches";
  const auto [samples, kept] = Require::choose_patches(op, keep, patches, step);
  const uint32_t t = static_cast<uint32_t>(*step.as<int64_t>());
  const PhiloxKey key = philox_key(seed ^ static_cast<uint64_t>(RandomPurpose::patch_dropout) << 56);
  int32_t* out = keep.as<int32_t>();
  parallel_for(samples, 16, [&](int64_t from, int64_t to) {
    struct Candidate {
      uint32_t random;
      int32_t patch;
    };
    std::vector<Candidate> candidates(patches);
    for (int64_t b = from; b < to; ++b) {
      const uint64_t sample = static_cast<uint64_t>(first_sample + b);
      for (int64_t n = 0; n < patches; n += 4) {
        const PhiloxCounter random = philox({{static_cast<uint32_t>(n / 4), static_cast<uint32_t>(sample),
                                              static_cast<uint32_t>(sample >> 32), t}},
                                            key);
        for (int64_t i = 0; i < 4 && n + i < patches; ++i)
          candidates[n + i] = {random[i], static_cast<int32_t>(n + i)};
      }
      std::partial_sort(candidates.begin(), candidates.begin() + kept, candidates.end(),
                        [](const Candidate& a, const Candidate& b) {
                          return a.random != b.random ? a.random > b.random : a.patch < b.patch;
                        });
      int32_t* row = out + b * kept;
      for (int64_t i = 0; i < kept; ++i) row[i] = candidates[i].patch;
      std::sort(row, row + kept);
    }
  });
}

// pixels (B, H, W, 3) u8 -> patches (B K, 3 p p) of T, each row ordered (channel, row, column) like conv1's
// weight.
void CpuKernels::extract_patches(View patches, CView pixels, CView keep, int64_t patch_size,
                                 const PixelNormalization& normalization) {
  const char* op = "extract_patches";
  const auto [samples, height, width, count, kept] =
      Require::extract_patches(op, patches, pixels, keep, patch_size);
  const int64_t columns = width / patch_size, elements = 3 * patch_size * patch_size;
  visit_float(patches.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    T values[3][256];  // (pixel/255 - mean)/std, by channel and pixel value
    for (int c = 0; c < 3; ++c)
      for (int v = 0; v < 256; ++v)
        values[c][v] = static_cast<T>((R(v) / R(255) - static_cast<R>(normalization.mean[c])) /
                                      static_cast<R>(normalization.std[c]));
    const uint8_t* in = pixels.as<uint8_t>();
    const int32_t* chosen = keep.as<int32_t>();
    T* out = patches.as<T>();
    for_rows(samples * kept, elements, [&](int64_t row) {
      const int64_t sample = row / kept, n = chosen ? chosen[row] : row % kept;
      CHECK(n >= 0 && n < count, op, ": patch number ", n, " of ", count);
      const int64_t top = n / columns * patch_size, left = n % columns * patch_size;
      T* to = out + row * elements;
      for (int c = 0; c < 3; ++c)
        for (int64_t y = 0; y < patch_size; ++y) {
          const uint8_t* line = in + ((sample * height + top + y) * width + left) * 3 + c;
          for (int64_t x = 0; x < patch_size; ++x) *to++ = values[c][line[3 * x]];
        }
    });
  });
}

}  // namespace switchback
