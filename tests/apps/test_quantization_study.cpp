// quantization_study: what it captures multiplies to the gradients of the model, what it measures follows the
// formula where the formula holds, and the program itself.
#include <algorithm>
#include <cmath>

#include "apps/linear_capture.h"
#include "apps/quantization_noise.h"
#include "autograd/tape.h"
#include "kernels/transfer.h"
#include "models/clip.h"
#include "runtime/philox.h"
#include "tests/apps/program.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

Tensor normal(Shape shape, uint64_t stream) {
  const Tensor t(shape, DType::f32);
  PhiloxStream random(5, RandomPurpose::test, stream);
  for (float& v : t.span<float>()) v = random.normal();
  return t;
}

// The parameter of a captured linear.
std::string weight_of(const std::string& name) {
  return name.ends_with("in_proj") ? name + "_weight" : name + ".weight";
}

}  // namespace

TEST_CASE("what is captured multiplies to the weights' gradients, in every block of both towers") {
  ClipConfig config = find_model("tiny");
  config.whole_last_block = true;
  ParameterArena arena(DType::f32, cpu_device, 3);
  const Clip clip(arena, config);
  arena.allocate();
  const Tensor images({6, 16, 16, 3}, DType::u8), tokens({6, 12}, DType::i32);
  PhiloxStream random(4, RandomPurpose::test, 0);
  for (uint8_t& p : images.span<uint8_t>()) p = static_cast<uint8_t>(random.next_u32());
  for (int32_t& id : tokens.span<int32_t>()) id = static_cast<int32_t>(random.below(259));
  std::vector<std::string> blocks;
  for (const char* tower : {"visual.transformer.resblocks.", "transformer.resblocks."})
    for (const char* i : {"0", "1"}) blocks.push_back(std::string(tower) + i);
  const auto linears = capture_linears(arena, blocks, Gelu::exact, [&] {
    arena.begin_backward();
    tape().backward(clip.loss(clip.encode_image(images, {}), clip.encode_text(tokens, {})));
    arena.finish_backward();
  });
  REQUIRE_EQ(linears.size(), 16);
  for (const LinearCapture& l : linears) {
    INFO(l.name);
    const auto* segment = arena.find(weight_of(l.name));
    REQUIRE(segment);
    const Tensor gradient = arena.gradient_of(*segment), dw(gradient.shape(), DType::f32);
    REQUIRE_EQ(l.w.shape(), gradient.shape());
    kernels(cpu_device).matmul({dw}, l.dy, Transpose::yes, l.x, Transpose::no);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < dw.size(); ++i) {
      const double expected = gradient.span<float>()[static_cast<size_t>(i)];
      difference = std::max(difference, std::abs(dw.span<float>()[static_cast<size_t>(i)] - expected));
      size = std::max(size, std::abs(expected));
    }
    CHECK_GT(size, 0);
    CHECK_LT(difference, 1e-5 * size);
  }
  CHECK_FALSE(Tape::observed());
}

TEST_CASE("noise of normal variables: as the formula says, and as 8 bits have it") {
  // x (M, K), w (N, K), dy (M, N)
  const LinearCapture l{"l", normal({2048, 512}, 1), normal({256, 512}, 2), normal({2048, 256}, 3)};
  CHECK_EQ(inner_size(l, LinearProduct::forward), 512);
  CHECK_EQ(inner_size(l, LinearProduct::input_gradient), 256);
  CHECK_EQ(inner_size(l, LinearProduct::weight_gradient), 2048);
  for (const NoiseQuantizer& q : noise_quantizers()) {
    INFO(std::string(q.name));
    std::vector<double> inner, variance;
    for (const LinearProduct product : linear_products) {
      INFO(name_of(product));
      const Noise noise = measure_noise(l, product, q, inner_size(l, product), 64, 9);
      CHECK_LT(std::abs(noise.relative / noise.predicted - 1), 0.1);
    }
    for (const int64_t k : {128, 512, 2048}) {
      inner.push_back(static_cast<double>(k));
      variance.push_back(measure_noise(l, LinearProduct::weight_gradient, q, k, 64, 9).variance);
    }
    // Maxima of longer vectors are larger, so int8's steps are, too.
    const double p = growth_exponent(inner, variance);
    CHECK_GT(p, 0.9);
    CHECK_LT(p, 1.4);
  }
  // Steps of absmax/127, absmax about 3 σ at 512 terms: two operands with a noise of 3.04/127/√12 each.
  const double relative =
      measure_noise(l, LinearProduct::forward, noise_quantizers()[1], 512, 64, 9).relative;
  CHECK_GT(relative, 0.0085);
  CHECK_LT(relative, 0.0115);
}

TEST_CASE("a scale that large elements dictate costs the small ones, and only where it is shared") {
  LinearCapture l{"l", normal({1024, 64}, 1), normal({64, 64}, 2), normal({1024, 64}, 3)};
  for (size_t i = 0; i < 64; ++i) l.dy.span<float>()[i] *= 1000;  // one token
  const auto error = [&](LinearProduct product, size_t quantizer) {
    return measure_noise(l, product, noise_quantizers()[quantizer], inner_size(l, product), 64, 9).relative;
  };
  CHECK_LT(error(LinearProduct::input_gradient, 1), 0.02);  // by row: the token has its own scale
  const Tensor with_token = l.dy;
  l.dy = Tensor(with_token.shape(), DType::f32);
  for (int64_t i = 0; i < l.dy.size(); ++i)
    l.dy.span<float>()[static_cast<size_t>(i)] =
        with_token.span<float>()[static_cast<size_t>(i)] / (i < 64 ? 20 : 1);
  CHECK_GT(error(LinearProduct::weight_gradient, 1), 5 * error(LinearProduct::input_gradient, 1));
}

TEST_CASE("slopes") {
  const double x[] = {1, 2, 4, 8}, y[] = {3, 12, 48, 192};
  CHECK_LT(std::abs(growth_exponent(x, y) - 2), 1e-12);
}

TEST_CASE("quantization_study as a program") {
  const TemporaryFolder folder;
  const auto run = [&](std::vector<std::string> words) {
    for (const char* word : {"--model", "tiny", "--steps", "3", "--batch-size", "8", "--batches", "2",
                             "--samples", "8", "--threads", "1"})
      words.push_back(word);
    return Program("quantization_study", words, folder / "output").wait();
  };
  const Outcome done = run({"--output", folder / "study"});
  INFO(done.output);
  REQUIRE_EQ(done.status, 0);
  for (const char* part :
       {"visual.transformer.resblocks.1.mlp.c_fc, weight gradient", "fp8 tensor", "terms^p"})
    CHECK(done.output.find(part) != std::string::npos);
  const std::string lines = read_file(folder / "study/noise.jsonl");
  CHECK(lines.find("\"product\":\"input gradient\",\"quantizer\":\"int8 row/tensor\"") != std::string::npos);
  CHECK(lines.find("nan") == std::string::npos);
  CHECK(read_file(folder / "study/noise.svg").starts_with("<svg"));
  REQUIRE_EQ(run({"--output", folder / "again"}).status, 0);
  CHECK(read_file(folder / "again/noise.jsonl") == lines);

  const auto fails = [&](const std::vector<std::string>& words, const std::string& fragment) {
    const Outcome outcome = run(words);
    INFO(outcome.output);
    CHECK_EQ(outcome.status, 1);
    CHECK(outcome.output.starts_with("quantization_study: "));
    CHECK_EQ(std::ranges::count(outcome.output, '\n'), 1);
    CHECK(outcome.output.find(fragment) != std::string::npos);
  };
  fails({"--output", folder / "x", "--block", "visual.transformer.resblocks.7"}, "resblocks.0 to 1");
  fails({"--output", folder / "x", "--train-data", folder / "none.tar"}, "none.tar");
  fails({"--output", folder / "x", "--checkpoint", folder / "none"}, "none");
  fails({"--output", folder / "x", "--smallest", "0"}, "--smallest");
}
