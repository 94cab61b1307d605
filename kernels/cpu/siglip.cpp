// siglip.cpp: the pairwise sigmoid loss, own rows against everybody's columns.
//
//   l_ij = e^s I_i·T_j + b,  z_ij = +1 where i = j, else -1:   loss = 1/N Σ_{i own} Σ_j softplus(-z_ij l_ij)
//   g_ij = -z_ij σ(-z_ij l_ij)/N dloss;  dI_i = e^s Σ_j g_ij T_j,  dT_i = e^s Σ_j g_ji I_j
//   ds = Σ_{i own} Σ_j g_ij (l_ij - b),  db = Σ_{i own} Σ_j g_ij
#include "kernels/cpu/logits.h"

namespace switchback {

void CpuKernels::siglip_forward(View loss, CView images, CView texts, CView all_texts, CView logit_scale,
                                CView logit_bias, int64_t first_row) {
  const char* op = "siglip_forward";
  const PairSizes s = pair_sizes(op, images, texts, all_texts, first_row);
  check_vector(op, "loss", loss, 1, images.dtype);
  visit_wide(images.dtype, [&](auto tag) {
    using R = decltype(tag);
    const R scale = static_cast<R>(std::exp(scalar_of(op, "logit_scale", logit_scale)));
    const R bias = static_cast<R>(scalar_of(op, "logit_bias", logit_bias));
    Tensor losses({s.own}, dtype_of<R>);
    R* row_loss = static_cast<R*>(losses.data());
    for_logit_rows<R>(
        images.as<R>(), all_texts.as<R>(), s,
        [&](int64_t i, R* row) {
          R sum = 0;
          for (int64_t j = 0; j < s.all; ++j) {
            const R l = row[j] * scale + bias;
            sum += softplus(j == first_row + i ? -l : l);
          }
          row_loss[i] = sum;
        },
        [](int64_t, int64_t, R*) {});
    double total = 0;
    for (int64_t i = 0; i < s.own; ++i) total += static_cast<double>(row_loss[i]);
    *loss.as<R>() = static_cast<R>(total / static_cast<double>(s.all));
  });
}

void CpuKernels::siglip_backward(Sink dimages, Sink dtexts, Sink dlogit_scale, Sink dlogit_bias, CView dloss,
                                 CView images, CView texts, CView all_images, CView all_texts,
                                 CView logit_scale, CView logit_bias, int64_t first_row) {
  const char* op = "siglip_backward";
  const PairSizes s = pair_sizes(op, images, texts, all_texts, first_row);
  check_matrix(op, "all_images", all_images, s.all, s.width, images.dtype);
  check_sink(op, "dimages", dimages, s.own, s.width, images.dtype);
  check_sink(op, "dtexts", dtexts, s.own, s.width, images.dtype);
  const double factor = scalar_of(op, "dloss", dloss) / static_cast<double>(s.all);
  visit_wide(images.dtype, [&](auto tag) {
    using R = decltype(tag);
    const R scale = static_cast<R>(std::exp(scalar_of(op, "logit_scale", logit_scale)));
    const R bias = static_cast<R>(scalar_of(op, "logit_bias", logit_bias));
    Tensor shares({2, s.own}, dtype_of<R>);  // of the images' rows: Σ_j g_ij (l_ij - b) and Σ_j g_ij
    R *scale_share = static_cast<R*>(shares.data()), *bias_share = scale_share + s.own;
    const auto side = [&](const Sink& down, const R* own, const R* all, R* scale_out, R* bias_out) {
      for_logit_rows<R>(
          own, all, s,
          [&](int64_t i, R* row) {
            const int64_t match = first_row + i;
            const R own_cosine = row[match];
            R scale_sum = 0, bias_sum = 0;
#pragma omp simd reduction(+ : scale_sum, bias_sum)
            for (int64_t j = 0; j < s.all; ++j) {  // as if no pair matched
              const R cosine = row[j] * scale, g = sigmoid(cosine + bias);
              scale_sum += j == match ? R(0) : g * cosine;
              bias_sum += j == match ? R(0) : g;
              row[j] = g * (static_cast<R>(factor) * scale);
            }
            const R cosine = own_cosine * scale, g = -sigmoid(-(cosine + bias));
            row[match] = g * (static_cast<R>(factor) * scale);
            scale_out[i] = scale_sum + g * cosine;
            bias_out[i] = bias_sum + g;
          },
          [&](int64_t from, int64_t rows, R* block) { block_gradient<R>(down, from, rows, block, all, s); });
    };
    if (dtexts)
      side(dtexts, texts.as<R>(), all_images.as<R>(), scale_share, bias_share);  // shares: overwritten below
    if (dimages || dlogit_scale || dlogit_bias)
      side(dimages, images.as<R>(), all_texts.as<R>(), scale_share, bias_share);
    if (!dlogit_scale && !dlogit_bias) return;
    double scale_total = 0, bias_total = 0;
    for (int64_t i = 0; i < s.own; ++i) {
      scale_total += static_cast<double>(scale_share[i]);
      bias_total += static_cast<double>(bias_share[i]);
    }
    put_scalar(op, dlogit_scale, scale_total * factor);
    put_scalar(op, dlogit_bias, bias_total * factor);
  });
}

}  // namespace switchback
