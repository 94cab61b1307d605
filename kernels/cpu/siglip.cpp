// siglip.cpp: the pairwise sigmoid loss of a tile: some images against some texts.
//
//   l_ij = e^s I_i·T_j + b,  z_ij = +1 where j = i + match, else -1
//   loss = 1/N Σ_i Σ_j softplus(-z_ij l_ij)
//   g_ij = -z_ij σ(-z_ij l_ij)/N dloss;  dI_i = e^s Σ_j g_ij T_j,  dT_j = e^s Σ_i g_ij I_i
//   ds = Σ_i Σ_j g_ij (l_ij - b),  db = Σ_i Σ_j g_ij
#include "kernels/cpu/logits.h"

namespace switchback {

void CpuKernels::siglip_forward(Sink loss, CView images, CView texts, CView logit_scale, CView logit_bias,
                                int64_t match, int64_t batch) {
  const char* op = "siglip_forward";
  const PairSizes s = pair_sizes(op, images, texts);
  if (!loss) return;
  visit_wide(images.dtype, [&](auto tag) {
    using R = decltype(tag);
    const R scale = static_cast<R>(std::exp(scalar_of(op, "logit_scale", logit_scale)));
    const R bias = static_cast<R>(scalar_of(op, "logit_bias", logit_bias));
    Tensor losses({s.own}, dtype_of<R>);
    R* row_loss = static_cast<R*>(losses.data());
    for_logit_rows<R>(
        images.as<R>(), texts.as<R>(), s,
        [&](int64_t i, R* row) {
          R sum = 0;
          for (int64_t j = 0; j < s.all; ++j) {
            const R l = row[j] * scale + bias;
            sum += softplus(j == i + match ? -l : l);
          }
          row_loss[i] = sum;
        },
        [](int64_t, int64_t, R*) {});
    double total = 0;
    for (int64_t i = 0; i < s.own; ++i) total += static_cast<double>(row_loss[i]);
    put_scalar(op, loss, total / static_cast<double>(batch));
  });
}

void CpuKernels::siglip_backward(Sink dimages, Sink dtexts, Sink dlogit_scale, Sink dlogit_bias, CView dloss,
                                 CView images, CView texts, CView logit_scale, CView logit_bias,
                                 int64_t match, int64_t batch) {
  const char* op = "siglip_backward";
  const PairSizes s = pair_sizes(op, images, texts);
  check_sink(op, "dimages", dimages, s.own, s.width, images.dtype);
  check_sink(op, "dtexts", dtexts, s.all, s.width, images.dtype);
  const double factor = scalar_of(op, "dloss", dloss) / static_cast<double>(batch);
  visit_wide(images.dtype, [&](auto tag) {
    using R = decltype(tag);
    const R scale = static_cast<R>(std::exp(scalar_of(op, "logit_scale", logit_scale)));
    const R bias = static_cast<R>(scalar_of(op, "logit_bias", logit_bias));
    Tensor shares({2, s.own}, dtype_of<R>);  // of each row: Σ_j g_ij (l_ij - b) and Σ_j g_ij
    R *scale_share = static_cast<R*>(shares.data()), *bias_share = scale_share + s.own;
    for_logit_rows<R>(
        images.as<R>(), texts.as<R>(), s,
        [&](int64_t i, R* row) {
          const int64_t pair = i + match;
          const bool has_pair = pair >= 0 && pair < s.all;
          const R cosine_of_pair = has_pair ? row[pair] * scale : R(0);
          R scale_sum = 0, bias_sum = 0;
#pragma omp simd reduction(+ : scale_sum, bias_sum)
          for (int64_t j = 0; j < s.all; ++j) {  // as if no pair matched
            const R cosine = row[j] * scale, g = sigmoid(cosine + bias);
            scale_sum += j == pair ? R(0) : g * cosine;
            bias_sum += j == pair ? R(0) : g;
            row[j] = g * (static_cast<R>(factor) * scale);
          }
          if (has_pair) {
            const R g = -sigmoid(-(cosine_of_pair + bias));
            row[pair] = g * (static_cast<R>(factor) * scale);
            scale_sum += g * cosine_of_pair;
            bias_sum += g;
          }
          scale_share[i] = scale_sum;
          bias_share[i] = bias_sum;
        },
        [&](int64_t from, int64_t rows, R* block) {
          block_gradient<R>(dimages, from, rows, block, texts.as<R>(), s);
          if (dtexts)  // (C, E) from block (rows, C), seen the other way round, and the block's images
            multiply_in_parallel<R>({dtexts.to.as<R>(), s.width}, dtexts.accumulate || from > 0,
                                    {block, s.all, true}, {images.as<R>() + from * s.width, s.width}, s.all,
                                    s.width, rows);
        });
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
