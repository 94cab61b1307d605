// 2 and 4 ranks with parts of a batch equal one rank with all of it: loss, gradients, weights after 3 steps
// (f64).
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <mutex>

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

TEST_CASE("accumulation: the gradients travel once") {
  SmallPlan plan{.parts = 2};
  check_worlds(plan, "2 parts");
  const SmallResult parts = train_threads(plan, 2);
  check_equal(parts, train_threads({}, 1), 1e-12, "2 ranks x 2 parts and 1 x 1");
  plan = {.parts = 2, .siglip = true, .recompute = true};
  check_worlds(plan, "siglip, 2 parts, recomputed blocks");
}

TEST_CASE("a test that can fail: a rank with other rows gives other gradients") {
  const SmallResult a = train_threads({}, 2), b = train_threads({.global_batch = 16}, 2);
  CHECK(difference(a.gradients, b.gradients) > 1e-3);
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

TEST_CASE("rounded to bf16 on the way: close, and the same on all ranks") {
  const SmallResult exact = train_threads({.steps = 1, .dtype = DType::f32}, 2);
  const SmallResult rounded = train_threads({.steps = 1, .bf16 = true, .dtype = DType::f32}, 2);
  const double error = difference(rounded.gradients, exact.gradients);
  CHECK(error > 1e-6);
  CHECK(error < 1.0 / 128);
}

TEST_CASE("ZeRO-1 equals one rank: weights, moments, RMS of every tensor, also of those in two shards") {
  const auto check = [](SmallPlan plan, const std::string& what) {
    const SmallResult one = train_threads(plan, 1);
    plan.sharded = true;
    for (int world : {1, 2, 3, 4}) {
      if (plan.global_batch % (world * plan.parts) != 0) continue;
      const SmallResult many = train_threads(plan, world);
      check_equal(many, one, 1e-12, concat(what, ", ", world, " shards"));
      CHECK(difference(many.moments, one.moments) <= 1e-12);
      CHECK(difference(many.rms, one.rms) <= 1e-12);
    }
  };
  check({.global_batch = 12}, "StableAdamW");
  check({.parts = 2, .siglip = true, .stable = false, .max_gradient_norm = 0.5},
        "AdamW, SigLIP, clipped, 2 parts");
  check({.resume_at = 2}, "resumed");
}

TEST_CASE("ZeRO-1 in bf16: the bits of plain data parallel training") {
  SmallPlan plan{.stable = false, .dtype = DType::bf16};
  const SmallResult plain = train_threads(plan, 2);
  plan.sharded = true;
  const SmallResult sharded = train_threads(plan, 2);
  CHECK(sharded.weights == plain.weights);
  CHECK(sharded.losses == plain.losses);
}

TEST_CASE("processes equal threads, bit for bit") {
  std::string folder = (std::filesystem::temp_directory_path() / "switchback-training-XXXXXX").string();
  REQUIRE(mkdtemp(folder.data()));
  for (int world : {2, 4}) {
    const bool siglip = world == 4;
    const std::string file = folder + "/result";
    const std::string command =
        concat(SWITCHBACK_TRAINING_PROGRAM, " --nproc ", world, " ", file, siglip ? " siglip" : " softmax");
    REQUIRE(std::system(command.c_str()) == 0);
    const std::string bytes = read_file(file);
    std::vector<double> weights(bytes.size() / sizeof(double));
    std::memcpy(weights.data(), bytes.data(), bytes.size());
    CHECK(weights == train_threads({.parts = 2, .siglip = siglip}, world).weights);
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("parts of the model by parameter") {
  CHECK(part_of("visual.transformer.resblocks.11.mlp.c_fc.weight") == "visual.transformer.resblocks.11");
  CHECK(part_of("transformer.resblocks.0.ln_1.bias") == "transformer.resblocks.0");
  CHECK(part_of("visual.conv1.weight") == "visual");
  CHECK(part_of("logit_scale") == "text");
}
