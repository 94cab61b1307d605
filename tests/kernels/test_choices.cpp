// Patch dropout's choice, casts, fills, and NaN that must not vanish.
#include <set>

#include "runtime/philox.h"
#include "tests/kernels/testing.h"

using namespace switchback;

namespace {

std::vector<int32_t> chosen(int64_t samples, int64_t kept, int64_t patches, uint64_t seed, int64_t step,
                            int64_t first) {
  Tensor keep({samples, kept}, DType::i32);
  kernels(cpu_device).choose_patches(keep, patches, seed, Tensor::of<int64_t>({}, {step}), first);
  const auto values = keep.span<int32_t>();
  return {values.begin(), values.end()};
}

}  // namespace

TEST_CASE("choose_patches keeps the patches with the largest keys, in order") {
  const uint64_t seed = 0x123456789abcdefu;
  const int64_t patches = 49, kept = 20, step = 7, sample = (int64_t{5} << 32) + 3;
  const auto keep = chosen(1, kept, patches, seed, step, sample);
  const PhiloxKey key = philox_key(seed ^ static_cast<uint64_t>(RandomPurpose::patch_dropout) << 56);
  std::vector<uint32_t> keys(patches);
  for (uint32_t n = 0; n < patches; ++n) keys[n] = philox({{n / 4, 3, 5, 7}}, key)[n % 4];
  const std::set<int32_t> kept_set(keep.begin(), keep.end());
  REQUIRE(static_cast<int64_t>(kept_set.size()) == kept);  // no patch twice
  CHECK(std::is_sorted(keep.begin(), keep.end()));
  uint32_t least_kept = UINT32_MAX, largest_dropped = 0;
  for (int32_t n = 0; n < patches; ++n) {
    if (kept_set.contains(n))
      least_kept = std::min(least_kept, keys[n]);
    else
      largest_dropped = std::max(largest_dropped, keys[n]);
  }
  CHECK(least_kept > largest_dropped);
}

TEST_CASE("choose_patches depends on sample, step and seed, not on the batch") {
  const auto whole = chosen(6, 5, 16, 1, 10, 100);
  const auto last = chosen(2, 5, 16, 1, 10, 104);
  CHECK(std::equal(last.begin(), last.end(), whole.begin() + 4 * 5));
  CHECK(chosen(6, 5, 16, 1, 11, 100) != whole);
  CHECK(chosen(6, 5, 16, 2, 10, 100) != whole);
  CHECK(chosen(6, 5, 16, 1, 10, 200) != whole);
}

TEST_CASE("choose_patches draws every patch equally often") {
  const int64_t samples = 20000, kept = 4, patches = 10;
  std::vector<int64_t> count(patches, 0);
  for (int32_t n : chosen(samples, kept, patches, 3, 0, 0)) ++count[n];
  // 8000 expected, standard deviation 69
  for (int64_t n = 0; n < patches; ++n) CHECK(std::abs(count[n] - 8000) < 350);
}

TEST_CASE("cast between all floating-point types") {
  Kernels& k = kernels(cpu_device);
  const std::vector<double> values{0, -1.5, 3.140625, 1e-3, -65504, 0.1};
  const Tensor from = Tensor::of<double>({6}, values);
  for (DType a : {DType::f64, DType::f32, DType::bf16})
    for (DType b : {DType::f64, DType::f32, DType::bf16}) {
      Tensor first({6}, a), second({6}, b);
      k.cast(first, from);
      k.cast(second, first);
      for (size_t i = 0; i < values.size(); ++i) {
        double expected = values[i];
        if (a == DType::f32 || b == DType::f32) expected = static_cast<float>(expected);
        if (a == DType::bf16 || b == DType::bf16)
          expected = static_cast<double>(bfloat16(static_cast<float>(expected)));
        CHECK(as_doubles(second)[i] == expected);
      }
    }
}

TEST_CASE("fill and clamp") {
  Kernels& k = kernels(cpu_device);
  for (DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    Tensor x({33}, dtype);
    k.fill(x, -2.5);
    CHECK(as_doubles(x) == Array(33, -2.5));
    k.clamp(x, -1, 1);
    CHECK(as_doubles(x) == Array(33, -1.0));
    k.fill(x, NAN);
    k.clamp(x, -1, 1);
    CHECK(std::isnan(as_doubles(x)[32]));
  }
}

TEST_CASE("NaN travels through") {
  Kernels& k = kernels(cpu_device);
  const Tensor x = Tensor::of<float>({4, 4}, std::vector<float>(16, NAN));
  Tensor y({4, 4}, DType::f32), loss({}, DType::f32), lse({4}, DType::f32), other({4}, DType::f32);
  for (Gelu kind : {Gelu::exact, Gelu::quick}) {
    k.gelu_forward(y, x, kind);
    CHECK(std::isnan(y.span<float>()[5]));
  }
  k.contrastive_forward(loss, lse, other, x, x, x, x, Tensor::of<float>({}, {1.0f}), 0);
  CHECK(std::isnan(loss.span<float>()[0]));
}
