// contrastive.cu: CLIP's softmax loss, own rows against everybody's columns.
//
//   l_ij = e^s I_i·T_j,   loss = 1/(2N) Σ_{i own} [ lse_j(l_ij) - l_ii + lse_j(l_ji) - l_ii ]
//   g_ij = (e^(l_ij - image_lse_i) + e^(l_ij - text_lse_j) - 2δ_ij)/(2N) dloss
//   dI_i = e^s Σ_j g_ij T_j,   dT_i = e^s Σ_j g_ji I_j
//
// Both directions are the same work with the sides exchanged: "one side" below. logit_scale and dloss are
// read on the device. images, texts (B, E), all_images, all_texts (N, E), lse (B), all lse (N).
#include "kernels/cuda/logits.cuh"

namespace switchback::cuda {
namespace {

// One block a row of similarities: lse[i], loss[i] = lse[i] - l_ii.
__global__ void __launch_bounds__(row_threads)
    row_lse(float* lse, float* loss, const float* similarities, int64_t columns, const float* logit_scale,
            int64_t first_match) {
  const float* row = similarities + blockIdx.x * columns;
  const float scale = expf(*logit_scale);
  float largest = -INFINITY;
  for (int64_t j = threadIdx.x; j < columns; j += row_threads) largest = fmaxf(largest, row[j] * scale);
  largest = block_max(largest);
  float sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += row_threads)
    sum += expf(row[j] * scale - largest);  // NaN travels on
  sum = block_sum<row_threads>(sum);
  if (threadIdx.x > 0) return;
  const float value = largest + logf(sum);
  lse[blockIdx.x] = value;
  loss[blockIdx.x] = value - row[first_match + blockIdx.x] * scale;
}

// One block a row: similarities become dloss/d similarity; share[i] = Σ_j [softmax_ij - δ_ij] l_ij of this
// side.
__global__ void __launch_bounds__(row_threads)
row_gradient(float* share, float* similarities, int64_t columns, const float* own_lse, const float* other_lse,
             const float* logit_scale, const float* dloss, int64_t first_match) {
  float* row = similarities + blockIdx.x * columns;
  const int64_t match = first_match + blockIdx.x;
  const float scale = expf(*logit_scale), lse = own_lse[match];
  const float factor = *dloss / (2.0f * static_cast<float>(columns)) * scale;
  float weighted = 0;
  for (int64_t j = threadIdx.x; j < columns; j += row_threads) {
    const float l = row[j] * scale, p = expf(l - lse), hit = j == match ? 1.0f : 0.0f;
    weighted += p * l;
    weighted -= hit * l;
    row[j] = (p + expf(l - other_lse[j]) - 2.0f * hit) * factor;
  }
  weighted = block_sum<row_threads>(weighted);
  if (threadIdx.x == 0) share[blockIdx.x] = weighted;
}

}  // namespace

void CudaKernels::contrastive_forward(View loss, View image_lse, View text_lse, CView images, CView texts,
                                      CView all_images, CView all_texts, CView logit_scale,
                                      int64_t first_row) {
  const char* op = "contrastive_forward";
  const PairSizes s = pair_sizes(op, images, texts, all_texts, first_row);
  check_matrix(op, "all_images", all_images, s.all, s.width, DType::f32);
  check_scalar(op, "loss", loss, DType::f32);
  check_scalar(op, "logit_scale", logit_scale, DType::f32);
  check_vector(op, "image_lse", image_lse, s.own, DType::f32);
  check_vector(op, "text_lse", text_lse, s.own, DType::f32);
  const Tensor losses = scratch({2, s.own});
  const auto side = [&](float* lse, float* row_loss, const CView& own, const CView& all) {
    for_logit_blocks(*this, own, all, s, [&](int64_t from, int64_t rows, const float* block) {
      row_lse<<<blocks_for(rows, 1), row_threads, 0, stream_>>>(lse + from, row_loss + from, block, s.all,
                                                                data<float>(logit_scale), first_row + from);
      check_launch(op);
    });
  };
  side(data<float>(image_lse), data<float>(losses), images, all_texts);
  side(data<float>(text_lse), data<float>(losses) + s.own, texts, all_images);
  finish_scalar<<<1, 1024, 0, stream_>>>(out_of<float>(loss), data<float>(losses), 2 * s.own,
                                         1 / (2.0 * static_cast<double>(s.all)), nullptr);
  check_launch(op);
}

void CudaKernels::contrastive_backward(Sink dimages, Sink dtexts, Sink dlogit_scale, CView dloss,
                                       CView images, CView texts, CView all_images, CView all_texts,
                                       CView all_image_lse, CView all_text_lse, CView logit_scale,
                                       int64_t first_row) {
  const char* op = "contrastive_backward";
  const PairSizes s = pair_sizes(op, images, texts, all_texts, first_row);
  check_matrix(op, "all_images", all_images, s.all, s.width, DType::f32);
  check_vector(op, "all_image_lse", all_image_lse, s.all, DType::f32);
  check_vector(op, "all_text_lse", all_text_lse, s.all, DType::f32);
  check_sink(op, "dimages", dimages, s.own, s.width, DType::f32);
  check_sink(op, "dtexts", dtexts, s.own, s.width, DType::f32);
  check_scalar(op, "dloss", dloss, DType::f32);
  check_scalar(op, "logit_scale", logit_scale, DType::f32);
  if (dlogit_scale) check_scalar(op, "dlogit_scale", dlogit_scale.to, DType::f32);
  const Tensor shares = scratch({2, s.own});
  const auto side = [&](const Sink& down, float* share, const CView& own, const CView& all,
                        const CView& own_lse, const CView& other_lse) {
    if (!down && !dlogit_scale) return;
    for_logit_blocks(*this, own, all, s, [&](int64_t from, int64_t rows, float* block) {
      row_gradient<<<blocks_for(rows, 1), row_threads, 0, stream_>>>(
          share + from, block, s.all, data<float>(own_lse), data<float>(other_lse), data<float>(logit_scale),
          data<float>(dloss), first_row + from);
      check_launch(op);
      block_gradient(*this, down, from, rows, block, all, s);
    });
  };
  side(dimages, data<float>(shares), images, all_texts, all_image_lse, all_text_lse);
  side(dtexts, data<float>(shares) + s.own, texts, all_images, all_text_lse, all_image_lse);
  if (!dlogit_scale) return;
  finish_scalar<<<1, 1024, 0, stream_>>>(out_of<float>(dlogit_scale), data<float>(shares), 2 * s.own,
                                         1 / (2.0 * static_cast<double>(s.all)), data<float>(dloss));
  check_launch(op);
}

}  // namespace switchback::cuda
