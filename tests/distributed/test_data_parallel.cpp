// 2 and 4 ranks with parts of a batch equal one rank with all of it: loss, gradients, weights after 3 steps
// (f64).
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <mutex>
#include <set>

#include "autograd/ops.h"
#include "distributed/thread_communicator.h"
#include "runtime/file.h"
#include "tests/distributed/small_training.h"
#include "tests/distributed/testing.h"

using namespace switchback;

namespace {

// On threads; every rank must have the same weights, bit for bit. Returns rank 0's result.
SmallResult train_threads(const SmallPlan& plan, int world) {
  if (world == 1) return train_small(plan, single_rank());
  std::vector<SmallResult> results(static_cast<size_t>(world));
  ThreadGroup(world).run(
      [&](Communicator& c) { results[static_cast<size_t>(c.rank())] = train_small(plan, c); });
  for (const SmallResult& r : results) {
    CHECK(r.weights == results[0].weights);
    CHECK(r.losses == results[0].losses);
    CHECK(r.order == results[0].order);
  }
  return results[0];
}

void check_equal(const SmallResult& a, const SmallResult& b, double tolerance, const std::string& what) {
  INFO(what, ": loss ", difference(a.losses, b.losses), " gradients ", difference(a.gradients, b.gradients),
       " weights ", difference(a.weights, b.weights));
  CHECK(difference(a.losses, b.losses) <= tolerance);
  CHECK(difference(a.gradients, b.gradients) <= tolerance);
  CHECK(difference(a.weights, b.weights) <= tolerance);
}

void check_worlds(const SmallPlan& plan, const std::string& what) {
  const SmallResult one = train_threads(plan, 1);
  for (int world : {2, 4})
    check_equal(train_threads(plan, world), one, 1e-12, concat(what, ", ", world, " ranks"));
}

}  // namespace

TEST_CASE("softmax loss, StableAdamW") { check_worlds({}, "softmax"); }

TEST_CASE("SigLIP, AdamW, clipped gradients") {
  check_worlds({.siglip = true, .stable = false, .max_gradient_norm = 0.5}, "siglip");
}

// What travels on a ring, and that nothing is gathered.
class Watched final : public Communicator {
 public:
  explicit Watched(Communicator& ranks) : Communicator(ranks.rank(), ranks.world_size()), ranks_(ranks) {}
  int shifts = 0;

 private:
  [[noreturn]] static void never() { fail("SigLIP's loss needs no other collective"); }
  void run_all_reduce(View, Reduction) override { never(); }
  void run_reduce(View, int, Reduction) override { never(); }
  void run_reduce_scatter(View, CView, Reduction) override { never(); }
  void run_all_gather(View, CView) override { never(); }
  void run_broadcast(View, int) override { never(); }
  void run_shift(View to, CView from) override {
    ++shifts;
    ranks_.shift(to, from);
  }
  Communicator& ranks_;
};

TEST_CASE("SigLIP's ring alone: loss and gradients of features and scalars, also with a tower locked") {
  constexpr int64_t own = 3, width = 8;
  struct Result {
    double loss, dscale, dbias;
    std::vector<double> dimages, dtexts;
  };
  const auto train = [&](int64_t all, int64_t first, int64_t rows, bool image_tower, bool text_tower,
                         Communicator& ranks) {
    PhiloxStream random(7, RandomPurpose::test, static_cast<uint64_t>(all));
    Tensor images({all, width}, DType::f64), texts({all, width}, DType::f64);
    for (const Tensor& t : {images, texts})
      for (double& v : t.span<double>()) v = static_cast<double>(random.below(2001)) / 1000 - 1;
    const Variable i(images.slice(first, rows), image_tower), t(texts.slice(first, rows), text_tower);
    const Variable scale(Tensor::of<double>({}, {1.1}), true), bias(Tensor::of<double>({}, {-2.5}), true);
    const Variable loss = siglip_loss(i, t, scale, bias, ranks);
    Result r{number(loss.value()), 0, 0, {}, {}};
    tape().backward(loss);
    r.dscale = number(scale.grad()), r.dbias = number(bias.grad());
    if (image_tower) r.dimages = as_doubles(i.grad());
    if (text_tower) r.dtexts = as_doubles(t.grad());
    return r;
  };
  for (int world : {2, 3, 5})
    for (const auto& [image_tower, text_tower] : {std::pair{true, true}, {true, false}, {false, true}}) {
      const int64_t all = own * world;
      const Result one = train(all, 0, all, image_tower, text_tower, single_rank());
      std::vector<Result> many(static_cast<size_t>(world));
      ThreadGroup(world).run([&](Communicator& c) {
        Watched ranks(c);
        many[static_cast<size_t>(c.rank())] = train(all, own * c.rank(), own, image_tower, text_tower, ranks);
        const int texts = 2 * (world - 1), gradients = text_tower ? world : 0;
        if (ranks.shifts != texts + gradients) fail(ranks.shifts, " shifts");
      });
      Result sum{};
      for (const Result& r : many) {
        sum.loss += r.loss, sum.dscale += r.dscale, sum.dbias += r.dbias;
        sum.dimages.insert(sum.dimages.end(), r.dimages.begin(), r.dimages.end());
        sum.dtexts.insert(sum.dtexts.end(), r.dtexts.begin(), r.dtexts.end());
      }
      INFO(world, " ranks, ", image_tower, text_tower);
      CHECK(difference({sum.loss, sum.dscale, sum.dbias}, {one.loss, one.dscale, one.dbias}) <= 1e-13);
      if (image_tower) CHECK(difference(sum.dimages, one.dimages) <= 1e-13);
      if (text_tower) CHECK(difference(sum.dtexts, one.dtexts) <= 1e-13);
    }
}

TEST_CASE("SigLIP, StableAdamW, also three ranks") {
  const SmallPlan plan{.global_batch = 12, .siglip = true};
  const SmallResult one = train_threads(plan, 1);
  for (int world : {2, 3, 4}) check_equal(train_threads(plan, world), one, 1e-12, concat(world, " ranks"));
}

TEST_CASE("accumulation: the gradients travel once") {
  SmallPlan plan{.parts = 2};
  check_worlds(plan, "2 parts");
  const SmallResult parts = train_threads(plan, 2);
  check_equal(parts, train_threads({}, 1), 1e-12, "2 ranks x 2 parts and 1 x 1");
  plan = {.parts = 2, .siglip = true, .recompute = true};
  check_worlds(plan, "siglip, 2 parts, recomputed blocks");
}

// Ranks whose gradients do not travel: what a forgotten all-reduce looks like.
class Deaf final : public Communicator {
 public:
  explicit Deaf(Communicator& ranks) : Communicator(ranks.rank(), ranks.world_size()), ranks_(ranks) {}

 private:
  void run_all_reduce(View data, Reduction reduction) override {
    if (data.size() == 1) ranks_.all_reduce(data, reduction);  // the loss
  }
  void run_reduce(View, int, Reduction) override {}
  void run_reduce_scatter(View own, CView all, Reduction r) override { ranks_.reduce_scatter(own, all, r); }
  void run_all_gather(View all, CView own) override { ranks_.all_gather(all, own); }
  void run_broadcast(View data, int root) override { ranks_.broadcast(data, root); }
  void run_shift(View to, CView from) override { ranks_.shift(to, from); }
  Communicator& ranks_;
};

TEST_CASE("a test that can fail: without their all-reduce the gradients are far off, the loss is not yet") {
  const SmallPlan plan{.steps = 1};
  const SmallResult one = train_threads(plan, 1);
  std::vector<SmallResult> deaf(2);
  ThreadGroup(2).run([&](Communicator& c) {
    Deaf ranks(c);
    deaf[static_cast<size_t>(c.rank())] = train_small(plan, ranks);
  });
  for (const SmallResult& r : deaf) {
    CHECK(difference(r.losses, one.losses) <= 1e-12);
    CHECK(difference(r.gradients, one.gradients) > 1e-2);
    CHECK(difference(r.weights, one.weights) > 1e-6);
  }
  CHECK(deaf[0].weights != deaf[1].weights);
}

TEST_CASE("buckets start from the last block to the first, each once") {
  for (int64_t parts : {1, 2}) {
    const SmallResult r = train_threads({.steps = 1, .parts = parts}, 2);
    const std::vector<std::string> expected{
        "transformer.resblocks.1",        "transformer.resblocks.0",        "text",
        "visual.transformer.resblocks.1", "visual.transformer.resblocks.0", "visual"};
    // With parts, the towers take turns, and the last pass over each comes at the end.
    std::vector<std::string> got = r.order;
    if (parts == 2) {
      std::ranges::sort(got);
      std::vector<std::string> names = expected;
      std::ranges::sort(names);
      CHECK(got == names);
    } else {
      CHECK(got == expected);
    }
  }
}

TEST_CASE("behind the backward pass, in one piece: the bits of gradients that travel beside it") {
  for (const SmallPlan& plan : {SmallPlan{}, SmallPlan{.parts = 2, .siglip = true, .stable = false},
                                SmallPlan{.bf16 = true, .dtype = DType::f32}, SmallPlan{.sharded = true},
                                SmallPlan{.bf16 = true, .sharded = true, .dtype = DType::f32}})
    for (int world : {2, 4}) {
      SmallPlan behind = plan;
      behind.overlap = Overlap::off;
      const SmallResult a = train_threads(plan, world), b = train_threads(behind, world);
      INFO(world, " ranks, ", plan.parts, " parts");
      CHECK(a.losses == b.losses);
      CHECK(a.gradients == b.gradients);
      CHECK(a.weights == b.weights);
      CHECK_FALSE(a.order.empty());
      CHECK(b.order.empty());
    }
}

TEST_CASE("rounded to bf16 on the way: close, and the same on all ranks") {
  const SmallResult exact = train_threads({.steps = 1, .dtype = DType::f32}, 2);
  const SmallResult rounded = train_threads({.steps = 1, .bf16 = true, .dtype = DType::f32}, 2);
  const double error = difference(rounded.gradients, exact.gradients);
  CHECK(error > 1e-6);
  CHECK(error < 1.0 / 128);
}

TEST_CASE("ZeRO-1 equals one rank: weights, moments, RMS of every tensor") {
  std::set<bool> seen;  // shards that cut tensors, and shards that do not
  const auto check = [&](SmallPlan plan, const std::string& what) {
    const SmallResult one = train_threads(plan, 1);
    plan.sharded = true;
    for (int world : {1, 2, 3, 4, 12}) {
      if (plan.global_batch % (world * plan.parts) != 0) continue;
      const SmallResult many = train_threads(plan, world);
      check_equal(many, one, 1e-12, concat(what, ", ", world, " shards"));
      CHECK(difference(many.moments, one.moments) <= 1e-12);
      CHECK(difference(many.rms, one.rms) <= 1e-12);
      if (world > 1) seen.insert(many.cut);
    }
  };
  for (bool siglip : {false, true})
    for (bool stable : {false, true})
      for (int64_t parts : {1, 2}) {
        const SmallPlan plan{.parts = parts, .siglip = siglip, .stable = stable};
        check(plan, concat(siglip ? "SigLIP" : "softmax", stable ? ", StableAdamW, " : ", AdamW, ", parts, " parts"));
      }
  check({.global_batch = 12}, "many shards");
  check({.parts = 2, .siglip = true, .stable = false, .max_gradient_norm = 0.5},
        "AdamW, SigLIP, clipped, 2 parts");
  check({.resume_at = 2}, "resumed");
  CHECK(seen.size() == 2);
}

TEST_CASE("ZeRO-1 whose shards cut no tensor: the bits of plain data parallel training") {
  for (const DType dtype : {DType::f64, DType::bf16})
    for (bool stable : {false, true}) {
      SmallPlan plan{.stable = stable, .dtype = dtype};
      const SmallResult plain = train_threads(plan, 2);
      plan.sharded = true;
      const SmallResult sharded = train_threads(plan, 2);
      CHECK_FALSE(sharded.cut);
      CHECK(sharded.weights == plain.weights);
      CHECK(sharded.moments == plain.moments);
      CHECK(sharded.losses == plain.losses);
    }
}

TEST_CASE("ZeRO-1 with low-precision weights: codes travel, the bits of masters that travel, and of one rank") {
  using Case = std::pair<std::string, bool>;
  for (const auto& [linear, travel] : {Case{"switchback", true}, Case{"switchback-fp8", true},
                                       Case{"switchback-q", false}, Case{"fp8-sim", false}})
    for (bool stable : {false, true})
      for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
        for (int world : {2, 4, 12}) {
          if (stable && world == 12) continue;  // the RMS of a tensor that is cut has another order of sums
          SmallPlan plan{.global_batch = 12, .steps = 4, .stable = stable, .linear = linear, .dtype = dtype};
          const SmallResult plain = train_threads(plan, world);
          plan.sharded = true;
          const SmallResult sharded = train_threads(plan, world);
          INFO(linear, ", ", world, " ranks, ", stable, ", ", std::string(name_of(dtype)));
          CHECK(sharded.codes_travelled == (travel && !sharded.cut));
          CHECK(sharded.cut == (world == 12));
          CHECK(sharded.losses == plain.losses);
          CHECK(sharded.weights == plain.weights);
          CHECK(sharded.moments == plain.moments);
          if (dtype == DType::f64 && travel && stable) {
            plan.sharded = false;
            const SmallResult one = train_threads(plan, 1);
            // Adam divides by tiny moments, and the later steps begin from such weights.
            CHECK(difference(sharded.losses, one.losses) <= 1e-11);
            CHECK(difference(sharded.gradients, one.gradients) <= 1e-10);
            CHECK(difference(sharded.weights, one.weights) <= 1e-10);
          }
        }
}

TEST_CASE("shards keep tensors whole as long as that leaves little empty") {
  const auto arena_of = [](std::vector<int64_t> sizes, int64_t shards) {
    auto arena = std::make_unique<ParameterArena>(DType::f32, cpu_device, 1);
    for (size_t i = 0; i < sizes.size(); ++i)
      arena->add(concat("p", i), {sizes[i]}, Init::value(static_cast<double>(i)));
    arena->allocate(shards);
    return arena;
  };
  // 1024 128 | 4096, 256 2048 128 in rows of 128
  const auto whole = arena_of({1000, 128, 4000, 129, 2000, 1}, 2);
  CHECK_FALSE(whole->shards_cut_tensors(2));
  CHECK(whole->masters().size() == 2 * (1024 + 128 + 4096));
  CHECK(whole->segments()[3].from == 1024 + 128 + 4096);
  CHECK(arena_of({1000, 1000, 1000}, 3)->masters().size() == 3 * 1024);
  const auto cut = arena_of({10000, 100, 100}, 4);  // one tensor is nearly all
  CHECK(cut->shards_cut_tensors(4));
  CHECK(cut->masters().size() == 10752);  // 10112 + 128 + 128, in four equal parts of rows of 128
  CHECK(arena_of({10000, 100, 100}, 1)->masters().size() == 10368);
}

TEST_CASE("processes equal threads, bit for bit") {
  std::string folder = (std::filesystem::temp_directory_path() / "switchback-training-XXXXXX").string();
  REQUIRE(mkdtemp(folder.data()));
  for (int world : {2, 4}) {
    const bool siglip = world == 4;
    const std::string file = folder + "/result";
    for (bool sharded : {false, true}) {
      const std::string command = concat(SWITCHBACK_TRAINING_PROGRAM, " --nproc ", world, " ", file,
                                         siglip ? " siglip" : " softmax", sharded ? " sharded" : " whole");
      REQUIRE(std::system(command.c_str()) == 0);
      const std::string bytes = read_file(file);
      std::vector<double> weights(bytes.size() / sizeof(double));
      std::memcpy(weights.data(), bytes.data(), bytes.size());
      CHECK(weights == train_threads({.parts = 2, .siglip = siglip, .sharded = sharded}, world).weights);
    }
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("parts of the model by parameter") {
  CHECK(part_of("visual.transformer.resblocks.11.mlp.c_fc.weight") == "visual.transformer.resblocks.11");
  CHECK(part_of("transformer.resblocks.0.ln_1.bias") == "transformer.resblocks.0");
  CHECK(part_of("visual.conv1.weight") == "visual");
  CHECK(part_of("logit_scale") == "text");
}
