// attention_forward_sm90.cuh: the path of attention_forward.cuh for Hopper and sequences of CLIP's vision
// towers.
#pragma once

#include "kernels/cuda/attention_common.cuh"

namespace switchback::cuda {

// On Hopper: head sizes 64 and 80, 97 ... 320 tokens (shorter sequences would leave most of a 64-row tile
// empty).
bool attention_forward_sm90_serves(const AttentionShape& shape);

// Views are checked by attention_forward().
void attention_forward_sm90(bf16* out, float* lse, const bf16* qkv, const AttentionShape& shape, bool causal,
                            cudaStream_t stream);

}  // namespace switchback::cuda
