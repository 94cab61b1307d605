// TrainingStep on the CPU: the numbers come one step late and are those of a plain loop; what a loop may do
// between two steps.
#include <cmath>

#include "autograd/op_timer.h"
#include "distributed/thread_communicator.h"
#include "runtime/allocator.h"
#include "tests/apps/trainer.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

std::string error_of(const auto& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("a step that fails is not counted") {
  Trainer t({});
  const Tensor tokens = t.tokens(0, 12);
  for (int32_t& id : tokens.span<int32_t>()) id = 1'000'000;
  t.step->bring(t.images(0, 12), tokens);
  CHECK_NE(error_of([&] { t.step->launch(0, 1e-3); }), "no error");
  CHECK_EQ(t.optimizer->steps_done(), 0);
}

TEST_CASE("a step is forward, backward, update: the bits of a plain loop") {
  Trainer late({.patch_dropout = 0.5});
  late.train(5);
  REQUIRE_EQ(late.done.size(), 5);

  Trainer plain({.patch_dropout = 0.5});
  const Tensor number({}, DType::i64);
  const PatchDropout dropout{7, number, 0};
  const Clip::Options clip_options{{}, Recompute::none, &dropout};
  for (int64_t i = 0; i < 5; ++i) {
    number.span<int64_t>()[0] = i;
    plain.arena.begin_backward();
    const Variable loss = plain.clip.loss(
        plain.clip.encode_image(plain.images(static_cast<uint64_t>(i % 4), 12), clip_options),
        plain.clip.encode_text(plain.clip.needed_columns(plain.tokens(static_cast<uint64_t>(i % 4), 12)),
                               clip_options));
    const double logit_scale = std::exp(switchback::number(plain.clip.logit_scale().value()));
    tape().backward(loss);
    plain.arena.finish_backward();
    plain.optimizer->step(Trainer::rate(i));
    plain.clip.clamp_logit_scale();
    const StepNumbers& numbers = late.done[static_cast<size_t>(i)];
    CHECK_EQ(numbers.step, i);
    CHECK_EQ(numbers.loss, switchback::number(loss.value()));
    CHECK_EQ(numbers.logit_scale, logit_scale);
    CHECK_EQ(numbers.optimizer.step, i + 1);
    CHECK(numbers.optimizer.rms == plain.optimizer->report().rms);
    CHECK_EQ(numbers.optimizer.gradient_norm, plain.optimizer->report().gradient_norm);
  }
  CHECK(late.bits() == plain.bits());
}

TEST_CASE("numbers come one step late, in order, and at once when asked for") {
  Trainer t({});
  CHECK_FALSE(t.step->collect());
  CHECK_FALSE(t.step->collect(true));
  t.launch();
  CHECK(t.done.empty());
  t.launch();
  REQUIRE_EQ(t.done.size(), 1);
  CHECK_EQ(t.done[0].step, 0);
  t.finish();
  REQUIRE_EQ(t.done.size(), 2);
  CHECK_EQ(t.done[1].step, 1);
  CHECK_EQ(t.optimizer->report().step, 2);
  CHECK_GT(t.done[1].work_seconds, 0);
  t.launch();
  CHECK_EQ(t.done.size(), 2);
  t.step->launch(3, 1e-3);  // the same batch again
  CHECK(error_of([&] { t.step->launch(4, 1e-3); }).starts_with("two steps are launched"));
}

TEST_CASE("who stops between two steps and goes on has the same bits") {
  const TrainerOptions options{.stable = true, .patch_dropout = 0.5, .parts = 3};
  Trainer whole(options), first(options), second(options);
  whole.train(7);
  first.train(4);
  second.go_on_from(first);
  second.train(3);
  CHECK(whole.bits() == second.bits());
  CHECK(whole.warnings.empty());
}

TEST_CASE("parts, recomputation and other losses change nothing that they should not") {
  Trainer plain({.layer_scale = 0.1}), parts({.layer_scale = 0.1, .parts = 2}),
      recomputed({.recompute = Recompute::blocks, .layer_scale = 0.1}), siglip({.siglip = true});
  for (Trainer* t : {&plain, &parts, &recomputed, &siglip}) t->train(3);
  CHECK(recomputed.bits() == plain.bits());
  for (size_t i = 0; i < 3; ++i) CHECK(parts.losses()[i] == doctest::Approx(plain.losses()[i]).epsilon(1e-5));
  CHECK(std::isfinite(siglip.losses()[2]));
  CHECK(siglip.losses()[0] != plain.losses()[0]);
}

TEST_CASE("token ids at random are texts of the whole context: what the tests of captured steps count on") {
  for (const auto& [model, batch_size] :
       {std::pair{"tiny", 12}, {"mini-28", 32}, {"mini-28", 64}, {"mini-64", 96}}) {
    const Trainer t({.model = model, .batch_size = batch_size});
    for (uint64_t number = 0; number < 4; ++number)
      CHECK_EQ(t.clip.needed_columns(t.tokens(number, batch_size)).cols(), t.config.text.context_length);
  }
}

TEST_CASE("texts stop behind the longest caption of each batch: the same training to rounding") {
  for (const auto& [parts, recompute, siglip] :
       {std::tuple{1, Recompute::none, false}, {3, Recompute::none, false}, {1, Recompute::blocks, true}}) {
    TrainerOptions options{.model = "mini-28",
                           .siglip = siglip,
                           .recompute = recompute,
                           .patch_dropout = 0.5,
                           .layer_scale = 0.1,
                           .parts = parts,
                           .longest = {5, 16, 17, 30}};
    Trainer stops(options);
    options.whole_text = true;
    Trainer whole(options);
    for (const int64_t length : {8, 16, 24, 32, 8, 16}) {
      stops.launch();
      whole.launch();
      CHECK_EQ(stops.step->text_length(), length);
      CHECK_EQ(whole.step->text_length(), 32);
    }
    stops.finish();
    whole.finish();
    CHECK(stops.warnings.empty());
    for (size_t i = 0; i < 6; ++i)
      CHECK(stops.losses()[i] == doctest::Approx(whole.losses()[i]).epsilon(2e-5));
    CHECK(stops.losses()[0] != stops.losses()[4]);
  }
}

TEST_CASE("who stops between two texts of different lengths and goes on has the same bits") {
  const TrainerOptions options{.model = "mini-28", .longest = {5, 16, 17, 30}};
  Trainer whole(options), first(options), second(options);
  whole.train(6);
  first.train(3);
  second.go_on_from(first);
  second.train(3);
  CHECK(whole.bits() == second.bits());
}

TEST_CASE("shorter texts fit into the memory of the whole text") {
  Trainer t({.model = "mini-28", .batch_size = 32, .longest = {5, 16, 17, 30}});
  t.step->rehearse();
  t.step->rehearse();
  const MemoryStatistics before = allocator(cpu_device).statistics();
  t.train(8);
  const MemoryStatistics after = allocator(cpu_device).statistics();
  CHECK_EQ(after.held, before.held);
  CHECK_EQ(after.segments_taken, before.segments_taken);
}

TEST_CASE("all ranks compute the longest of their texts") {
  std::array<std::vector<int64_t>, 2> lengths;
  std::array<std::vector<double>, 2> losses;
  ThreadGroup(2).run([&](Communicator& ranks) {
    // The second rank's captions are shorter, longer and as long as the first one's.
    const std::vector<int64_t> own =
        ranks.rank() == 0 ? std::vector<int64_t>{5, 30, 12, 8} : std::vector<int64_t>{20, 5, 12, 9};
    Trainer t({.model = "mini-28", .batch_size = 6, .longest = own, .ranks = &ranks});
    for (int i = 0; i < 4; ++i) {
      t.launch();
      lengths[static_cast<size_t>(ranks.rank())].push_back(t.step->text_length());
    }
    t.finish();
    losses[static_cast<size_t>(ranks.rank())] = t.losses();
  });
  CHECK(lengths[0] == std::vector<int64_t>{24, 32, 16, 16});
  CHECK(lengths[1] == lengths[0]);
  CHECK(losses[1] == losses[0]);
}

TEST_CASE("a rehearsal leaves no trace") {
  Trainer plain({}), rehearsed({});
  rehearsed.step->rehearse();
  plain.train(3);
  rehearsed.train(3);
  CHECK(plain.bits() == rehearsed.bits());
}

TEST_CASE("the forward pass of the collected step can be repeated") {
  Trainer t({.patch_dropout = 0.5});
  for (int i = 0; i < 3; ++i) t.launch();
  REQUIRE_EQ(t.done.size(), 2);  // step 2 has run since
  // With the weights of step 1 the loss must come out again: put them back.
  Trainer again({.patch_dropout = 0.5});
  again.launch();
  again.launch();  // weights of after step 1; its loss was computed from those of after step 0
  Trainer before({.patch_dropout = 0.5});
  before.launch();
  std::memcpy(t.arena.masters().data(), before.arena.masters().data(), CView(t.arena.masters()).bytes());
  double last = 0;
  {
    Tape::Pause pause;
    Tape::observe([&](std::string_view, std::string_view, const Variable& result) {
      if (result.shape().size() == 1) last = number(result.value());
    });
    t.step->repeat_forward(1);
    Tape::observe({});
  }
  CHECK_EQ(last, t.done[1].loss);
}

TEST_CASE("a smaller batch is said and done, a larger one is an error") {
  Trainer t({.parts = 2});
  t.launch();
  t.launch(6);
  t.finish();
  REQUIRE_EQ(t.warnings.size(), 1);
  CHECK(t.warnings[0].starts_with("a batch of 6 instead of 12"));
  CHECK(std::isfinite(t.done[1].loss));
  CHECK(error_of([&] { t.launch(13); }).starts_with("a batch of 13 images"));
  CHECK(error_of([&] { t.launch(5); }).find("--accum-freq") != std::string::npos);
}

TEST_CASE("OpTimer: every op of a step in a line, and nothing else") {
  Trainer t({});
  t.train(1);
  OpTimer timer(cpu_device);
  t.launch();
  timer.lap("optimizer");
  const std::vector<OpTimer::Line> lines = timer.table();
  double total = 0;
  for (const auto& line : lines) total += line.seconds;
  const auto calls = [&](const std::string& name) -> int64_t {
    for (const auto& line : lines)
      if (line.name == name) return line.calls;
    return 0;
  };
  CHECK_EQ(calls("attention forward"), 4);  // two towers of two blocks
  CHECK_EQ(calls("attention backward"), 4);
  CHECK_EQ(calls("optimizer"), 1);
  CHECK_GT(total, 0);
  CHECK(timer.text(1).find("attention backward") != std::string::npos);
}
