// patches.cu: pixels into patch rows, and the choice of patches for patch dropout.
#include "kernels/cuda/vec.cuh"
#include "runtime/philox.h"

namespace switchback::cuda {
namespace {

constexpr int most_patches = 4096;  // a block holds the keys of one sample in shared memory

// One block a sample. The key of patch n of sample s at step t: component n % 4 of
// Philox(counter = (n/4, s low, s high, t low), key = seed with the purpose "patch dropout" in its top byte).
// The K largest keys win, ties go to the lower n: a patch is kept when fewer than K others go before it, and
// its place is the number of kept patches below it.
__global__ void choose(int32_t* keep, int kept, int patches, PhiloxKey key, const int64_t* step,
                       int64_t first_sample) {
  __shared__ uint32_t random[most_patches];
  __shared__ uint8_t wins[most_patches];
  const uint64_t sample = static_cast<uint64_t>(first_sample + blockIdx.x);
  const uint32_t t = static_cast<uint32_t>(*step);
  for (int n = threadIdx.x * 4; n < patches; n += blockDim.x * 4) {
    const PhiloxCounter words = philox({{static_cast<uint32_t>(n / 4), static_cast<uint32_t>(sample),
                                         static_cast<uint32_t>(sample >> 32), t}}, key);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n + i < patches) random[n + i] = words.word[i];
  }
  __syncthreads();
  for (int n = threadIdx.x; n < patches; n += blockDim.x) {
    int before = 0;
    for (int other = 0; other < patches; ++other)
      before += random[other] > random[n] || (random[other] == random[n] && other < n);
    wins[n] = before < kept;
  }
  __syncthreads();
  for (int n = threadIdx.x; n < patches; n += blockDim.x) {
    if (!wins[n]) continue;
    int place = 0;
    for (int other = 0; other < n; ++other) place += wins[other];
    keep[static_cast<int64_t>(blockIdx.x) * kept + place] = n;
  }
}

struct Normalization {
  float mean[3], std[3];
};

// One block a patch row: (channel, row, column) like conv1's weight.
template <class T>
__global__ void extract(T* patches, const uint8_t* pixels, const int32_t* keep, int kept, int height,
                        int width, int patch_size, Normalization normalization) {
  const int64_t row = blockIdx.x, sample = row / kept;
  const int columns = width / patch_size, count = height / patch_size * columns;
  const int n = keep ? keep[row] : static_cast<int>(row - sample * kept);
  const bool inside = n >= 0 && n < count;
  const int top = n / columns * patch_size, left = n % columns * patch_size, area = patch_size * patch_size;
  T* to = patches + row * 3 * area;
  for (int i = threadIdx.x; i < 3 * area; i += blockDim.x) {
    const int channel = i / area, y = (i - channel * area) / patch_size,
              x = i - channel * area - y * patch_size;
    float value = __int_as_float(0x7fffffff);
    if (inside) {
      const int pixel = pixels[((sample * height + top + y) * width + left + x) * 3 + channel];
      // Divided, not multiplied by a reciprocal: the CPU's bits.
      value = (static_cast<float>(pixel) / 255.0f - normalization.mean[channel]) / normalization.std[channel];
    }
    to[i] = from_float<T>(value);
  }
}

}  // namespace

void CudaKernels::choose_patches(View keep, int64_t patches, uint64_t seed, CView step,
                                 int64_t first_sample) {
  const char* op = "choose_patches";
  const auto [samples, kept] = Require::choose_patches(op, keep, patches, step);
  if (patches > most_patches)
    fail("patch dropout: ", patches, " patches an image; the GPU takes at most ", most_patches);
  if (keep.size() == 0) return;
  const PhiloxKey key = philox_key(seed ^ static_cast<uint64_t>(RandomPurpose::patch_dropout) << 56);
  choose<<<blocks_for(samples, 1), 256, 0, stream_>>>(data<int32_t>(keep), static_cast<int>(kept),
                                                      static_cast<int>(patches), key, data<int64_t>(step),
                                                      first_sample);
  check_launch(op);
}

void CudaKernels::extract_patches(View patches, CView pixels, CView keep, int64_t patch_size,
                                  const PixelNormalization& normalization) {
  const char* op = "extract_patches";
  const PatchSizes s = Require::extract_patches(op, patches, pixels, keep, patch_size);
  if (patches.size() == 0) return;
  Normalization n;
  for (size_t c = 0; c < 3; ++c) {
    n.mean[c] = normalization.mean[c];
    n.std[c] = normalization.std[c];
  }
  visit(patches.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    extract<<<blocks_for(s.samples * s.kept, 1), 256, 0, stream_>>>(
        data<T>(patches), data<uint8_t>(pixels), data<int32_t>(keep), static_cast<int>(s.kept),
        static_cast<int>(s.height), static_cast<int>(s.width), static_cast<int>(patch_size), n);
    check_launch(op);
  });
}

}  // namespace switchback::cuda
