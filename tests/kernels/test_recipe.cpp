// Linear layers by recipe: against the 16-bit layer, and what must be exact.
#include "kernels/recipe.h"

#include "tests/kernels/testing.h"

using namespace switchback;

namespace {

Tensor normal_matrix(int64_t rows, int64_t cols, DType dtype, uint64_t seed, double scale = 1) {
  Random r(seed);
  Tensor x({rows, cols}, dtype);
  visit_float(dtype, "matrix", [&](auto tag) {
    for (auto& v : x.span<decltype(tag)>()) {
      double sum = -6;
      for (int i = 0; i < 12; ++i) sum += r.uniform();
      v = static_cast<decltype(tag)>(static_cast<float>(scale * sum));
    }
  });
  return x;
}

struct Layer {
  Tensor y, dx, dw, dbias;
  SavedInput saved;
};
constexpr int64_t M = 96, K = 80, N = 48;

// One step of a layer by a recipe.
Layer step(const LinearRecipe& recipe, DType dtype, bool accumulate = false, bool at_once = false) {
  const Tensor x = normal_matrix(M, K, dtype, 1), w = normal_matrix(N, K, dtype, 2, 0.1),
               bias = normal_matrix(1, N, dtype, 3).reshape({N}), dy = normal_matrix(M, N, dtype, 4, 1e-3);
  Kernels& k = kernels(cpu_device);
  Layer l{Tensor({M, N}, dtype),
          Tensor({M, K}, dtype),
          Tensor({N, K}, statistics_dtype(dtype)),
          Tensor({N}, statistics_dtype(dtype)),
          {}};
  if (accumulate)
    for (const Tensor& t : {l.dx, l.dw, l.dbias}) k.fill(t, 0.5);
  const PreparedWeight prepared = prepared_weight(recipe, w.shape(), dtype, cpu_device);
  prepare_weight(prepared, recipe, w);
  linear_forward(recipe, l.y, &l.saved, {x, {}}, w, prepared, bias);
  RowOperand gradient{dy, {}};
  Sink dw{l.dw, accumulate}, dbias{l.dbias, accumulate};
  if (at_once) quantize_gradient(recipe, gradient, dw, dbias, l.saved);
  linear_backward_input(recipe, {l.dx, accumulate}, gradient, w, prepared);
  linear_backward_weight(recipe, dw, dbias, dy, l.saved);
  return l;
}

// ‖a - b‖/‖b‖
double distance(const Tensor& a, const Tensor& b) {
  const Array x = as_doubles(a), y = as_doubles(b);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace

TEST_CASE("the table of recipes is sound") {
  CHECK(linear_recipes().size() == 9);
  for (const LinearRecipe& recipe : linear_recipes()) {
    check_recipe(recipe);
    CHECK(&linear_recipe(recipe.name) == &recipe);
  }
  CHECK(standard_recipe().is_standard());
  CHECK_FALSE(linear_recipe("switchback").is_standard());
  try {
    linear_recipe("int4");
    FAIL("int4 is not in the table");
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find("it is one of standard, switchback, switchback-m") != std::string::npos);
  }
  LinearRecipe wrong = linear_recipe("switchback-q");
  wrong.backward_input.right.by = Granularity::row;  // the scale would change along the sum
  CHECK_THROWS_AS(check_recipe(wrong), Error);
}

TEST_CASE("every recipe is the 16-bit layer within its format's noise") {
  const std::map<std::string_view, std::pair<double, double>> bars = {// of y and dx, of dw
                                                                      {"standard", {1e-12, 1e-12}},
                                                                      {"switchback", {0.02, 1e-12}},
                                                                      {"switchback-m", {0.02, 0.01}},
                                                                      {"switchback-q", {0.02, 1e-12}},
                                                                      {"llm-int8", {0.02, 0.02}},
                                                                      {"fp8-sim", {0.08, 0.08}},
                                                                      {"switchback-fp8-sim", {0.08, 1e-12}},
                                                                      {"switchback-fp8", {0.08, 1e-12}},
                                                                      {"fp8", {0.08, 0.08}}};
  for (DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const Layer standard = step(standard_recipe(), dtype);
    for (const LinearRecipe& recipe : linear_recipes()) {
      const Layer l = step(recipe, dtype);
      const auto [bar, dw_bar] = bars.at(recipe.name);
      INFO(std::string(recipe.name), " ", name_of(dtype), ": y ", distance(l.y, standard.y), " dx ",
           distance(l.dx, standard.dx), " dw ", distance(l.dw, standard.dw));
      CHECK(distance(l.y, standard.y) <= bar);
      CHECK(distance(l.dx, standard.dx) <= bar);
      CHECK(distance(l.dw, standard.dw) <= dw_bar);
      CHECK(as_doubles(l.dbias) == as_doubles(standard.dbias));
      if (!recipe.is_standard()) {  // it did something
        CHECK(distance(l.y, standard.y) > 1e-4);
        CHECK(distance(l.dx, standard.dx) > 1e-4);
      }
      if (dw_bar > 1e-10) CHECK(distance(l.dw, standard.dw) > 1e-4);
      const Layer added = step(recipe, dtype, true);
      Array expected = as_doubles(l.dw);
      double worst = 0;
      for (size_t i = 0; i < expected.size(); ++i)
        worst = std::max(worst, std::fabs(as_doubles(added.dw)[i] - expected[i] - 0.5));
      CHECK(worst <= 1e-6);
    }
  }
}

TEST_CASE("codes of the gradient and the weight's gradient at once: the same layer") {
  for (const LinearRecipe& recipe : linear_recipes())
    for (bool accumulate : {false, true}) {
      const Layer apart = step(recipe, DType::f32, accumulate),
                  at_once = step(recipe, DType::f32, accumulate, true);
      INFO(std::string(recipe.name), accumulate);
      for (Tensor Layer::*t : {&Layer::dx, &Layer::dw, &Layer::dbias})
        CHECK(distance(at_once.*t, apart.*t) == 0);
    }
}

TEST_CASE("codes of the input that a producer has left, or made on the way: the same result") {
  Kernels& k = kernels(cpu_device);
  int with_codes = 0;
  for (const LinearRecipe& recipe : linear_recipes()) {
    const Format format = recipe.input_row_codes();
    if (format == Format::none) continue;
    ++with_codes;
    INFO(std::string(recipe.name));
    const Tensor x = normal_matrix(M, K, DType::bf16, 1), w = normal_matrix(N, K, DType::bf16, 2, 0.1),
                 bias = normal_matrix(1, N, DType::bf16, 3).reshape({N});
    const PreparedWeight prepared = prepared_weight(recipe, w.shape(), DType::bf16, cpu_device);
    prepare_weight(prepared, recipe, w);
    const Codes left{Tensor({M, K}, code_dtype(format, DType::bf16)), Tensor({M}, DType::f32), format};
    k.quantize(left.codes, {}, left.scale, x, {}, format, Granularity::row);
    const Tensor y({M, N}, DType::bf16), other({M, N}, DType::bf16);
    linear_forward(recipe, y, nullptr, {x, left}, w, prepared, bias);
    linear_forward(recipe, other, nullptr, {x, {}}, w, prepared, bias);
    CHECK(as_doubles(y) == as_doubles(other));
  }
  CHECK(with_codes >= 4);
}

TEST_CASE("switchback's weight gradient has the bits of the 16-bit product") {
  for (const char* name : {"switchback", "switchback-q", "switchback-fp8", "switchback-fp8-sim"})
    for (DType dtype : {DType::f32, DType::bf16})
      CHECK(as_doubles(step(linear_recipe(name), dtype).dw) == as_doubles(step(standard_recipe(), dtype).dw));
}

TEST_CASE("switchback-m saves a byte an element and is switchback otherwise") {
  const Layer m = step(linear_recipe("switchback-m"), DType::bf16),
              s = step(linear_recipe("switchback"), DType::bf16);
  CHECK_FALSE(m.saved.value.defined());
  CHECK(m.saved.codes.codes.dtype() == DType::i8);
  CHECK(m.saved.codes.codes.size() == M * K);
  CHECK(m.saved.codes.scale.size() == M);
  CHECK(as_doubles(m.y) == as_doubles(s.y));
  CHECK(as_doubles(m.dx) == as_doubles(s.dx));
  const Layer fp8 = step(linear_recipe("fp8"), DType::bf16);
  CHECK_FALSE(fp8.saved.value.defined());
  CHECK(size_of(fp8.saved.codes.codes.dtype()) == 1);
}

TEST_CASE("with quantisers replaced by the identity every recipe is the exact layer") {
  const Layer standard = step(standard_recipe(), DType::f64);
  for (LinearRecipe recipe : linear_recipes()) {
    for (LinearRecipe::Product* p : {&recipe.forward, &recipe.backward_input, &recipe.backward_weight}) {
      if (p->kind == LinearRecipe::sixteen_bit) continue;
      p->kind = LinearRecipe::codes;
      p->left.format = p->right.format = Format::exact;
    }
    const Layer l = step(recipe, DType::f64);
    INFO(std::string(recipe.name));
    CHECK(distance(l.y, standard.y) <= 1e-14);
    CHECK(distance(l.dx, standard.dx) <= 1e-14);
    CHECK(distance(l.dw, standard.dw) <= 1e-14);
  }
}

TEST_CASE("a NaN in one token shows in its row of the result, and in no other") {
  for (const char* name : {"switchback", "switchback-fp8", "switchback-fp8-sim", "llm-int8"}) {
    const LinearRecipe& recipe = linear_recipe(name);
    const Tensor x = normal_matrix(4, K, DType::f32, 1), w = normal_matrix(N, K, DType::f32, 2);
    x.span<float>()[2 * K + 5] = NAN;
    const PreparedWeight prepared = prepared_weight(recipe, w.shape(), DType::f32, cpu_device);
    prepare_weight(prepared, recipe, w);
    Tensor y({4, N}, DType::f32);
    linear_forward(recipe, y, nullptr, {x, {}}, w, prepared, {});
    for (int64_t i = 0; i < 4 * N; ++i) CHECK(std::isnan(y.span<float>()[i]) == (i / N == 2));
  }
}
