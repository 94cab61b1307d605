// Coarse ops on the GPU against their parts, bit for bit; and every level of recomputation, which must not
// change a bit of loss and gradients.
#include "kernels/cuda/layernorm_rows.cuh"
#include "models/clip.h"
#include "models/presets.h"
#include "runtime/philox.h"
#include "tests/cuda/testing.h"

using namespace switchback;

namespace {

Tensor random_on_gpu(Shape shape, uint64_t seed, DType dtype) {
  const Operand o =
      random(concat("fused ", seed), shape, 2, 0.25, Operand::f64);  // all bits of an f32 in use
  Tensor t(shape, dtype, gpu);
  kernels(gpu).cast(t, to_device(Tensor::of<double>(shape, o.values), gpu));
  return t;
}

void check_rows(int64_t rows, int64_t width, DType dtype, bool scaled) {
  Kernels& k = kernels(gpu);
  const Shape s{rows, width};
  const auto made = [&](Shape shape, DType type) { return Tensor(shape, type, gpu); };
  const Tensor x = random_on_gpu(s, 1, dtype), branch = random_on_gpu(s, 2, dtype),
               dsum = random_on_gpu(s, 3, dtype), dnormed = random_on_gpu(s, 4, dtype),
               gain = random_on_gpu({width}, 5, dtype), bias = random_on_gpu({width}, 6, dtype);
  const Tensor gamma = scaled ? random_on_gpu({width}, 7, dtype) : Tensor();
  struct Results {
    Tensor sum, normed, mean, rstd, dx, dbranch, dgamma, dgain, dbias;
  };
  const auto empty = [&] {
    return Results{
        made(s, dtype),           made(s, dtype), made({rows}, DType::f32),  made({rows}, DType::f32),
        made(s, dtype),           made(s, dtype), made({width}, DType::f32), made({width}, DType::f32),
        made({width}, DType::f32)};
  };
  const Results a = empty(), b = empty();
  k.residual_layernorm_forward(a.sum, a.normed, a.mean, a.rstd, x, branch, gamma, gain, bias, 1e-5);
  k.residual_forward(b.sum, x, branch, gamma);
  k.layernorm_forward(b.normed, b.mean, b.rstd, b.sum, gain, bias, 1e-5);
  const Sink no_sink;
  k.residual_layernorm_backward(a.dx, scaled ? Sink{a.dbranch} : no_sink, no_sink,
                                scaled ? Sink{a.dgamma} : no_sink, {a.dgain}, {a.dbias}, dsum, dnormed, a.sum,
                                a.mean, a.rstd, gain, branch, gamma);
  k.cast(b.dx, dsum);
  k.layernorm_backward({b.dx, true}, {b.dgain}, {b.dbias}, dnormed, b.sum, b.mean, b.rstd, gain);
  if (scaled) k.residual_backward({b.dbranch}, {b.dgamma}, b.dx, branch, gamma);
  const std::string what = concat(s, " ", dtype, scaled ? " scaled" : "");
  INFO(what);
  CHECK(as_doubles(a.sum) == as_doubles(b.sum));
  CHECK(as_doubles(a.mean) == as_doubles(b.mean));
  CHECK(as_doubles(a.rstd) == as_doubles(b.rstd));
  CHECK(as_doubles(a.normed) == as_doubles(b.normed));
  CHECK(as_doubles(a.dx) == as_doubles(b.dx));
  if (scaled) CHECK(as_doubles(a.dbranch) == as_doubles(b.dbranch));
  if (scaled) CHECK(as_doubles(a.dgamma) == as_doubles(b.dgamma));
  CHECK(as_doubles(a.dgain) == as_doubles(b.dgain));
  CHECK(as_doubles(a.dbias) == as_doubles(b.dbias));
  // It was one kernel, not the two once more.
  const bool in_registers = width % 8 == 0 && width <= 1792;
  const auto& own = dynamic_cast<cuda::CudaKernels&>(k);
  CHECK(cuda::normalize_rows(own, a.sum, a.normed, a.mean, a.rstd, x, branch, gamma, gain, bias, 1e-5) ==
        in_registers);
  CHECK(cuda::normalize_rows_backward(own, a.dx, scaled ? Sink{a.dbranch} : no_sink, no_sink,
                                      scaled ? Sink{a.dgamma} : no_sink, {a.dgain}, {a.dbias}, dsum, dnormed,
                                      a.sum, a.mean, a.rstd, gain, branch, gamma) == in_registers);
}

struct Trained {
  double loss;
  std::map<std::string, Array> gradients;  // by parameter
};

Trained gradients(const ClipConfig& config, DType dtype, Recompute recompute) {
  ParameterArena arena(dtype, gpu, 1);
  const Clip clip(arena, config);
  arena.allocate();
  PhiloxStream numbers(5, RandomPurpose::test, 1);
  const int64_t batch = 7;
  Tensor images({batch, config.vision.image_size, config.vision.image_size, 3}, DType::u8),
      tokens({batch, config.text.context_length}, DType::i32);
  for (uint8_t& v : images.span<uint8_t>()) v = static_cast<uint8_t>(numbers.below(256));
  for (int32_t& v : tokens.span<int32_t>())
    v = static_cast<int32_t>(numbers.below(static_cast<uint64_t>(config.text.vocab_size)));
  images = to_device(images, gpu);
  tokens = to_device(tokens, gpu);
  Clip::Options options;
  options.recompute = recompute;
  arena.begin_backward();
  const Variable loss = clip.loss(clip.encode_image(images, options), clip.encode_text(tokens, options));
  tape().backward(loss);
  arena.finish_backward();
  Trained result{number(loss.value()), {}};
  for (const auto& segment : arena.segments())
    result.gradients[segment.name] = as_doubles(arena.gradient_of(segment));
  return result;
}

}  // namespace

TEST_CASE("residual and layernorm in one kernel have the bits of the two") {
  if (no_gpu()) return;
  for (DType dtype : {DType::f32, DType::bf16})
    for (bool scaled : {false, true})
      for (const auto& [rows, width] : std::vector<std::pair<int64_t, int64_t>>{{1, 64},
                                                                                {15, 512},
                                                                                {129, 768},
                                                                                {257, 1024},
                                                                                {1000, 1280},
                                                                                {33, 1664},
                                                                                {3000, 256},
                                                                                {15, 77},
                                                                                {5, 2048}})
        check_rows(rows, width, dtype, scaled);
}

TEST_CASE("recomputation on the GPU changes no bit of loss and gradients") {
  if (no_gpu()) return;
  for (const char* model : {"tiny", "mini-28"})
    for (bool layer_scale : {false, true})
      for (DType dtype : {DType::f32, DType::bf16}) {
        ClipConfig config = find_model(model);
        if (layer_scale) config.vision.layer_scale = config.text.layer_scale = 0.1;
        const Trained kept = gradients(config, dtype, Recompute::none);
        CHECK(std::isfinite(kept.loss));
        for (Recompute recompute : {Recompute::gelu, Recompute::cheap, Recompute::blocks}) {
          const Trained again = gradients(config, dtype, recompute);
          CHECK(again.loss == kept.loss);
          for (const auto& [name, values] : kept.gradients) {
            const std::string what = concat(model, " ", dtype, layer_scale ? ", layer-scale" : "", ", level ",
                                            static_cast<int>(recompute), ": ", name);
            INFO(what, " differs by ", error_of(again.gradients.at(name), values));
            CHECK(again.gradients.at(name) == values);
          }
        }
      }
}
