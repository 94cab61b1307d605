// The captured step on the GPU: the same bits as op by op, no memory from the driver once it is warm, and
// what happens between two steps leaves it alone. And the optimizer's one pass against its two.
#include "apps/first_non_finite.h"
#include "runtime/allocator.h"
#include "tests/apps/trainer.h"
#include "tests/cuda/testing.h"

using namespace switchback;

namespace {

constexpr int steps = 20;

size_t segments_taken() { return allocator(gpu).statistics().segments_taken; }

// 20 steps as graphs and op by op; the graphs of both inputs replay from step 4 on.
void check_graph(TrainerOptions options) {
  options.device = gpu;
  options.eager = false;
  Trainer graph(options);
  graph.launch();
  graph.launch();
  const size_t taken = segments_taken();
  for (int i = 2; i < steps; ++i) {
    graph.launch();
    CHECK(graph.step->captured());
  }
  graph.finish();
  CHECK_EQ(segments_taken(), taken);
  for (const std::string& line : graph.warnings) MESSAGE(line);
  CHECK(graph.warnings.empty());

  options.eager = true;
  Trainer eager(options);
  eager.train(steps);
  CHECK_FALSE(eager.step->captured());
  CHECK(graph.losses() == eager.losses());
  for (size_t i = 0; i < steps; ++i) CHECK(graph.done[i].optimizer.rms == eager.done[i].optimizer.rms);
  CHECK(graph.bits() == eager.bits());
  CHECK(std::isfinite(eager.losses().back()));
}

// A forward pass over other data, as an evaluation does it; more rows than a step has.
double evaluate(const Trainer& t) {
  Tape::Pause pause;
  const int64_t size = 2 * t.options.batch_size + 1;
  const Variable images = t.clip.encode_image(to_device(t.images(99, size), gpu), {});
  const Variable texts = t.clip.encode_text(to_device(t.tokens(99, size), gpu), {});
  return number(t.clip.loss(images, texts).value());
}

}  // namespace

TEST_CASE("graph = op by op, bit for bit: tiny") {
  if (no_gpu()) return;
  for (DType dtype : {DType::f32, DType::bf16}) {
    check_graph({.dtype = dtype});
    check_graph({.dtype = dtype, .stable = true, .patch_dropout = 0.5});
    check_graph({.dtype = dtype, .patch_dropout = 0.5, .parts = 3});
    check_graph({.dtype = dtype, .recompute = Recompute::blocks, .layer_scale = 0.1});
    check_graph({.dtype = dtype, .recompute = Recompute::cheap, .patch_dropout = 0.5});
    check_graph({.dtype = dtype, .siglip = true});
  }
}

TEST_CASE("graph = op by op, bit for bit: mini-28 and mini-64") {
  if (no_gpu()) return;
  check_graph({.model = "mini-28", .batch_size = 64, .dtype = DType::bf16, .stable = true});
  check_graph({.model = "mini-28",
               .batch_size = 64,
               .dtype = DType::bf16,
               .recompute = Recompute::blocks,
               .parts = 2});
  check_graph({.model = "mini-64", .batch_size = 96, .dtype = DType::bf16, .patch_dropout = 0.25});
}

TEST_CASE("blocks updated within the backward pass: graph = op by op = updates behind it, bit for bit") {
  if (no_gpu()) return;
  const auto check = [](TrainerOptions options) {
    CAPTURE(options.linear);
    options.in_backward = true;
    check_graph(options);
    options.device = gpu;
    Trainer within(options);
    options.in_backward = false;
    Trainer behind(options);
    within.train(8);
    behind.train(8);
    CHECK(within.step->captured());
    CHECK(within.losses() == behind.losses());
    CHECK(within.bits() == behind.bits());
    for (size_t i = 0; i < 8; ++i) {
      CHECK(within.done[i].optimizer.rms == behind.done[i].optimizer.rms);
      CHECK_EQ(within.done[i].optimizer.gradient_norm, behind.done[i].optimizer.gradient_norm);
    }
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    check({.dtype = dtype});
    check({.dtype = dtype, .stable = true, .layer_scale = 0.1});
    check({.dtype = dtype, .recompute = Recompute::blocks, .layer_scale = 0.1});
    check({.dtype = dtype, .frozen = {"*.0.mlp.*"}, .recompute = Recompute::cheap, .patch_dropout = 0.5});
  }
  for (const char* linear : {"standard", "switchback"})
    for (const bool stable : {false, true}) {
      check({.model = "mini-28", .batch_size = 64, .dtype = DType::bf16, .stable = stable, .linear = linear});
      check({.model = "mini-64", .batch_size = 96, .dtype = DType::bf16, .stable = stable, .linear = linear});
    }
}

TEST_CASE("texts of several lengths: a graph each, the same bits as op by op, the memory of the longest") {
  if (no_gpu()) return;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t parts : {1, 2}) {
      TrainerOptions options{.model = "mini-28",
                             .batch_size = 64,
                             .dtype = dtype,
                             .device = gpu,
                             .patch_dropout = 0.5,
                             .parts = parts,
                             .longest = {30, 5, 17, 12, 23}};
      Trainer graph(options);
      graph.step->rehearse();
      graph.train(10);  // every length came twice
      const size_t taken = segments_taken();
      const MemoryStatistics before = allocator(gpu).statistics();
      for (int i = 0; i < 20; ++i) {
        graph.launch();
        CHECK(graph.step->captured());
      }
      graph.finish();
      CHECK_EQ(segments_taken(), taken);
      if (before.room)
        MESSAGE(concat("the graphs took ",
                       readable_bytes(before.room->free -
                                      std::min(before.room->free, allocator(gpu).statistics().room->free)),
                       " of the driver's memory"));
      CHECK(graph.warnings.empty());

      options.eager = true;
      Trainer eager(options);
      eager.train(30);
      CHECK(graph.losses() == eager.losses());
      CHECK(graph.bits() == eager.bits());

      options.whole_text = true;
      Trainer whole(options);
      whole.train(30);
      for (size_t i = 0; i < 30; ++i)
        CHECK(whole.losses()[i] ==
              doctest::Approx(eager.losses()[i]).epsilon(dtype == DType::f32 ? 1e-4 : 2e-2));
    }
}

TEST_CASE("evaluations, watched steps and smaller batches between captured steps leave the others alone") {
  if (no_gpu()) return;
  const TrainerOptions options{.model = "mini-28", .batch_size = 32, .dtype = DType::bf16, .device = gpu};
  Trainer plain(options), disturbed(options);
  double before = 0;
  for (int i = 0; i < 12; ++i) {
    plain.launch();
    disturbed.launch();
    if (i >= 5 && i % 2 == 0) disturbed.finish();
    if (i >= 3) before = evaluate(disturbed);
    if (i == 8) Tape::observe([](std::string_view, std::string_view, const Variable&) {});
    if (i == 9) {
      CHECK_FALSE(disturbed.step->captured());
      Tape::observe({});
    }
  }
  plain.finish();
  disturbed.finish();
  CHECK(std::isfinite(before));
  CHECK(disturbed.step->captured());
  CHECK(disturbed.warnings.empty());
  CHECK(plain.losses() == disturbed.losses());
  CHECK(plain.bits() == disturbed.bits());

  disturbed.launch(7);
  CHECK_FALSE(disturbed.step->captured());
  CHECK_EQ(disturbed.warnings.size(), 1);
  disturbed.launch();
  CHECK(disturbed.step->captured());
}

TEST_CASE("memory of the captured step that somebody holds: the step runs op by op, and says so") {
  if (no_gpu()) return;
  Trainer t({.model = "mini-28", .batch_size = 32, .dtype = DType::bf16, .device = gpu});
  t.train(6);
  CHECK(t.step->captured());
  {
    std::vector<Tensor> held;  // all of the cache and more
    const size_t spare = allocator(gpu).statistics().held - allocator(gpu).statistics().used;
    for (size_t bytes = 0; bytes <= spare; bytes += 1 << 16)
      held.emplace_back(Shape{1 << 16}, DType::u8, gpu);
    t.launch();
    CHECK_FALSE(t.step->captured());
    REQUIRE_EQ(t.warnings.size(), 1);
    CHECK(t.warnings[0].find("still held") != std::string::npos);
  }
  t.launch();
  CHECK(t.step->captured());
  t.finish();
  Trainer plain({.model = "mini-28", .batch_size = 32, .dtype = DType::bf16, .device = gpu, .eager = true});
  plain.train(8);
  CHECK(t.bits() == plain.bits());
}

TEST_CASE("a loss that is not finite is traced between captured steps, and the steps before count") {
  if (no_gpu()) return;
  Trainer t(
      {.model = "mini-28", .batch_size = 32, .dtype = DType::bf16, .device = gpu, .patch_dropout = 0.5});
  for (int i = 0; i < 6; ++i) t.launch();
  CHECK(t.step->captured());
  const ParameterArena::Segment* segment = t.arena.find("visual.transformer.resblocks.2.mlp.c_fc.bias");
  REQUIRE(segment);
  kernels(gpu).fill(t.arena.values().part(segment->from, segment->shape), INFINITY);  // not the master
  t.launch();  // step 6 goes wrong; what comes back is step 5
  CHECK(std::isfinite(t.done.back().loss));
  CHECK(t.done.back().optimizer.skipped.empty());
  t.launch();
  CHECK_EQ(t.done.back().step, 6);
  CHECK_FALSE(std::isfinite(t.done.back().loss));
  CHECK_FALSE(t.done.back().optimizer.skipped.empty());
  const std::string first = first_non_finite(t.arena, [&] { t.step->repeat_forward(6); });
  MESSAGE(first);
  CHECK(first.find("visual.transformer.resblocks.2") != std::string::npos);
}

TEST_CASE("a step that cannot be captured for want of memory runs op by op, and the next one is captured") {
  if (no_gpu()) return;
  const TrainerOptions options{.model = "mini-28", .batch_size = 32, .dtype = DType::bf16, .device = gpu};
  Trainer t(options);
  t.train(2);
  allocator(gpu).release_cached();
  t.launch();
  CHECK_FALSE(t.step->captured());
  REQUIRE_EQ(t.warnings.size(), 1);
  CHECK(t.warnings[0].find("growth is forbidden") != std::string::npos);
  t.launch();
  CHECK(t.step->captured());
  t.finish();
  CHECK_EQ(t.warnings.size(), 1);
  Trainer plain(options);
  plain.train(4);
  CHECK(t.bits() == plain.bits());
}

TEST_CASE("two models on one device, each with its graphs") {
  if (no_gpu()) return;
  const TrainerOptions options{.dtype = DType::bf16, .device = gpu};
  Trainer a(options), b(options), alone(options);
  for (int i = 0; i < 8; ++i) {
    a.launch();
    b.launch();
  }
  a.finish();
  b.finish();
  alone.train(8);
  CHECK(a.bits() == alone.bits());
  CHECK(b.bits() == alone.bits());
}

TEST_CASE("what cannot be recorded says so, and leaves the device usable") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  const Tensor x({4}, DType::f32, gpu);
  const auto message_of = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  CHECK(message_of([&] {
          k.record([&] { number(x.part(0, {})); });
        }).starts_with("download within a recorded"));
  CHECK(message_of([&] {
          k.record([&] { Tensor({1 << 30}, DType::f32, gpu); });
        }).find("growth is forbidden") != std::string::npos);
  Tensor kept;
  CHECK(message_of([&] {
          k.record([&] {
            kept = Tensor({64}, DType::f32, gpu);
            k.fill(kept, 1);
          });
        }).find("keeps") != std::string::npos);
  k.fill(x, 3);
  CHECK_EQ(number(x.part(0, {})), 3);
  const auto recording = k.record([&] { k.fill(x, 5); });
  CHECK_EQ(number(x.part(0, {})), 3);
  recording->replay();
  CHECK_EQ(number(x.part(0, {})), 5);
}

TEST_CASE("uploads beside the kernels arrive in order") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  const int64_t size = 1 << 22;
  const Tensor first = Tensor::page_locked({size}, DType::f32),
               second = Tensor::page_locked({size}, DType::f32);
  for (float& v : first.span<float>()) v = 1;
  for (float& v : second.span<float>()) v = 2;
  const Tensor x({size}, DType::f32, gpu), y({size}, DType::f32, gpu);
  const auto arrived = k.upload_beside(x, first, nullptr);
  k.wait_for(*arrived);
  for (int i = 0; i < 20; ++i) k.cast(y, x);
  const auto read = k.mark();
  const auto again = k.upload_beside(x, second, read.get());  // may not overtake the reader
  const Tensor back = Tensor::page_locked({size}, DType::f32);
  k.download_later(back, y);
  const auto end = k.mark();
  again->wait();
  end->wait();
  CHECK(end->passed());
  CHECK_GE(end->seconds_since(*read), 0);
  CHECK(back.span<float>()[0] == 1);
  CHECK(back.span<float>()[static_cast<size_t>(size - 1)] == 1);
  k.cast(y, x);
  CHECK(to_host(y).span<float>()[static_cast<size_t>(size - 1)] == 2);
}

TEST_CASE("AdamW in one pass has the bits of its two passes, on the GPU and on the CPU") {
  if (no_gpu()) return;
  struct State {
    Tensor masters, values, first, second, rms;
  };
  const std::vector<int64_t> sizes{1, 7, 8192, 8193, 100003};
  std::vector<int64_t> ranges;
  int64_t elements = 0;
  for (int64_t size : sizes) {
    ranges.insert(ranges.end(), {elements, size});
    elements += (size + 127) / 128 * 128;
  }
  const auto count = static_cast<int64_t>(sizes.size());
  const auto draw = [&](uint64_t number, double from, double to) {
    PhiloxStream random(3, RandomPurpose::test, number);
    const Tensor t({elements}, DType::f32);
    for (float& v : t.span<float>())
      v = static_cast<float>(from + (to - from) * (random.next_u32() * 0x1p-32));
    return t;
  };
  const Tensor gradients = draw(1, -0.1, 0.1), masters = draw(2, -1, 1), first = draw(3, -0.1, 0.1),
               second = draw(4, 0, 0.01);
  gradients.span<float>()[static_cast<size_t>(ranges[2] + 3)] = INFINITY;  // of the second tensor: skipped
  for (double clip : {0.0, 1.0}) {
    AdamOptions options;
    options.max_gradient_norm = clip;
    const auto run = [&](Device device, bool one_pass) {
      Kernels& k = kernels(device);
      const auto copy = [&](const Tensor& host) {
        const Tensor t(host.shape(), host.dtype(), device);
        k.upload(t, host);
        return t;
      };
      const Tensor table = copy(Tensor::of<int64_t>({count, 2}, ranges));
      const Tensor decay = copy(Tensor::of<double>({count}, {0.2, 0.1, 0, 0.2, 0.2}));
      const Tensor scale = copy(Tensor::of<double>({count}, {1, 1, 0, 0.5, 1}));  // the third is frozen
      const Tensor scalars = copy(Tensor::of<double>({step_scalar_count}, {0.01, 0.8, 0.95, 0.5}));
      const Segments segments{table, decay, scale};
      const Tensor g = copy(gradients), squares({count}, DType::f32, device);
      State s{copy(masters), Tensor({elements}, DType::bf16, device), copy(first), copy(second),
              Tensor({count}, DType::f32, device)};
      k.fill(s.values, 0);
      k.gradient_statistics(squares, g, segments);
      if (one_pass) {
        k.adam_step(s.masters, s.values, s.first, s.second, s.rms, g, squares, segments, scalars, options);
      } else {
        k.adam_moments(s.first, s.second, s.rms, g, squares, segments, scalars, options);
        k.adam_update(s.masters, s.values, s.first, s.second, s.rms, segments, scalars, options);
      }
      return std::vector<Array>{as_doubles(s.masters), as_doubles(s.values), as_doubles(s.first),
                                as_doubles(s.second), as_doubles(s.rms)};
    };
    const auto two = run(gpu, false), one = run(gpu, true), cpu = run(cpu_device, true);
    for (size_t i = 0; i < 5; ++i) CHECK(one[i] == two[i]);
    if (clip == 0)  // the norm is a sum, in another order on the CPU
      for (size_t i = 0; i < 4; ++i) CHECK(one[i] == cpu[i]);
  }
}
