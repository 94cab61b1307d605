// Training with each block updated within the backward pass: the same bits as with the update behind it.
#include <limits>

#include "autograd/op_timer.h"
#include "tests/apps/trainer.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

// Five steps both ways.
void check_bits(TrainerOptions options) {
  CAPTURE(options.linear);
  Trainer behind(options);
  options.in_backward = true;
  Trainer within(options);
  behind.train(5);
  within.train(5);
  CHECK_LT(within.arena.gradients().size(), behind.arena.gradients().size());
  CHECK(within.losses() == behind.losses());
  CHECK(within.bits() == behind.bits());
  for (size_t i = 0; i < 5; ++i) {
    CHECK(within.done[i].optimizer.rms == behind.done[i].optimizer.rms);
    CHECK_EQ(within.done[i].optimizer.gradient_norm, behind.done[i].optimizer.gradient_norm);
    CHECK_EQ(within.done[i].logit_scale, behind.done[i].logit_scale);
  }
}

}  // namespace

TEST_CASE("updates within the backward pass: the bits of updates behind it") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    check_bits({.dtype = dtype});
    check_bits({.dtype = dtype, .stable = true, .patch_dropout = 0.5, .layer_scale = 0.1});
    check_bits({.dtype = dtype, .siglip = true, .longest = {3, 5}});
    for (const Recompute recompute : {Recompute::gelu, Recompute::cheap, Recompute::blocks})
      for (const double layer_scale : {-1.0, 0.1})
        check_bits({.dtype = dtype, .recompute = recompute, .layer_scale = layer_scale});
  }
  check_bits({.model = "mini-28", .batch_size = 6, .dtype = DType::bf16, .stable = true});
}

TEST_CASE("the same with low-precision linears") {
  for (const char* linear : {"switchback", "switchback-m", "llm-int8", "fp8"})
    for (const Recompute recompute : {Recompute::none, Recompute::blocks})
      check_bits({.dtype = DType::bf16, .linear = linear, .recompute = recompute});
}

TEST_CASE("the same with frozen parameters") {
  check_bits({.stable = true, .frozen = {"visual.*"}});
  check_bits({.dtype = DType::bf16, .frozen = {"transformer.*", "token_embedding.weight", "ln_final.*"}});
  check_bits({.frozen = {"visual.transformer.resblocks.0.*", "visual.conv1.weight", "*.1.mlp.*"}});
}

TEST_CASE("a gradient that is not finite costs its tensor this step's update, and no other tensor") {
  const std::string victim = "visual.transformer.resblocks.0.mlp.c_fc.weight";
  const auto train = [&](bool in_backward) {
    auto t = std::make_unique<Trainer>(TrainerOptions{.in_backward = in_backward});
    t->train(2);
    {
      // What is marked before an op runs when that op has gone back (autograd/tape.h).
      Tape::observe([&](std::string_view region, std::string_view op, const Variable&) {
        if (!Tape::paused() && op == "mlp" && region == "visual.transformer.resblocks.0")
          tape().mark("poison", [&] {
            t->arena.gradient_of(*t->arena.find(victim)).span<float>()[7] =
                std::numeric_limits<float>::infinity();
          });
      });
      t->launch();
      Tape::observe({});
    }
    t->launch();
    t->finish();
    return t;
  };
  const auto within = train(true), behind = train(false);
  CHECK(within->done[2].optimizer.skipped == std::vector<std::string>{victim});
  CHECK(behind->done[2].optimizer.skipped == std::vector<std::string>{victim});
  CHECK(within->done[3].optimizer.skipped.empty());
  CHECK(within->bits() == behind->bits());
}

TEST_CASE("who stops with updates behind the backward pass goes on with updates within it") {
  TrainerOptions options{.dtype = DType::bf16, .stable = true};
  Trainer whole(options), first(options);
  options.in_backward = true;
  Trainer second(options);
  whole.train(5);
  first.train(3);
  second.go_on_from(first);
  second.train(2);
  CHECK(whole.bits() == second.bits());
}

TEST_CASE("a rehearsal updates nothing, a smaller batch and a watched step do as ever") {
  Trainer behind({}), within({.in_backward = true});
  const std::string before = within.bits();
  within.step->rehearse();
  CHECK(within.bits() == before);
  for (Trainer* t : {&behind, &within}) {
    t->train(1);
    t->launch(6);
    OpTimer timer(cpu_device);
    t->launch();
    timer.lap("optimizer");
    int64_t updates = 0;
    for (const auto& line : timer.table())
      if (line.name.starts_with("optimizer")) updates += line.calls;
    CHECK_EQ(updates, t == &within ? 5 : 1);  // four blocks, and what is behind the backward pass
    t->finish();
  }
  CHECK(within.bits() == behind.bits());
}

TEST_CASE("parts of a batch and updates within the backward pass do not go together") {
  std::string message;
  try {
    Trainer t({.in_backward = true, .parts = 2});
  } catch (const Error& e) {
    message = e.what();
  }
  CHECK(message.find("without parts") != std::string::npos);
}
