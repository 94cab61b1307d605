// AdamW and StableAdamW over an arena against the textbook, tensor by tensor.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/recipe.h"
#include "nn/parameter.h"
#include "optim/stable_adamw.h"
#include "tests/optim/reference_adam.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

// Odd sizes, a scalar, and more than one alignment unit, so that padding lies between the tensors.
const std::vector<std::pair<std::string, Shape>> parameters_of_test{{"visual.conv1.weight", {5, 3, 3, 3}},
                                                                    {"visual.ln_pre.weight", {5}},
                                                                    {"text_projection", {7, 11}},
                                                                    {"logit_scale", {}}};

std::unique_ptr<ParameterArena> make_arena(DType dtype, uint64_t seed = 1) {
  auto arena = std::make_unique<ParameterArena>(dtype, cpu_device, seed);
  for (const auto& [name, shape] : parameters_of_test)
    arena->add(name, shape, Init::normal_with(0.5), name == "logit_scale");
  arena->allocate();
  return arena;
}

std::vector<double> doubles(const Tensor& t) {
  return visit_float(t.dtype(), "test", [&](auto tag) {
    std::vector<double> out;
    for (auto x : t.span<decltype(tag)>()) out.push_back(static_cast<double>(x));
    return out;
  });
}

// A normal gradient of size `scale`, written to the arena and returned as it was rounded there.
std::vector<double> draw_gradient(ParameterArena& arena, const ParameterArena::Segment& s,
                                  std::mt19937_64& random, double scale) {
  std::normal_distribution<double> normal;
  const Tensor gradient = arena.gradient_of(s);
  visit_float(gradient.dtype(), "test", [&](auto tag) {
    using T = decltype(tag);
    for (T& g : gradient.span<T>()) g = static_cast<T>(normal(random) * scale);
  });
  return doubles(gradient);
}

void set_gradient(ParameterArena& arena, const std::string& name, size_t element, double value) {
  const Tensor gradient = arena.gradient_of(*arena.find(name));
  visit_float(gradient.dtype(), "test", [&](auto tag) {
    using T = decltype(tag);
    gradient.span<T>()[element] = static_cast<T>(value);
  });
}

double largest_relative_error(const std::vector<double>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(got[i] - expected[i]) / (std::abs(expected[i]) + 1e-3));
  return worst;
}

struct Run {
  double error = 0;         // largest relative error of a weight against the reference
  double least_rms = 1e9, largest_rms = 0;
};

// Twelve steps of changing size and learning rate, the optimizer and the reference side by side.
Run compare(DType dtype, AdamWOptions options, double (*gradient_size)(int t),
            double largest_gradient_norm = 0) {
  auto arena = make_arena(dtype);
  arena->set_rate_scale(0, 0.25);  // layer-wise learning-rate decay
  AdamW optimizer(*arena, options);
  const ReferenceAdam reference{.beta1 = options.beta1, .beta2 = options.beta2,
                                .epsilon = options.update.epsilon, .clip_update = options.update.clip_update,
                                .decay_clipped_rate = options.update.decay_clipped_rate,
                                .clip_threshold = options.update.clip_threshold};
  std::vector<ReferenceTensor> tensors;
  for (const auto& s : arena->segments()) {
    tensors.emplace_back(doubles(arena->master_of(s)));
    tensors.back().weight_decay =
        s.name == "visual.conv1.weight" || s.name == "text_projection" ? options.weight_decay : 0;
  }
  tensors[0].rate_scale = 0.25;

  Run run;
  std::mt19937_64 random(7);
  for (int t = 1; t <= 12; ++t) {
    const double learning_rate = 0.01 * (1 + t % 3);
    std::vector<std::vector<double>> gradients;
    double squares = 0;
    for (const auto& s : arena->segments()) {
      gradients.push_back(draw_gradient(*arena, s, random, gradient_size(t) / options.gradient_scale));
      for (double& g : gradients.back()) {
        g *= options.gradient_scale;
        squares += g * g;
      }
    }
    const double norm = std::sqrt(squares);
    if (largest_gradient_norm > 0)
      for (auto& gradient : gradients)
        for (double& g : gradient) g *= std::min(1.0, largest_gradient_norm / (norm + 1e-6));
    optimizer.step(learning_rate);
    CHECK(optimizer.report().step == t);
    CHECK(optimizer.report().gradient_norm == doctest::Approx(norm).epsilon(1e-5));
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto& s = arena->segments()[i];
      CAPTURE(s.name);
      const double rms = reference.step(tensors[i], gradients[i], t, learning_rate);
      CHECK(optimizer.rms_of(s.name) == doctest::Approx(rms).epsilon(1e-5));
      run.error = std::max(run.error, largest_relative_error(doubles(arena->master_of(s)), tensors[i].theta));
      run.least_rms = std::min(run.least_rms, rms);
      run.largest_rms = std::max(run.largest_rms, rms);
    }
  }
  return run;
}

double growing(int t) { return t < 8 ? 0.01 : 0.3; }  // the learning signal changes at step 8
double steady(int) { return 0.02; }

// Masters, values and moments of every tensor.
std::map<std::string, std::vector<double>> snapshot(const ParameterArena& arena, const AdamW& optimizer) {
  std::map<std::string, std::vector<double>> all;
  for (const auto& s : arena.segments()) {
    all["master." + s.name] = doubles(arena.master_of(s));
    all["value." + s.name] = doubles(s.parameter.value());
  }
  for (const auto& [name, tensor] : optimizer.state())
    if (name != "optimizer.step") all[name] = doubles(tensor);
  return all;
}

}  // namespace

TEST_CASE("AdamW is the textbook's, in f64 and f32") {
  for (double beta2 : {0.5, 0.98, 0.999}) {
    CAPTURE(beta2);
    const AdamWOptions options{.beta2 = beta2};
    CHECK(compare(DType::f64, options, growing).error < 1e-12);
    CHECK(compare(DType::f32, options, growing).error < 1e-4);
  }
  CHECK(compare(DType::f64, {.beta1 = 0, .beta2 = 0, .weight_decay = 0}, steady).error < 1e-12);
  CHECK(compare(DType::f64, {.weight_decay = 3, .update = {.epsilon = 0.1}}, growing).error < 1e-12);
}

TEST_CASE("StableAdamW slows down the tensor whose RMS is above one, and only then") {
  const AdamWOptions options = stable_adamw({.beta2 = 0.99});
  const Run changed = compare(DType::f64, options, growing);
  CHECK(changed.error < 1e-12);
  CHECK(changed.largest_rms > 2.3);
  CHECK(compare(DType::f32, options, growing).error < 1e-4);

  // The same gradients without clipping end elsewhere; a threshold that is never reached ends where AdamW
  // does.
  auto final_weights = [](const AdamWOptions& o) {
    auto arena = make_arena(DType::f64);
    AdamW optimizer(*arena, o);
    std::mt19937_64 random(7);
    for (int t = 1; t <= 12; ++t) {
      for (const auto& s : arena->segments()) draw_gradient(*arena, s, random, growing(t));
      optimizer.step(0.01);
    }
    return doubles(arena->masters());
  };
  AdamWOptions plain = options, loose = options;
  plain.update.clip_update = false;
  loose.update.clip_threshold = 100;
  CHECK(largest_relative_error(final_weights(options), final_weights(plain)) > 1e-3);
  CHECK(final_weights(loose) == final_weights(plain));
}

TEST_CASE("other clip thresholds; weight decay by the clipped rate") {
  AdamWOptions options = stable_adamw({.beta2 = 0.99, .weight_decay = 2});
  options.update.clip_threshold = 0.5;
  CHECK(compare(DType::f64, options, growing).error < 1e-12);
  options.update.decay_clipped_rate = true;
  CHECK(compare(DType::f64, options, growing).error < 1e-12);
}

TEST_CASE("a fixed loss scale is taken out of the gradients") {
  CHECK(compare(DType::f64, stable_adamw({.gradient_scale = 1.0 / 65536}), growing).error < 1e-12);
  CHECK(compare(DType::f32, {.gradient_scale = 1.0 / 65536}, growing).error < 1e-4);
}

TEST_CASE("global gradient-norm clipping: above the bound it scales all tensors, below it changes nothing") {
  AdamWOptions options;
  options.update.max_gradient_norm = 0.5;  // norms here are about 0.3 before step 8 and 8 after it
  CHECK(compare(DType::f64, options, growing, 0.5).error < 1e-12);
  options.gradient_scale = 1.0 / 1024;
  CHECK(compare(DType::f64, options, growing, 0.5).error < 1e-12);
  options.update.max_gradient_norm = 1e6;
  CHECK(compare(DType::f64, options, growing).error < 1e-12);
}

TEST_CASE("β2 schedule: second moment by 1 - t^-λ, first moment unchanged") {
  auto arena = make_arena(DType::f64);
  AdamW optimizer(*arena, {.beta2_lambda = 0.5, .weight_decay = 0});
  const auto& segment = arena->segments()[2];
  std::vector<double> theta = doubles(arena->master_of(segment));
  std::vector<double> m(theta.size(), 0.0), second(theta.size(), 0.0);
  std::mt19937_64 random(3);
  for (int t = 1; t <= 9; ++t) {
    for (const auto& s : arena->segments()) draw_gradient(*arena, s, random, growing(t));
    const std::vector<double> g = doubles(arena->gradient_of(segment));
    optimizer.step(0.02);
    const double beta2 = 1 - 1 / std::sqrt(t);
    for (size_t i = 0; i < theta.size(); ++i) {
      m[i] = 0.9 * m[i] + 0.1 * g[i];
      second[i] = beta2 * second[i] + (1 - beta2) * g[i] * g[i];
      theta[i] -= 0.02 * (m[i] / (1 - std::pow(0.9, t))) / (std::sqrt(second[i]) + 1e-6);
    }
    CHECK(largest_relative_error(doubles(arena->master_of(segment)), theta) < 1e-12);
  }
}

TEST_CASE("an Inf or a NaN in one tensor: that tensor is left alone, the others are updated") {
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                     -std::numeric_limits<double>::infinity()})
    for (double largest_norm : {0.0, 1e-3}) {
      CAPTURE(bad);
      CAPTURE(largest_norm);
      AdamWOptions options;
      options.update.max_gradient_norm = largest_norm;
      auto arena = make_arena(DType::bf16), clean_arena = make_arena(DType::bf16);
      AdamW optimizer(*arena, options), clean_optimizer(*clean_arena, options);
      std::mt19937_64 random(11), same_random(11);
      auto draw = [&] {
        for (const auto& s : arena->segments()) draw_gradient(*arena, s, random, 0.1);
        for (const auto& s : clean_arena->segments()) draw_gradient(*clean_arena, s, same_random, 0.1);
      };
      draw();
      optimizer.step(0.01);
      clean_optimizer.step(0.01);
      const auto before = snapshot(*arena, optimizer);
      draw();
      set_gradient(*arena, "visual.conv1.weight", 134, bad);
      for (size_t i = 0; i < 135; ++i) set_gradient(*clean_arena, "visual.conv1.weight", i, 0);
      optimizer.step(0.01);
      clean_optimizer.step(0.01);
      const auto after = snapshot(*arena, optimizer), clean = snapshot(*clean_arena, clean_optimizer);
      for (const auto& [name, values] : after) {
        CAPTURE(name);
        if (name.ends_with("visual.conv1.weight")) CHECK(values == before.at(name));
        else {
          CHECK(values != before.at(name));
          CHECK(values == clean.at(name));  // the bad tensor adds nothing to the norm either
        }
      }
      const OptimizerReport& report = optimizer.report();
      CHECK(report.skipped == std::vector<std::string>{"visual.conv1.weight"});
      CHECK(optimizer.rms_of("visual.conv1.weight") < 0);
      CHECK(std::isfinite(report.gradient_norm));
      CHECK(report.gradient_norm == clean_optimizer.report().gradient_norm);
      CHECK(report.largest_rms_name != "visual.conv1.weight");
      CHECK(report.step == 2);
    }
}

TEST_CASE("every gradient NaN: nothing moves, the step still counts") {
  auto arena = make_arena(DType::f32);
  AdamW optimizer(*arena, {});
  const auto before = snapshot(*arena, optimizer);
  for (const auto& s : arena->segments()) set_gradient(*arena, s.name, 0, NAN);
  optimizer.step(0.01);
  CHECK(snapshot(*arena, optimizer) == before);
  CHECK(optimizer.report().skipped.size() == 4);
  CHECK(optimizer.report().largest_rms_name.empty());
  CHECK(optimizer.report().gradient_norm == 0);
  CHECK(optimizer.steps_done() == 1);
}

TEST_CASE("bf16 values are their f32 masters, rounded: steps too small for bf16 add up in the masters") {
  auto arena = make_arena(DType::bf16), wide_arena = make_arena(DType::f32);
  AdamW optimizer(*arena, {}), wide_optimizer(*wide_arena, {});
  std::mt19937_64 random(5), same_random(5);
  const Tensor values = arena->find("text_projection")->parameter.value();
  const std::vector<double> first_values = doubles(values);
  for (int t = 1; t <= 10; ++t) {
    for (const auto& s : arena->segments()) draw_gradient(*arena, s, random, 0.1);
    for (const auto& s : wide_arena->segments()) draw_gradient(*wide_arena, s, same_random, 0.1);
    optimizer.step(1e-5);
    wide_optimizer.step(1e-5);
  }
  CHECK(doubles(arena->masters()) == doubles(wide_arena->masters()));
  for (const auto& s : arena->segments()) {
    CAPTURE(s.name);
    const Tensor master = arena->master_of(s);
    if (s.full_precision) {
      CHECK(s.parameter.value().data() == master.data());
      continue;
    }
    for (size_t i = 0; i < master.span<float>().size(); ++i)
      CHECK(s.parameter.value().span<bfloat16>()[i].bits == bfloat16(master.span<float>()[i]).bits);
  }
  size_t unchanged = 0;
  for (size_t i = 0; i < first_values.size(); ++i) unchanged += doubles(values)[i] == first_values[i];
  CHECK(unchanged > first_values.size() / 2);  // 1e-4 is below half a bf16 unit of most weights
}

TEST_CASE("report: norms per tower, the largest RMS and its tensor") {
  auto arena = make_arena(DType::f64);
  AdamW optimizer(*arena, {});
  CHECK(optimizer.report().step == 0);
  CHECK(optimizer.rms_of("logit_scale") < 0);
  set_gradient(*arena, "visual.conv1.weight", 3, 3);
  set_gradient(*arena, "visual.ln_pre.weight", 0, 4);
  set_gradient(*arena, "text_projection", 76, -12);
  optimizer.step(0.01);
  CHECK(optimizer.report().visual_gradient_norm == doctest::Approx(5).epsilon(1e-14));
  CHECK(optimizer.report().text_gradient_norm == doctest::Approx(12).epsilon(1e-14));
  CHECK(optimizer.report().gradient_norm == doctest::Approx(13).epsilon(1e-14));
  for (int t = 2; t <= 6; ++t) {  // small gradients, then one tensor's grows
    for (const auto& s : arena->segments())
      for (int64_t i = 0; i < s.shape.size(); ++i) set_gradient(*arena, s.name, static_cast<size_t>(i), 0.01);
    if (t == 6) set_gradient(*arena, "logit_scale", 0, 5);
    optimizer.step(0.01);
  }
  CHECK(optimizer.report().largest_rms_name == "logit_scale");
  CHECK(optimizer.report().largest_rms == optimizer.rms_of("logit_scale"));
  CHECK(optimizer.report().largest_rms > 2);
  CHECK(optimizer.report().rms.size() == 4);
}

TEST_CASE("a frozen tensor keeps its bits") {
  auto arena = make_arena(DType::f32);
  arena->freeze(2);
  AdamW optimizer(*arena, {});
  const auto before = doubles(arena->master_of(*arena->find("text_projection")));
  const auto other = doubles(arena->master_of(*arena->find("visual.conv1.weight")));
  for (const auto& s : arena->segments())
    if (s.parameter.needs_grad()) set_gradient(*arena, s.name, 0, 1);
  for (int t = 0; t < 3; ++t) optimizer.step(0.1);
  CHECK(doubles(arena->master_of(*arena->find("text_projection"))) == before);
  CHECK(doubles(arena->master_of(*arena->find("visual.conv1.weight"))) != other);
}

TEST_CASE("state by name restores an optimizer bit for bit, also into an arena laid out in another order") {
  auto train = [](ParameterArena& arena, AdamW& optimizer, int from, int to) {
    for (int t = from; t <= to; ++t) {
      for (const auto& s : arena.segments()) {
        std::mt19937_64 random(static_cast<uint64_t>(t) * 100 + s.name.size());
        draw_gradient(arena, s, random, 0.1);
      }
      optimizer.step(0.01 * t);
    }
  };
  auto arena = make_arena(DType::bf16);
  AdamW optimizer(*arena, stable_adamw());
  train(*arena, optimizer, 1, 3);

  ParameterArena second_arena(DType::bf16, cpu_device, 99);
  for (auto p = parameters_of_test.rbegin(); p != parameters_of_test.rend(); ++p)
    second_arena.add(p->first, p->second, Init::zeros(), p->first == "logit_scale");
  second_arena.allocate();
  AdamW second_optimizer(second_arena, stable_adamw());
  for (const auto& s : arena->segments()) {
    const Tensor to = second_arena.master_of(*second_arena.find(s.name)), from = arena->master_of(s);
    std::memcpy(to.data(), from.data(), from.view().bytes());
  }
  second_arena.publish_masters();
  std::map<std::string, Tensor> targets;
  for (const auto& [name, tensor] : second_optimizer.state()) targets[name] = tensor;
  CHECK(targets.size() == 9);
  for (const auto& [name, from] : optimizer.state()) {
    CAPTURE(name);
    REQUIRE(targets.contains(name));
    REQUIRE(targets[name].shape() == from.shape());
    std::memcpy(targets[name].data(), from.data(), from.view().bytes());
  }
  CHECK(second_optimizer.steps_done() == 3);

  train(*arena, optimizer, 4, 6);
  train(second_arena, second_optimizer, 4, 6);
  CHECK(snapshot(*arena, optimizer) == snapshot(second_arena, second_optimizer));
}

TEST_CASE("numbers out of range and globs that match nothing are refused with the flag's name") {
  auto arena = make_arena(DType::f32);
  auto message_of = [&](const AdamWOptions& options) -> std::string {
    try {
      AdamW optimizer(*arena, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message_of({}).empty());
  CHECK(message_of({.beta2 = 1}).starts_with("--beta2 is 1"));
  CHECK(message_of({.weight_decay = NAN}).starts_with("--wd is nan"));
  CHECK(message_of({.update = {.epsilon = 0}}).starts_with("--eps is 0"));
  CHECK(message_of({.undecayed = {"visual.*", "text.*"}})
            .starts_with("--wd-exclude text.* matches no parameter"));
}

// Quantising a weight needs max |w|. The optimizer leaves it beside the masters, so that nobody sweeps over
// them.
TEST_CASE("the optimizer leaves the largest values of the weights, and their codes are those of a sweep") {
  Kernels& k = kernels(cpu_device);
  for (const bool stable : {false, true}) {
    ParameterArena arena(DType::bf16, cpu_device, 3);
    const LinearRecipe& recipe = linear_recipe("switchback");
    std::vector<std::shared_ptr<const PreparedWeight>> prepared;
    const std::vector<std::string> names = {"a.weight", "frozen.weight", "skipped.weight", "large.weight"};
    for (const std::string& name : names) {
      arena.add(name + ".norm", {5}, Init::normal_with(0.5));  // not prepared
      const Shape shape = name[0] == 'l' ? Shape{300, 120} : Shape{24, 16};
      prepared.push_back(arena.prepare(arena.add(name, shape, Init::normal_with(0.5)), recipe));
    }
    arena.allocate();
    arena.set_rate_scale(3, 0);  // frozen.weight
    AdamWOptions options;
    options.update.clip_update = stable;
    AdamW optimizer(arena, options);
    std::mt19937_64 random(5);
    for (int step = 0; step < 4; ++step) {
      if (step > 0) {  // before that: as published
        for (const auto& s : arena.segments()) draw_gradient(arena, s, random, 0.1);
        if (step == 2) set_gradient(arena, "skipped.weight", 7, INFINITY);
        optimizer.step(0.05);
      }
      for (size_t i = 0; i < names.size(); ++i) {
        const Tensor master = arena.master_of(*arena.find(names[i]));
        Tensor largest({1}, DType::f32);
        k.absolute_maximum(largest, master, Granularity::tensor);
        INFO(names[i], " step ", step);
        CHECK(arena.largest().span<float>()[2 * i + 1] == largest.span<float>()[0]);
        const PreparedWeight swept = prepared_weight(recipe, master.shape(), DType::bf16, cpu_device);
        prepare_weight(swept, recipe, master);
        const auto same = [](const Tensor& a, const Tensor& b) {
          return std::ranges::equal(a.span<int8_t>(), b.span<int8_t>());
        };
        CHECK(same(prepared[i]->forward.codes, swept.forward.codes));
        CHECK(same(prepared[i]->input.codes, swept.input.codes));
        CHECK(prepared[i]->forward.scale.span<float>()[0] == swept.forward.scale.span<float>()[0]);
      }
    }
  }
}
