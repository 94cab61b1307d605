// What a block keeps for its backward pass, in bytes of the allocator, at every level of recomputation; and
// that it gives all of it back.
#include "runtime/allocator.h"
#include "tests/models/model_test.h"

using namespace switchback;

namespace {

constexpr int64_t width = 64, batch = 3, tokens = 40;

struct Kept {
  size_t forward, backward;  // bytes in use after the forward and the backward pass, above the start
};

Kept kept(int64_t layers, const Recomputation& recompute, bool layer_scale) {
  ParameterArena arena(DType::bf16, cpu_device, 1);
  BlockOptions o;
  o.width = width;
  o.heads = 2;
  o.mlp_width = 4 * width;
  if (layer_scale) o.layer_scale = 0.1;
  o.qkv = o.out = o.fc = o.proj = Init::normal_with(0.1);
  const Transformer transformer(arena, "t", layers, o);
  arena.allocate();
  arena.begin_backward();
  const auto used = [] { return allocator(cpu_device).statistics().used; };
  Variable y;
  const size_t before = used();
  {
    Tensor input({batch, tokens, width}, DType::bf16);
    kernels(cpu_device).fill(input, 0.5);
    y = transformer(Variable(input, true), {}, recompute);
  }
  const size_t after = used();
  Tensor dy(y.shape(), y.dtype());
  kernels(cpu_device).fill(dy, 1);
  y.adopt_grad(std::move(dy));
  tape().backward_from_gradients();
  y = {};
  return {after - before, used() - before};
}

}  // namespace

TEST_CASE("the last block works on the rows that are read, as if it worked on all") {
  for (bool layer_scale : {false, true})
    for (Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::blocks}) {
      BlockOptions o;
      o.width = 24;
      o.heads = 2;
      o.mlp_width = 40;
      o.causal = layer_scale;
      if (layer_scale) o.layer_scale = 0.3;
      o.qkv = o.out = o.fc = o.proj = o.fc_bias = o.proj_bias = Init::normal_with(0.2);
      Tensor x({3, 5, 24}, DType::f64), dy({3, 24}, DType::f64);
      initialize(x, Init::normal_with(1), 1, "x");
      initialize(dy, Init::normal_with(1), 1, "dy");
      const Tensor place = Tensor::of<int32_t>({3}, {4, 0, 2});
      const auto run = [&](bool all_rows, bool whole_last = false) {
        o.whole_last = whole_last;
        ParameterArena arena(DType::f64, cpu_device, 1);
        std::vector<Block> blocks;
        std::optional<Transformer> transformer;
        if (all_rows)
          for (int i = 0; i < 3; ++i) blocks.emplace_back(arena, concat("t.resblocks.", i), o);
        else
          transformer.emplace(arena, "t", 3, o);
        arena.allocate();
        arena.begin_backward();
        const Variable input(x, true);
        Variable y = input;
        for (const Block& block : blocks) y = block(y);
        y = all_rows ? pool(y, place) : (*transformer)(y, place, recompute);
        Tensor seed(dy.shape(), dy.dtype());
        kernels(cpu_device).cast(seed, dy);
        y.adopt_grad(seed);
        tape().backward_from_gradients();
        arena.finish_backward();
        std::vector<double> results;
        for (const Tensor& t : {y.value(), input.grad(), arena.gradients()})
          for (double v : t.span<double>()) results.push_back(v);
        return results;
      };
      const std::vector<double> rows = run(false), whole = run(false, true), all = run(true);
      REQUIRE_EQ(rows.size(), all.size());
      REQUIRE_EQ(whole.size(), all.size());
      double difference = 0, largest = 0;
      for (size_t i = 0; i < all.size(); ++i) {
        difference = std::max({difference, std::fabs(rows[i] - all[i]), std::fabs(whole[i] - all[i])});
        largest = std::max(largest, std::fabs(all[i]));
      }
      CAPTURE(static_cast<int>(recompute));
      CHECK_LE(difference, 1e-12 * largest);
      CHECK_GT(largest, 1);
    }
}

TEST_CASE("a block keeps as many activations as its level of recomputation says") {
  const double unit = batch * tokens * width * 2;  // bytes of one (B, T, C)
  for (bool layer_scale : {false, true})
    for (const auto& [recompute, units] : {std::pair(Recompute::none, 16.0),
                                           {Recompute::gelu, 12.0},
                                           {Recompute::cheap, 10.0},
                                           {Recompute::blocks, 1.0}}) {
      const Kept five = kept(5, recompute, layer_scale), three = kept(3, recompute, layer_scale);
      const double each = static_cast<double>(five.forward - three.forward) / 2 / unit;
      // Layer-scale wants both branches for its gradient.
      const double expected = units + (layer_scale && recompute != Recompute::blocks ? 2 : 0);
      CAPTURE(static_cast<int>(recompute));
      CAPTURE(layer_scale);
      CHECK_GE(each, expected);
      CHECK_LE(each, expected + 0.35);  // mean, rstd and lse: f32 by row, in pieces of 256 bytes
      CHECK_EQ(five.backward, 0);
    }
}

TEST_CASE("a level may stand for the first blocks alone") {
  const double unit = batch * tokens * width * 2;
  const Kept none = kept(5, Recompute::none, false), all = kept(5, find_recompute("gelu"), false),
             two = kept(5, find_recompute("gelu:2"), false);
  CHECK_EQ(static_cast<double>(none.forward - two.forward), doctest::Approx(2 * 4 * unit));
  // Two whole ones and the last, of which one row of each sample is computed.
  CHECK_EQ(static_cast<double>(two.forward - all.forward), doctest::Approx((2 + 1.0 / tokens) * 4 * unit));
  CHECK_EQ(kept(5, find_recompute("gelu:5"), false).forward, all.forward);
  CHECK_EQ(kept(5, find_recompute("gelu:9"), false).forward, all.forward);
  CHECK_EQ(kept(5, find_recompute("blocks:0"), false).forward, none.forward);
  for (const char* text : {"gelu:", "gelu:-1", "gelu:2x", "gelu:2:3", "gelu: 2", "all:2", ":2", ""})
    CHECK_THROWS_AS(find_recompute(text), Error);
}
