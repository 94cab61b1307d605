// siglip.cu: the pairwise sigmoid loss of a tile: some images against some texts.
//
//   l_ij = e^s I_i·T_j + b,  z_ij = +1 where j = i + match, else -1
//   loss = 1/N Σ_i Σ_j softplus(-z_ij l_ij)
//   g_ij = -z_ij σ(-z_ij l_ij)/N dloss;  dI_i = e^s Σ_j g_ij T_j,  dT_j = e^s Σ_i g_ij I_i
//   ds = Σ_i Σ_j g_ij (l_ij - b),  db = Σ_i Σ_j g_ij
#include "kernels/cuda/logits.cuh"

namespace switchback::cuda {
namespace {

__global__ void __launch_bounds__(row_threads)
    row_loss(float* loss, const float* similarities, int64_t columns, const float* logit_scale,
             const float* logit_bias, int64_t match_of_first) {
  const float* row = similarities + blockIdx.x * columns;
  const int64_t match = match_of_first + blockIdx.x;
  const float scale = expf(*logit_scale), bias = *logit_bias;
  float sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += row_threads) {
    const float l = row[j] * scale + bias;
    sum += softplus(j == match ? -l : l);
  }
  sum = block_sum<row_threads>(sum);
  if (threadIdx.x == 0) loss[blockIdx.x] = sum;
}

// Similarities become dloss/d similarity; the row's shares of ds and db, before dloss/N.
__global__ void __launch_bounds__(row_threads)
    row_gradient(float* scale_share, float* bias_share, float* similarities, int64_t columns,
                 const float* logit_scale, const float* logit_bias, const float* dloss, int64_t match_of_first,
                 int64_t batch) {
  float* row = similarities + blockIdx.x * columns;
  const int64_t match = match_of_first + blockIdx.x;
  const float scale = expf(*logit_scale), bias = *logit_bias;
  const float factor = *dloss / static_cast<float>(batch) * scale;
  float scale_sum = 0, bias_sum = 0;
  for (int64_t j = threadIdx.x; j < columns; j += row_threads) {
    const float cosine = row[j] * scale, l = cosine + bias;
    const float g = j == match ? -sigmoid(-l) : sigmoid(l);
    scale_sum += g * cosine;
    bias_sum += g;
    row[j] = g * factor;
  }
  scale_sum = block_sum<row_threads>(scale_sum);
  bias_sum = block_sum<row_threads>(bias_sum);
  if (threadIdx.x > 0) return;
  scale_share[blockIdx.x] = scale_sum;
  bias_share[blockIdx.x] = bias_sum;
}

}  // namespace

void CudaKernels::siglip_forward(Sink loss, CView images, CView texts, CView logit_scale, CView logit_bias,
                                 int64_t match, int64_t batch) {
  const char* op = "siglip_forward";
  const PairSizes s = pair_sizes(op, images, texts);
  if (!loss) return;
  check_scalar(op, "loss", loss.to, DType::f32);
  check_scalar(op, "logit_scale", logit_scale, DType::f32);
  check_scalar(op, "logit_bias", logit_bias, DType::f32);
  const Tensor losses = scratch({s.own});
  for_logit_blocks(*this, images, texts, s, [&](int64_t from, int64_t rows, const float* block) {
    row_loss<<<blocks_for(rows, 1), row_threads, 0, stream_>>>(data<float>(losses) + from, block, s.all,
                                                               data<float>(logit_scale),
                                                               data<float>(logit_bias), from + match);
    check_launch(op);
  });
  finish_scalar<<<1, 1024, 0, stream_>>>(out_of<float>(loss), data<float>(losses), s.own,
                                         1 / static_cast<double>(batch), nullptr);
  check_launch(op);
}

void CudaKernels::siglip_backward(Sink dimages, Sink dtexts, Sink dlogit_scale, Sink dlogit_bias, CView dloss,
                                  CView images, CView texts, CView logit_scale, CView logit_bias,
                                  int64_t match, int64_t batch) {
  const char* op = "siglip_backward";
  const PairSizes s = pair_sizes(op, images, texts);
  check_sink(op, "dimages", dimages, s.own, s.width, DType::f32);
  check_sink(op, "dtexts", dtexts, s.all, s.width, DType::f32);
  check_scalar(op, "dloss", dloss, DType::f32);
  check_scalar(op, "logit_scale", logit_scale, DType::f32);
  check_scalar(op, "logit_bias", logit_bias, DType::f32);
  const Tensor shares = scratch({2, s.own});  // of each row: Σ_j g_ij (l_ij - b), then Σ_j g_ij
  float *scale_share = data<float>(shares), *bias_share = scale_share + s.own;
  for_logit_blocks(*this, images, texts, s, [&](int64_t from, int64_t rows, float* block) {
    row_gradient<<<blocks_for(rows, 1), row_threads, 0, stream_>>>(
        scale_share + from, bias_share + from, block, s.all, data<float>(logit_scale),
        data<float>(logit_bias), data<float>(dloss), from + match, batch);
    check_launch(op);
    block_gradient(*this, dimages, from, rows, block, texts, s);
    if (dtexts)  // (C, E) from block (rows, C), seen the other way round, and the block's images
      multiply(*this, data<float>(dtexts.to), dtexts.accumulate || from > 0, {block, true},
               {data<float>(images) + from * s.width}, s.all, s.width, rows);
  });
  const auto finish = [&](const Sink& sink, const float* share) {
    if (!sink) return;
    check_scalar(op, "the sink of a scalar", sink.to, DType::f32);
    finish_scalar<<<1, 1024, 0, stream_>>>(out_of<float>(sink), share, s.own, 1 / static_cast<double>(batch),
                                           data<float>(dloss));
    check_launch(op);
  };
  finish(dlogit_scale, scale_share);
  finish(dlogit_bias, bias_share);
}

}  // namespace switchback::cuda
