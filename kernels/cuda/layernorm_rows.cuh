// layernorm_rows.cuh: layernorm with what stands beside it in a block, one sweep over the rows each way:
//   forward    sum = x + gamma branch (or sum = x),  normed = gain x̂ + bias,  x̂ = (sum - mean) rstd
//   backward   dx = [dsum +] rstd (g - mean_C(g) - x̂ mean_C(g x̂)),  g = dnormed gain,
//              dgain = Σ dnormed x̂,  dbias = Σ dnormed,  dbranch = gamma dx,  dgamma = Σ dx branch,
//              dx_sum = Σ dx (without layer-scale)
// For rows that travel in 16-byte pieces and fit into registers: widths that are multiples of 8, up to 1792,
// which covers every CLIP. Each function answers whether it did the work; whoever calls it checked the
// operands, and has a slower way for other rows.
// codes (where can_code_rows): 8-bit codes of normed's rows, or of the rows of branch's gradient, while they
// are at hand.
// x, branch, sum, normed and their gradients (M, C) of T; gamma, gain, bias (C) of T; mean, rstd (M) f32.
#pragma once

#include "kernels/cuda/cuda_kernels.h"

namespace switchback::cuda {

bool can_code_rows(const RowCodes& codes, DType rows);

// `sum` and `branch` are both there or both absent; gamma optional.
bool normalize_rows(const CudaKernels& k, const View& sum, const View& normed, const View& mean,
                    const View& rstd, const CView& x, const CView& branch, const CView& gamma,
                    const CView& gain, const CView& bias, double epsilon, const RowCodes& codes = {});

// dsum is optional, and dx may lie where it does. With gamma comes branch; any sink may be empty.
bool normalize_rows_backward(const CudaKernels& k, const View& dx, const Sink& dbranch, const Sink& dx_sum,
                             const Sink& dgamma, const Sink& dgain, const Sink& dbias, const CView& dsum,
                             const CView& dnormed, const CView& sum, const CView& mean, const CView& rstd,
                             const CView& gain, const CView& branch, const CView& gamma,
                             const RowCodes& codes = {});

// dbranch = gamma dy, dgamma = Σ dy branch alone, with the bits that the above gives for dx = dy.
bool scale_rows_backward(const CudaKernels& k, const Sink& dbranch, const Sink& dgamma, const CView& dy,
                         const CView& branch, const CView& gamma);

}  // namespace switchback::cuda
