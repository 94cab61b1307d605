#include "kernels/preconditions.h"

#include <utility>

namespace switchback {
namespace {

// What sums, means and features of tensors of this type are held in.
template <Device::Kind kind>
constexpr DType wide(DType dtype) {
  return kind == Device::cpu ? statistics_dtype(dtype) : DType::f32;
}

SequenceSizes sequence_sizes(const char* op, const char* name, const CView& x) {
  CHECK(x.shape.rank() == 3, op, ": ", name, " is ", x.shape, ", it must be (B, T, C)");
  return {x.shape[0], x.shape[1], x.shape[2]};
}

// Without `keep` all patches stand in their order.
VisionSizes vision_sizes(const char* op, const CView& x) {
  CHECK(x.shape.rank() == 3 && x.shape[1] >= 1, op, ": x is ", x.shape, ", it must be (B, K+1, C)");
  return {x.shape[0], x.shape[1] - 1, x.shape[2], 1};
}

template <Device::Kind kind>
HeadSizes head_sizes(const char* op, const CView& qkv, int64_t heads) {
  CHECK(qkv.shape.rank() == 3 && qkv.cols() % 3 == 0, op, ": qkv is ", qkv.shape, ", it must be (B, T, 3C)");
  const int64_t channels = qkv.cols() / 3;
  CHECK(heads > 0 && channels % heads == 0, op, ": ", channels, " channels of qkv ", qkv.shape,
        " do not divide into ", heads, " heads");
  Checks<kind>::place(op, "qkv", qkv, qkv.dtype);
  return {qkv.shape[0], qkv.shape[1], channels, heads, channels / heads};
}

template <Device::Kind kind>
void check_codes(const char* op, const RowCodes& codes, const MatrixSizes& s, DType values) {
  if (!codes) return;
  Checks<kind>::matrix(op, "codes", codes.codes, s.rows, s.width, code_dtype(codes.format, values));
  Checks<kind>::vector(op, "scale", codes.scale, s.rows, DType::f32);
}

}  // namespace

// ---- embedding, pooling, patches --------------------------------------------------------------------------
template <Device::Kind kind>
VisionSizes Preconditions<kind>::vision_embed_forward(const char* op, const CView& x, const CView& patches,
                                                      const CView& class_embedding, const CView& positions,
                                                      const CView& keep) {
  VisionSizes s = vision_sizes(op, x);
  s.places = positions.rows();
  if (keep) Check::matrix(op, "keep", keep, s.samples, s.kept, DType::i32);
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "patches", patches, s.samples * s.kept, s.width, x.dtype);
  Check::vector(op, "class_embedding", class_embedding, s.width, x.dtype);
  Check::matrix(op, "positions", positions, s.places, s.width, x.dtype);
  CHECK(s.places > (keep ? 0 : s.kept), op, ": positions are ", positions.shape, ", x is ", x.shape);
  return s;
}

template <Device::Kind kind>
VisionSizes Preconditions<kind>::vision_embed_backward(const char* op, const Sink& dpatches,
                                                       const Sink& dclass_embedding, const Sink& dpositions,
                                                       const CView& dx, const CView& keep) {
  VisionSizes s = vision_sizes(op, dx);
  if (dpositions) s.places = dpositions.to.rows();
  if (keep) Check::matrix(op, "keep", keep, s.samples, s.kept, DType::i32);
  Check::place(op, "dx", dx, dx.dtype);
  Check::sink(op, "dpatches", dpatches, s.samples * s.kept, s.width, dx.dtype);
  Check::sink_vector(op, "dclass_embedding", dclass_embedding, s.width, dx.dtype);
  Check::sink(op, "dpositions", dpositions, s.places, s.width, dx.dtype);
  CHECK(!dpositions || s.places > (keep ? 0 : s.kept), op, ": dpositions are ", dpositions.to.shape,
        ", dx is ", dx.shape);
  return s;
}

template <Device::Kind kind>
TextSizes Preconditions<kind>::text_embed_forward(const char* op, const CView& x, const CView& table,
                                                  const CView& positions, const CView& tokens) {
  const auto [samples, length, width] = sequence_sizes(op, "x", x);
  const TextSizes s{samples, length, width, table.rows(), positions.rows()};
  Check::place(op, "x", x, x.dtype);
  Check::shape(op, "tokens", tokens, {samples, length}, DType::i32);
  Check::matrix(op, "table", table, s.vocabulary, width, x.dtype);
  Check::matrix(op, "positions", positions, s.places, width, x.dtype);
  CHECK(s.places >= length, op, ": positions are ", positions.shape, ", x is ", x.shape);
  return s;
}

template <Device::Kind kind>
TextSizes Preconditions<kind>::text_embed_backward(const char* op, const Sink& dtable, const Sink& dpositions,
                                                   const CView& dx, const CView& tokens) {
  const auto [samples, length, width] = sequence_sizes(op, "dx", dx);
  const TextSizes s{samples, length, width, dtable ? dtable.to.rows() : 0,
                    dpositions ? dpositions.to.rows() : length};
  Check::place(op, "dx", dx, dx.dtype);
  Check::shape(op, "tokens", tokens, {samples, length}, DType::i32);
  Check::sink(op, "dtable", dtable, s.vocabulary, width, dx.dtype);
  Check::sink(op, "dpositions", dpositions, s.places, width, dx.dtype);
  CHECK(s.places >= length, op, ": dpositions are ", dpositions.to.shape, ", dx is ", dx.shape);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::find_largest_token(const char* op, const CView& place, const CView& tokens) {
  Check::place(op, "tokens", tokens, DType::i32);
  Check::vector(op, "place", place, tokens.rows(), DType::i32);
  return {tokens.rows(), tokens.cols()};
}

template <Device::Kind kind>
SequenceSizes Preconditions<kind>::pool_forward(const char* op, const CView& y, const CView& x,
                                                const CView& place) {
  const SequenceSizes s = sequence_sizes(op, "x", x);
  if (place) Check::vector(op, "place", place, s.samples, DType::i32);
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "y", y, s.samples, s.width, x.dtype);
  return s;
}

template <Device::Kind kind>
SequenceSizes Preconditions<kind>::pool_backward(const char* op, const Sink& dx, const CView& dy,
                                                 const CView& place) {
  const SequenceSizes s = sequence_sizes(op, "x", dx.to);
  if (place) Check::vector(op, "place", place, s.samples, DType::i32);
  Check::matrix(op, "dy", dy, s.samples, s.width, dy.dtype);
  Check::sink(op, "dx", dx, s.samples * s.tokens, s.width, dy.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::choose_patches(const char* op, const CView& keep, int64_t patches,
                                                const CView& step) {
  Check::place(op, "keep", keep, DType::i32);
  Check::vector(op, "step", step, 1, DType::i64);
  CHECK(keep.cols() <= patches, op, ": keep is ", keep.shape, " of ", patches, " patches");
  return {keep.rows(), keep.cols()};
}

template <Device::Kind kind>
PatchSizes Preconditions<kind>::extract_patches(const char* op, const CView& patches, const CView& pixels,
                                                const CView& keep, int64_t patch_size) {
  Check::place(op, "pixels", pixels, DType::u8);
  CHECK(pixels.shape.rank() == 4 && pixels.cols() == 3, op, ": pixels are ", pixels.shape,
        ", they must be (B, H, W, 3)");
  PatchSizes s{pixels.shape[0], pixels.shape[1], pixels.shape[2], 0, 0};
  CHECK(patch_size > 0 && s.height % patch_size == 0 && s.width % patch_size == 0, op, ": images of ",
        pixels.shape, " do not divide into patches of ", patch_size);
  s.count = s.height / patch_size * (s.width / patch_size);
  s.kept = keep ? keep.cols() : s.count;
  if (keep) Check::matrix(op, "keep", keep, s.samples, s.kept, DType::i32);
  Check::matrix(op, "patches", patches, s.samples * s.kept, 3 * patch_size * patch_size, patches.dtype);
  return s;
}

// ---- row by row -------------------------------------------------------------------------------------------
template <Device::Kind kind>
MatrixSizes Preconditions<kind>::residual_forward(const char* op, const CView& y, const CView& x,
                                                  const CView& branch, const CView& gamma) {
  const MatrixSizes s{x.rows(), x.cols()};
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "y", y, s.rows, s.width, x.dtype);
  Check::matrix(op, "branch", branch, s.rows, s.width, x.dtype);
  if (gamma) Check::vector(op, "gamma", gamma, s.width, x.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::residual_backward(const char* op, const Sink& dbranch, const Sink& dgamma,
                                                   const CView& dy, const CView& branch, const CView& gamma) {
  const MatrixSizes s{dy.rows(), dy.cols()};
  Check::place(op, "dy", dy, dy.dtype);
  Check::sink(op, "dbranch", dbranch, s.rows, s.width, dy.dtype);
  Check::sink_vector(op, "dgamma", dgamma, s.width, dy.dtype);
  if (gamma) Check::vector(op, "gamma", gamma, s.width, dy.dtype);
  if (dgamma) Check::matrix(op, "branch", branch, s.rows, s.width, dy.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::layernorm_forward(const char* op, const CView& y, const CView& mean,
                                                   const CView& rstd, const CView& x, const CView& gain,
                                                   const CView& bias) {
  const MatrixSizes s{x.rows(), x.cols()};
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "y", y, s.rows, s.width, x.dtype);
  Check::vector(op, "mean", mean, s.rows, wide<kind>(x.dtype));
  Check::vector(op, "rstd", rstd, s.rows, wide<kind>(x.dtype));
  Check::vector(op, "gain", gain, s.width, x.dtype);
  Check::vector(op, "bias", bias, s.width, x.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::layernorm_backward(const char* op, const Sink& dx, const Sink& dgain,
                                                    const Sink& dbias, const CView& dy, const CView& x,
                                                    const CView& mean, const CView& rstd, const CView& gain) {
  const MatrixSizes s{x.rows(), x.cols()};
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "dy", dy, s.rows, s.width, x.dtype);
  Check::vector(op, "mean", mean, s.rows, wide<kind>(x.dtype));
  Check::vector(op, "rstd", rstd, s.rows, wide<kind>(x.dtype));
  Check::vector(op, "gain", gain, s.width, x.dtype);
  Check::sink(op, "dx", dx, s.rows, s.width, x.dtype);
  Check::sink_vector(op, "dgain", dgain, s.width, x.dtype);
  Check::sink_vector(op, "dbias", dbias, s.width, x.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::residual_layernorm_forward(const char* op, const CView& sum,
                                                            const CView& normed, const CView& mean,
                                                            const CView& rstd, const CView& x,
                                                            const CView& branch, const CView& gamma,
                                                            const CView& gain, const CView& bias,
                                                            const RowCodes& codes) {
  const MatrixSizes s{x.rows(), x.cols()};
  Check::place(op, "x", x, x.dtype);
  for (const auto& [name, view] : {std::pair("branch", branch), {"sum", sum}, {"normed", normed}})
    Check::matrix(op, name, view, s.rows, s.width, x.dtype);
  for (const auto& [name, view] : {std::pair("gain", gain), {"bias", bias}})
    Check::vector(op, name, view, s.width, x.dtype);
  if (gamma) Check::vector(op, "gamma", gamma, s.width, x.dtype);
  Check::vector(op, "mean", mean, s.rows, wide<kind>(x.dtype));
  Check::vector(op, "rstd", rstd, s.rows, wide<kind>(x.dtype));
  check_codes<kind>(op, codes, s, x.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::residual_layernorm_backward(
    const char* op, const CView& dx, const Sink& dbranch, const Sink& dbranch_sum, const Sink& dgamma,
    const Sink& dgain, const Sink& dbias, const CView& dsum, const CView& dnormed, const CView& sum,
    const CView& mean, const CView& rstd, const CView& gain, const CView& branch, const CView& gamma,
    const RowCodes& codes) {
  const MatrixSizes s{sum.rows(), sum.cols()};
  Check::place(op, "sum", sum, sum.dtype);
  for (const auto& [name, view] : {std::pair("dx", dx), {"dnormed", dnormed}})
    Check::matrix(op, name, view, s.rows, s.width, sum.dtype);
  for (const auto& [name, view] : {std::pair("dsum", dsum), {"branch", branch}})
    if (view) Check::matrix(op, name, view, s.rows, s.width, sum.dtype);
  if (gamma) Check::vector(op, "gamma", gamma, s.width, sum.dtype);
  Check::vector(op, "gain", gain, s.width, sum.dtype);
  Check::vector(op, "mean", mean, s.rows, wide<kind>(sum.dtype));
  Check::vector(op, "rstd", rstd, s.rows, wide<kind>(sum.dtype));
  Check::sink(op, "dbranch", dbranch, s.rows, s.width, sum.dtype);
  for (const auto& [name, sink] : {std::pair("dbranch_sum", dbranch_sum), {"dgamma", dgamma},
                                   {"dgain", dgain}, {"dbias", dbias}})
    Check::sink_vector(op, name, sink, s.width, sum.dtype);
  check_codes<kind>(op, codes, s, sum.dtype);
  CHECK(!codes || !gamma || (dbranch && !dbranch.accumulate), op,
        ": codes of a branch's gradient that is not written here");
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::l2_normalize_forward(const char* op, const CView& y,
                                                      const CView& inverse_norm, const CView& x) {
  const MatrixSizes s{x.rows(), x.cols()};
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "y", y, s.rows, s.width, wide<kind>(x.dtype));
  Check::vector(op, "inverse_norm", inverse_norm, s.rows, wide<kind>(x.dtype));
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::l2_normalize_backward(const char* op, const Sink& dx, const CView& dy,
                                                       const CView& y, const CView& inverse_norm) {
  const MatrixSizes s{y.rows(), y.cols()};
  Check::place(op, "y", y, wide<kind>(dx.to.dtype));
  Check::matrix(op, "dy", dy, s.rows, s.width, y.dtype);
  Check::vector(op, "inverse_norm", inverse_norm, s.rows, y.dtype);
  Check::sink(op, "dx", dx, s.rows, s.width, dx.to.dtype);
  return s;
}

template <Device::Kind kind>
void Preconditions<kind>::gelu_forward(const char* op, const CView& y, const CView& x) {
  Check::place(op, "x", x, x.dtype);
  Check::vector(op, "y", y, x.size(), x.dtype);
}

template <Device::Kind kind>
void Preconditions<kind>::gelu_backward(const char* op, const Sink& dx, const CView& dy, const CView& x) {
  Check::place(op, "x", x, x.dtype);
  Check::vector(op, "dy", dy, x.size(), x.dtype);
  Check::sink_vector(op, "dx", dx, x.size(), x.dtype);
}

// ---- products ---------------------------------------------------------------------------------------------
template <Device::Kind kind>
ProductSizes Preconditions<kind>::matmul(const char* op, const Sink& c, const CView& a, bool a_transposed,
                                         const CView& b, bool b_transposed) {
  const ProductSizes s{a_transposed ? a.cols() : a.rows(), b_transposed ? b.rows() : b.cols(),
                       a_transposed ? a.rows() : a.cols()};
  const int64_t inner = b_transposed ? b.cols() : b.rows();
  CHECK(s.k == inner, op, ": a is ", a.shape, a_transposed ? " transposed" : "", ", b is ", b.shape,
        b_transposed ? " transposed" : "", ": inner sizes ", s.k, " and ", inner);
  Check::place(op, "a", a, a.dtype);
  Check::place(op, "b", b, a.dtype);
  Check::sink(op, "c", c, s.m, s.n, a.dtype);
  return s;
}

template <Device::Kind kind>
ProductSizes Preconditions<kind>::linear_forward(const char* op, const CView& y, const CView& x,
                                                 const CView& w, const CView& bias) {
  const ProductSizes s{x.rows(), w.rows(), x.cols()};
  Check::place(op, "x", x, x.dtype);
  Check::matrix(op, "w", w, s.n, s.k, x.dtype);
  Check::matrix(op, "y", y, s.m, s.n, x.dtype);
  if (bias) Check::vector(op, "bias", bias, s.n, x.dtype);
  return s;
}

template <Device::Kind kind>
ProductSizes Preconditions<kind>::linear_backward_input(const char* op, const Sink& dx, const CView& dy,
                                                        const CView& w) {
  const ProductSizes s{dy.rows(), w.cols(), dy.cols()};
  Check::place(op, "dy", dy, dy.dtype);
  Check::matrix(op, "w", w, s.k, s.n, dy.dtype);
  Check::sink(op, "dx", dx, s.m, s.n, dy.dtype);
  return s;
}

template <Device::Kind kind>
ProductSizes Preconditions<kind>::linear_backward_weight(const char* op, const Sink& dw, const Sink& dbias,
                                                         const CView& dy, const CView& x) {
  const ProductSizes s{dy.cols(), x.cols(), dy.rows()};
  Check::place(op, "dy", dy, dy.dtype);
  Check::matrix(op, "x", x, s.k, s.n, dy.dtype);
  Check::sink(op, "dw", dw, s.m, s.n, dy.dtype);
  Check::sink_vector(op, "dbias", dbias, s.m, dy.dtype);
  return s;
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::linear_gelu_forward(const char* op, const CView& y,
                                                     const CView& preactivation, const CView& x,
                                                     const CView& w, const CView& bias) {
  const ProductSizes s = linear_forward(op, y, x, w, bias);
  if (preactivation) Check::matrix(op, "preactivation", preactivation, s.m, s.n, x.dtype);
  return {s.m, s.n};
}

template <Device::Kind kind>
MatrixSizes Preconditions<kind>::linear_gelu_backward_input(const char* op, const Sink& dpreactivation,
                                                            const CView& y, const CView& dy, const CView& w,
                                                            const CView& preactivation) {
  const MatrixSizes s{dy.rows(), w.cols()};
  Check::matrix(op, "preactivation", preactivation, s.rows, s.width, dy.dtype);
  Check::sink(op, "dpreactivation", dpreactivation, s.rows, s.width, dy.dtype);
  if (y) Check::matrix(op, "y", y, s.rows, s.width, dy.dtype);
  if (!dpreactivation) return s;
  Check::place(op, "dy", dy, dy.dtype);
  Check::matrix(op, "w", w, dy.cols(), s.width, dy.dtype);
  return s;
}

template <Device::Kind kind>
HeadSizes Preconditions<kind>::attention_forward(const char* op, const CView& out, const CView& lse,
                                                 const CView& qkv, int64_t heads) {
  const HeadSizes s = head_sizes<kind>(op, qkv, heads);
  Check::shape(op, "out", out, {s.samples, s.tokens, s.channels}, qkv.dtype);
  Check::shape(op, "lse", lse, {s.samples, s.heads, s.tokens}, wide<kind>(qkv.dtype));
  return s;
}

template <Device::Kind kind>
HeadSizes Preconditions<kind>::attention_backward(const char* op, const Sink& dqkv, const CView& dout,
                                                  const CView& qkv, const CView& out, const CView& lse,
                                                  int64_t heads) {
  const HeadSizes s = attention_forward(op, out, lse, qkv, heads);
  Check::matrix(op, "dout", dout, s.samples * s.tokens, s.channels, qkv.dtype);
  Check::sink(op, "dqkv", dqkv, s.samples * s.tokens, 3 * s.channels, qkv.dtype);
  return s;
}

template struct Preconditions<Device::cpu>;
template struct Preconditions<Device::cuda>;

}  // namespace switchback
