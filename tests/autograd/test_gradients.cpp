// Every differentiable op against central differences (gradient_check.h), on odd sizes; then what the tape
// itself promises: a variable used twice, frozen inputs, recomputation, gradients that are shared before they
// are added to.
#include "autograd/checkpoint.h"
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
  check_gradients([](const Inputs& v) { return concat_rows({v[0], v[1], v[0]}); },
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
  check_gradients([&](const Inputs& v) {
    return checkpoint(v[0], [&](const Variable& x) { return plain({x, v[1], v[2], v[3]}); });
  }, tensors);
  // nested, and a checkpoint whose input needs no gradient
  Tensor images = tensors[0];
  check_gradients([&](const Inputs& v) {
    return checkpoint(Variable(images), [&](const Variable& x) {
      return checkpoint(x, [&](const Variable& z) { return plain({z, v[0], v[1], v[2]}); });
    });
  }, {tensors[1], tensors[2], tensors[3]});
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
