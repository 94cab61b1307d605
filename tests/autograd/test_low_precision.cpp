// Linears and MLPs by recipe: their backward passes with the quantisers replaced by the identity (f64,
// central differences), and codes that travel with values and gradients: the same bits as codes made on the
// spot.
#include "tests/autograd/gradient_check.h"

using namespace switchback;

namespace {

// The recipe with every 8-bit format replaced by `exact`: the same way through the code, without the noise.
LinearRecipe without_noise(LinearRecipe recipe) {
  for (LinearRecipe::Product* p : {&recipe.forward, &recipe.backward_input, &recipe.backward_weight}) {
    if (p->kind == LinearRecipe::sixteen_bit) continue;
    p->kind = LinearRecipe::codes;
    p->left.format = p->right.format = Format::exact;
  }
  return recipe;
}

std::vector<double> as_doubles(const Tensor& t) {
  std::vector<double> values;
  visit_float(t.dtype(), "as_doubles", [&](auto tag) {
    for (auto v : t.span<decltype(tag)>()) values.push_back(static_cast<double>(v));
  });
  return values;
}

}  // namespace

TEST_CASE("gradients of a linear by every recipe, without its noise") {
  for (const LinearRecipe& listed : linear_recipes()) {
    const LinearRecipe recipe = without_noise(listed);
    INFO(std::string(recipe.name));
    check_gradients(
        [&](const std::vector<Variable>& v) {
          return linear(v[0], v[1], v[2], {&recipe, nullptr});
        },
        {random_tensor({2, 3, 5}, 1), random_tensor({4, 5}, 2), random_tensor({4}, 3)});
  }
}

TEST_CASE("gradients of an MLP by every recipe, without its noise") {
  for (const LinearRecipe& listed : linear_recipes())
    for (bool keep_gelu : {false, true}) {
      const LinearRecipe recipe = without_noise(listed);
      INFO(std::string(recipe.name), " ", keep_gelu);
      check_gradients(
          [&](const std::vector<Variable>& v) {
            return mlp(v[0], v[1], v[2], v[3], v[4], Gelu::exact, keep_gelu, {&recipe, nullptr},
                       {&recipe, nullptr});
          },
          {random_tensor({3, 4}, 1), random_tensor({6, 4}, 2), random_tensor({6}, 3),
           random_tensor({4, 6}, 4), random_tensor({4}, 5)});
    }
}

TEST_CASE("gradients through layernorms that leave codes, without noise") {
  const LinearRecipe recipe = without_noise(linear_recipe("switchback"));
  const RowFormats formats{recipe.input_row_codes(), recipe.gradient_row_codes()};
  REQUIRE(formats.normed == Format::exact);
  for (bool scaled : {false, true}) {
    std::vector<Tensor> inputs = {random_tensor({3, 5}, 1), random_tensor({5}, 2), random_tensor({5}, 3),
                                  random_tensor({5, 5}, 4)};
    if (scaled) inputs.push_back(random_tensor({5}, 5));
    check_gradients(
        [&](const std::vector<Variable>& v) {
          const Variable branch = linear(v[0], v[3], {}, {&recipe, nullptr});
          const Normed n =
              residual_layernorm(v[0], branch, scaled ? v[4] : Variable(), v[1], v[2], 1e-5, formats);
          return residual(n.sum, linear(n.normed, v[3], {}, {&recipe, nullptr}));
        },
        inputs);
  }
}

TEST_CASE("codes that came with a value or a gradient change no bit") {
  for (const char* name : {"switchback", "switchback-m", "switchback-q", "llm-int8", "switchback-fp8", "fp8"})
    for (bool scaled : {false, true}) {
      const LinearRecipe& recipe = linear_recipe(name);
      const auto run = [&](bool with_codes) {
        const auto variable = [](Shape shape, uint64_t seed) {
          Tensor t(shape, DType::bf16);
          kernels(cpu_device).cast(t, random_tensor(shape, seed));
          return Variable(t, true);
        };
        const RowFormats formats =
            with_codes ? RowFormats{recipe.input_row_codes(), recipe.gradient_row_codes()} : RowFormats{};
        const Variable x = variable({32, 16}, 1), w = variable({16, 16}, 2), up = variable({64, 16}, 3),
                       down = variable({16, 64}, 4), gain = variable({16}, 5), bias = variable({16}, 6),
                       gamma = scaled ? variable({16}, 7) : Variable();
        const LinearPrecision precision{&recipe, nullptr};
        Normed n = residual_layernorm(x, linear(x, w, {}, precision), gamma, gain, bias, 1e-5, formats);
        n = residual_layernorm(n.sum,
                               mlp(n.normed, up, {}, down, {}, Gelu::exact, true, precision, precision),
                               gamma, gain, bias, 1e-5, formats);
        const Variable y = linear(n.normed, w, bias, precision);
        Tensor dy(y.shape(), DType::bf16);
        kernels(cpu_device).cast(dy, random_tensor(y.shape(), 8));
        y.adopt_grad(dy);
        tape().backward_from_gradients();
        std::vector<std::vector<double>> results = {as_doubles(y.value())};
        for (const Variable& v : {x, w, up, down, gain, bias}) results.push_back(as_doubles(v.grad()));
        return results;
      };
      INFO(std::string(name));
      CHECK(run(true) == run(false));
    }
}

TEST_CASE("a gradient that changes loses its codes") {
  const Variable x(random_tensor({2, 3}, 1), true);
  x.adopt_grad(random_tensor({2, 3}, 2));
  x.gradient().set_codes({Tensor({2, 3}, DType::i8), Tensor({2}, DType::f32), Format::int8});
  x.adopt_grad(random_tensor({2, 3}, 3));
  CHECK_FALSE(x.gradient().take_codes().defined());
  x.gradient().set_codes({Tensor({2, 3}, DType::i8), Tensor({2}, DType::f32), Format::int8});
  CHECK(x.gradient().take_codes().defined());
  CHECK_FALSE(x.gradient().take_codes().defined());
}
