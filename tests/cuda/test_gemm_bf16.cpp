// The bf16 product on Hopper, every tile and every epilogue, against sums in f64: ragged sizes, one row to
// many rows, more tiles than the chip has multiprocessors; what must have the same bits, has them.
// SWITCHBACK_TINY=1 keeps small shapes (for compute-sanitizer).
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_weight_gradient.cuh"
#include "runtime/philox.h"
#include "tests/cuda/testing.h"

using namespace switchback;
using namespace switchback::cuda;

namespace {

CudaKernels& device() { return dynamic_cast<CudaKernels&>(kernels(gpu)); }

std::vector<bfloat16> random_values(int64_t count, float scale, uint64_t seed) {
  std::vector<bfloat16> values;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t z = (static_cast<uint64_t>(i) + seed * 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 29)) * 0x94d049bb133111ebull;
    values.push_back(bfloat16(scale * (static_cast<float>(z >> 40) * 0x1p-23f - 1)));
  }
  return values;
}

constexpr int64_t guard_rows = 3;  // behind every result: nobody may write there
constexpr float poison = 12345;

Tensor poisoned(int64_t rows, int64_t cols) {
  const Tensor t({rows + guard_rows, cols}, DType::bf16, gpu);
  device().fill(t, poison);
  return t;
}
std::vector<bfloat16> values_of(const Tensor& t) {
  const Tensor host = to_host(t);
  return {host.span<bfloat16>().begin(), host.span<bfloat16>().end()};
}
bool guarded(const std::vector<bfloat16>& values, int64_t count) {
  for (size_t i = static_cast<size_t>(count); i < values.size(); ++i)
    if (values[i].bits != bfloat16(poison).bits) return false;
  return true;
}
int64_t differing(const std::vector<bfloat16>& a, const std::vector<bfloat16>& b) {
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i].bits != b[i].bits;
  return count;
}

double phi(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu_of(double x, Gelu kind) {
  return kind == Gelu::exact ? x * phi(x) : x / (1 + std::exp(-1.702 * x));
}
double slope_of(double x, Gelu kind) {
  if (kind == Gelu::exact) return phi(x) + x * std::exp(-x * x / 2) * 0.3989422804014327;
  const double s = 1 / (1 + std::exp(-1.702 * x));
  return s + 1.702 * x * s * (1 - s);
}

// |value - expected| in bf16 steps at `expected`, beyond `slack`.
double steps(bfloat16 value, double expected, double slack) {
  const double size = std::max(std::abs(expected), 1e-30);
  const double step = std::ldexp(1.0, std::ilogb(size) - 7);
  const double error = std::abs(static_cast<double>(static_cast<float>(value)) - expected) - slack;
  return std::isnan(error) ? 1e9 : std::max(0.0, error / step);
}

struct Case {
  int64_t M, N, K;
  std::vector<bfloat16> x, w, bias, operand;
  std::vector<double> sums, size;  // Σ x w + bias; Σ |x w|, the measure of its rounding
};

Case make_case(int64_t M, int64_t N, int64_t K, bool w_is_k_by_n, bool with_bias) {
  Case c{M,
         N,
         K,
         random_values(M * K, 1, 1),
         random_values(N * K, 3 / std::sqrt(static_cast<float>(K)), 2),
         with_bias ? random_values(N, 1, 3) : std::vector<bfloat16>(),
         random_values(M * N, 5, 4),
         {},
         {}};
  std::vector<float> x, w(static_cast<size_t>(N * K));
  for (bfloat16 v : c.x) x.push_back(static_cast<float>(v));
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k)
      w[n * K + k] = static_cast<float>(c.w[w_is_k_by_n ? k * N + n : n * K + k]);
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double product = static_cast<double>(x[m * K + k]) * w[n * K + k];
        sum += product, size += std::abs(product);
      }
      c.sums.push_back(sum + (with_bias ? static_cast<double>(static_cast<float>(c.bias[n])) : 0));
      c.size.push_back(size);
    }
  }
  return c;
}

struct Results {
  std::vector<bfloat16> y, second;
};
Results run(const GemmBf16& problem, int tile, bool with_second) {
  GemmBf16 p = problem;
  const Tensor y = poisoned(p.M, p.N), second = poisoned(p.M, p.N);
  p.y = y.data(), p.second = with_second ? second.data() : nullptr;
  gemm_bf16(p, tile, device().stream());
  Results r{values_of(y), values_of(second)};
  CHECK(guarded(r.y, p.M * p.N));
  CHECK(guarded(r.second, with_second ? p.M * p.N : 0));
  return r;
}

void check_case(int64_t M, int64_t N, int64_t K, bool w_is_k_by_n, bool with_bias, After after, Gelu kind) {
  CAPTURE(M);
  CAPTURE(N);
  CAPTURE(K);
  CAPTURE(w_is_k_by_n);
  CAPTURE(with_bias);
  CAPTURE(static_cast<int>(after));
  const Case c = make_case(M, N, K, w_is_k_by_n, with_bias);
  const Tensor x = to_device(Tensor::of({M, K}, c.x), gpu), w = to_device(Tensor::of({N, K}, c.w), gpu),
               operand = to_device(Tensor::of({M, N}, c.operand), gpu),
               bias = with_bias ? to_device(Tensor::of({N}, c.bias), gpu) : Tensor();
  GemmBf16 p{M, N, K, x.data(), w.data(), w_is_k_by_n};
  p.after = after, p.gelu = kind;
  if (with_bias) p.bias = bias.data();
  if (after == After::gelu_backward) p.operand = operand.data();
  const bool has_second = after == After::gelu || after == After::gelu_backward;
  for (int tile = 0; tile < gemm_bf16_tiles(); ++tile) {
    if (!gemm_bf16_has(p, tile)) continue;
    CAPTURE(gemm_bf16_name(tile));
    const Results r = run(p, tile, has_second), again = run(p, tile, has_second), alone = run(p, tile, false);
    CHECK(differing(r.y, again.y) == 0);
    CHECK(differing(r.second, again.second) == 0);
    CHECK(differing(r.y, alone.y) == 0);
    double worst = 0, worst_second = 0;
    for (int64_t i = 0; i < M * N; ++i) {
      const double rounding = c.size[i] * 1e-6,
                   operand = static_cast<double>(static_cast<float>(c.operand[i]));
      switch (after) {
        case After::nothing:
          worst = std::max(worst, steps(r.y[i], c.sums[i], rounding));
          break;
        case After::gelu: {
          worst_second = std::max(worst_second, steps(r.second[i], c.sums[i], rounding));
          const double u = static_cast<double>(static_cast<float>(r.second[i]));
          worst = std::max(worst, steps(r.y[i], gelu_of(u, kind), 1e-6));
          break;
        }
        case After::gelu_backward: {
          const double slope = slope_of(operand, kind);
          worst = std::max(worst, steps(r.y[i], c.sums[i] * slope, rounding + std::abs(c.sums[i]) * 5e-5));
          worst_second = std::max(worst_second, steps(r.second[i], gelu_of(operand, kind), 1e-6));
          break;
        }
      }
    }
    CHECK(worst < 0.63);  // half a step is the rounding
    CHECK(worst_second < 0.63);
  }
}

bool no_hopper() {
  if (no_gpu()) return true;
  device();
  GemmBf16 p{1, 8, 8};
  if (gemm_bf16_has(p, 0)) return false;
  std::printf("skipped: no Hopper: %s\n", doctest::getContextOptions()->currentTest->m_name);
  return true;
}

TEST_CASE("bf16 product: every tile and epilogue, ragged sizes") {
  if (no_hopper()) return;
  const bool tiny = std::getenv("SWITCHBACK_TINY") != nullptr;
  for (const auto& [N, K] :
       std::vector<std::pair<int64_t, int64_t>>{{8, 8}, {264, 208}, {136, 648}, {520, 72}}) {
    for (int64_t M : {1, 15, 129, 257}) {
      if (tiny && !(M == 129 && N == 264) && !(M == 1 && N == 8)) continue;
      for (bool with_bias : {false, true}) {
        for (bool w_is_k_by_n : {false, true})
          check_case(M, N, K, w_is_k_by_n, with_bias, After::nothing, Gelu::exact);
        check_case(M, N, K, false, with_bias, After::gelu, with_bias ? Gelu::exact : Gelu::quick);
        check_case(M, N, K, true, false, After::gelu_backward, with_bias ? Gelu::exact : Gelu::quick);
      }
    }
  }
}

// A plan that was made with an aligned bias must not serve one that lies on an odd element.
TEST_CASE("a bias on an odd element, after an aligned one of the same product") {
  if (no_hopper()) return;
  CudaKernels& k = device();
  const int64_t M = 129, N = 264, K = 208;
  const Tensor x = to_device(Tensor::of({M, K}, random_values(M * K, 1, 5)), gpu),
               w = to_device(Tensor::of({N, K}, random_values(N * K, 0.1f, 6)), gpu),
               bias = to_device(Tensor::of({N + 1}, random_values(N + 1, 1, 7)), gpu);
  const Tensor aligned({N}, DType::bf16, gpu), y({M, N}, DType::bf16, gpu),
      expected({M, N}, DType::bf16, gpu);
  k.cast(aligned, bias.part(1, {N}));
  k.linear_forward(expected, x, w, aligned);
  k.linear_forward(y, x, w, bias.part(1, {N}));
  const std::vector<bfloat16> a = values_of(y), b = values_of(expected);
  for (size_t i = 0; i < a.size(); ++i)  // another kernel may have added in another order
    REQUIRE_LE(std::fabs(static_cast<float>(a[i]) - static_cast<float>(b[i])),
               0.02f * (1 + std::fabs(static_cast<float>(b[i]))));
}

// Many tiles for every block, so that rings and buffers turn over. One tile against cuBLASLt in f32, at every
// thirteenth element; the others against that tile, to the bit: all add in the same order. And the gelu of
// the forward pass against the one that the backward pass computes again from the pre-activation.
TEST_CASE("bf16 product: many tiles") {
  if (no_hopper() || std::getenv("SWITCHBACK_TINY")) return;
  CudaKernels& k = device();
  for (const auto& [M, N, K] : std::vector<std::array<int64_t, 3>>{
           {20001, 776, 520}, {5000, 3072, 768}, {33000, 256, 64}, {9000, 768, 3080}}) {
    CAPTURE(M);
    CAPTURE(N);
    CAPTURE(K);
    const Tensor x = to_device(Tensor::of({M, K}, random_values(M * K, 1, 5)), gpu),
                 w = to_device(Tensor::of({N, K}, random_values(N * K, 0.1f, 6)), gpu),
                 v = to_device(Tensor::of({K, N}, random_values(N * K, 0.1f, 6)), gpu),
                 bias = to_device(Tensor::of({N}, random_values(N, 1, 7)), gpu);
    Tensor wide_x({M, K}, DType::f32, gpu), wide_w({N, K}, DType::f32, gpu), wide_bias({N}, DType::f32, gpu),
        wide_y({M, N}, DType::f32, gpu), wide_v({K, N}, DType::f32, gpu);
    k.cast(wide_x, x), k.cast(wide_w, w), k.cast(wide_bias, bias), k.cast(wide_v, v);
    for (bool w_is_k_by_n : {false, true}) {
      CAPTURE(w_is_k_by_n);
      if (w_is_k_by_n)
        k.matmul({wide_y}, wide_x, Transpose::no, wide_v, Transpose::no);
      else
        k.linear_forward(wide_y, wide_x, wide_w, wide_bias);
      const Tensor expected = to_host(wide_y);
      GemmBf16 p{M, N, K, x.data(), w_is_k_by_n ? v.data() : w.data(), w_is_k_by_n};
      if (!w_is_k_by_n) p.bias = bias.data();
      GemmBf16 q = p;
      q.after = w_is_k_by_n ? After::gelu_backward : After::gelu;
      const Tensor operand({M, N}, DType::bf16, gpu);
      if (w_is_k_by_n) q.operand = operand.data(), k.cast(operand, wide_y);
      const Results first = run(p, 0, false), first_gelu = run(q, 0, true);
      double worst = 0;
      for (int64_t i = 0; i < M * N; i += 13)
        worst = std::max(worst, steps(first.y[i], static_cast<double>(expected.span<float>()[i]), 3e-4));
      CHECK(worst < 0.6);
      for (int tile = 0; tile < gemm_bf16_tiles(); ++tile) {
        CAPTURE(tile);
        if (gemm_bf16_has(p, tile)) CHECK(differing(run(p, tile, false).y, first.y) == 0);
        if (!gemm_bf16_has(q, tile)) continue;
        const Results s = run(q, tile, true);
        CHECK(differing(s.y, first_gelu.y) == 0);
        CHECK(differing(s.second, first_gelu.second) == 0);
        if (w_is_k_by_n) continue;
        CHECK(differing(s.second, first.y) == 0);
        const std::vector<bfloat16> values(s.second.begin(), s.second.begin() + M * N);
        const Tensor u = to_device(Tensor::of({M, N}, values), gpu);
        GemmBf16 b{M, N, K, x.data(), v.data(), true};
        b.after = After::gelu_backward, b.operand = u.data();
        CHECK(differing(run(b, gemm_bf16_choose(b), true).second, s.y) == 0);
      }
    }
  }
}

// The ops: gelu, whether it comes from a product's epilogue or from its own kernel, has the same bits; so has
// its backward pass with and without the second output.
TEST_CASE("linear_gelu: fused and by parts") {
  if (no_hopper()) return;
  CudaKernels& k = device();
  for (Gelu kind : {Gelu::exact, Gelu::quick}) {
    for (int64_t M : {1, 129, 257}) {
      const int64_t N = 264, K = 72;
      CAPTURE(M);
      const Tensor x = to_device(Tensor::of({M, K}, random_values(M * K, 2, 1)), gpu),
                   w = to_device(Tensor::of({N, K}, random_values(N * K, 1, 2)), gpu),
                   bias = to_device(Tensor::of({N}, random_values(N, 1, 3)), gpu),
                   dy = to_device(Tensor::of({M, K}, random_values(M * K, 1, 4)), gpu),
                   v = to_device(Tensor::of({K, N}, random_values(N * K, 1, 5)), gpu);
      const Tensor y = poisoned(M, N), u = poisoned(M, N), by_parts = poisoned(M, N), du = poisoned(M, N),
                   again = poisoned(M, N), y_again = poisoned(M, N), expected = poisoned(M, N);
      const auto rows = [&](const Tensor& t) { return t.slice(0, M); };
      GemmBf16 forward{M, N, K, x.data(), w.data()}, backward{M, N, K, dy.data(), v.data(), true};
      forward.bias = bias.data(), forward.y = y.data(), forward.second = u.data();
      forward.after = After::gelu;
      backward.y = du.data(), backward.operand = u.data(), backward.second = y_again.data();
      backward.after = After::gelu_backward;
      CHECK(gemm_bf16_choose(forward) >= 0);  // else the ops below are composed of what they are held against
      CHECK(gemm_bf16_choose(backward) >= 0);
      k.linear_gelu_forward(rows(y), rows(u), x, w, bias, kind);
      k.gelu_forward(rows(by_parts), rows(u), kind);
      CHECK(differing(values_of(y), values_of(by_parts)) == 0);
      k.linear_gelu_backward_input({rows(du)}, rows(y_again), dy, v, rows(u), kind);
      k.linear_gelu_backward_input({rows(again)}, {}, dy, v, rows(u), kind);
      CHECK(differing(values_of(y), values_of(y_again)) == 0);
      CHECK(differing(values_of(du), values_of(again)) == 0);
      // By parts dy w is rounded before it is multiplied: two steps of bf16 between the two.
      k.linear_backward_input({rows(expected)}, dy, v);
      k.gelu_backward({rows(expected)}, rows(expected), rows(u), kind);
      const std::vector<bfloat16> fused = values_of(du), parts = values_of(expected);
      double worst = 0;
      for (int64_t i = 0; i < M * N; ++i)
        worst = std::max(worst, steps(fused[i], static_cast<double>(static_cast<float>(parts[i])), 0));
      CHECK(worst <= 2);
    }
  }
}

// dw and dbias in one kernel: ragged sizes in f64; many tiles and parts against cuBLASLt in f32; added to
// what is there; the same bits twice; nothing written behind.
TEST_CASE("weight gradient") {
  if (no_hopper()) return;
  CudaKernels& k = device();
  const bool tiny = std::getenv("SWITCHBACK_TINY") != nullptr;
  const Tensor workspace({16 << 20}, DType::f32, gpu);
  const auto floats = [](const Tensor& t) {
    const Tensor host = to_host(t);
    return std::vector<float>(host.span<float>().begin(), host.span<float>().end());
  };
  for (const auto& [M, N, K] : std::vector<std::array<int64_t, 3>>{{1, 8, 8},
                                                                   {15, 264, 520},
                                                                   {129, 136, 72},
                                                                   {257, 520, 264},
                                                                   {3000, 8, 776},
                                                                   {20001, 768, 520},
                                                                   {9000, 2304, 768},
                                                                   {3000, 4096, 1288}}) {
    if (tiny && M > 129) continue;
    CAPTURE(M);
    CAPTURE(N);
    CAPTURE(K);
    const std::vector<bfloat16> dy_values = random_values(M * N, 1, 5), x_values = random_values(M * K, 1, 6);
    const Tensor dy = to_device(Tensor::of({M, N}, dy_values), gpu),
                 x = to_device(Tensor::of({M, K}, x_values), gpu);
    std::vector<double> expected_dw(static_cast<size_t>(N * K)), expected_dbias(static_cast<size_t>(N));
    if (M * N * K < 100'000'000) {
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
          const double d = static_cast<double>(static_cast<float>(dy_values[m * N + n]));
          expected_dbias[n] += d;
          for (int64_t c = 0; c < K; ++c)
            expected_dw[n * K + c] += d * static_cast<double>(static_cast<float>(x_values[m * K + c]));
        }
      }
    } else {
      const Tensor wide_dy({M, N}, DType::f32, gpu), wide_x({M, K}, DType::f32, gpu),
          dw({N, K}, DType::f32, gpu), dbias({N}, DType::f32, gpu);
      k.cast(wide_dy, dy), k.cast(wide_x, x);
      k.linear_backward_weight({dw}, {dbias}, wide_dy, wide_x);
      const std::vector<float> dw_values = floats(dw), dbias_values = floats(dbias);
      expected_dw.assign(dw_values.begin(), dw_values.end());
      expected_dbias.assign(dbias_values.begin(), dbias_values.end());
    }
    std::vector<float> first, first_bias;
    for (int times = 0; times < 3; ++times) {
      const bool accumulate = times == 2, with_bias = times != 1;
      CAPTURE(times);
      const Tensor dw({N + guard_rows, K}, DType::f32, gpu), dbias({N + guard_rows}, DType::f32, gpu);
      k.fill(dw, 7), k.fill(dbias, 7);
      GemmWeightGradient a{M, N, K, dy.data(), x.data(), static_cast<float*>(dw.data())};
      if (with_bias) a.dbias = static_cast<float*>(dbias.data());
      a.accumulate_dw = a.accumulate_dbias = accumulate;
      gemm_weight_gradient(a, workspace.data(), workspace.view().bytes(), k.stream());
      const std::vector<float> dw_values = floats(dw), dbias_values = floats(dbias);
      const double slack = 3e-6 * std::sqrt(static_cast<double>(M)) + 1e-6 + 1e-7 * static_cast<double>(M);
      double worst = 0;
      for (int64_t i = 0; i < (N + guard_rows) * K; ++i) {
        const double expected = i < N * K ? expected_dw[i] + (accumulate ? 7 : 0) : 7;
        worst = std::max(worst, std::abs(static_cast<double>(dw_values[i]) - expected));
      }
      CHECK(worst < slack);
      worst = 0;
      for (int64_t i = 0; i < N + guard_rows; ++i) {
        const double expected = i < N && with_bias ? expected_dbias[i] + (accumulate ? 7 : 0) : 7;
        worst = std::max(worst, std::abs(static_cast<double>(dbias_values[i]) - expected));
      }
      CHECK(worst < slack);
      if (times == 0) first = dw_values, first_bias = dbias_values;
      if (times == 1) CHECK(dw_values == first);
    }
    const Tensor dw({N + guard_rows, K}, DType::f32, gpu), dbias({N + guard_rows}, DType::f32, gpu);
    k.fill(dw, 7), k.fill(dbias, 7);
    GemmWeightGradient a{M, N, K, dy.data(), x.data(), static_cast<float*>(dw.data())};
    a.dbias = static_cast<float*>(dbias.data());
    gemm_weight_gradient(a, workspace.data(), workspace.view().bytes(), k.stream());
    CHECK(floats(dw) == first);
    CHECK(floats(dbias) == first_bias);
  }
}

}  // namespace
