// teach_mlp: a CLIP without pictures, to be read first. Two small networks look at the same hidden point of
// the plane, one in polar coordinates (r, cos θ, sin θ), the other in cartesian ones (x, y). They learn to
// place both descriptions of a point close together. Everything of a real training step is here: parameters
// in an arena, a forward pass that records a tape, a backward pass, an optimizer step. Runs in seconds on a
// CPU.
#include <cmath>
#include <cstdio>

#include "nn/linear.h"
#include "optim/adamw.h"
#include "runtime/philox.h"

using namespace switchback;

struct Mlp {  // x (B, in) -> features (B, 16), normalised
  Linear first, second;
  Mlp(ParameterArena& arena, const std::string& name, int64_t in)
      : first(arena, {name + ".first.weight", name + ".first.bias"}, in, 64, Init::normal_with(1),
              Init::zeros()),
        second(arena, {name + ".second.weight", name + ".second.bias"}, 64, 16, Init::normal_with(0.1),
               Init::zeros()) {}
  Variable operator()(const Tensor& x) const {
    return l2_normalize(second(gelu(first(Variable(x)), Gelu::exact)));
  }
};

// The share of points whose nearest cartesian neighbour is their own. polar, cartesian (B, 16)
float accuracy(const Tensor& polar, const Tensor& cartesian) {
  const int64_t batch = polar.rows();
  Tensor similarity({batch, batch}, DType::f32);
  kernels(cpu_device).matmul({similarity}, polar, Transpose::no, cartesian, Transpose::yes);
  int64_t right = 0;
  for (int64_t i = 0; i < batch; ++i) {
    auto row = similarity.span<float>().subspan(i * batch, batch);
    right += std::max_element(row.begin(), row.end()) - row.begin() == i;
  }
  return static_cast<float>(right) / static_cast<float>(batch);
}

int main() {
  constexpr int64_t batch = 64, steps = 1500;
  ParameterArena arena(DType::f32, cpu_device, /*seed=*/1);
  Mlp sees_polar(arena, "polar", 3), sees_cartesian(arena, "cartesian", 2);
  Parameter logit_scale = arena.add("logit_scale", {}, Init::value(std::log(10.0)));
  arena.allocate();
  AdamW optimizer(arena, {.weight_decay = 0});
  PhiloxStream random(2, 0);

  for (int64_t step = 0; step <= steps; ++step) {
    Tensor polar({batch, 3}, DType::f32), cartesian({batch, 2}, DType::f32);
    for (int64_t i = 0; i < batch; ++i) {
      const float r = std::sqrt(random.uniform()), angle = 6.2831853f * random.uniform();
      float* p = polar.span<float>().data() + 3 * i;
      float* c = cartesian.span<float>().data() + 2 * i;
      p[0] = r, p[1] = std::cos(angle), p[2] = std::sin(angle);
      c[0] = r * p[1], c[1] = r * p[2];
    }
    arena.begin_backward();
    Variable a = sees_polar(polar), b = sees_cartesian(cartesian);
    Variable loss = contrastive_loss(a, b, logit_scale);
    tape().backward(loss);
    arena.finish_backward();
    optimizer.step(0.01 * (1 - static_cast<double>(step) / (steps + 1)));
    if (step % 250 == 0)
      std::printf("step %4d  loss %.4f  own point found %3.0f %%\n", static_cast<int>(step),
                  loss.value().span<float>()[0], 100 * accuracy(a.value(), b.value()));
  }
}
