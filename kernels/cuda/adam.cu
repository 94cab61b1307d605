// adam.cu: AdamW and StableAdamW over the whole arena (paper section 6.1), in three passes. The formulas, the
// skipping of tensors that are not finite and the freezing are those of kernels/cpu/adam.cpp. Bytes per
// parameter, with bf16 values:
//
//   gradient_statistics  4   sum_squares[s] = Σ g²
//   adam_moments         20  g' = g · gradient_scale · clip;  first, second;
//                            rms[s] = sqrt(mean(g'²/max(second, ε²)))
//   adam_update          18  master = master (1 - decay_rate weight_decay[s]) - rate first/(sqrt(second) + ε)
//   adam_step            30  the latter two at once, where the update does not wait for the tensor's RMS
//
// The last two also find max |master| of each tensor where somebody asks, so that quantising the weights
// needs no sweep for it: integer maxima, the same bits in any order.
//
// Moments and masters are rounded product by product, sum by sum, as on the CPU: no fused multiply-add that
// the compiler might place differently in the two forms.
//
// The table of tensors lies on the device and its sizes are not known to the host. So tensors are cut into
// pieces of `piece` elements, a tiny kernel counts the pieces before each tensor, and a launch has as many
// blocks as there can be pieces at most; a block finds its tensor by bisection. One block sums one piece (in
// f32 by thread, f64 over threads), one block a tensor adds the pieces' sums in order: the same bits every
// time. Everything that changes from step to step is read on the device.
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr int threads = 256, piece = 8192, per_thread = 4;

struct Table {
  const int64_t* ranges;        // (S, 2): first element, number of elements
  const double* rate_scale;     // (S); 0 freezes
  const double* weight_decay;   // (S)
  int count;
  int32_t* first_piece;         // (S + 1): pieces before each tensor; scratch
};

__device__ int64_t pieces_of(const Table& t, int s) { return (t.ranges[2 * s + 1] + piece - 1) / piece; }

// first_piece; and, where a global norm clips, the factor of all gradients. One block.
__global__ void __launch_bounds__(threads)
prepare(Table t, float* factor, const float* sum_squares, const double* scalars, double max_gradient_norm) {
  __shared__ int64_t before[threads + 1];
  const int each = (t.count + threads - 1) / threads,
            from = min(t.count, static_cast<int>(threadIdx.x) * each);
  const int to = min(t.count, from + each);
  int64_t own = 0;
  for (int s = from; s < to; ++s) own += pieces_of(t, s);
  before[threadIdx.x + 1] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    before[0] = 0;
    for (int i = 0; i < threads; ++i) before[i + 1] += before[i];
    t.first_piece[t.count] = static_cast<int32_t>(before[threads]);
  }
  __syncthreads();
  int64_t next = before[threadIdx.x];
  for (int s = from; s < to; ++s) {
    t.first_piece[s] = static_cast<int32_t>(next);
    next += pieces_of(t, s);
  }
  if (!factor) return;
  double total = 0;
  for (int s = from; s < to; ++s)
    if (t.rate_scale[s] != 0 && isfinite(sum_squares[s])) total += static_cast<double>(sum_squares[s]);
  total = block_sum<threads>(total);
  if (threadIdx.x > 0) return;
  double scale = scalars[scalar_gradient_scale];
  if (max_gradient_norm > 0) scale *= fmin(1.0, max_gradient_norm / (fabs(scale) * sqrt(total) + 1e-6));
  *factor = static_cast<float>(scale);
}

// The elements that this block works on.
struct Piece {
  int segment = -1;  // -1: there is no such piece
  int64_t from = 0, to = 0;
  __device__ explicit Piece(const Table& t) {
    const int number = static_cast<int>(blockIdx.x);
    if (number >= t.first_piece[t.count]) return;
    int low = 0, high = t.count;  // first_piece[low] <= number < first_piece[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (t.first_piece[middle] <= number ? low : high) = middle;
    }
    segment = low;
    from = t.ranges[2 * low] + static_cast<int64_t>(number - t.first_piece[low]) * piece;
    to = min(from + piece, t.ranges[2 * low] + t.ranges[2 * low + 1]);
  }
};

// of_piece[p] = Σ g² over the piece
template <class T>
__global__ void __launch_bounds__(threads) square_pieces(double* of_piece, const T* gradients, Table t) {
  const Piece p(t);
  if (p.segment < 0) return;
  float sum = 0;
  for (int64_t i = p.from + threadIdx.x * per_thread; i < p.to; i += threads * per_thread) {
    float g[per_thread];
    load(g, gradients + i, p.to - i);
#pragma unroll
    for (int e = 0; e < per_thread; ++e) sum += g[e] * g[e];
  }
  const double total = block_sum<threads>(static_cast<double>(sum));
  if (threadIdx.x == 0) of_piece[blockIdx.x] = total;
}

__device__ double sum_of_pieces(const double* of_piece, const Table& t) {
  double sum = 0;
  for (int p = t.first_piece[blockIdx.x] + threadIdx.x; p < t.first_piece[blockIdx.x + 1]; p += threads)
    sum += of_piece[p];
  return block_sum<threads>(sum);
}

// One block a tensor.
__global__ void __launch_bounds__(threads)
    finish_squares(float* sum_squares, const double* of_piece, Table t) {
  const double sum = sum_of_pieces(of_piece, t);
  if (threadIdx.x == 0) sum_squares[blockIdx.x] = static_cast<float>(sum);
}
__global__ void __launch_bounds__(threads)
finish_rms(float* rms, const double* of_piece, const float* sum_squares, Table t) {
  const int s = blockIdx.x;
  const bool frozen = t.rate_scale[s] == 0, skipped = !isfinite(sum_squares[s]);
  const double sum = frozen || skipped ? 0.0 : sum_of_pieces(of_piece, t);
  if (threadIdx.x > 0) return;
  const double elements = static_cast<double>(t.ranges[2 * s + 1]);
  rms[s] = !frozen && skipped ? -1.0f : static_cast<float>(sqrt(elements > 0 ? sum / elements : 0.0));
}

// How a step changes the moments of a tensor's elements.
struct MomentsRule {
  float scale, keep1, add1, keep2, add2, least;
  __device__ MomentsRule(float factor, const double* scalars, float epsilon_squared)
      : scale(factor),
        keep1(static_cast<float>(scalars[scalar_beta1])),
        add1(static_cast<float>(1 - scalars[scalar_beta1])),
        keep2(static_cast<float>(scalars[scalar_beta2])),
        add2(static_cast<float>(1 - scalars[scalar_beta2])),
        least(epsilon_squared) {}
  // v, u are updated; the result is g'²/max(u, ε²).
  __device__ float operator()(float& v, float& u, float gradient) const {
    const float g = __fmul_rn(gradient, scale), square = __fmul_rn(g, g);
    v = __fadd_rn(__fmul_rn(keep1, v), __fmul_rn(add1, g));
    u = __fadd_rn(__fmul_rn(keep2, u), __fmul_rn(add2, square));
    return square / (u > least ? u : least);
  }
};

// How it changes the masters. The learning rate of the tensor may have been divided by its RMS.
struct UpdateRule {
  float rate, shrink, epsilon;
  __device__ UpdateRule(double full_rate, double measured_rms, double weight_decay,
                        const AdamOptions& options) {
    const double clipped = full_rate / fmax(1.0, measured_rms / options.clip_threshold);
    const double step_rate = options.clip_update ? clipped : full_rate,
                 decay_rate = options.decay_clipped_rate ? step_rate : full_rate;
    rate = static_cast<float>(step_rate);
    shrink = static_cast<float>(1 - decay_rate * weight_decay);
    epsilon = static_cast<float>(options.epsilon);
  }
  __device__ float operator()(float master, float v, float u) const {
    return __fadd_rn(__fmul_rn(master, shrink),
                     -__fdiv_rn(__fmul_rn(rate, v), __fadd_rn(__fsqrt_rn(u), epsilon)));
  }
};

__device__ bool left_alone(const Table& t, int segment, const float* sum_squares) {
  return segment < 0 || t.rate_scale[segment] == 0 || !isfinite(sum_squares[segment]);
}

// largest[s] = 0 where the tensor is going to be updated; what is left alone keeps its own.
__global__ void __launch_bounds__(threads)
    clear_largest(uint32_t* largest, Table t, const float* sum_squares, const float* rms) {
  const int s = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (s >= t.count || t.rate_scale[s] == 0) return;
  if (sum_squares ? isfinite(sum_squares[s]) : !(rms[s] < 0)) largest[s] = 0;
}
// The maximum over a block's threads, which all come here.
__device__ __forceinline__ void add_largest(uint32_t* largest, int segment, uint32_t most) {
  if (!largest) return;
  most = block_maximum<threads>(most);
  if (threadIdx.x == 0) atomicMax(largest + segment, most);
}

// of_piece[p] = Σ g'²/max(second, ε²) over the piece
template <class T>
__global__ void __launch_bounds__(threads)
    update_moments(float* first, float* second, double* of_piece, const T* gradients,
                   const float* sum_squares, Table t, const float* factor, const double* scalars,
                   float epsilon_squared) {
  const Piece p(t);
  if (left_alone(t, p.segment, sum_squares)) return;
  const MomentsRule rule(*factor, scalars, epsilon_squared);
  float sum = 0;
  for (int64_t i = p.from + threadIdx.x * per_thread; i < p.to; i += threads * per_thread) {
    float g[per_thread], v[per_thread], u[per_thread];
    load(g, gradients + i, p.to - i);
    load(v, first + i, p.to - i);
    load(u, second + i, p.to - i);
#pragma unroll
    for (int e = 0; e < per_thread; ++e) sum += rule(v[e], u[e], g[e]);  // beyond the piece g is 0
    Out<float>{first, false}.store(i, v, p.to - i);
    Out<float>{second, false}.store(i, u, p.to - i);
  }
  const double total = block_sum<threads>(static_cast<double>(sum));
  if (threadIdx.x == 0) of_piece[blockIdx.x] = total;
}

template <class T>
__global__ void __launch_bounds__(threads)
    update_masters(float* masters, T* values, const float* first, const float* second, const float* rms,
                   Table t, const double* scalars, AdamOptions options, uint32_t* largest) {
  const Piece p(t);
  if (p.segment < 0) return;
  const float measured = rms[p.segment];
  const double rate_scale = t.rate_scale[p.segment];
  if (measured < 0 || rate_scale == 0) return;
  const UpdateRule rule(scalars[scalar_learning_rate] * rate_scale, static_cast<double>(measured),
                        t.weight_decay[p.segment], options);
  uint32_t most = 0;
  for (int64_t i = p.from + threadIdx.x * per_thread; i < p.to; i += threads * per_thread) {
    float m[per_thread], v[per_thread], u[per_thread];
    load(m, masters + i, p.to - i);
    load(v, first + i, p.to - i);
    load(u, second + i, p.to - i);
#pragma unroll
    for (int e = 0; e < per_thread; ++e) {
      m[e] = rule(m[e], v[e], u[e]);  // beyond the piece 0
      most = max(most, magnitude_bits(m[e]));
    }
    Out<float>{masters, false}.store(i, m, p.to - i);
    if (values) Out<T>{values, false}.store(i, m, p.to - i);
  }
  add_largest(largest, p.segment, most);
}

// Both of the above on one piece, without update clipping.
template <class T, class V>
__global__ void __launch_bounds__(threads)
    update_all(float* masters, V* values, float* first, float* second, double* of_piece, const T* gradients,
               const float* sum_squares, Table t, const float* factor, const double* scalars,
               AdamOptions options, uint32_t* largest) {
  const Piece p(t);
  if (left_alone(t, p.segment, sum_squares)) return;
  const MomentsRule moments(*factor, scalars, static_cast<float>(options.epsilon * options.epsilon));
  const UpdateRule update(scalars[scalar_learning_rate] * t.rate_scale[p.segment], 0.0,
                          t.weight_decay[p.segment], options);
  float sum = 0;
  uint32_t most = 0;
  for (int64_t i = p.from + threadIdx.x * per_thread; i < p.to; i += threads * per_thread) {
    float g[per_thread], v[per_thread], u[per_thread], m[per_thread];
    load(g, gradients + i, p.to - i);
    load(v, first + i, p.to - i);
    load(u, second + i, p.to - i);
    load(m, masters + i, p.to - i);
#pragma unroll
    for (int e = 0; e < per_thread; ++e) {
      sum += moments(v[e], u[e], g[e]);
      m[e] = update(m[e], v[e], u[e]);
      most = max(most, magnitude_bits(m[e]));
    }
    Out<float>{first, false}.store(i, v, p.to - i);
    Out<float>{second, false}.store(i, u, p.to - i);
    Out<float>{masters, false}.store(i, m, p.to - i);
    if (values) Out<V>{values, false}.store(i, m, p.to - i);
  }
  add_largest(largest, p.segment, most);
  const double total = block_sum<threads>(static_cast<double>(sum));
  if (threadIdx.x == 0) of_piece[blockIdx.x] = total;
}

// The table and the scratch memory of one pass.
struct Pass {
  Table table;
  int64_t pieces;  // there can be at most
  Tensor first_piece, of_piece;

  Pass(const char* op, const CudaKernels& k, const Segments& segments, int64_t elements) {
    const int64_t count = segments.count();
    check_matrix(op, "segments.ranges", segments.ranges, count, 2, DType::i64);
    check_vector(op, "segments.weight_decay", segments.weight_decay, count, DType::f64);
    check_vector(op, "segments.rate_scale", segments.rate_scale, count, DType::f64);
    pieces = elements / piece + count;
    first_piece = k.scratch({count + 1}, DType::i32);
    of_piece = k.scratch({pieces}, DType::f64);
    table = {data<int64_t>(segments.ranges), data<double>(segments.rate_scale),
             data<double>(segments.weight_decay), static_cast<int>(count), data<int32_t>(first_piece)};
  }
  // Before a kernel that finds the largest values; sum_squares or rms says which tensors it leaves alone.
  uint32_t* clear(const char* op, const View& largest, const float* sum_squares, const float* rms,
                  cudaStream_t stream) const {
    if (!largest) return nullptr;
    check_vector(op, "largest", largest, table.count, DType::f32);
    auto* to = static_cast<uint32_t*>(largest.data);
    clear_largest<<<blocks_for(table.count, threads), threads, 0, stream>>>(to, table, sum_squares, rms);
    check_launch(op);
    return to;
  }
  unsigned blocks() const { return blocks_for(pieces, 1); }
  unsigned tensors() const { return static_cast<unsigned>(table.count); }
};

}  // namespace

void CudaKernels::gradient_statistics(View sum_squares, CView gradients, const Segments& segments) {
  const char* op = "gradient_statistics";
  check_place(op, "gradients", gradients, gradients.dtype);
  check_vector(op, "sum_squares", sum_squares, segments.count(), DType::f32);
  if (segments.count() == 0) return;
  const Pass pass(op, *this, segments, gradients.size());
  prepare<<<1, threads, 0, stream_>>>(pass.table, nullptr, nullptr, nullptr, 0);
  check_launch(op);
  visit(gradients.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    square_pieces<<<pass.blocks(), threads, 0, stream_>>>(data<double>(pass.of_piece), data<T>(gradients),
                                                          pass.table);
    check_launch(op);
  });
  finish_squares<<<pass.tensors(), threads, 0, stream_>>>(data<float>(sum_squares),
                                                          data<double>(pass.of_piece), pass.table);
  check_launch(op);
}

void CudaKernels::adam_moments(View first, View second, View rms, CView gradients, CView sum_squares,
                               const Segments& segments, CView scalars, const AdamOptions& options) {
  const char* op = "adam_moments";
  const int64_t elements = gradients.size(), count = segments.count();
  check_place(op, "gradients", gradients, gradients.dtype);
  check_vector(op, "first", first, elements, DType::f32);
  check_vector(op, "second", second, elements, DType::f32);
  check_vector(op, "rms", rms, count, DType::f32);
  check_vector(op, "sum_squares", sum_squares, count, DType::f32);
  check_vector(op, "scalars", scalars, step_scalar_count, DType::f64);
  if (count == 0) return;
  const Pass pass(op, *this, segments, elements);
  const Tensor factor = scratch({1});
  prepare<<<1, threads, 0, stream_>>>(pass.table, data<float>(factor), data<float>(sum_squares),
                                      data<double>(scalars), options.max_gradient_norm);
  check_launch(op);
  visit(gradients.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    update_moments<<<pass.blocks(), threads, 0, stream_>>>(
        data<float>(first), data<float>(second), data<double>(pass.of_piece), data<T>(gradients),
        data<float>(sum_squares), pass.table, data<float>(factor), data<double>(scalars),
        static_cast<float>(options.epsilon * options.epsilon));
    check_launch(op);
  });
  finish_rms<<<pass.tensors(), threads, 0, stream_>>>(data<float>(rms), data<double>(pass.of_piece),
                                                      data<float>(sum_squares), pass.table);
  check_launch(op);
}

void CudaKernels::adam_update(View masters, View values, CView first, CView second, CView rms,
                              const Segments& segments, CView scalars, const AdamOptions& options,
                              View largest) {
  const char* op = "adam_update";
  const int64_t elements = masters.size(), count = segments.count();
  check_place(op, "masters", masters, DType::f32);
  check_vector(op, "first", first, elements, DType::f32);
  check_vector(op, "second", second, elements, DType::f32);
  check_vector(op, "rms", rms, count, DType::f32);
  check_vector(op, "scalars", scalars, step_scalar_count, DType::f64);
  if (values) check_vector(op, "values", values, elements, values.dtype);
  if (count == 0) return;
  const Pass pass(op, *this, segments, elements);
  prepare<<<1, threads, 0, stream_>>>(pass.table, nullptr, nullptr, nullptr, 0);
  check_launch(op);
  uint32_t* most = pass.clear(op, largest, nullptr, data<float>(rms), stream_);
  visit(values ? values.dtype : DType::f32, op, [&](auto tag) {
    using T = decltype(tag);
    update_masters<<<pass.blocks(), threads, 0, stream_>>>(
        data<float>(masters), data<T>(values), data<float>(first), data<float>(second), data<float>(rms),
        pass.table, data<double>(scalars), options, most);
    check_launch(op);
  });
}

void CudaKernels::adam_step(View masters, View values, View first, View second, View rms, CView gradients,
                            CView sum_squares, const Segments& segments, CView scalars,
                            const AdamOptions& options, View largest) {
  const char* op = "adam_step";
  CHECK(!options.clip_update, op, ": update clipping needs the RMS of the whole tensor before its update");
  const int64_t elements = gradients.size(), count = segments.count();
  check_place(op, "gradients", gradients, gradients.dtype);
  check_vector(op, "masters", masters, elements, DType::f32);
  check_vector(op, "first", first, elements, DType::f32);
  check_vector(op, "second", second, elements, DType::f32);
  check_vector(op, "rms", rms, count, DType::f32);
  check_vector(op, "sum_squares", sum_squares, count, DType::f32);
  check_vector(op, "scalars", scalars, step_scalar_count, DType::f64);
  if (values) check_vector(op, "values", values, elements, values.dtype);
  if (count == 0) return;
  const Pass pass(op, *this, segments, elements);
  const Tensor factor = scratch({1});
  prepare<<<1, threads, 0, stream_>>>(pass.table, data<float>(factor), data<float>(sum_squares),
                                      data<double>(scalars), options.max_gradient_norm);
  check_launch(op);
  uint32_t* most = pass.clear(op, largest, data<float>(sum_squares), nullptr, stream_);
  visit(gradients.dtype, op, [&](auto tag) {
    visit(values ? values.dtype : DType::f32, op, [&](auto value_tag) {
      using T = decltype(tag);
      using V = decltype(value_tag);
      update_all<<<pass.blocks(), threads, 0, stream_>>>(
          data<float>(masters), data<V>(values), data<float>(first), data<float>(second),
          data<double>(pass.of_piece), data<T>(gradients), data<float>(sum_squares), pass.table,
          data<float>(factor), data<double>(scalars), options, most);
      check_launch(op);
    });
  });
  finish_rms<<<pass.tensors(), threads, 0, stream_>>>(data<float>(rms), data<double>(pass.of_piece),
                                                      data<float>(sum_squares), pass.table);
  check_launch(op);
}

}  // namespace switchback::cuda
