// contrastive.cpp: CLIP's softmax loss, own rows against everybody's columns.
//
//   l_ij = e^s I_i·T_j,   loss = 1/(2N) Σ_{i own} [ lse_j(l_ij) - l_ii + lse_j(l_ji) - l_ii ]
//   g_ij = (e^(l_ij - image_lse_i) + e^(l_ij - text_lse_j) - 2δ_ij)/(2N) dloss
//   dI_i = e^s Σ_j g_ij T_j,   dT_i = e^s Σ_j g_ji I_j
//
// Both directions are the same work with the sides exchanged: "one side" below. Per-row results (loss,
// dscale) are kept in R and summed in f64 in order of rows, so they have the same bits for any number of
// threads. images, texts (B, E), all_images, all_texts (N, E), lse (B), all lse (N).
#include "kernels/cpu/logits.h"

namespace switchback {
namespace {

// lse_j of the logits of own rows; returns Σ_i (lse_i - l_ii).
template <class R>
double forward_side(R* lse, const R* own, const R* all, const PairSizes& s, R scale, int64_t first_row) {
  Tensor losses({s.own}, dtype_of<R>);
  R* loss = static_cast<R*>(losses.data());
  for_logit_rows<R>(
      own, all, s,
      [&](int64_t i, R* row) {
        R largest = row[0] * scale;
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < s.all; ++j) largest = std::max(largest, row[j] * scale);
        R sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < s.all; ++j) sum += exp_of(row[j] * scale - largest);
        lse[i] = largest + std::log(sum);
        loss[i] = lse[i] - row[first_row + i] * scale;
      },
      [](int64_t, int64_t, R*) {});
  double total = 0;
  for (int64_t i = 0; i < s.own; ++i) total += static_cast<double>(loss[i]);
  return total;
}

// d own rows; returns Σ_i Σ_j [softmax_ij - δ_ij] l_ij, the part of dscale that belongs to this side's
// softmax.
template <class R>
double backward_side(const Sink& down, const R* own, const R* all, const R* all_own_lse,
                     const R* all_other_lse, const PairSizes& s, R scale, R factor, int64_t first_row) {
  Tensor shares({s.own}, dtype_of<R>);
  R* share = static_cast<R*>(shares.data());
  for_logit_rows<R>(
      own, all, s,
      [&](int64_t i, R* row) {
        const R own_lse = all_own_lse[first_row + i], own_logit = row[first_row + i] * scale;
        R weighted = 0;
#pragma omp simd reduction(+ : weighted)
        for (int64_t j = 0; j < s.all; ++j) {
          const R l = row[j] * scale, p = exp_of(l - own_lse);
          weighted += p * l;
          row[j] = (p + exp_of(l - all_other_lse[j])) * (factor * scale);
        }
        row[first_row + i] -= R(2) * factor * scale;
        share[i] = weighted - own_logit;
      },
      [&](int64_t from, int64_t rows, R* block) { block_gradient<R>(down, from, rows, block, all, s); });
  double total = 0;
  for (int64_t i = 0; i < s.own; ++i) total += static_cast<double>(share[i]);
  return total;
}

}  // namespace

void CpuKernels::contrastive_forward(View loss, View image_lse, View text_lse, CView images, CView texts,
                                     CView all_images, CView all_texts, CView logit_scale,
                                     int64_t first_row) {
  const char* op = "contrastive_forward";
  const PairSizes s = pair_sizes(op, images, texts, all_texts, first_row);
  check_matrix(op, "all_images", all_images, s.all, s.width, images.dtype);
  check_vector(op, "loss", loss, 1, images.dtype);
  check_vector(op, "image_lse", image_lse, s.own, images.dtype);
  check_vector(op, "text_lse", text_lse, s.own, images.dtype);
  visit_wide(images.dtype, [&](auto tag) {
    using R = decltype(tag);
    const R scale = static_cast<R>(std::exp(scalar_of(op, "logit_scale", logit_scale)));
    const double sum =
        forward_side<R>(image_lse.as<R>(), images.as<R>(), all_texts.as<R>(), s, scale, first_row) +
        forward_side<R>(text_lse.as<R>(), texts.as<R>(), all_images.as<R>(), s, scale, first_row);
    *loss.as<R>() = static_cast<R>(sum / (2.0 * static_cast<double>(s.all)));
  });
}

void CpuKernels::contrastive_backward(Sink dimages, Sink dtexts, Sink dlogit_scale, CView dloss, CView images,
                                      CView texts, CView all_images, CView all_texts, CView all_image_lse,
                                      CView all_text_lse, CView logit_scale, int64_t first_row) {
  const char* op = "contrastive_backward";
  const PairSizes s = pair_sizes(op, images, texts, all_texts, first_row);
  check_matrix(op, "all_images", all_images, s.all, s.width, images.dtype);
  check_vector(op, "all_image_lse", all_image_lse, s.all, images.dtype);
  check_vector(op, "all_text_lse", all_text_lse, s.all, images.dtype);
  check_sink(op, "dimages", dimages, s.own, s.width, images.dtype);
  check_sink(op, "dtexts", dtexts, s.own, s.width, images.dtype);
  const double factor = scalar_of(op, "dloss", dloss) / (2.0 * static_cast<double>(s.all));
  visit_wide(images.dtype, [&](auto tag) {
    using R = decltype(tag);
    const R scale = static_cast<R>(std::exp(scalar_of(op, "logit_scale", logit_scale)));
    const R *image_lse = all_image_lse.as<R>(), *text_lse = all_text_lse.as<R>();
    double share = 0;
    if (dimages || dlogit_scale)
      share += backward_side<R>(dimages, images.as<R>(), all_texts.as<R>(), image_lse, text_lse, s, scale,
                                static_cast<R>(factor), first_row);
    if (dtexts || dlogit_scale)
      share += backward_side<R>(dtexts, texts.as<R>(), all_images.as<R>(), text_lse, image_lse, s, scale,
                                static_cast<R>(factor), first_row);
    put_scalar(op, dlogit_scale, share * factor);
  });
}

}  // namespace switchback
