// embedding.cu: what enters the two towers.
//   vision: x[b,0] = class_embedding + positions[0];  x[b,1+k] = patches[b,k] + positions[1 + keep[b,k]]
//   text:   x[b,t] = table[tokens[b,t]] + positions[t]
// Backward, without float atomics. Positions: for each one a sum over the samples in a fixed order. The token
// table: places sorted by token (token_sort.cuh), then summed run by run:
//
//   sorted places  | 0 0 0 0 0 0 0 0 | 0 0 0 3 3 7 7 7 | 7 9 9 9 ...     cut into chunks of `run_chunk`
//
// A run within one chunk is summed by that chunk's block and stored. Of a run that crosses borders each chunk
// keeps its part, and the block of the chunk where the run begins adds the parts in order in a second launch.
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/token_sort.cuh"

namespace switchback::cuda {
namespace {

__device__ __forceinline__ void set_nan(float (&values)[elements_of_thread]) {
#pragma unroll
  for (float& v : values) v = __int_as_float(0x7fffffff);
}

template <class T>
struct VisionForward {
  const T *patches, *class_embedding, *positions;
  const int32_t* keep;
  int kept, width, places;
  __device__ void operator()(float (&x)[elements_of_thread], int64_t row, int column, int valid) const {
    const int64_t b = row / (kept + 1);
    const int k = static_cast<int>(row - b * (kept + 1)) - 1;
    const int place = k < 0 ? 0 : 1 + (keep ? keep[b * kept + k] : k);
    if (place < 0 || place >= places) return set_nan(x);
    float at[elements_of_thread];
    load(x, k < 0 ? class_embedding + column : patches + (b * kept + k) * width + column, valid);
    load(at, positions + static_cast<int64_t>(place) * width + column, valid);
#pragma unroll
    for (int e = 0; e < elements_of_thread; ++e) x[e] += at[e];
  }
};

template <class T>
struct PatchGradient {  // rows 1 ... K of each sample
  const T* dx;
  int kept, width;
  __device__ void operator()(float (&dpatches)[elements_of_thread], int64_t row, int column,
                             int valid) const {
    load(dpatches, dx + (row + row / kept + 1) * width + column, valid);
  }
};

template <class T>
struct TextForward {
  const T *table, *positions;
  const int32_t* tokens;
  int length, width, vocabulary;
  __device__ void operator()(float (&x)[elements_of_thread], int64_t row, int column, int valid) const {
    const int token = tokens[row];
    if (token < 0 || token >= vocabulary) return set_nan(x);
    float at[elements_of_thread];
    load(x, table + static_cast<int64_t>(token) * width + column, valid);
    load(at, positions + row % length * width + column, valid);
#pragma unroll
    for (int e = 0; e < elements_of_thread; ++e) x[e] += at[e];
  }
};

// row_of[b, place]: which row of sample b carries this position; -1 (set before): none.
__global__ void invert(int32_t* row_of, const int32_t* keep, int64_t samples, int kept, int places) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= samples * (kept + 1)) return;
  const int64_t b = i / (kept + 1);
  const int k = static_cast<int>(i - b * (kept + 1)) - 1;
  const int place = k < 0 ? 0 : 1 + keep[b * kept + k];
  if (place >= 0 && place < places) row_of[b * places + place] = k + 1;
}

// sums (places, width): Σ over samples of the row of dx that carries this position. Block: 32 x 8 threads,
// one place,
// 128 columns; without row_of the row is the place, and places from `length` on have none.
template <class T>
__global__ void __launch_bounds__(32 * sum_lanes)
    position_sums(AnyOut first, AnyOut all, const T* dx, const int32_t* row_of, int64_t samples, int length,
                  int places, int width) {
  const int place = blockIdx.y, column = (blockIdx.x * 32 + threadIdx.x) * sum_columns;
  float sums[sum_columns] = {};
  if (column < width) {
    for (int64_t b = threadIdx.y; b < samples; b += sum_lanes) {
      const int row = row_of ? row_of[b * places + place] : place < length ? place : -1;
      if (row < 0) continue;
      float values[sum_columns];
      load(values, dx + (b * length + row) * width + column, width - column);
#pragma unroll
      for (int c = 0; c < sum_columns; ++c) sums[c] += values[c];
    }
  }
  __shared__ float shared[sum_lanes][32 * sum_columns];
#pragma unroll
  for (int c = 0; c < sum_columns; ++c) shared[threadIdx.y][threadIdx.x * sum_columns + c] = sums[c];
  __syncthreads();
  const int i = threadIdx.y * 32 + threadIdx.x, at = blockIdx.x * 32 * sum_columns + i;
  if (i >= 32 * sum_columns || at >= width) return;
  float sum = shared[0][i];
#pragma unroll
  for (int lane = 1; lane < sum_lanes; ++lane) sum += shared[lane][i];
  if (all.to) all.put(static_cast<int64_t>(place) * width + at, sum);
  if (first.to && place == 0) first.put(at, sum);
}

// Σ over samples by position into `all` (places, width); that of position 0 also into `first` (width).
template <class T>
void sum_positions(const char* op, const Sink& first, const Sink& all, const T* dx, const int32_t* row_of,
                   int64_t samples, int64_t length, int64_t places, int64_t width, cudaStream_t stream) {
  CHECK(places < 65536, op, ": ", places, " positions");
  if (width == 0) return;
  const dim3 grid(blocks_for(width, 32 * sum_columns), static_cast<unsigned>(all ? places : 1));
  position_sums<<<grid, dim3(32, sum_lanes), 0, stream>>>(any_out(first), any_out(all), dx, row_of, samples,
                                                          static_cast<int>(length), static_cast<int>(places),
                                                          static_cast<int>(width));
  check_launch(op);
}

// ---- the token table --------------------------------------------------------------------------------------
constexpr int run_chunk = 128, run_threads = 64, run_columns = 8;  // a block: 128 places, 512 columns

// parts (chunks, 2, width): 0: of the run that came in from the chunk before, 1: of the run that goes on into
// the next.
template <class T, class To>
__global__ void __launch_bounds__(run_threads)
    sum_runs(Out<To> dtable, float* parts, const T* dx, const SortedToken* sorted, int count, int width,
             int vocabulary) {
  const int column = (blockIdx.y * run_threads + threadIdx.x) * run_columns;
  if (column >= width) return;
  const int from = blockIdx.x * run_chunk, to = min(count, from + run_chunk), left = width - column;
  float* part = parts + static_cast<int64_t>(blockIdx.x) * 2 * width + column;
  float sum[run_columns] = {};
  bool came_in = from > 0 && sorted[from - 1].token == sorted[from].token;
  for (int i = from; i < to; ++i) {
    const SortedToken here = sorted[i];
    float values[run_columns];
    load(values, dx + static_cast<int64_t>(here.place) * width + column, left);
#pragma unroll
    for (int e = 0; e < run_columns; ++e) sum[e] += values[e];
    const bool ends = i + 1 == count || sorted[i + 1].token != here.token;
    if (!ends && i + 1 < to) continue;
    if (came_in) Out<float>{part, false}.store(0, sum, left);
    else if (!ends) Out<float>{part + width, false}.store(0, sum, left);
    else if (here.token < vocabulary)
      dtable.store(static_cast<int64_t>(here.token) * width + column, sum, left);
    came_in = false;
#pragma unroll
    for (float& v : sum) v = 0;
  }
}

// The block of the chunk where a crossing run begins adds its parts: one block a chunk, most have nothing to
// do.
template <class To>
__global__ void __launch_bounds__(run_threads)
    join_runs(Out<To> dtable, const float* parts, const SortedToken* sorted, int count, int width,
              int vocabulary) {
  const int column = (blockIdx.y * run_threads + threadIdx.x) * run_columns;
  const int from = blockIdx.x * run_chunk, next = from + run_chunk;
  if (column >= width || next >= count) return;
  const int token = sorted[next - 1].token;
  if (sorted[next].token != token || token >= vocabulary) return;  // nothing crosses
  const bool began_before = sorted[from].token == token && from > 0 && sorted[from - 1].token == token;
  if (began_before) return;
  const int left = width - column;
  float sum[run_columns], part[run_columns];
  load(sum, parts + (static_cast<int64_t>(blockIdx.x) * 2 + 1) * width + column, left);
  for (int first = next; first < count && sorted[first].token == token; first += run_chunk) {
    load(part, parts + static_cast<int64_t>(first / run_chunk) * 2 * width + column, left);
#pragma unroll
    for (int e = 0; e < run_columns; ++e) sum[e] += part[e];
  }
  dtable.store(static_cast<int64_t>(token) * width + column, sum, left);
}

// One warp a row: the first place of the largest.
__global__ void largest_token(int32_t* place, const int32_t* tokens, int64_t rows, int length) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  int best = INT32_MIN, at = INT32_MAX;
  for (int t = threadIdx.x % 32; t < length; t += 32) {
    const int token = tokens[row * length + t];
    if (token > best || at == INT32_MAX) {
      best = token;
      at = t;
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const int other = __shfl_xor_sync(all_lanes, best, step), other_at = __shfl_xor_sync(all_lanes, at, step);
    if (other_at != INT32_MAX && (at == INT32_MAX || other > best || (other == best && other_at < at))) {
      best = other;
      at = other_at;
    }
  }
  if (threadIdx.x % 32 == 0) place[row] = at;
}

}  // namespace

void CudaKernels::vision_embed_forward(View x, CView patches, CView class_embedding, CView positions,
                                       CView keep) {
  const char* op = "vision_embed_forward";
  const VisionSizes s = Require::vision_embed_forward(op, x, patches, class_embedding, positions, keep);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const VisionForward<T> f{data<T>(patches),
                             data<T>(class_embedding),
                             data<T>(positions),
                             data<int32_t>(keep),
                             static_cast<int>(s.kept),
                             static_cast<int>(s.width),
                             static_cast<int>(s.places)};
    for_rows(op, out_of<T>(x), s.samples * (s.kept + 1), s.width, f, stream_);
  });
}

void CudaKernels::vision_embed_backward(Sink dpatches, Sink dclass_embedding, Sink dpositions, CView dx,
                                        CView keep) {
  const char* op = "vision_embed_backward";
  const VisionSizes s = Require::vision_embed_backward(op, dpatches, dclass_embedding, dpositions, dx, keep);
  const int64_t places = s.places;
  visit(dx.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    visit_sink<T>(dpatches, op, [&](auto to) {
      const PatchGradient<T> f{data<T>(dx), static_cast<int>(s.kept), static_cast<int>(s.width)};
      for_rows(op, out_of<decltype(to)>(dpatches), s.samples * s.kept, s.width, f, stream_);
    });
    if (!dclass_embedding && !dpositions) return;
    Tensor row_of;
    if (keep && dpositions && s.samples > 0) {
      row_of = scratch({s.samples, places}, DType::i32);
      CUDA_CHECK(cudaMemsetAsync(row_of.data(), 0xff, static_cast<size_t>(row_of.size()) * 4, stream_));
      invert<<<blocks_for(s.samples * (s.kept + 1), 256), 256, 0, stream_>>>(
          data<int32_t>(row_of), data<int32_t>(keep), s.samples, static_cast<int>(s.kept),
          static_cast<int>(places));
      check_launch(op);
    }
    sum_positions(op, dclass_embedding, dpositions, data<T>(dx), static_cast<const int32_t*>(row_of.data()),
                  s.samples, s.kept + 1, places, s.width, stream_);
  });
}

void CudaKernels::text_embed_forward(View x, CView table, CView positions, CView tokens) {
  const char* op = "text_embed_forward";
  const TextSizes s = Require::text_embed_forward(op, x, table, positions, tokens);
  visit(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    const TextForward<T> f{data<T>(table),
                           data<T>(positions),
                           data<int32_t>(tokens),
                           static_cast<int>(s.length),
                           static_cast<int>(s.width),
                           static_cast<int>(s.vocabulary)};
    for_rows(op, out_of<T>(x), s.samples * s.length, s.width, f, stream_);
  });
}

void CudaKernels::text_embed_backward(Sink dtable, Sink dpositions, CView dx, CView tokens) {
  const char* op = "text_embed_backward";
  const TextSizes s = Require::text_embed_backward(op, dtable, dpositions, dx, tokens);
  const int64_t width = s.width, count = s.samples * s.length;
  CHECK(count < INT32_MAX, op, ": ", count, " tokens at once");
  visit(dx.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    if (dpositions)
      sum_positions(op, {}, dpositions, data<T>(dx), nullptr, s.samples, s.length, s.places, width, stream_);
    if (!dtable) return;
    if (!dtable.accumulate) fill(dtable.to, 0);  // tokens that do not occur
    if (count == 0 || width == 0) return;
    const Tensor sorted = sort_tokens(*this, data<int32_t>(tokens), count, s.vocabulary);
    const int64_t chunks = (count + run_chunk - 1) / run_chunk;
    const Tensor parts = scratch({chunks, 2, width});
    const dim3 grid(blocks_for(chunks, 1), blocks_for(width, run_threads * run_columns));
    visit_sink<T>(dtable, op, [&](auto to) {
      const auto sink = out_of<decltype(to)>(dtable);
      const int n = static_cast<int>(count), columns = static_cast<int>(width),
                rows = static_cast<int>(s.vocabulary);
      sum_runs<<<grid, run_threads, 0, stream_>>>(sink, data<float>(parts), data<T>(dx),
                                                  data<SortedToken>(sorted), n, columns, rows);
      check_launch(op);
      join_runs<<<grid, run_threads, 0, stream_>>>(sink, data<float>(parts), data<SortedToken>(sorted), n,
                                                   columns, rows);
      check_launch(op);
    });
  });
}

void CudaKernels::find_largest_token(View place, CView tokens) {
  const char* op = "find_largest_token";
  const auto [rows, length] = Require::find_largest_token(op, place, tokens);
  if (tokens.size() == 0) return;
  largest_token<<<blocks_for(rows, 8), 256, 0, stream_>>>(data<int32_t>(place), data<int32_t>(tokens), rows,
                                                          static_cast<int>(length));
  check_launch(op);
}

}  // namespace switchback::cuda
