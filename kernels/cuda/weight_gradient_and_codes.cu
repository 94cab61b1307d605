// weight_gradient_and_codes.cu: the weight gradient in 16 bits, and beside it a sweep over dy: the bias
// gradient, and codes of dy's rows.
//
//   dw (N, K) = dyᵀ x,   sums (N) = Σ_m dy,   codes (M, N), scale (M) of dy (M, N);   x (M, K)
//
// The product waits for the tensor cores, the sweep for memory, and neither needs the other's result. So the
// product leaves some multiprocessors to the sweep (quantize_beside.cuh), which runs on a stream of its own:
// it begins with the product, and what comes after waits for both. Under full load the chip lowers its clock
// to stay within its power, and fewer multiprocessors run faster, so what is given away costs less than its
// share, unless the product's tiles just filled a round of the chip. How many, or whether the sweep had
// better come first, is timed once for a shape and remembered like the plans of products: the order of the
// sums depends on it.
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/gemm_weight_gradient.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

// As many as end together with the product: it takes 2 M N K operations at 720 TFLOP/s, a multiprocessor
// encodes M N elements at 25 a nanosecond, so K alone decides. 0: not worth a trial.
double wanted_beside(int64_t M, int64_t N, int64_t K) {
  return M < 2048 || N < 512 || K < 768 ? 0 : 720e12 / (2 * static_cast<double>(K) * 25e9);
}

}  // namespace

bool CudaKernels::weight_gradient_beside(const GemmWeightGradient& product, const QuantizeBeside& codes,
                                         Sink sums) {
  QuantizeBeside sweep = codes;
  sweep.x = product.dy, sweep.rows = product.M, sweep.width = product.N;
  sweep.multiprocessors = product.left;
  if (product.left == 0 || !quantize_beside_serves(sweep)) return false;
  const int64_t count = partials_beside(sweep);
  const Tensor partials = scratch({count, product.N});  // nobody else's until the streams have joined
  const auto begin = [&] {
    fork_beside([&](cudaStream_t stream) {
      quantize_beside(sweep, data<float>(partials), stream);
      if (sums)
        add_partials("sums beside", *this, {sums}, data<float>(partials), count, 1, product.N, stream);
    });
  };
  if (!products_->weight_gradient_beside(product, begin)) return false;
  join_beside();
  return true;
}

void CudaKernels::linear_backward_weight_and_codes(Sink dw, View codes, View scale, Sink sums, CView dy,
                                                   CView x, Format format) {
  const char* op = "linear_backward_weight_and_codes";
  const auto [n, k, m] = Require::linear_backward_weight(op, dw, sums, dy, x);  // of the product dyᵀ x
  check_matrix(op, "codes", codes, m, n, code_dtype(format, dy.dtype));
  check_vector(op, "scale", scale, m, DType::f32);

  // On so many multiprocessors; 0: one after the other.
  const auto run = [&](int left, const Sink& to_dw, const Sink& to_sums) {
    if (left > 0) {
      GemmWeightGradient product{m, n, k, dy.data, x.data};
      product.dw = static_cast<float*>(to_dw.to.data), product.accumulate_dw = to_dw.accumulate;
      product.left = left;
      QuantizeBeside sweep;
      sweep.codes = codes.data, sweep.scale = static_cast<float*>(scale.data), sweep.format = format;
      return weight_gradient_beside(product, sweep, to_sums);
    }
    quantize(codes, {}, scale, dy, {}, format, Granularity::row, to_sums);
    linear_backward_weight(to_dw, {}, dy, x);
    return true;
  };
  const bool possible = dw && dy.dtype == DType::bf16 && dw.to.dtype == DType::f32;
  const std::vector<int> candidates = possible ? candidates_beside(wanted_beside(m, n, k)) : std::vector{0};
  int left = candidates[0];
  if (candidates.size() > 1) {
    Tensor spare_dw, spare_sums;  // what is added to must not be added to in trials
    Sink to_dw = dw, to_sums = sums;
    const std::string name = concat("codes-beside-", m, 'x', n, 'x', k, '-', format);
    left = products_->choose(name, candidates, [&](int count) {
      if (dw.accumulate && !spare_dw.defined()) {
        spare_dw = scratch({n, k});
        to_dw.to = spare_dw;
      }
      if (sums && sums.accumulate && !spare_sums.defined()) {
        spare_sums = scratch({n}, sums.to.dtype);
        to_sums.to = spare_sums;
      }
      return run(count, to_dw, to_sums);
    });
  }
  if (left == 0 || !run(left, dw, sums)) run(0, dw, sums);
}

}  // namespace switchback::cuda
