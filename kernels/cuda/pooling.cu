// pooling.cu: one token's row stands for the whole sample: the class token, or the end-of-text token.
//   y[b] = x[b, place[b]];   dx[b, place[b]] = dy[b], other rows 0
// x (B, T, C), y (B, C), place (B) i32 optional
#include "kernels/cuda/vec.cuh"

namespace switchback::cuda {
namespace {

template <class T>
struct Forward {
  const T* x;
  const int32_t* place;
  int tokens, width;
  __device__ void operator()(float (&y)[elements_of_thread], int64_t b, int column, int valid) const {
    const int at = place ? place[b] : 0;
    if (at >= 0 && at < tokens) load(y, x + (b * tokens + at) * width + column, valid);
    else
#pragma unroll
      for (float& v : y) v = __int_as_float(0x7fffffff);
  }
};

template <class T>
struct Backward {
  const T* dy;
  const int32_t* place;
  int tokens, width;
  __device__ void operator()(float (&dx)[elements_of_thread], int64_t row, int column, int valid) const {
    const int64_t b = row / tokens;
    const bool chosen = row - b * tokens == (place ? place[b] : 0);
    load(dx, dy + b * width + column, chosen ? valid : 0);  // nothing valid: zeros
  }
};

}  // namespace

void CudaKernels::pool_forward(View y, CView x, CView place) {
  const char* op = "pool_forward";
  const SequenceSizes s = Require::pool_forward(op, y, x, place);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const Forward<T> f{data<T>(x), data<int32_t>(place), static_cast<int>(s.tokens),
                       static_cast<int>(s.width)};
    for_rows(op, out_of<T>(y), s.samples, s.width, f, stream_);
  });
}

void CudaKernels::pool_backward(Sink dx, CView dy, CView place) {
  if (!dx) return;
  const char* op = "pool_backward";
  const SequenceSizes s = Require::pool_backward(op, dx, dy, place);
  visit(dy.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    visit_sink<T>(dx, op, [&](auto to) {
      const Backward<T> f{data<T>(dy), data<int32_t>(place), static_cast<int>(s.tokens),
                          static_cast<int>(s.width)};
      for_rows(op, out_of<decltype(to)>(dx), s.samples * s.tokens, s.width, f, stream_);
    });
  });
}

}  // namespace switchback::cuda
