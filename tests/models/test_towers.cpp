// What the towers must and must not depend on, patch dropout, bf16, and refused inputs. The arithmetic itself
// is held against PyTorch in test_golden.cpp.
#include <set>

#include "tests/models/model_test.h"

namespace switchback {
namespace {

Tensor copy_of(const Tensor& t) {
  Tensor c(t.shape(), t.dtype());
  std::memcpy(c.data(), t.data(), static_cast<size_t>(t.size()) * size_of(t.dtype()));
  return c;
}

std::vector<double> text_features(const Model& m, const Tensor& tokens) {
  Tape::Pause pause;
  return doubles(m.clip.encode_text(tokens, {}).value());
}
std::vector<double> image_features(const Model& m, const Tensor& images, const Clip::Options& options = {}) {
  Tape::Pause pause;
  return doubles(m.clip.encode_image(images, options).value());
}

TEST_CASE("a text is what stands up to its end-of-text token, in any company") {
  const Model m(tiny_config(), DType::f32);
  Tensor tokens({1, 12}, DType::i32);
  std::fill_n(tokens.span<int32_t>().begin(), 12, 3);
  tokens.span<int32_t>()[5] = 258;
  const std::vector<double> features = text_features(m, tokens);

  Tensor later = copy_of(tokens);
  for (int i = 6; i < 12; ++i) later.span<int32_t>()[i] = 100 + i;
  later.span<int32_t>()[9] = 258;  // of two largest ids the first counts
  CHECK_EQ(text_features(m, later), features);

  for (int i = 0; i < 5; ++i) {
    Tensor earlier = copy_of(tokens);
    earlier.span<int32_t>()[i] = 200;
    CHECK_NE(text_features(m, earlier), features);
  }

  CHECK_EQ(text_features(m, tokens), [&] {  // another row of the batch changes nothing
    Tensor two({2, 12}, DType::i32);
    std::copy_n(tokens.span<int32_t>().begin(), 12, two.span<int32_t>().begin());
    std::fill_n(two.span<int32_t>().begin() + 12, 12, 7);
    std::vector<double> both = text_features(m, two);
    both.resize(both.size() / 2);
    return both;
  }());

  Tensor shorter({1, 6}, DType::i32);  // a shorter row than the context is the same text
  std::copy_n(tokens.span<int32_t>().begin(), 6, shorter.span<int32_t>().begin());
  const std::vector<double> short_features = text_features(m, shorter);
  for (size_t i = 0; i < features.size(); ++i)
    CHECK_EQ(short_features[i], doctest::Approx(features[i]).epsilon(1e-5));
}

TEST_CASE("an image's class token sees every patch") {
  const Model m(tiny_config(), DType::f32);
  const Batch batch = random_batch(tiny_config(), 1);
  const std::vector<double> features = image_features(m, batch.images);
  for (int64_t y : {0, 15})
    for (int64_t x : {0, 15}) {  // the corners lie in the four patches
      Tensor other = copy_of(batch.images);
      uint8_t& pixel = other.span<uint8_t>()[(y * 16 + x) * 3];
      pixel = static_cast<uint8_t>(pixel ^ 0x80);
      CHECK_NE(image_features(m, other), features);
    }
}

TEST_CASE("features have length 1") {
  const Model m(tiny_config(), DType::f32);
  const Batch batch = random_batch(tiny_config(), 5);
  for (const std::vector<double>& features :
       {image_features(m, batch.images), text_features(m, batch.tokens)})
    for (size_t row = 0; row < 5; ++row) {
      double squares = 0;
      for (size_t e = 0; e < 16; ++e) squares += features[row * 16 + e] * features[row * 16 + e];
      CHECK_EQ(squares, doctest::Approx(1).epsilon(1e-5));
    }
}

TEST_CASE("layer-scale 0 makes every block the identity") {
  ClipConfig scaled = tiny_config();
  scaled.vision.layer_scale = scaled.text.layer_scale = 0;
  ClipConfig single = scaled;
  single.vision.layers = single.text.layers = 1;
  const Model two(scaled, DType::f32), one(single, DType::f32);
  const Batch batch = random_batch(scaled, 3);
  CHECK_EQ(image_features(two, batch.images), image_features(one, batch.images));
  CHECK_EQ(text_features(two, batch.tokens), text_features(one, batch.tokens));
}

TEST_CASE("the temperature is kept within [0, ln 100]") {
  for (DType dtype : {DType::f32, DType::bf16}) {
    const Model m(tiny_config(), dtype);
    float& scale = m.master("logit_scale").span<float>()[0];
    for (const auto& [before, after] : {std::pair{5.0f, 4.605170f}, {-1.0f, 0.0f}, {3.0f, 3.0f}}) {
      scale = before;
      m.clip.clamp_logit_scale();
      CHECK_EQ(scale, doctest::Approx(after).epsilon(1e-6));
    }
  }
}

TEST_CASE("at the largest temperature the loss of equal features is a number") {
  Model m(tiny_config(), DType::f32);
  m.master("logit_scale").span<float>()[0] = static_cast<float>(std::log(100.0));
  Batch batch = random_batch(tiny_config(), 4);
  for (int64_t i = 12; i < 48; ++i) batch.tokens.span<int32_t>()[i] = batch.tokens.span<int32_t>()[i % 12];
  const double loss = m.run([&] {
    const Variable text = m.clip.encode_text(batch.tokens, {});
    return m.clip.loss(text, text);
  });
  CHECK_EQ(loss, doctest::Approx(std::log(4.0)).epsilon(1e-4));
}

// ---- patch dropout
// -----------------------------------------------------------------------------------------------

ClipConfig dropout_config(double probability) {
  ClipConfig c = tiny_config();
  c.vision.image_size = 56;  // 49 patches
  c.vision.patch_dropout = probability;
  return c;
}

TEST_CASE("patch dropout keeps int(N (1 - p)) patches, one at least") {
  const auto kept = [](int64_t image, int64_t patch, double p) {
    ClipConfig c;
    c.vision.image_size = image;
    c.vision.patch_size = patch;
    return c.vision.kept_patches(p);
  };
  CHECK_EQ(kept(224, 32, 0.5), 24);   // of 49
  CHECK_EQ(kept(224, 14, 0.5), 128);  // of 256
  CHECK_EQ(kept(224, 16, 0.75), 49);
  CHECK_EQ(kept(224, 16, 0), 196);
  CHECK_EQ(kept(224, 32, 0.99), 1);
  CHECK_EQ(kept(16, 8, 0.1), 3);  // 3.6

  for (double p : {0.5, 0.99}) {
    const Model m(dropout_config(p), DType::f32);
    const Batch batch = random_batch(m.clip.config(), 3);
    const PatchDropout dropout{1, Tensor::of<int64_t>({}, {0}), 0};
    std::vector<int64_t>
        tokens;  // after the embedding, with and without dropout: patches and the class token
    Tape::observe([&](std::string_view, std::string_view op, const Variable& result) {
      if (op == "vision_embed") tokens.push_back(result.shape()[1]);
    });
    image_features(m, batch.images, {.dropout = &dropout});
    image_features(m, batch.images);
    Tape::observe({});
    CHECK_EQ(tokens, std::vector<int64_t>{1 + m.clip.config().vision.kept_patches(p), 50});
  }
}

TEST_CASE("patches are chosen anew for every step and sample, and the same ones when asked again") {
  const Model m(dropout_config(0.5), DType::f32);
  const int64_t samples = 6, pixels = 56 * 56 * 3;
  Tensor images({samples, 56, 56, 3}, DType::u8);  // the same picture everywhere
  const Batch one = random_batch(m.clip.config(), 1);
  for (int64_t i = 0; i < samples; ++i)
    std::copy_n(one.images.span<uint8_t>().begin(), pixels, images.span<uint8_t>().begin() + i * pixels);

  std::set<std::vector<double>> different;
  const auto run = [&](uint64_t seed, int64_t step, int64_t first) {
    const PatchDropout dropout{seed, Tensor::of<int64_t>({}, {step}), first};
    return image_features(m, images, {.dropout = &dropout});
  };
  for (int64_t step : {0, 1, 2}) {
    const std::vector<double> features = run(1, step, 0);
    CHECK_EQ(run(1, step, 0), features);
    for (int64_t i = 0; i < samples; ++i)
      different.insert(std::vector<double>(features.begin() + i * 16, features.begin() + (i + 1) * 16));
  }
  CHECK_EQ(different.size(), 18);
  CHECK_NE(run(2, 0, 0), run(1, 0, 0));
  // A rank that begins at sample 2 sees for it what the whole batch sees.
  const std::vector<double> from_two = run(1, 0, 2), all = run(1, 0, 0);
  CHECK(std::equal(from_two.begin(), from_two.begin() + 4 * 16, all.begin() + 2 * 16));
}

TEST_CASE("left-out patches get no gradient, the class token and kept ones do") {
  Model m(dropout_config(0.5), DType::f64);
  const Batch batch = random_batch(m.clip.config(), 1);
  const PatchDropout dropout{1, Tensor::of<int64_t>({}, {0}), 0};
  // A single pair has no loss to learn from: any weighting of the features does.
  m.arena.begin_backward();
  Variable y = m.clip.encode_image(batch.images, {.dropout = &dropout});
  Tensor dy(y.shape(), DType::f64);
  for (int64_t e = 0; e < dy.size(); ++e) dy.span<double>()[e] = std::cos(static_cast<double>(e));
  y.adopt_grad(dy);
  tape().backward_from_gradients();
  m.arena.finish_backward();
  const std::vector<double> positions = doubles(m.gradient("visual.positional_embedding"));  // (50, 32)
  int64_t touched = 0;
  for (int64_t row = 0; row < 50; ++row) touched += positions[row * 32] != 0;
  CHECK_NE(positions[0], 0);
  CHECK_EQ(touched, 1 + 24);
  for (double d : doubles(m.gradient("visual.class_embedding"))) CHECK_NE(d, 0);
}

// ---- bf16
// --------------------------------------------------------------------------------------------------------

TEST_CASE("a model of bf16 values is close to the f32 one") {
  // Rounding to 8 bits at every op: 2^-9 each, through two blocks. Measured: features 0.9 %, gradients below
  // 4 %.
  Model wide(find_model("mini-28"), DType::f32), narrow(find_model("mini-28"), DType::bf16);
  const Batch batch = random_batch(wide.clip.config(), 8);
  Variable image[2], text[2];
  double loss[2];
  for (Model* m : {&wide, &narrow}) {
    const int i = m == &narrow;
    loss[i] = m->run([&] {
      image[i] = m->clip.encode_image(batch.images, {});
      text[i] = m->clip.encode_text(batch.tokens, {});
      return m->clip.loss(image[i], text[i]);
    });
  }
  CHECK_EQ(image[1].dtype(), DType::f32);
  const double image_error = relative_error(image[1].value(), image[0].value());
  const double text_error = relative_error(text[1].value(), text[0].value());
  CHECK_LE(image_error, 0.02);
  CHECK_LE(text_error, 0.02);
  CHECK_EQ(loss[1], doctest::Approx(loss[0]).epsilon(0.02));
  double worst = 0;
  std::string name;
  for (const auto& s : wide.arena.segments()) {
    const Tensor a = narrow.gradient(s.name), b = wide.gradient(s.name);
    CHECK_EQ(a.dtype(), DType::f32);
    const double error = relative_error(a, b);
    INFO(s.name, ": relative error ", error);
    CHECK_LE(error, 0.1);
    if (error > worst) worst = error, name = s.name;
  }
  MESSAGE("bf16: features " << image_error << ", " << text_error << ", worst gradient " << worst << " ("
                            << name << ")");
}

// ---- refused inputs
// ------------------------------------------------------------------------------------------------

TEST_CASE("batches that do not fit the model are refused with both shapes") {
  const Model m(tiny_config(), DType::f32);
  const auto refuses = [](const std::string& message, std::initializer_list<const char*> parts) {
    CAPTURE(message);
    CHECK_FALSE(message.empty());
    for (const char* part : parts) CHECK(message.find(part) != std::string::npos);
  };
  refuses(error_of([&] { image_features(m, Tensor({2, 28, 28, 3}, DType::u8)); }), {"28", "16"});
  refuses(error_of([&] {
            image_features(m, Tensor({2, 16, 16, 1}, DType::u8));
          }),
          {"(2, 16, 16, 1)", "16, 16, 3"});
  refuses(error_of([&] {
            text_features(m, Tensor::of<int32_t>({1, 13}, std::vector<int32_t>(13)));
          }),
          {"13", "12"});
  refuses(error_of([&] { text_features(m, Tensor::of<int32_t>({1, 2}, {4, 259})); }), {"259"});
  refuses(error_of([&] { text_features(m, Tensor::of<int32_t>({1, 2}, {-1, 4})); }), {"-1"});
  ClipConfig bad = tiny_config();
  bad.vision.width = 33;
  refuses(error_of([&] { Model(bad, DType::f32); }), {"33", "16"});
}

}  // namespace
}  // namespace switchback
