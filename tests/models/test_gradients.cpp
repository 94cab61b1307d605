// The whole model in f64: the gradient that the tape gives against central differences of the loss, element
// by element for a sample of every parameter; and the ways of computing it in pieces (recomputation, parts of
// the batch) against the plain way.
#include <optional>

#include "autograd/checkpoint.h"
#include "tests/models/model_test.h"

namespace switchback {
namespace {

constexpr int64_t samples = 6;

// Everything at once that a config can ask for: layer-scale, quick GELU, SigLIP's loss, patch dropout.
ClipConfig rich_config() {
  ClipConfig c = tiny_config();
  c.quick_gelu = true;
  c.vision.image_size = 24;  // 9 patches
  c.vision.patch_dropout = 0.3;
  c.vision.layer_scale = 0.5;
  c.text.layer_scale = 0.5;
  c.init_logit_scale = std::log(10.0);
  c.init_logit_bias = -2;
  return c;
}

struct Setup : Model {
  Batch batch;
  PatchDropout dropout{11, Tensor::of<int64_t>({}, {4}), 100};
  Clip::Options options;

  explicit Setup(const ClipConfig& config) : Model(config, DType::f64), batch(random_batch(config, samples)) {
    roughen(arena);
    if (config.vision.patch_dropout > 0) options.dropout = &dropout;
  }

  Variable loss() const {
    return clip.loss(clip.encode_image(batch.images, options), clip.encode_text(batch.tokens, options));
  }
  // The loss by `parts` pieces, whose activations are given up and computed again.
  Variable loss_by_parts(int64_t parts) const {
    const int64_t size = samples / parts;
    std::vector<Variable> images, texts;
    for (int64_t part = 0; part < parts; ++part) {
      const Tensor pixels = batch.images.slice(part * size, size),
                   tokens = batch.tokens.slice(part * size, size);
      images.push_back(checkpoint({}, [this, part, size, pixels](const Variable&) {
        Clip::Options o = options;
        PatchDropout own = dropout;
        own.first_sample += part * size;
        if (o.dropout) o.dropout = &own;
        return clip.encode_image(pixels, o);
      }));
      texts.push_back(
          checkpoint({}, [this, tokens](const Variable&) { return clip.encode_text(tokens, options); }));
    }
    return clip.loss(concat_rows(images), concat_rows(texts));
  }
  std::vector<double> gradients() const {
    std::vector<double> all;
    for (const auto& s : arena.segments()) {
      const std::vector<double> part = doubles(arena.gradient_of(s));
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
};

// The largest |a_i - b_i| over the largest |b_i|
double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  REQUIRE_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    difference = std::max(difference, std::fabs(a[i] - b[i]));
    size = std::max(size, std::fabs(b[i]));
  }
  return difference / size;
}

// Up to `count` elements of every parameter; of the token table rows in use, as the gradient of the others is
// 0. The error of a parameter's sample is relative to the root mean square of its gradient.
double check_against_differences(Setup& m, int64_t count) {
  m.run([&] { return m.loss(); });
  const auto value = [&] {
    Tape::Pause pause;
    return number(m.loss().value());
  };
  constexpr double h = 1e-5;
  PhiloxStream random(3, RandomPurpose::test, 2);
  double worst = 0;
  for (const auto& s : m.arena.segments()) {
    std::span<double> x = m.arena.master_of(s).span<double>(), dx = m.arena.gradient_of(s).span<double>();
    double squares = 0;
    int64_t used = 0;
    for (double g : dx) squares += g * g, used += g != 0;
    const double typical = std::sqrt(squares / static_cast<double>(used));
    double error = 0;
    for (int64_t n = 0; n < count; ++n) {
      size_t i = random.below(x.size());
      while (s.name == "token_embedding.weight" && used > 0 && dx[i] == 0) i = random.below(x.size());
      const double before = x[i];
      x[i] = before + h;
      const double up = value();
      x[i] = before - h;
      const double down = value();
      x[i] = before;
      error = std::max(error, std::fabs((up - down) / (2 * h) - dx[i]) / typical);
    }
    INFO(s.name, ": typical gradient ", typical, ", relative error ", error);
    CHECK_GT(used, 0);
    CHECK_LE(error, 1e-6);
    worst = std::max(worst, error);
  }
  return worst;
}

TEST_CASE("the gradient of the loss to every parameter agrees with central differences") {
  for (bool rich : {false, true}) {
    for (Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::blocks}) {
      CAPTURE(rich);
      CAPTURE(static_cast<int>(recompute));
      Setup m(rich ? rich_config() : tiny_config());
      m.options.recompute = recompute;
      const double worst = check_against_differences(m, 4);
      MESSAGE(concat(rich ? "rich" : "tiny", ", recompute level ", static_cast<int>(recompute),
                     ": largest relative error ", worst));
    }
  }
}

TEST_CASE("recomputation changes no bit of loss and gradients") {
  for (const ClipConfig& config : {tiny_config(), rich_config()}) {
    Setup plain(config);
    const double loss = plain.run([&] { return plain.loss(); });
    for (Recompute recompute : {Recompute::gelu, Recompute::cheap, Recompute::blocks}) {
      CAPTURE(static_cast<int>(recompute));
      Setup again(config);
      again.options.recompute = recompute;
      CHECK_EQ(again.run([&] { return again.loss(); }), loss);
      CHECK_EQ(again.gradients(), plain.gradients());
    }
  }
}

TEST_CASE("parts of a batch give the gradient of the whole batch") {
  for (const ClipConfig& config : {tiny_config(), rich_config()}) {
    Setup whole(config);
    const double loss = whole.run([&] { return whole.loss(); });
    const std::vector<double> expected = whole.gradients();
    for (int64_t parts : {1, 2, 3, 6}) {
      for (Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::blocks}) {
        CAPTURE(parts);
        CAPTURE(static_cast<int>(recompute));
        Setup m(config);
        m.options.recompute = recompute;
        CHECK_LE(std::fabs(m.run([&] { return m.loss_by_parts(parts); }) - loss), 1e-12 * std::fabs(loss));
        CHECK_LE(largest_difference(m.gradients(), expected), 1e-12);
      }
    }
  }
}

TEST_CASE("a second backward pass overwrites the first one's gradients") {
  Setup m(tiny_config());
  m.run([&] { return m.loss(); });
  const std::vector<double> first = m.gradients();
  m.run([&] { return m.loss(); });
  CHECK_EQ(m.gradients(), first);
}

TEST_CASE("a frozen tower has no gradient and changes nobody else's") {
  for (bool by_parts : {false, true}) {
    CAPTURE(by_parts);
    Setup whole(tiny_config()), locked(tiny_config());
    const auto run = [&](Setup& m) { m.run([&] { return by_parts ? m.loss_by_parts(2) : m.loss(); }); };
    run(whole);
    for (size_t i = 0; i < locked.arena.segments().size(); ++i)
      if (locked.arena.segments()[i].name.starts_with("visual.")) locked.arena.freeze(i);
    run(locked);
    for (const auto& s : locked.arena.segments()) {
      CAPTURE(s.name);
      const std::vector<double> gradient = doubles(locked.arena.gradient_of(s));
      if (s.name.starts_with("visual."))
        CHECK_EQ(gradient, std::vector<double>(gradient.size(), 0.0));
      else
        CHECK_EQ(gradient, doubles(whole.gradient(s.name)));
    }
  }
}

}  // namespace
}  // namespace switchback
