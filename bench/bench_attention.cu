// bench_attention.cu: is the GPU's attention right, and how fast is it?
//
//   nvcc -std=c++20 -O3 -I. -gencode=arch=compute_90a,code=sm_90a -o build-attention/bench_attention
//        bench/bench_attention.cu kernels/cuda/attention_{forward,backward}{,_sm90}.cu
//   build-attention/bench_attention check   all head sizes, odd lengths, against a plain f64 attention
//   build-attention/bench_attention small   a few small problems only: for compute-sanitizer
//   build-attention/bench_attention time    CLIP's six shapes: microseconds, GB/s, TFLOP/s
//
// Errors are |x - reference| / |reference| over a whole tensor; inputs are random bf16 numbers, so that both
// sides see the same. Outputs are filled with NaN before every run, and every check runs twice and compares
// bits. Bench against PyTorch: attention_baseline.py prints the same table for cuDNN and FlashAttention.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/attention_backward.cuh"
#include "kernels/cuda/attention_forward.cuh"
#include "runtime/check.h"
#include "runtime/view.h"

using namespace switchback;
using bf16 = __nv_bfloat16;

namespace {

void must(cudaError_t status) { CHECK(status == cudaSuccess, cudaGetErrorString(status)); }

struct Problem {
  int batch, heads, tokens, head_size;
  bool causal;

  int channels() const { return heads * head_size; }
  int64_t rows() const { return int64_t{batch} * tokens; }
  std::string name() const {
    return concat(batch, "x", heads, "x", tokens, "x", head_size, causal ? " causal" : "");
  }
  // Pairs of a query and a key that count, of one head.
  double pairs() const { return causal ? 0.5 * tokens * (tokens + 1) : 1.0 * tokens * tokens; }
  double flops(int products) const { return 2.0 * products * batch * heads * pairs() * head_size; }
};

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size) {
    must(cudaMalloc(&data_, std::max<int64_t>(size, 1) * sizeof(T)));
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* data() const { return data_; }
  int64_t size() const { return size_; }
  void poison() { must(cudaMemset(data_, 0xff, size_ * sizeof(T))); }  // NaN in bf16, f32 and f64
  std::vector<T> host() const {
    std::vector<T> values(size_);
    must(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  int64_t size_;
};

// Approximately normal numbers (a sum of four uniform ones), from a counter hash.
__global__ void fill_random(bf16* to, int64_t size, float deviation, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1342543de82ef95ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    float sum = 0;
    for (int part = 0; part < 4; ++part)
      sum += static_cast<float>((x >> (16 * part)) & 0xffff) / 65536.0f - 0.5f;
    to[i] = __float2bfloat16(sum * 1.7320508f * deviation);
  }
}

// ---- the definition, in f64 -------------------------------------------------------------------------------
struct Reference {
  const bf16 *qkv, *dout;
  double *out, *lse, *delta, *dqkv;
  Problem p;

  __device__ const bf16* row(int which, int sample, int head, int token) const {
    return qkv + ((int64_t{sample} * p.tokens + token) * 3 + which) * p.heads * p.head_size +
           head * p.head_size;
  }
  __device__ double* drow(int which, int sample, int head, int token) const {
    return dqkv + ((int64_t{sample} * p.tokens + token) * 3 + which) * p.heads * p.head_size +
           head * p.head_size;
  }
  __device__ int64_t out_row(int sample, int head, int token) const {
    return ((int64_t{sample} * p.tokens + token) * p.heads + head) * p.head_size;
  }
  __device__ double score(int sample, int head, int query, int key) const {
    const bf16 *a = row(0, sample, head, query), *b = row(1, sample, head, key);
    double sum = 0;
    for (int d = 0; d < p.head_size; ++d) sum += double{__bfloat162float(a[d])} * __bfloat162float(b[d]);
    return sum / sqrt(static_cast<double>(p.head_size));
  }
  __device__ double dp(int sample, int head, int query, int key) const {
    const bf16 *a = dout + out_row(sample, head, query), *b = row(2, sample, head, key);
    double sum = 0;
    for (int d = 0; d < p.head_size; ++d) sum += double{__bfloat162float(a[d])} * __bfloat162float(b[d]);
    return sum;
  }
};

// One thread for each (sample, head, token), in three phases: out and lse; dq; dk and dv.
__global__ void reference_kernel(Reference r, int phase) {
  const Problem p = r.p;
  const int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (index >= int64_t{p.batch} * p.heads * p.tokens) return;
  const int token = index % p.tokens, head = index / p.tokens % p.heads;
  const int sample = static_cast<int>(index / p.tokens / p.heads), D = p.head_size;
  if (phase == 0) {
    const int keys = p.causal ? token + 1 : p.tokens;
    double largest = -INFINITY, sum = 0;
    for (int j = 0; j < keys; ++j) largest = fmax(largest, r.score(sample, head, token, j));
    double* out = r.out + r.out_row(sample, head, token);
    for (int d = 0; d < D; ++d) out[d] = 0;
    for (int j = 0; j < keys; ++j) {
      const double w = exp(r.score(sample, head, token, j) - largest);
      const bf16* v = r.row(2, sample, head, j);
      sum += w;
      for (int d = 0; d < D; ++d) out[d] += w * __bfloat162float(v[d]);
    }
    r.lse[index] = largest + log(sum);
    r.delta[index] = 0;
    for (int d = 0; d < D; ++d) {
      out[d] /= sum;
      r.delta[index] += out[d] * __bfloat162float(r.dout[r.out_row(sample, head, token) + d]);
    }
  } else if (phase == 1) {
    double* dq = r.drow(0, sample, head, token);
    for (int d = 0; d < D; ++d) dq[d] = 0;
    for (int j = 0; j < (p.causal ? token + 1 : p.tokens); ++j) {
      const double w = exp(r.score(sample, head, token, j) - r.lse[index]);
      const double ds = w * (r.dp(sample, head, token, j) - r.delta[index]) / sqrt(static_cast<double>(D));
      for (int d = 0; d < D; ++d) dq[d] += ds * __bfloat162float(r.row(1, sample, head, j)[d]);
    }
  } else {
    double *dk = r.drow(1, sample, head, token), *dv = r.drow(2, sample, head, token);
    for (int d = 0; d < D; ++d) dk[d] = dv[d] = 0;
    for (int i = p.causal ? token : 0; i < p.tokens; ++i) {
      const int64_t query = index - token + i;
      const double w = exp(r.score(sample, head, i, token) - r.lse[query]);
      const double ds = w * (r.dp(sample, head, i, token) - r.delta[query]) / sqrt(static_cast<double>(D));
      for (int d = 0; d < D; ++d) {
        dk[d] += ds * __bfloat162float(r.row(0, sample, head, i)[d]);
        dv[d] += w * __bfloat162float(r.dout[r.out_row(sample, head, i) + d]);
      }
    }
  }
}

// ---- one problem's tensors --------------------------------------------------------------------------------
struct Tensors {
  Problem p;
  Buffer<bf16> qkv, out, dout, dqkv;
  Buffer<float> lse;

  Tensors(const Problem& problem, float deviation, uint64_t seed)
      : p(problem),
        qkv(p.rows() * 3 * p.channels()),
        out(p.rows() * p.channels()),
        dout(p.rows() * p.channels()),
        dqkv(p.rows() * 3 * p.channels()),
        lse(p.rows() * p.heads) {
    fill_random<<<1024, 256>>>(qkv.data(), qkv.size(), deviation, seed);
    fill_random<<<1024, 256>>>(dout.data(), dout.size(), 1, seed + 1);
    must(cudaGetLastError());
  }
  View view(void* data, Shape shape, DType dtype = DType::bf16) const {
    return {data, shape, dtype, {Device::cuda, 0}};
  }
  View packed(const Buffer<bf16>& b) const { return view(b.data(), {p.batch, p.tokens, 3 * p.channels()}); }
  View plain(const Buffer<bf16>& b) const { return view(b.data(), {p.batch, p.tokens, p.channels()}); }
  View lse_view() const { return view(lse.data(), {p.batch, p.heads, p.tokens}, DType::f32); }
  void forward() { cuda::attention_forward(plain(out), lse_view(), packed(qkv), p.heads, p.causal, nullptr); }
  void backward(bool accumulate = false) {
    cuda::attention_backward({packed(dqkv), accumulate}, plain(dout), packed(qkv), plain(out), lse_view(),
                             p.heads, p.causal, nullptr);
  }
};

// |x - reference| / |reference|; of dqkv only the columns of q (0), k (1) or v (2) are compared. A reference
// that is zero (dq and dk of one token) is measured against 1e-2 per element, the size of what cancels.
template <class T>
double error_of(const std::vector<T>& x, const std::vector<double>& reference, int64_t band = 1,
                int64_t width = 0, int64_t which = 0) {
  double difference = 0, norm = 0;
  int64_t count = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (width && static_cast<int64_t>(i / width) % band != which) continue;
    const double value = static_cast<double>(static_cast<float>(x[i]));
    difference += (value - reference[i]) * (value - reference[i]);
    norm += reference[i] * reference[i];
    ++count;
  }
  return std::sqrt(difference / std::max(norm, 1e-4 * count));
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

bool check(const Problem& p, float deviation, uint64_t seed) {
  Tensors x(p, deviation, seed);
  Buffer<double> out(x.out.size()), lse(x.lse.size()), delta(x.lse.size()), dqkv(x.dqkv.size());
  const Reference reference{x.qkv.data(), x.dout.data(), out.data(), lse.data(),
                            delta.data(), dqkv.data(),   p};
  for (int phase = 0; phase < 3; ++phase) {
    reference_kernel<<<static_cast<unsigned>((x.lse.size() + 63) / 64), 64>>>(reference, phase);
    must(cudaGetLastError());
  }
  auto run = [&] {
    x.out.poison(), x.lse.poison(), x.dqkv.poison();
    x.forward();
    x.backward();
    must(cudaDeviceSynchronize());
  };
  run();
  const auto first_out = x.out.host(), first_dqkv = x.dqkv.host();
  const auto first_lse = x.lse.host();
  run();
  bool same = same_bits(first_out, x.out.host()) && same_bits(first_dqkv, x.dqkv.host()) &&
              same_bits(first_lse, x.lse.host());
  const auto true_dqkv = dqkv.host();
  double errors[5] = {error_of(first_out, out.host()), error_of(first_lse, lse.host()), 0, 0, 0};
  for (int which = 0; which < 3; ++which) {
    errors[2 + which] = error_of(first_dqkv, true_dqkv, 3, p.channels(), which);
  }
  // Adding to what is there: twice the gradient.
  x.backward(true);
  must(cudaDeviceSynchronize());
  auto doubled = true_dqkv;
  for (double& value : doubled) value *= 2;
  const double added = error_of(x.dqkv.host(), doubled);

  const bool good = same && errors[0] <= 4e-3 && errors[1] <= 1e-4 && errors[2] <= 1e-2 &&
                    errors[3] <= 1e-2 && errors[4] <= 1e-2 && added <= 1e-2;  // a NaN fails every comparison
  std::printf("%-26s x%-4g out %.1e lse %.0e dq %.1e dk %.1e dv %.1e added %.1e %s %s\n", p.name().c_str(),
              deviation, errors[0], errors[1], errors[2], errors[3], errors[4], added,
              same ? "same bits" : "OTHER BITS", good ? "ok" : "WRONG");
  return good;
}

// ---- time -------------------------------------------------------------------------------------------------
// Median microseconds of one call: 10 calls between two events, 15 times, over input sets that rotate so that
// nothing stays in the L2 cache.
template <class F>
double microseconds(F&& call) {
  cudaEvent_t from, to;
  must(cudaEventCreate(&from)), must(cudaEventCreate(&to));
  for (int i = 0; i < 10; ++i) call(i);
  std::vector<float> times;
  for (int repeat = 0; repeat < 15; ++repeat) {
    must(cudaEventRecord(from));
    for (int i = 0; i < 10; ++i) call(i);
    must(cudaEventRecord(to));
    must(cudaEventSynchronize(to));
    float milliseconds;
    must(cudaEventElapsedTime(&milliseconds, from, to));
    times.push_back(milliseconds * 100);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void time(const Problem& p) {
  Tensors a(p, 1, 1), b(p, 1, 3), c(p, 1, 5);
  Tensors* sets[] = {&a, &b, &c};
  const double forward = microseconds([&](int i) { sets[i % 3]->forward(); });
  const double backward = microseconds([&](int i) { sets[i % 3]->backward(); });
  must(cudaDeviceSynchronize());
  const double unit = 2.0 * p.rows() * p.channels();  // bytes of one (B, T, C) tensor
  std::printf(
      "%-26s forward %7.1f us %5.0f GB/s %4.0f TFLOP/s | backward %7.1f us %5.0f GB/s %4.0f TFLOP/s | sum "
      "%7.1f us\n",
      p.name().c_str(), forward, 4 * unit / forward / 1e3, p.flops(2) / forward / 1e6, backward,
      8 * unit / backward / 1e3, p.flops(5) / backward / 1e6, forward + backward);
}

const Problem clip_shapes[] = {{128, 16, 257, 80, false}, {224, 16, 257, 64, false},
                               {512, 12, 197, 64, false}, {1024, 12, 50, 64, false},
                               {128, 16, 77, 64, true},   {1024, 8, 77, 64, true}};

int run(const std::string& what) {
  int wrong = 0, checks = 0;
  auto expect = [&](const Problem& p, float deviation) { wrong += !check(p, deviation, 7919 + checks++); };
  if (what == "small") {
    expect({1, 1, 5, 64, false}, 1);
    expect({1, 2, 17, 80, true}, 1);
    expect({1, 2, 77, 64, true}, 1);
    expect({1, 1, 129, 80, false}, 1);
    expect({1, 1, 129, 88, true}, 1);
    expect({1, 1, 577, 64, false}, 1);
    expect({3, 100, 100, 64, true}, 1);  // more heads than multiprocessors: blocks that stay take several
    expect({3, 100, 130, 80, false}, 1);
  } else if (what == "check") {
    for (int head_size : {32, 64, 80, 88, 104, 128}) {
      for (int tokens : {1, 5, 16, 17, 50, 64, 65, 77, 129, 197, 257, 289, 577}) {
        for (bool causal : {false, true}) expect({tokens % 2 ? 3 : 1, 2, tokens, head_size, causal}, 1);
      }
    }
    expect({1, 2, 1024, 64, false}, 1);
    expect({1, 1, 1024, 80, true}, 1);
    expect({2, 2, 1500, 104, true}, 1);
    // Scores with a deviation of 9 and more: the softmax is nearly one-hot and its maximum moves.
    for (bool causal : {false, true}) {
      for (int tokens : {77, 257, 577}) expect({2, 2, tokens, 64, causal}, 3);
    }
    // Many more heads than multiprocessors, at CLIP's shapes and beside them.
    for (Problem p : clip_shapes) {
      p.batch = 41;
      expect(p, 1);
    }
    expect({41, 16, 257, 64, true}, 1);
    expect({41, 16, 289, 80, false}, 1);
    expect({41, 16, 320, 64, false}, 1);
    expect({41, 16, 129, 80, true}, 1);
    expect({41, 12, 104, 64, false}, 1);
  } else if (what == "time") {
    for (const Problem& p : clip_shapes) time(p);
  } else {
    fail("bench_attention: say check, small or time, not '", what, "'");
  }
  if (checks) std::printf("%d passed, %d failed\n", checks - wrong, wrong);
  return wrong != 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "");
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
