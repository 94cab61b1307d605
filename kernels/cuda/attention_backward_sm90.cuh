// attention_backward_sm90.cuh: the path of attention_backward.cuh for Hopper and sequences of CLIP's vision
// towers.
#pragma once

#include "kernels/cuda/attention_common.cuh"

namespace switchback::cuda {

// On Hopper: head sizes 64 and 80, 97 ... 320 tokens (shorter sequences would leave most of a 64-row tile
// empty).
bool attention_backward_sm90_serves(const AttentionShape& shape);

// Views are checked by attention_backward().
void attention_backward_sm90(bf16* dqkv, const bf16* dout, const bf16* qkv, const bf16* out, const float* lse,
                             const AttentionShape& shape, bool causal, bool accumulate, cudaStream_t stream);

}  // namespace switchback::cuda
