// preconditions.h: what ops ask of their operands on every device: where they lie, their types, and shapes
// that agree with each other. Each function is named after its op, and returns the sizes that the op's loops
// or launches go by. What one device alone demands or can look at stands with its kernels: alignment, limits
// of a launch, numbers that lie in host memory.
//
// The kernels of a device write Require::pool_forward(op, y, x, place) (kernels/cpu/access.h,
// kernels/cuda/launch.cuh).
#pragma once

#include "kernels/checks.h"
#include "kernels/formats.h"

namespace switchback {

struct MatrixSizes {  // (rows, width): what is in front of the last size counts as rows
  int64_t rows, width;
};
struct ProductSizes {  // (m, n), a sum of k products each
  int64_t m, n, k;
};
struct SequenceSizes {  // (B, T, C)
  int64_t samples, tokens, width;
};
struct VisionSizes {  // (B, K+1, C)
  int64_t samples, kept, width;
  int64_t places;  // of the positional embedding; 1 where its gradient is not asked for
};
struct TextSizes {  // (B, T, C)
  int64_t samples, length, width;
  int64_t vocabulary;  // rows of the table; 0 where its gradient is not asked for
  int64_t places;      // of the positional embedding; T where its gradient is not asked for
};
struct PatchSizes {
  int64_t samples, height, width;  // of the images
  int64_t count, kept;             // patches of an image
};
struct HeadSizes {  // qkv (B, T, 3C)
  int64_t samples, tokens, channels, heads, head_size;
};

template <Device::Kind kind>
struct Preconditions {
  using Check = Checks<kind>;

  // ---- embedding, pooling, patches ----
  static VisionSizes vision_embed_forward(const char* op, const CView& x, const CView& patches,
                                          const CView& class_embedding, const CView& positions,
                                          const CView& keep);
  static VisionSizes vision_embed_backward(const char* op, const Sink& dpatches, const Sink& dclass_embedding,
                                           const Sink& dpositions, const CView& dx, const CView& keep);
  static TextSizes text_embed_forward(const char* op, const CView& x, const CView& table,
                                      const CView& positions, const CView& tokens);
  static TextSizes text_embed_backward(const char* op, const Sink& dtable, const Sink& dpositions,
                                       const CView& dx, const CView& tokens);
  static MatrixSizes find_largest_token(const char* op, const CView& place, const CView& tokens);
  static SequenceSizes pool_forward(const char* op, const CView& y, const CView& x, const CView& place);
  static SequenceSizes pool_backward(const char* op, const Sink& dx, const CView& dy, const CView& place);
  static MatrixSizes choose_patches(const char* op, const CView& keep, int64_t patches, const CView& step);
  static PatchSizes extract_patches(const char* op, const CView& patches, const CView& pixels,
                                    const CView& keep, int64_t patch_size);

  // ---- row by row ----
  static MatrixSizes residual_forward(const char* op, const CView& y, const CView& x, const CView& branch,
                                      const CView& gamma);
  static MatrixSizes residual_backward(const char* op, const Sink& dbranch, const Sink& dgamma,
                                       const CView& dy, const CView& branch, const CView& gamma);
  static MatrixSizes layernorm_forward(const char* op, const CView& y, const CView& mean, const CView& rstd,
                                       const CView& x, const CView& gain, const CView& bias);
  static MatrixSizes layernorm_backward(const char* op, const Sink& dx, const Sink& dgain, const Sink& dbias,
                                        const CView& dy, const CView& x, const CView& mean,
                                        const CView& rstd, const CView& gain);
  static MatrixSizes residual_layernorm_forward(const char* op, const CView& sum, const CView& normed,
                                                const CView& mean, const CView& rstd, const CView& x,
                                                const CView& branch, const CView& gamma, const CView& gain,
                                                const CView& bias, const RowCodes& codes);
  static MatrixSizes residual_layernorm_backward(const char* op, const CView& dx, const Sink& dbranch,
                                                 const Sink& dbranch_sum, const Sink& dgamma,
                                                 const Sink& dgain, const Sink& dbias, const CView& dsum,
                                                 const CView& dnormed, const CView& sum, const CView& mean,
                                                 const CView& rstd, const CView& gain, const CView& branch,
                                                 const CView& gamma, const RowCodes& codes);
  static MatrixSizes l2_normalize_forward(const char* op, const CView& y, const CView& inverse_norm,
                                          const CView& x);
  static MatrixSizes l2_normalize_backward(const char* op, const Sink& dx, const CView& dy, const CView& y,
                                           const CView& inverse_norm);
  static void gelu_forward(const char* op, const CView& y, const CView& x);
  static void gelu_backward(const char* op, const Sink& dx, const CView& dy, const CView& x);

  // ---- products ----
  static ProductSizes matmul(const char* op, const Sink& c, const CView& a, bool a_transposed, const CView& b,
                             bool b_transposed);
  static ProductSizes linear_forward(const char* op, const CView& y, const CView& x, const CView& w,
                                     const CView& bias);
  static ProductSizes linear_backward_input(const char* op, const Sink& dx, const CView& dy, const CView& w);
  static ProductSizes linear_backward_weight(const char* op, const Sink& dw, const Sink& dbias,
                                             const CView& dy, const CView& x);
  static MatrixSizes linear_gelu_forward(const char* op, const CView& y, const CView& preactivation,
                                         const CView& x, const CView& w, const CView& bias);
  static MatrixSizes linear_gelu_backward_input(const char* op, const Sink& dpreactivation, const CView& y,
                                                const CView& dy, const CView& w, const CView& preactivation);
  static HeadSizes attention_forward(const char* op, const CView& out, const CView& lse, const CView& qkv,
                                     int64_t heads);
  static HeadSizes attention_backward(const char* op, const Sink& dqkv, const CView& dout, const CView& qkv,
                                      const CView& out, const CView& lse, int64_t heads);
};

}  // namespace switchback
