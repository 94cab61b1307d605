// Quantisers, products of codes and recipes on the GPU have the CPU's bits, but for sums of 8-bit floats and
// for weight gradients in 16 bits, whose order of summation differs. SWITCHBACK_SHOW_ERRORS=1 prints how far.
#include <cstdlib>
#include <cstring>
#include <map>

#include "kernels/quantize.h"
#include "kernels/recipe.h"
#include "tests/cuda/testing.h"

using namespace switchback;

namespace {

// Normal values whose magnitude varies by row and column; some rows are zero, one is tiny.
Tensor matrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed = 1, double scale = 1) {
  Random r(seed);
  Tensor x({rows, cols}, dtype);
  visit_float(dtype, "matrix", [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = 0; i < x.size(); ++i) {
      double sum = -2;
      for (int n = 0; n < 4; ++n) sum += r.uniform();
      const int64_t row = i / cols;
      const double of_row = row % 11 == 10 ? 0 : row % 13 == 12 ? 1e-35 : 1 + double(row % 5);
      x.span<T>()[i] = static_cast<T>(static_cast<float>(scale * sum * of_row * (1 + double(i % cols % 3))));
    }
  });
  return x;
}

// The same bytes; any NaN equals any NaN of floats.
int64_t differences(const Tensor& on_gpu, const Tensor& expected) {
  const Tensor host = to_host(on_gpu);
  if (host.dtype() == DType::i8 || host.dtype() == DType::u8) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < host.size(); ++i)
      wrong += static_cast<const uint8_t*>(host.data())[i] != static_cast<const uint8_t*>(expected.data())[i];
    return wrong;
  }
  const Array a = as_doubles(host), b = as_doubles(expected);
  int64_t wrong = 0;
  for (size_t i = 0; i < a.size(); ++i) wrong += !(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])));
  return wrong;
}
double distance(const Tensor& on_gpu, const Tensor& expected) {
  const Array a = as_doubles(on_gpu), b = as_doubles(expected);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

struct Quantized {
  Tensor codes, transposed, scale, largest, back, rounded;
};
Quantized quantize(const Tensor& x, Format format, Granularity by, int64_t padded) {
  const int64_t rows = x.rows(), cols = x.cols();
  const int64_t scales = by == Granularity::tensor ? 1 : by == Granularity::row ? rows : cols;
  Kernels& k = kernels(x.device());
  const auto make = [&](Shape shape, DType dtype) { return Tensor(shape, dtype, x.device()); };
  Quantized q{make({rows, cols}, code_dtype(format, x.dtype())),
              {},
              make({scales}, DType::f32),
              make({scales}, DType::f32),
              {},
              make({rows, cols}, x.dtype())};
  if (padded > 0) q.transposed = make({cols, padded}, q.codes.dtype());
  k.absolute_maximum(q.largest, x, by);
  k.quantize(q.codes, q.transposed, q.scale, x, padded > 0 ? CView(q.largest) : CView{}, format, by);
  k.round_to_grid(q.rounded, x, {}, format, by);
  if (by != Granularity::column) {
    q.back = make({rows, cols}, x.dtype());
    k.dequantize(q.back, q.codes, q.scale, format, by);
  }
  return q;
}

const std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 8},      {3, 1},     {37, 21},   {129, 64},
                                                        {130, 1280}, {33, 768},  {25, 5120}, {14, 3840},
                                                        {13, 2048},  {12, 6656}, {5, 17000}, {300, 96}};

}  // namespace

TEST_CASE("quantisers on the GPU have the CPU's bits") {
  if (no_gpu()) return;
  for (const auto& [rows, cols] : sizes)
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Tensor host = matrix(rows, cols, dtype), x = to_device(host, gpu);
      for (Format format : {Format::int8, Format::e4m3, Format::e5m2})
        for (Granularity by : {Granularity::tensor, Granularity::row, Granularity::column})
          for (int64_t padded : {int64_t{0}, (rows + 15) / 16 * 16}) {
            const Quantized expected = quantize(host, format, by, padded),
                            q = quantize(x, format, by, padded);
            INFO(std::string(name_of(format)), " by ", std::string(name_of(by)), " ", rows, " x ", cols, " ",
                 std::string(name_of(dtype)), " padded ", padded);
            CHECK(differences(q.largest, expected.largest) == 0);
            CHECK(differences(q.scale, expected.scale) == 0);
            CHECK(differences(q.codes, expected.codes) == 0);
            if (padded > 0) CHECK(differences(q.transposed, expected.transposed) == 0);
            if (q.back.defined()) CHECK(differences(q.back, expected.back) == 0);
            CHECK(differences(q.rounded, expected.rounded) == 0);
          }
    }
}

TEST_CASE("every bf16 number has the CPU's code and grid value") {
  if (no_gpu()) return;
  for (Format format : {Format::int8, Format::e4m3, Format::e5m2, Format::paper_e4m3, Format::paper_e5m2}) {
    std::vector<bfloat16> all;
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      bfloat16 v;
      v.bits = static_cast<uint16_t>(bits);
      if (std::isfinite(float(v)) && (format != Format::int8 || std::fabs(float(v)) <= 127)) all.push_back(v);
    }
    const int64_t count = static_cast<int64_t>(all.size());
    const Tensor host = Tensor::of<bfloat16>({1, count}, all), x = to_device(host, gpu);
    const Tensor largest =
        Tensor::of<float>({1}, {largest_of(format)});  // so that every value is encoded as it is
    Tensor own({1, count}, DType::f32), theirs({1, count}, DType::f32, gpu);
    kernels(cpu_device).round_to_grid(own, host, largest, format, Granularity::tensor);
    kernels(gpu).round_to_grid(theirs, x, to_device(largest, gpu), format, Granularity::tensor);
    INFO(std::string(name_of(format)));
    CHECK(differences(theirs, own) == 0);
    if (!has_codes(format)) continue;
    Tensor codes({1, count}, code_dtype(format, DType::bf16)), on_gpu({1, count}, codes.dtype(), gpu),
        scale({1}, DType::f32), gpu_scale({1}, DType::f32, gpu);
    kernels(cpu_device).quantize(codes, {}, scale, host, largest, format, Granularity::tensor);
    kernels(gpu).quantize(on_gpu, {}, gpu_scale, x, to_device(largest, gpu), format, Granularity::tensor);
    CHECK(differences(on_gpu, codes) == 0);
  }
}

TEST_CASE("an Inf or a NaN spoils the same elements on both") {
  if (no_gpu()) return;
  for (int64_t cols : {21, 1280, 5120}) {
    const Tensor host = matrix(16, cols, DType::bf16);
    host.span<bfloat16>()[2 * cols + 7] = bfloat16(INFINITY);
    host.span<bfloat16>()[5 * cols + cols - 1] = bfloat16(NAN);
    host.span<bfloat16>()[6 * cols] = bfloat16(-NAN);
    for (Format format : {Format::int8, Format::e5m2})
      for (Granularity by : {Granularity::tensor, Granularity::row, Granularity::column}) {
        const Quantized expected = quantize(host, format, by, 16),
                        q = quantize(to_device(host, gpu), format, by, 16);
        const Quantized alone = quantize(to_device(host, gpu), format, by, 0);
        INFO(std::string(name_of(format)), " by ", std::string(name_of(by)), " ", cols);
        CHECK(differences(q.scale, expected.scale) == 0);
        CHECK(differences(q.codes, expected.codes) == 0);
        CHECK(differences(q.transposed, expected.transposed) == 0);
        CHECK(differences(alone.codes, expected.codes) == 0);
        CHECK(differences(q.rounded, expected.rounded) == 0);
      }
  }
}

TEST_CASE("products of int8 codes have the CPU's bits; those of 8-bit floats are near") {
  if (no_gpu()) return;
  struct Size {
    int64_t m, n, k;
  };
  std::map<std::string, double> largest;  // of 8-bit floats
  for (const Size& s :
       {Size{1, 8, 16}, Size{33, 17, 70}, Size{130, 256, 1280}, Size{257, 136, 272}, Size{64, 96, 5120}})
    for (DType dtype : {DType::f32, DType::bf16})
      for (Format format : {Format::int8, Format::e4m3})
        for (bool by_row : {false, true})
          for (bool with_bias : {false, true}) {
            const Tensor x = matrix(s.m, s.k, dtype, 3), w = matrix(s.n, s.k, dtype, 4),
                         bias = matrix(1, s.n, dtype, 5).reshape({s.n});
            const auto product = [&](Device device) {
              Kernels& k = kernels(device);
              const DType code = code_dtype(format, dtype);
              Tensor a({s.m, s.k}, code, device), a_scale({s.m}, DType::f32, device),
                  b({s.n, s.k}, code, device),
                  b_scale({by_row || format != Format::int8 ? s.n : 1}, DType::f32, device),
                  y({s.m, s.n}, dtype, device);
              k.quantize(a, {}, a_scale, to_device(x, device), {}, format, Granularity::row);
              k.quantize(b, {}, b_scale, to_device(w, device), {}, format,
                         by_row ? Granularity::row : Granularity::tensor);
              const Tensor add = with_bias ? to_device(bias, device) : Tensor();
              if (device == gpu) poison_free_memory();  // where its scratch comes from
              k.product_of_codes(y, {a, a_scale, format}, {b, b_scale, format}, add);
              return y;
            };
            const Tensor expected = product(cpu_device), y = product(gpu);
            INFO(std::string(name_of(format)), " ", s.m, " x ", s.n, " x ", s.k, " ",
                 std::string(name_of(dtype)), " ", by_row, with_bias);
            if (format == Format::int8) {
              CHECK(differences(y, expected) == 0);
              continue;
            }
            // Hopper keeps 14 bits of a long sum (gemm_fp8.h): 0.048 was seen for 5120 terms.
            const double error = distance(y, expected);
            CHECK(error <= (dtype == DType::f32 ? 1e-3 : s.k > 4096 ? 0.08 : 4e-3));
            double& most = largest[concat(name_of(format), " ", s.m, " x ", s.n, " x ", s.k, " ", dtype)];
            most = std::max(most, error);
          }
  if (std::getenv("SWITCHBACK_SHOW_ERRORS"))
    for (const auto& [name, error] : largest)
      std::printf("product_of_codes %-24s off by %.2e of its norm\n", name.c_str(), error);
}

TEST_CASE("every recipe on the GPU is the CPU's") {
  if (no_gpu()) return;
  struct Layer {
    Tensor y, dx, dw, dbias, plain_dw;
  };
  const auto step = [](const LinearRecipe& recipe, DType dtype, Device device, int64_t M, int64_t K,
                       int64_t N) {
    const auto on = [&](const Tensor& t) { return to_device(t, device); };
    const Tensor x = on(matrix(M, K, dtype, 1)), w = on(matrix(N, K, dtype, 2, 0.1)),
                 bias = on(matrix(1, N, dtype, 3).reshape({N})), dy = on(matrix(M, N, dtype, 4, 1e-3));
    Layer l{Tensor({M, N}, dtype, device), Tensor({M, K}, dtype, device), Tensor({N, K}, DType::f32, device),
            Tensor({N}, DType::f32, device), Tensor({N, K}, DType::f32, device)};
    SavedInput saved;
    const PreparedWeight prepared = prepared_weight(recipe, w.shape(), dtype, device);
    prepare_weight(prepared, recipe, w);
    linear_forward(recipe, l.y, &saved, {x, {}}, w, prepared, bias);
    RowOperand gradient{dy, {}};
    const Sink left_dbias = quantize_gradient(recipe, gradient, {l.dbias}) ? Sink{} : Sink{l.dbias};
    linear_backward_input(recipe, {l.dx}, gradient, w, prepared);
    linear_backward_weight(recipe, {l.dw}, left_dbias, dy, saved);
    // The same product with or without a bias gradient beside it: kernels may differ, and so the order of
    // sums.
    Tensor unused({N}, DType::f32, device);
    kernels(device).linear_backward_weight({l.plain_dw}, left_dbias ? Sink{unused} : Sink{}, dy, x);
    kernels(device).synchronize();
    return l;
  };
  struct Size {
    int64_t m, k, n;
  };
  for (const Size& s : {Size{37, 21, 19}, Size{272, 128, 384}, Size{144, 640, 64}})
    for (DType dtype : {DType::bf16, DType::f32}) {
      for (const LinearRecipe& recipe : linear_recipes()) {
        const Layer own = step(recipe, dtype, cpu_device, s.m, s.k, s.n),
                    l = step(recipe, dtype, gpu, s.m, s.k, s.n);
        INFO(std::string(recipe.name), " ", s.m, " x ", s.k, " x ", s.n, " ", std::string(name_of(dtype)));
        const bool exact = recipe.forward.left.format == Format::int8;
        const double bar = dtype == DType::bf16 ? 6e-3 : 1e-3;
        if (exact) {
          CHECK(differences(l.y, own.y) == 0);
          CHECK(differences(l.dx, own.dx) == 0);
        } else {
          CHECK(distance(l.y, own.y) <= bar);
          CHECK(distance(l.dx, own.dx) <= bar);
        }
        if (recipe.backward_weight.left.format == Format::int8)
          CHECK(differences(l.dw, own.dw) == 0);
        else
          CHECK(distance(l.dw, own.dw) <= bar);
        CHECK(distance(l.dbias, own.dbias) <= 1e-5);
        if (recipe.backward_weight.kind == LinearRecipe::sixteen_bit && recipe.saved == LinearRecipe::input)
          CHECK(differences(l.dw, to_host(l.plain_dw)) == 0);
      }
    }
}

// Σ_rows x in f64, and how far the sink may be from it: f32 sums of bf16 or f32 values.
void check_sums(const Tensor& sums, const Tensor& x, double expected_scale = 1, double start = 0) {
  const Array of_rows = as_doubles(to_host(x)), got = as_doubles(to_host(sums));
  for (int64_t c = 0; c < x.cols(); ++c) {
    double sum = 0, magnitude = 0;
    for (int64_t row = 0; row < x.rows(); ++row) {
      const double value = of_rows[static_cast<size_t>(row * x.cols() + c)];
      sum += value, magnitude += std::abs(value);
    }
    const double error = std::abs(got[static_cast<size_t>(c)] - (start + expected_scale * sum));
    CHECK_MESSAGE(error <= 1e-5 * magnitude + (start != 0 ? 1e-5 : 1e-30), "column ", c);
  }
}

TEST_CASE("codes and sums over rows in one sweep: the same codes, the sums, and the same bits twice") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  std::vector<std::pair<int64_t, int64_t>> shapes = sizes;
  for (const auto& shape : {std::pair<int64_t, int64_t>{4099, 1280}, {2305, 5120}, {1031, 8192}, {517, 16384},
                            {2, 10240}, {0, 64}})
    shapes.push_back(shape);
  for (const auto& [rows, cols] : shapes)
    for (DType dtype : {DType::bf16, DType::f32})
      for (Format format : {Format::int8, Format::e5m2}) {
        const Tensor x = to_device(matrix(rows, cols, dtype), gpu);
        const DType code = code_dtype(format, dtype);
        Tensor codes({rows, cols}, code, gpu), scale({rows}, DType::f32, gpu), other({rows, cols}, code, gpu),
            other_scale({rows}, DType::f32, gpu), sums({cols}, DType::f32, gpu),
            again({cols}, DType::f32, gpu);
        k.quantize(codes, {}, scale, x, {}, format, Granularity::row);
        k.quantize(other, {}, other_scale, x, {}, format, Granularity::row, {sums});
        INFO(rows, " x ", cols, " ", std::string(name_of(dtype)), " ", std::string(name_of(format)));
        CHECK(differences(other, to_host(codes)) == 0);
        CHECK(differences(other_scale, to_host(scale)) == 0);
        check_sums(sums, x);
        k.quantize(other, {}, other_scale, x, {}, format, Granularity::row, {again});
        CHECK(differences(again, to_host(sums)) == 0);
        k.fill(again, 3);
        k.quantize(other, {}, other_scale, x, {}, format, Granularity::row, {again, true});
        check_sums(again, x, 1, 3);
      }
}

TEST_CASE("GELU and codes in one sweep are GELU and then codes") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  for (const auto& [rows, cols] : sizes)
    for (DType dtype : {DType::bf16, DType::f32})
      for (Gelu kind : {Gelu::exact, Gelu::quick})
        for (Format format : {Format::int8, Format::e5m2}) {
          const auto make = [&](DType type) { return Tensor({rows, cols}, type, gpu); };
          const DType code = code_dtype(format, dtype);
          const Tensor x = to_device(matrix(rows, cols, dtype, 1), gpu),
                       dy = to_device(matrix(rows, cols, dtype, 2), gpu);
          Tensor y = make(dtype), dx = make(dtype), codes = make(code), d_codes = make(code),
                 scale({rows}, DType::f32, gpu), d_scale({rows}, DType::f32, gpu);
          k.gelu_forward(y, x, kind);
          k.gelu_backward({dx}, dy, x, kind);
          k.quantize(codes, {}, scale, y, {}, format, Granularity::row);
          k.quantize(d_codes, {}, d_scale, dx, {}, format, Granularity::row);
          for (bool with_y : {false, true}) {
            Tensor y2 = make(dtype), y3 = make(dtype), dx2 = make(dtype), codes2 = make(code),
                   d_codes2 = make(code), scale2({rows}, DType::f32, gpu), d_scale2({rows}, DType::f32, gpu);
            k.gelu_forward_quantized(with_y ? View(y2) : View{}, codes2, scale2, x, format, kind);
            k.gelu_backward_quantized(dx2, d_codes2, d_scale2, with_y ? View(y3) : View{}, dy, x, format,
                                      kind);
            INFO(rows, " x ", cols, " ", std::string(name_of(dtype)), " ", std::string(name_of(format)), " ",
                 with_y);
            CHECK(differences(codes2, to_host(codes)) == 0);
            CHECK(differences(scale2, to_host(scale)) == 0);
            CHECK(differences(dx2, to_host(dx)) == 0);
            CHECK(differences(d_codes2, to_host(d_codes)) == 0);
            CHECK(differences(d_scale2, to_host(d_scale)) == 0);
            if (!with_y) continue;
            CHECK(differences(y2, to_host(y)) == 0);
            CHECK(differences(y3, to_host(y)) == 0);
            // With the sums of dx over the rows, dx where dy was.
            Tensor sums({cols}, DType::f32, gpu), in_place = make(dtype);
            k.cast(in_place, dy);
            k.gelu_backward_quantized(in_place, d_codes2, d_scale2, y3, in_place, x, format, kind, {sums});
            CHECK(differences(in_place, to_host(dx)) == 0);
            CHECK(differences(d_codes2, to_host(d_codes)) == 0);
            CHECK(differences(d_scale2, to_host(d_scale)) == 0);
            CHECK(differences(y3, to_host(y)) == 0);
            check_sums(sums, dx);
          }
        }
}

TEST_CASE("many weights at once are quantised as one by one") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  for (Format format : {Format::int8, Format::e4m3})
    for (DType dtype : {DType::f32, DType::bf16}) {
      std::vector<Tensor> codes, transposed, scales;
      std::vector<WeightCodes> weights;
      for (int i = 0; i < 60; ++i) {
        const int64_t rows = 16 + 24 * (i % 7), cols = 8 + 40 * (i % 11);
        const Tensor w = to_device(matrix(rows, cols, dtype, static_cast<uint64_t>(i), 1 + i), gpu);
        codes.emplace_back(Shape{rows, cols}, code_dtype(format, dtype), gpu);
        transposed.emplace_back(Shape{cols, rows}, code_dtype(format, dtype), gpu);
        scales.emplace_back(Shape{1 + i % 3}, DType::f32, gpu);
        weights.push_back({codes.back(), transposed.back(), scales.back(), w});
        static std::vector<Tensor> alive;  // until the kernels have run
        alive.push_back(w);
      }
      k.quantize_weights(weights, format);
      // Once more with the maxima given: the same.
      std::vector<Tensor> first_codes, first_transposed, largest;
      for (size_t i = 0; i < weights.size(); ++i) {
        first_codes.push_back(to_host(codes[i]));
        first_transposed.push_back(to_host(transposed[i]));
        k.fill(scales[i], 0);
        largest.emplace_back(Shape{1}, DType::f32, gpu);
        k.absolute_maximum(largest.back(), weights[i].w, Granularity::tensor);
        weights[i].largest = largest.back();
      }
      k.quantize_weights(weights, format);
      for (size_t i = 0; i < weights.size(); ++i) {
        CHECK(differences(codes[i], first_codes[i]) == 0);
        CHECK(differences(transposed[i], first_transposed[i]) == 0);
      }
      for (size_t i = 0; i < weights.size(); ++i) {
        Tensor own(codes[i].shape(), codes[i].dtype(), gpu),
            other(transposed[i].shape(), codes[i].dtype(), gpu), scale(scales[i].shape(), DType::f32, gpu);
        k.quantize(own, other, scale, weights[i].w, {}, format, Granularity::tensor);
        INFO(i);
        CHECK(differences(codes[i], to_host(own)) == 0);
        CHECK(differences(transposed[i], to_host(other)) == 0);
        CHECK(differences(scales[i], to_host(scale)) == 0);
      }
    }
}

TEST_CASE("codes of many weights the other way round") {
  if (no_gpu()) return;
  std::vector<Tensor> codes, transposed, expected;
  std::vector<WeightCodes> weights;
  for (int i = 0; i < 60; ++i) {
    const int64_t rows = 1 + 23 * (i % 7), cols = 1 + 41 * (i % 11);
    const Tensor own({rows, cols}, DType::i8);
    for (int64_t at = 0; at < own.size(); ++at) own.span<int8_t>()[at] = static_cast<int8_t>(at * 37 + i);
    codes.push_back(to_device(own, gpu));
    expected.emplace_back(Shape{cols, rows}, own.dtype());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        expected.back().span<int8_t>()[c * rows + r] = own.span<int8_t>()[r * cols + c];
    transposed.emplace_back(Shape{cols, rows}, own.dtype(), gpu);
    weights.push_back({codes.back(), transposed.back(), {}, {}, {}});
  }
  kernels(gpu).transpose_codes(weights);
  for (size_t i = 0; i < weights.size(); ++i) CHECK(differences(transposed[i], expected[i]) == 0);
}

TEST_CASE("the optimizer's largest values are those of the masters it leaves") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  const std::vector<int64_t> sizes_of = {40000, 700, 8192, 1, 513, 9000};  // 1 is frozen, 4 skipped
  constexpr int64_t padding = 3;
  int64_t elements = 0;
  std::vector<int64_t> ranges;
  for (int64_t size : sizes_of) ranges.insert(ranges.end(), {elements, size}), elements += size + padding;
  const auto count = static_cast<int64_t>(sizes_of.size());
  for (const bool stable : {false, true}) {
    const Tensor table = to_device(Tensor::of<int64_t>({count, 2}, ranges), gpu),
                 decay = to_device(Tensor::of<double>({count}, std::vector<double>(6, 0.1)), gpu),
                 rate = to_device(Tensor::of<double>({count}, {1, 0, 1, 1, 1, 0.5}), gpu),
                 scalars = to_device(Tensor::of<double>({step_scalar_count}, {0.5, 0.8, 0.95, 1}), gpu);
    const Segments segments{table, decay, rate};
    const auto values = [&](uint64_t seed) {
      return to_device(matrix(1, elements, DType::f32, seed).reshape({elements}), gpu);
    };
    Tensor masters = values(1), first = values(2), second({elements}, DType::f32, gpu), gradients = values(3),
           rms({count}, DType::f32, gpu), squares({count}, DType::f32, gpu),
           largest({count}, DType::f32, gpu);
    k.fill(second, 0.5);
    k.fill(largest, 77);
    k.fill(gradients.part(ranges[8], {1}), INFINITY);
    AdamOptions options;
    options.clip_update = stable;
    k.gradient_statistics(squares, gradients, segments);
    if (stable) {
      k.adam_moments(first, second, rms, gradients, squares, segments, scalars, options);
      k.adam_update(masters, {}, first, second, rms, segments, scalars, options, largest);
    } else {
      k.adam_step(masters, {}, first, second, rms, gradients, squares, segments, scalars, options, largest);
    }
    const Array got = as_doubles(to_host(largest));
    for (int64_t s = 0; s < count; ++s) {
      Tensor own({1}, DType::f32, gpu);
      k.absolute_maximum(own, masters.part(ranges[2 * s], {sizes_of[s]}), Granularity::tensor);
      INFO(s, stable);
      CHECK(got[static_cast<size_t>(s)] == (s == 1 || s == 4 ? 77 : as_doubles(to_host(own))[0]));
    }
  }
}

TEST_CASE("layernorm and codes in one sweep are layernorm and then codes") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  for (const auto& [rows, cols] : sizes)
    for (DType dtype : {DType::bf16, DType::f32})
      for (Format format : {Format::int8, Format::e4m3, Format::e5m2})
        for (bool scaled : {false, true}) {
          const auto on = [&](int64_t r, uint64_t seed) {
            return to_device(matrix(r, cols, dtype, seed), gpu);
          };
          const auto make = [&](DType type) { return Tensor({rows, cols}, type, gpu); };
          const Tensor x = on(rows, 1), branch = on(rows, 2), dsum = on(rows, 3), dnormed = on(rows, 4);
          const Tensor gain = on(1, 5).reshape({cols}), bias = on(1, 6).reshape({cols}),
                       gamma_value = on(1, 7).reshape({cols});
          const Tensor gamma = scaled ? gamma_value : Tensor();
          struct Results {
            Tensor sum, normed, mean, rstd, dx, dbranch, dgamma, dgain, dbias, codes, scale, d_codes, d_scale;
          };
          const auto compute = [&](bool fused) {
            const DType code = code_dtype(format, dtype);
            const auto vector = [&](int64_t n) { return Tensor({n}, DType::f32, gpu); };
            Results r{make(dtype),  make(dtype),  vector(rows), vector(rows), make(dtype),
                      make(dtype),  vector(cols), vector(cols), vector(cols), make(code),
                      vector(rows), make(code),   vector(rows)};
            const RowCodes codes{r.codes, r.scale, format}, d_codes{r.d_codes, r.d_scale, format};
            const Sink dbranch = scaled ? Sink{r.dbranch} : Sink{}, dgamma = scaled ? Sink{r.dgamma} : Sink{};
            k.residual_layernorm_forward(r.sum, r.normed, r.mean, r.rstd, x, branch, gamma, gain, bias, 1e-5,
                                         fused ? codes : RowCodes{});
            k.residual_layernorm_backward(r.dx, dbranch, {}, dgamma, {r.dgain}, {r.dbias}, dsum, dnormed,
                                          r.sum, r.mean, r.rstd, gain, branch, gamma,
                                          fused ? d_codes : RowCodes{});
            if (fused) return r;
            k.quantize(r.codes, {}, r.scale, r.normed, {}, format, Granularity::row);
            k.quantize(r.d_codes, {}, r.d_scale, scaled ? r.dbranch : r.dx, {}, format, Granularity::row);
            return r;
          };
          const Results fused = compute(true), apart = compute(false);
          INFO(rows, " x ", cols, " ", std::string(name_of(dtype)), " ", std::string(name_of(format)),
               std::string(scaled ? " scaled" : ""));
          for (Tensor Results::*t :
               {&Results::sum, &Results::normed, &Results::dx, &Results::dgain, &Results::dbias,
                &Results::codes, &Results::scale, &Results::d_codes, &Results::d_scale})
            CHECK(differences(fused.*t, to_host(apart.*t)) == 0);
          if (scaled) CHECK(differences(fused.dgamma, to_host(apart.dgamma)) == 0);
        }
}

// compute-sanitizer --tool racecheck (and the others) test_cuda_quantize --no-skip -tc='each op once*'
TEST_CASE("each op once, for compute-sanitizer" * doctest::skip()) {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{37, 21}, {48, 1280}, {32, 5120}})
    for (DType dtype : {DType::bf16, DType::f32})
      for (Format format : {Format::int8, Format::e5m2}) {
        const Tensor x = to_device(matrix(rows, cols, dtype), gpu), gain = x.slice(0, 1).reshape({cols});
        for (Granularity by : {Granularity::tensor, Granularity::row, Granularity::column})
          for (int64_t padded : {int64_t{0}, (rows + 15) / 16 * 16}) quantize(x, format, by, padded);
        const auto make = [&](DType type) { return Tensor({rows, cols}, type, gpu); };
        const Tensor codes = make(code_dtype(format, dtype)), scale({rows}, DType::f32, gpu),
                     sums({cols}, DType::f32, gpu), a = make(dtype), b = make(dtype),
                     statistics({2, rows}, DType::f32, gpu), y({rows, rows}, dtype, gpu);
        const Tensor mean = statistics.slice(0, 1).reshape({rows}),
                     rstd = statistics.slice(1, 1).reshape({rows});
        k.gelu_forward_quantized(a, codes, scale, x, format, Gelu::exact);
        k.gelu_backward_quantized(a, codes, scale, b, x, x, format, Gelu::quick);
        k.gelu_backward_quantized(a, codes, scale, b, x, x, format, Gelu::quick, {sums});
        k.quantize(codes, {}, scale, x, {}, format, Granularity::row, {sums});
        const RowCodes out{codes, scale, format};
        k.residual_layernorm_forward(a, b, mean, rstd, x, x, {}, gain, gain, 1e-5, out);
        k.residual_layernorm_backward(b, {}, {}, {}, {sums}, {sums}, x, x, a, mean, rstd, gain, {}, {}, out);
        k.quantize(codes, {}, scale, x, {}, format, Granularity::row);
        const Format other = format == Format::int8 ? format : Format::e4m3;
        k.product_of_codes(y, {codes, scale, format}, {codes, scale, other}, {});
        const Tensor w = make(code_dtype(format, dtype)), t({cols, rows}, w.dtype(), gpu);
        const std::vector<WeightCodes> weights = {{w, t, scale.slice(0, 1), x}};
        k.quantize_weights(weights, format);
        k.synchronize();
      }
}
