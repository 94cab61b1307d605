// kept_memory.h: bytes that a linear layer, and a transformer block, keep for their backward pass, by recipe:
// what the CPU's allocator has in use after the forward pass. Values in bf16. The CUDA allocator's figures
// are the same but for rounding.
#pragma once

#include "autograd/ops.h"
#include "models/transformer.h"
#include "runtime/allocator.h"

namespace switchback {

inline size_t cpu_bytes_used() { return allocator(cpu_device).statistics().used; }

// y = linear(x) where nobody else wants x (M, K): all that is there afterwards, beside y (M, N) and the
// weight
inline size_t kept_by_linear(const LinearRecipe& recipe, int64_t M, int64_t K, int64_t N) {
  ParameterArena arena(DType::bf16, cpu_device, 1);
  const Linear layer(arena, {"weight", "bias"}, K, N, Init::normal_with(0.1), Init::zeros(), recipe);
  arena.allocate();
  arena.begin_backward();
  arena.prepare_weights();
  const size_t before = cpu_bytes_used();
  Variable y;
  {
    Tensor x({M, K}, DType::bf16);
    kernels(cpu_device).fill(x, 0.5);
    y = layer(Variable(x, true));
  }
  const size_t after = cpu_bytes_used(), result = static_cast<size_t>(M * N) * 2;
  tape().clear();
  return after - before - result;
}

// A block of three less one of two, so that what is kept around them does not count. Their input is (1, M,
// C).
inline size_t kept_by_block(const LinearRecipe& recipe, int64_t M, int64_t C) {
  size_t kept[2];
  for (int extra : {0, 1}) {
    ParameterArena arena(DType::bf16, cpu_device, 1);
    BlockOptions o;
    o.width = C;
    o.heads = C / 64;
    o.mlp_width = 4 * C;
    o.linear = &recipe;
    o.qkv = o.out = o.fc = o.proj = Init::normal_with(0.1);
    const Transformer transformer(arena, "t", 2 + extra, o);
    arena.allocate();
    arena.begin_backward();
    arena.prepare_weights();
    const size_t before = cpu_bytes_used();
    Tensor x({1, M, C}, DType::bf16);
    kernels(cpu_device).fill(x, 0.5);
    const Variable y = transformer(Variable(std::move(x), true), {}, Recompute::none);
    kept[extra] = cpu_bytes_used() - before;
    tape().clear();
  }
  return kept[1] - kept[0];
}

}  // namespace switchback
