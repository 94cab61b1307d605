// Every differentiable op against central differences (gradient_check.h), on odd sizes; then what the tape
// itself promises: a variable used twice, frozen inputs, recomputation, gradients that are shared before they
// are added to.
#include <algorithm>

#include "autograd/checkpoint.h"
#include "runtime/allocator.h"
#include "tests/autograd/gradient_check.h"

using namespace switchback;

namespace {

using Inputs = std::vector<Variable>;

Tensor ids(Shape shape, std::vector<int32_t> values) { return Tensor::of<int32_t>(shape, values); }

}  // namespace

TEST_CASE("linear") {
  check_gradients([](const Inputs& v) { return linear(v[0], v[1], v[2]); },
                  {random_tensor({3, 5, 7}, 1), random_tensor({9, 7}, 2), random_tensor({9}, 3)});
  check_gradients([](const Inputs& v) { return linear(v[0], v[1]); },
                  {random_tensor({1, 4}, 1), random_tensor({3, 4}, 2)});
}

TEST_CASE("linear with a convolution's weight") {
  check_gradients([](const Inputs& v) { return linear(v[0], v[1]); },
                  {random_tensor({5, 12}, 1), random_tensor({6, 3, 2, 2}, 2)});
}

TEST_CASE("project") {
  check_gradients([](const Inputs& v) { return project(v[0], v[1]); },
                  {random_tensor({5, 7}, 1), random_tensor({7, 3}, 2)});
}

TEST_CASE("layernorm") {
  check_gradients([](const Inputs& v) { return layernorm(v[0], v[1], v[2]); },
                  {random_tensor({3, 5, 7}, 1), random_tensor({7}, 2), random_tensor({7}, 3)});
}

TEST_CASE("gelu, exact and quick") {
  for (Gelu kind : {Gelu::exact, Gelu::quick})
    check_gradients([kind](const Inputs& v) { return gelu(v[0], kind); }, {random_tensor({4, 33}, 1, 2)});
}

TEST_CASE("attention, with and without causal mask, any head size") {
  for (bool causal : {false, true})
    for (int64_t heads : {1, 2, 3})
      check_gradients([=](const Inputs& v) { return attention(v[0], heads, causal); },
                      {random_tensor({2, 7, 3 * heads * 5}, 1)});
  check_gradients([](const Inputs& v) { return attention(v[0], 2, true); },
                  {random_tensor({2, 1, 3 * 2 * 4}, 1)});
}

TEST_CASE("residual, plain and with layer-scale") {
  check_gradients([](const Inputs& v) { return residual(v[0], v[1]); },
                  {random_tensor({2, 3, 5}, 1), random_tensor({2, 3, 5}, 2)});
  check_gradients([](const Inputs& v) { return residual(v[0], v[1], v[2]); },
                  {random_tensor({2, 3, 5}, 1), random_tensor({2, 3, 5}, 2), random_tensor({5}, 3)});
}

TEST_CASE("residual_layernorm, plain and with layer-scale, whichever of its results is used") {
  const std::vector<Tensor> tensors = {random_tensor({2, 3, 5}, 1), random_tensor({2, 3, 5}, 2),
                                       random_tensor({5}, 3), random_tensor({5}, 4), random_tensor({5}, 5)};
  for (int used = 1; used <= 3; ++used)
    for (bool scaled : {false, true}) {
      const auto f = [=](const Inputs& v) {
        const Normed r = residual_layernorm(v[0], v[1], scaled ? v[4] : Variable(), v[2], v[3]);
        if (used == 1) return r.sum;
        if (used == 2) return r.normed;
        return residual(gelu(r.sum, Gelu::exact), r.normed);  // both, the sum's gradient first
      };
      CAPTURE(used);
      CAPTURE(scaled);
      std::vector<Tensor> inputs = tensors;
      if (!scaled) inputs.pop_back();
      if (used == 1) {  // gain and bias take no part
        const auto part = [&](const Inputs& v) {
          return f({v[0], v[1], Variable(tensors[2]), Variable(tensors[3]), scaled ? v[2] : Variable()});
        };
        inputs.erase(inputs.begin() + 2, inputs.begin() + 4);
        check_gradients(part, inputs);
      } else {
        check_gradients(f, inputs);
      }
    }
}

TEST_CASE("residual_layernorm whose sum's gradient somebody else still reads") {
  // residual() gives r.sum and `other` the same tensor; r.sum's op runs first and must not write into it.
  check_gradients(
      [](const Inputs& v) {
        const Variable other = gelu(v[0], Gelu::quick);
        const Normed r = residual_layernorm(v[0], v[1], {}, v[2], v[3]);
        return residual(residual(r.sum, other), r.normed);
      },
      {random_tensor({3, 5}, 1), random_tensor({3, 5}, 2), random_tensor({5}, 3), random_tensor({5}, 4)});
}

TEST_CASE("mlp, with the GELU's result kept and made again") {
  for (Gelu kind : {Gelu::exact, Gelu::quick})
    for (bool keep_gelu : {false, true})
      check_gradients([=](const Inputs& v) { return mlp(v[0], v[1], v[2], v[3], v[4], kind, keep_gelu); },
                      {random_tensor({2, 3, 5}, 1), random_tensor({9, 5}, 2), random_tensor({9}, 3),
                       random_tensor({5, 9}, 4), random_tensor({5}, 5)});
}

TEST_CASE("coarse ops are their parts, bit for bit") {
  const Tensor x = random_tensor({7, 33}, 1), branch = random_tensor({7, 33}, 2),
               gain = random_tensor({33}, 3), bias = random_tensor({33}, 4), gamma = random_tensor({33}, 5),
               fc = random_tensor({40, 33}, 6), fc_b = random_tensor({40}, 7),
               proj = random_tensor({33, 40}, 8);
  for (DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (bool scaled : {false, true}) {
      const auto gradients = [&](bool coarse) {
        Inputs v;
        for (const Tensor& t : {x, branch, gain, bias, gamma, fc, fc_b, proj}) {
          Tensor cast(t.shape(), dtype);
          kernels(cpu_device).cast(cast, t);
          v.emplace_back(cast, true);
        }
        const Variable scale = scaled ? v[4] : Variable();
        Variable sum, y;
        if (coarse) {
          const Normed r = residual_layernorm(v[0], v[1], scale, v[2], v[3]);
          sum = r.sum;
          y = mlp(r.normed, v[5], v[6], v[7], v[3], Gelu::exact, false);
        } else {
          sum = residual(v[0], v[1], scale);
          y = linear(gelu(linear(layernorm(sum, v[2], v[3]), v[5], v[6]), Gelu::exact), v[7], v[3]);
        }
        y = residual(sum, y);
        Tensor seed(y.shape(), dtype);
        kernels(cpu_device).cast(seed, branch);
        y.adopt_grad(seed);
        tape().backward_from_gradients();
        std::vector<Tensor> results{y.value()};
        for (const Variable& input : v)
          if (input.has_grad()) results.push_back(input.grad());
        return results;
      };
      const std::vector<Tensor> coarse = gradients(true), fine = gradients(false);
      REQUIRE_EQ(coarse.size(), fine.size());
      for (size_t i = 0; i < coarse.size(); ++i) {
        INFO(std::string(name_of(dtype)), scaled ? " scaled" : "", " result ", i);
        if (dtype == DType::bf16 && i > 0) {  // the gradient between proj and gelu is not rounded in mlp
          Tensor a(coarse[i].shape(), DType::f64), b(a.shape(), DType::f64);
          kernels(cpu_device).cast(a, coarse[i]);
          kernels(cpu_device).cast(b, fine[i]);
          CHECK_LE(relative_error(a.span<double>(), b.span<double>()), 1e-2);
        } else {
          CHECK_EQ(std::memcmp(coarse[i].data(), fine[i].data(), CView(fine[i]).bytes()), 0);
        }
      }
    }
}

TEST_CASE("a forgotten value comes back with the same bits, when somebody reads it") {
  const Variable x(random_tensor({3, 5}, 1), true), gain(random_tensor({5}, 2), true),
      bias(random_tensor({5}, 3), true);
  const Variable y = layernorm(x, gain, bias);
  const std::vector<double> before(y.value().span<double>().begin(), y.value().span<double>().end());
  const size_t used = allocator(cpu_device).statistics().used;
  y.forget_value();
  CHECK_LT(allocator(cpu_device).statistics().used, used);
  CHECK_EQ(y.shape(), x.shape());
  CHECK(std::ranges::equal(y.value().span<double>(), before));
  const Variable z = gelu(x, Gelu::exact);  // knows no way back
  z.forget_value();
  CHECK(z.value().defined());
  tape().clear();
}

TEST_CASE("vision embedding, all patches and kept ones") {
  check_gradients([](const Inputs& v) { return vision_embed(v[0], v[1], v[2], {}, 2); },
                  {random_tensor({8, 5}, 1), random_tensor({5}, 2), random_tensor({5, 5}, 3)});
  Tensor keep = ids({2, 3}, {0, 2, 3, 1, 2, 3});
  check_gradients([keep](const Inputs& v) { return vision_embed(v[0], v[1], v[2], keep, 2); },
                  {random_tensor({6, 5}, 1), random_tensor({5}, 2), random_tensor({5, 5}, 3)});
}

TEST_CASE("text embedding with repeated tokens") {
  Tensor tokens = ids({2, 4}, {3, 1, 3, 0, 6, 3, 3, 2});
  check_gradients([tokens](const Inputs& v) { return text_embed(v[0], v[1], tokens); },
                  {random_tensor({7, 5}, 1), random_tensor({6, 5}, 2)});
}

TEST_CASE("pool at row 0 and at a place") {
  check_gradients([](const Inputs& v) { return pool(v[0], {}); }, {random_tensor({3, 4, 5}, 1)});
  Tensor place = ids({3}, {2, 0, 3});
  check_gradients([place](const Inputs& v) { return pool(v[0], place); }, {random_tensor({3, 4, 5}, 1)});
}

TEST_CASE("l2_normalize") {
  check_gradients([](const Inputs& v) { return l2_normalize(v[0]); }, {random_tensor({4, 7}, 1)});
}

TEST_CASE("concat_rows") {
  check_gradients(
      [](const Inputs& v) {
        return concat_rows({v[0], v[1], v[0]});
      },
      {random_tensor({2, 3}, 1), random_tensor({4, 3}, 2)});
}

TEST_CASE("contrastive losses") {
  check_gradients(
      [](const Inputs& v) { return contrastive_loss(l2_normalize(v[0]), l2_normalize(v[1]), v[2]); },
      {random_tensor({5, 4}, 1), random_tensor({5, 4}, 2), Tensor::of<double>({}, {2.0})});
  check_gradients(
      [](const Inputs& v) { return siglip_loss(l2_normalize(v[0]), l2_normalize(v[1]), v[2], v[3]); },
      {random_tensor({5, 4}, 1), random_tensor({5, 4}, 2), Tensor::of<double>({}, {1.5}),
       Tensor::of<double>({}, {-2.0})});
}

TEST_CASE("a variable used twice and more") {
  // x feeds the residual stream, both branches and the loss's both sides
  check_gradients(
      [](const Inputs& v) {
        Variable x = residual(v[0], gelu(v[0], Gelu::exact));
        x = residual(x, linear(layernorm(x, v[1], v[2]), v[3]));
        x = residual(x, x);
        return residual(x, v[0]);
      },
      {random_tensor({3, 5}, 1), random_tensor({5}, 2), random_tensor({5}, 3), random_tensor({5, 5}, 4)});
}

TEST_CASE("an op between a branch and its residual may add to the shared gradient") {
  // `other` adds to x's gradient after residual() gave x and branch the same tensor and before branch has
  // used it
  check_gradients(
      [](const Inputs& v) {
        Variable x = gelu(v[0], Gelu::quick);
        Variable branch = gelu(v[0], Gelu::exact);
        Variable other = linear(x, v[1]);
        return residual(residual(x, branch), other);
      },
      {random_tensor({3, 5}, 1), random_tensor({5, 5}, 2)});
}

TEST_CASE("through checkpoint: the same gradients, and only the input is kept") {
  Function plain = [](const Inputs& v) {
    Variable x = residual(v[0], gelu(linear(v[0], v[1], v[2]), Gelu::exact));
    return residual(x, attention(linear(x, v[3]), 1, true));
  };
  std::vector<Tensor> tensors = {random_tensor({2, 3, 5}, 1), random_tensor({5, 5}, 2), random_tensor({5}, 3),
                                 random_tensor({15, 5}, 4)};
  check_gradients(
      [&](const Inputs& v) {
        return checkpoint(v[0], [&](const Variable& x) { return plain({x, v[1], v[2], v[3]}); });
      },
      tensors);
  // nested, and a checkpoint whose input needs no gradient
  Tensor images = tensors[0];
  check_gradients(
      [&](const Inputs& v) {
        return checkpoint(Variable(images), [&](const Variable& x) {
          return checkpoint(x, [&](const Variable& z) { return plain({z, v[0], v[1], v[2]}); });
        });
      },
      {tensors[1], tensors[2], tensors[3]});
}

TEST_CASE("through checkpoint with two results: an op behind it takes the row sum of a bias inside it") {
  const Function function = [](const Inputs& v) {
    const auto inside = [v](const TwoVariables& x) {
      return TwoVariables{residual(x[0], gelu(x[1], Gelu::exact)), linear(x[1], v[2], v[3])};
    };
    TwoVariables y = checkpoint({v[0], v[1]}, inside);
    y[1].gradient().sum_rows_into(v[3].gradient());
    const Normed z = residual_layernorm(y[0], y[1], {}, v[4], v[5]);
    return residual(z.sum, z.normed);
  };
  const std::vector<Tensor> tensors = {random_tensor({2, 3, 5}, 1), random_tensor({2, 3, 5}, 2),
                                       random_tensor({5, 5}, 3),    random_tensor({5}, 4),
                                       random_tensor({5}, 5),       random_tensor({5}, 6)};
  check_gradients(function, tensors);
  // either argument may want no gradient
  for (size_t frozen : {0, 1})
    check_gradients(
        [&](const Inputs& v) {
          Inputs all(v.begin(), v.end());
          all.insert(all.begin() + static_cast<std::ptrdiff_t>(frozen), Variable(tensors[frozen]));
          return function(all);
        },
        {tensors[1 - frozen], tensors[2], tensors[3], tensors[4], tensors[5]});
}

TEST_CASE("marks run in the reverse walk, when everything after them has run") {
  Variable w(random_tensor({3, 3}, 1), true);
  std::vector<std::string> order;
  Variable x(random_tensor({2, 3}, 2), true);
  when_grads_ready("all", [&] { order.push_back(x.has_grad() ? "all" : "too early"); });
  Variable y = linear(x, w);
  when_grads_ready("second", [&] { order.push_back(x.has_grad() ? "too late" : "second"); });
  Variable z = gelu(y, Gelu::exact);
  z.adopt_grad(random_tensor({2, 3}, 3));
  tape().backward_from_gradients();
  CHECK(order == std::vector<std::string>{"second", "all"});
}

TEST_CASE("nothing is recorded while paused, or where nobody wants a gradient") {
  Variable frozen(random_tensor({2, 3}, 1));
  CHECK_FALSE(gelu(frozen, Gelu::exact).needs_grad());
  Variable x(random_tensor({2, 3}, 1), true);
  {
    Tape::Pause pause;
    CHECK_FALSE(gelu(x, Gelu::exact).needs_grad());
  }
  CHECK_EQ(tape().size(), 0);
  gelu(x, Gelu::exact);  // recorded, but nobody gives its result a gradient: skipped
  CHECK_EQ(tape().size(), 1);
  tape().backward_from_gradients();
  CHECK_FALSE(x.has_grad());
}
