// The sweep beside a product makes the codes that quantize makes, and the product beside a sweep dw.
// SWITCHBACK_TINY=1 keeps few and small cases (for compute-sanitizer).
#include <cstdlib>

#include "kernels/cuda/gemm_weight_gradient.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "tests/cuda/testing.h"

using namespace switchback;
using namespace switchback::cuda;

namespace {

bool tiny() { return std::getenv("SWITCHBACK_TINY") != nullptr; }

Tensor values(int64_t rows, int64_t cols, uint64_t seed) {
  Random r(seed);
  Tensor x({rows, cols}, DType::bf16);
  for (int64_t i = 0; i < x.size(); ++i) {
    const int64_t row = i / cols;
    const double of_row = row % 11 == 10 ? 0 : row % 13 == 12 ? 1e-35 : 1 + double(row % 5);
    x.span<bfloat16>()[i] = bfloat16(static_cast<float>(of_row * (2 * r.uniform() - 1)));
  }
  return x;
}
bool same(const Tensor& a, const Tensor& b) {
  const Tensor x = to_host(a), y = to_host(b);
  return std::memcmp(x.data(), y.data(), x.view().bytes()) == 0;
}
void check_sums(const Tensor& sums, const Tensor& x) {
  const Array of = as_doubles(x), got = as_doubles(to_host(sums));
  const auto cols = static_cast<size_t>(x.cols());
  std::vector<double> sum(cols), magnitude(cols);
  for (size_t i = 0; i < of.size(); ++i) sum[i % cols] += of[i], magnitude[i % cols] += std::abs(of[i]);
  size_t wrong = 0;
  for (size_t c = 0; c < cols; ++c) wrong += !(std::abs(got[c] - sum[c]) <= 1e-5 * magnitude[c] + 1e-30);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("codes on a few multiprocessors: quantize's codes, and partial sums") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  auto& own = dynamic_cast<CudaKernels&>(k);
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{1, 8},
                                                                           {77, 520},
                                                                           {300, 1024},
                                                                           {131, 1280},
                                                                           {90, 2048},
                                                                           {70, 2056},
                                                                           {45, 5120},
                                                                           {33, 8192},
                                                                           {35, 10248},
                                                                           {37, 16384}})
    for (Format format : {Format::int8, Format::e5m2, Format::e4m3})
      for (int multiprocessors : {2, 6}) {
        if (tiny() && (format != Format::int8 || multiprocessors > 2)) continue;
        const Tensor host = values(rows, cols, 1), x = to_device(host, gpu);
        const DType code = code_dtype(format, DType::bf16);
        const Tensor codes({rows, cols}, code, gpu), scale({rows}, DType::f32, gpu),
            other({rows, cols}, code, gpu), other_scale({rows}, DType::f32, gpu),
            sums({cols}, DType::f32, gpu);
        k.quantize(codes, {}, scale, x, {}, format, Granularity::row);
        QuantizeBeside a{other.data(), static_cast<float*>(other_scale.data()), x.data(), rows, cols, format};
        a.multiprocessors = multiprocessors;
        if (!quantize_beside_serves(a)) return;  // not a Hopper
        const int64_t count = partials_beside(a);
        const Tensor partials({count, cols}, DType::f32, gpu);
        k.fill(partials, NAN);
        quantize_beside(a, static_cast<float*>(partials.data()), own.stream());
        k.linear_backward_weight({}, {sums}, partials, partials);
        INFO(rows, " x ", cols, " ", std::string(name_of(format)), " ", multiprocessors);
        CHECK(same(other, codes));
        CHECK(same(other_scale, scale));
        check_sums(sums, host);
        if (format == Format::int8) {  // codes alone
          k.fill(other_scale, 0);
          quantize_beside(a, nullptr, own.stream());
          CHECK(same(other, codes));
          CHECK(same(other_scale, scale));
        }
        a.codes = nullptr;  // sums alone
        k.fill(partials, NAN);
        quantize_beside(a, static_cast<float*>(partials.data()), own.stream());
        k.linear_backward_weight({}, {sums}, partials, partials);
        check_sums(sums, host);
      }
}

TEST_CASE("codes on a few multiprocessors: Inf and NaN stay in their row's codes and in their column's sum") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  auto& own = dynamic_cast<CudaKernels&>(k);
  const int64_t rows = 41, cols = 1032;
  const Tensor host = values(rows, cols, 3);
  host.span<bfloat16>()[5 * cols + 17] = bfloat16(INFINITY);
  host.span<bfloat16>()[21 * cols + 1031] = bfloat16(-NAN);
  const Tensor x = to_device(host, gpu), codes({rows, cols}, DType::i8, gpu), scale({rows}, DType::f32, gpu),
               other({rows, cols}, DType::i8, gpu), other_scale({rows}, DType::f32, gpu),
               sums({cols}, DType::f32, gpu);
  k.quantize(codes, {}, scale, x, {}, Format::int8, Granularity::row);
  QuantizeBeside a{other.data(), static_cast<float*>(other_scale.data()), x.data(), rows, cols, Format::int8};
  if (!quantize_beside_serves(a)) return;  // not a Hopper
  const Tensor partials({partials_beside(a), cols}, DType::f32, gpu);
  quantize_beside(a, static_cast<float*>(partials.data()), own.stream());
  k.linear_backward_weight({}, {sums}, partials, partials);
  CHECK(same(other, codes));
  CHECK(same(other_scale, scale));
  const Array got = as_doubles(to_host(sums));
  for (int64_t c = 0; c < cols; ++c) {
    INFO("column ", c);
    CHECK(std::isfinite(got[c]) == (c != 17 && c != 1031));
  }
}

TEST_CASE("a weight gradient and codes at once: what each is alone, op by op and recorded") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  setenv("SWITCHBACK_BESIDE", "12", 1);
  struct Size {
    int64_t m, n, k;
  };
  for (const Size& s : {Size{260, 264, 136}, Size{2304, 512, 1024}, Size{2055, 1288, 1280},
                        Size{4096, 2560, 2048}, Size{2304, 1024, 4096}, Size{2048, 10248, 1032}}) {
    if (tiny() && s.m > 300) continue;
    const Tensor host = values(s.m, s.n, 1), dy = to_device(host, gpu),
                 x = to_device(values(s.m, s.k, 2), gpu);
    const Tensor codes({s.m, s.n}, DType::i8, gpu), scale({s.m}, DType::f32, gpu),
        other({s.m, s.n}, DType::i8, gpu), other_scale({s.m}, DType::f32, gpu), sums({s.n}, DType::f32, gpu),
        dw({s.n, s.k}, DType::f32, gpu), wide_dy({s.m, s.n}, DType::f32, gpu),
        wide_x({s.m, s.k}, DType::f32, gpu), expected({s.n, s.k}, DType::f32, gpu);
    INFO(s.m, " x ", s.n, " x ", s.k);
    k.quantize(codes, {}, scale, dy, {}, Format::int8, Granularity::row);
    k.cast(wide_dy, dy), k.cast(wide_x, x);
    k.linear_backward_weight({expected}, {}, wide_dy, wide_x);
    const auto both = [&] {
      k.linear_backward_weight_and_codes({dw}, other, other_scale, {sums}, dy, x, Format::int8);
    };
    both();
    const Tensor first = to_host(dw), first_sums = to_host(sums);
    CHECK(same(other, codes));
    CHECK(same(other_scale, scale));
    check_sums(sums, host);
    const Array got = as_doubles(first), wanted = as_doubles(to_host(expected));
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - wanted[i]));
    // Terms of up to 25, whose sums the tensor cores round towards zero, one k at a time.
    const double slack = 1e-4 * std::sqrt(double(s.m)) + 3e-6 * double(s.m);
    CHECK(worst <= slack);
    both();
    k.fill(dw, 0), k.fill(sums, 0), k.fill(other_scale, 0);
    const auto recording = k.record(both);
    for (int turn = 0; turn < 3; ++turn) recording->replay();
    CHECK(same(dw, first));
    CHECK(same(sums, first_sums));
    CHECK(same(other_scale, scale));
    k.fill(dw, 1), k.fill(sums, 1);
    k.linear_backward_weight_and_codes({dw, true}, other, other_scale, {sums, true}, dy, x, Format::int8);
    const Array added = as_doubles(to_host(dw));
    worst = 0;
    for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(added[i] - 1 - got[i]));
    CHECK(worst <= slack);
  }
  unsetenv("SWITCHBACK_BESIDE");
}

TEST_CASE(
    "a product and its operand's codes at once: the bits of one after the other, op by op and recorded") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  struct Size {
    int64_t m, n, k;
  };
  for (const Size& s : {Size{260, 264, 136}, Size{512, 16, 64}, Size{2304, 520, 1024}, Size{2055, 1280, 5120},
                        Size{4103, 2560, 2048}, Size{1024, 1032, 4096}, Size{700, 64, 16400}}) {
    if (tiny() && s.m > 300) continue;
    INFO(s.m, " x ", s.n, " x ", s.k);
    const Tensor x = to_device(values(s.m, s.k, 1), gpu), w = to_device(values(s.n, s.k, 2), gpu),
                 bias = to_device(values(1, s.n, 3), gpu).reshape({s.n});
    const Tensor codes({s.m, s.k}, DType::i8, gpu), scale({s.m}, DType::f32, gpu),
        other({s.m, s.k}, DType::i8, gpu), other_scale({s.m}, DType::f32, gpu),
        w_codes({s.n, s.k}, DType::i8, gpu), w_scale({1}, DType::f32, gpu), y({s.m, s.n}, DType::bf16, gpu),
        other_y({s.m, s.n}, DType::bf16, gpu);
    k.quantize(w_codes, {}, w_scale, w, {}, Format::int8, Granularity::tensor);
    k.quantize(codes, {}, scale, x, {}, Format::int8, Granularity::row);
    k.product_of_codes(y, {codes, scale, Format::int8}, {w_codes, w_scale, Format::int8}, bias);
    for (const char* multiprocessors : {"0", "2", "12"}) {
      setenv("SWITCHBACK_BESIDE", multiprocessors, 1);
      const auto both = [&] {
        k.product_and_codes(other_y, other, other_scale, x, {w_codes, w_scale, Format::int8}, bias,
                            Format::int8);
      };
      const auto check = [&] {
        CHECK(same(other_y, y));
        CHECK(same(other, codes));
        CHECK(same(other_scale, scale));
        k.fill(other_y, 0), k.fill(other_scale, 0);
      };
      k.fill(other_y, 0), k.fill(other_scale, 0);
      both();
      check();
      const auto recording = k.record(both);
      for (int turn = 0; turn < 3; ++turn) recording->replay();
      check();
    }
    unsetenv("SWITCHBACK_BESIDE");
  }
}
