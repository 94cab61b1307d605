// The update in pieces, ranges of whole tensors: the bits of the update of everything. And where gradients
// lie that share memory (with a model around it: tests/apps/test_update_in_backward.cpp).
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "autograd/tape.h"
#include "nn/parameter.h"
#include "optim/stable_adamw.h"
#include "optim/update_in_backward.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

// Two towers in the order in which models add their parameters: blocks of odd and different sizes between
// tensors of the towers' own.
std::unique_ptr<ParameterArena> make_arena(bool shares) {
  auto arena = std::make_unique<ParameterArena>(DType::bf16, cpu_device, 1);
  const auto block = [&](const std::string& prefix, int64_t width) {
    arena->add(prefix + ".ln_1.weight", {width}, Init::ones());
    arena->add(prefix + ".mlp.c_fc.weight", {4 * width, width}, Init::normal_with(0.5));
    arena->add(prefix + ".mlp.c_proj.bias", {width}, Init::zeros());
  };
  arena->add("text_projection", {7, 11}, Init::normal_with(0.5));
  arena->add("logit_scale", {}, Init::value(2), true);
  arena->add("visual.conv1.weight", {5, 3, 2, 2}, Init::normal_with(0.5));
  for (const char* number : {"0", "1", "2"}) block(concat("visual.transformer.resblocks.", number), 13);
  arena->add("visual.ln_post.weight", {13}, Init::ones());
  arena->add("token_embedding.weight", {50, 7}, Init::normal_with(0.5));
  for (const char* number : {"0", "1"}) block(concat("transformer.resblocks.", number), 7);
  arena->add("ln_final.weight", {7}, Init::ones());
  if (shares) arena->share_gradients();
  arena->allocate();
  return arena;
}

std::string bytes(const Tensor& t) { return {static_cast<const char*>(t.data()), CView(t).bytes()}; }

void check_same(const ParameterArena& a, const AdamW& x, const ParameterArena& b, const AdamW& y) {
  CHECK(bytes(a.masters()) == bytes(b.masters()));
  CHECK(bytes(a.values()) == bytes(b.values()));
  CHECK(bytes(x.numbers()) == bytes(y.numbers()));
  const auto one = x.state(), other = y.state();
  for (size_t i = 0; i < one.size(); ++i) CHECK(bytes(one[i].second) == bytes(other[i].second));
}

}  // namespace

TEST_CASE("an update in ranges of whole tensors, in any order, has the bits of the update of everything") {
  for (const bool stable : {false, true}) {
    const auto whole_arena = make_arena(false), arena = make_arena(false);
    const AdamWOptions options = stable ? stable_adamw() : AdamWOptions();
    for (ParameterArena* a : {whole_arena.get(), arena.get()}) a->freeze(4);
    AdamW whole(*whole_arena, options), in_pieces(*arena, options);
    const size_t count = arena->segments().size();
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    for (const std::vector<size_t>& borders :
         {std::vector<size_t>{0, count}, {0, 1, count}, {0, 2, 5, 6, 11, count - 1, count}}) {
      for (float& g : arena->gradients().span<float>()) g = normal(random);
      arena->gradient_of(arena->segments()[6]).span<float>()[3] = std::numeric_limits<float>::quiet_NaN();
      std::memcpy(whole_arena->gradients().data(), arena->gradients().data(),
                  CView(arena->gradients()).bytes());
      in_pieces.begin_step(1e-2);
      for (size_t i = borders.size() - 1; i > 0; --i)
        in_pieces.update(arena->range(borders[i - 1], borders[i] - borders[i - 1]));
      in_pieces.finish_update();
      whole.begin_step(1e-2);
      whole.update();
      check_same(*arena, in_pieces, *whole_arena, whole);
    }
  }
}

TEST_CASE("gradients of blocks lie in two buffers in turns, all others by themselves") {
  const auto arena = make_arena(true), plain = make_arena(false);
  CHECK(plain->parts().empty());
  CHECK_EQ(plain->gradients().size(), plain->masters().size());
  CHECK(bytes(arena->masters()) == bytes(plain->masters()));
  std::vector<std::string> parts;
  int64_t own = 0, largest = 0;
  for (const ParameterArena::Part& part : arena->parts()) {
    parts.push_back(part.name);
    CHECK_EQ(part.shares, part.name.find("resblocks") != std::string::npos);
    if (part.shares) {
      largest = std::max(largest, part.range.elements);
    } else {
      CHECK_EQ(part.range.gradients_from, own);
      own += part.range.elements;
    }
  }
  const std::string v = "visual.transformer.resblocks.", t = "transformer.resblocks.";
  CHECK(parts == std::vector<std::string>{"text", "visual", v + "0", v + "1", v + "2", "visual", "text",
                                          t + "0", t + "1", "text"});
  CHECK_EQ(arena->gradients().size(), own + 2 * largest);
  CHECK_LT(arena->gradients().size(), arena->masters().size());
  for (size_t i = 1; i < parts.size(); ++i) {
    const auto &before = arena->parts()[i - 1], &part = arena->parts()[i];
    if (part.shares && before.shares)
      CHECK_EQ(std::abs(part.range.gradients_from - before.range.gradients_from), largest);
  }
  const auto& segments = arena->segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    CHECK_EQ(segments[i].from, plain->segments()[i].from);
    CHECK_EQ(plain->segments()[i].gradient_from, segments[i].from);
    CHECK_EQ(segments[i].gradient_from % ParameterArena::segment_alignment, 0);
  }
}

TEST_CASE("an update within the backward pass has the bits of the update behind it") {
  for (const bool stable : {false, true}) {
    const auto shared = make_arena(true), plain = make_arena(false);
    const AdamWOptions options = stable ? stable_adamw() : AdamWOptions();
    for (ParameterArena* arena : {shared.get(), plain.get()}) arena->freeze(4);  // of a block
    AdamW by_range(*shared, options), whole(*plain, options);
    const auto& segments = plain->segments();
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    for (int step = 0; step < 6; ++step) {
      // Through the variables, as ops do. Nobody writes the gradient of segment 7.
      const auto write = [&](size_t i) {
        const Sink to = shared->segments()[i].parameter.grad_sink(), also = segments[i].parameter.grad_sink();
        if (!to) return;
        CHECK_FALSE(to.accumulate);
        float* g = static_cast<float*>(also.to.data);
        for (int64_t e = 0; e < segments[i].shape.size(); ++e) g[e] = normal(random);
        if (i == 6 && step == 2) g[3] = std::numeric_limits<float>::quiet_NaN();
        std::memcpy(to.to.data, g, also.to.bytes());
      };
      by_range.begin_step(1e-2);
      whole.begin_step(1e-2);
      shared->begin_backward();
      plain->begin_backward();
      UpdateInBackward update(*shared, by_range);
      const auto& parts = shared->parts();
      bool last_written = false;
      for (size_t p = parts.size(); p-- > 0;) {
        const ParameterRange& range = parts[p].range;
        for (size_t i = range.first + range.count - (last_written ? 1 : 0); i-- > range.first;)
          if (i != 7) write(i);
        // The op between two blocks writes a bias of the block before, too.
        last_written = parts[p].shares && parts[p - 1].shares;
        if (last_written) write(range.first - 1);
        shared->begin_part(parts[p].name);
        tape().backward_from_gradients();
      }
      shared->finish_backward();
      plain->finish_backward();
      update.finish();
      whole.update();
      check_same(*shared, by_range, *plain, whole);
      by_range.receive(step + 1, by_range.numbers());
      CHECK_EQ(by_range.report().skipped.size(), step == 2 ? 1 : 0);
    }
  }
}

TEST_CASE("when the update may be done within the backward pass") {
  const auto error_of = [](const auto& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  CHECK(update_in_backward("auto", 1, 1, 0));
  CHECK(update_in_backward("on", 1, 1, 0));
  CHECK_FALSE(update_in_backward("off", 1, 1, 0));
  CHECK_FALSE(update_in_backward("auto", 2, 1, 0));
  CHECK_FALSE(update_in_backward("auto", 1, 4, 0));
  CHECK_FALSE(update_in_backward("auto", 1, 1, 1));
  const std::string does_not_go = "--optimizer-in-backward on does not go with ";
  CHECK(error_of([] { update_in_backward("on", 2, 1, 0); }).starts_with(does_not_go + "several ranks"));
  CHECK(error_of([] { update_in_backward("on", 1, 4, 0); }).starts_with(does_not_go + "--accum-freq"));
  CHECK(error_of([] { update_in_backward("on", 1, 1, 1); }).starts_with(does_not_go + "--grad-clip-norm"));
  CHECK(error_of([] { update_in_backward("maybe", 1, 1, 0); }).find("auto, on or off") != std::string::npos);

  const auto arena = make_arena(true);
  AdamW clips(*arena, {.update = {.max_gradient_norm = 1}});
  CHECK(error_of([&] { clips.step(1e-3); }).find("range by range") != std::string::npos);
  CHECK(error_of([&] { UpdateInBackward(*arena, clips).finish(); }).find("no global norm") != std::string::npos);
  CHECK(error_of([] {
          const auto plain = make_arena(false);
          AdamW optimizer(*plain, {});
          UpdateInBackward update(*plain, optimizer);
        }).find("share memory") != std::string::npos);
}
