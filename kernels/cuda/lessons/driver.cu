// driver.cu: checks every rung of the ladder bit for bit and times it, next to what cuBLASLt offers.
//
//   ninja -C build kernels/cuda/lessons/int8_ladder
//   (not built by default; -DSWITCHBACK_TRAP_STUCK_BARRIERS on nvcc's line helps to debug)
//
//   int8_ladder check              every kernel, small ragged shapes and adversarial patterns against the CPU
//   int8_ladder big                the production shapes against a plain kernel and cuBLASLt's int8 product
//   int8_ladder time               the table of speeds: medians over rounds in shuffled order
//   int8_ladder tune               the same for many tiles of the final kernel
//
// Options of time and tune, as name=value: rounds=7, milliseconds=150 (per contender and round), settle=150
// (milliseconds of the same work before, unmeasured), pause=0 (milliseconds of rest before), filter=TEXT
// (contenders whose name has it), shape=0.. (one shape), more=1 (all shapes).
//
// Under full load an H100 lowers its clock to stay within 700 W, so what is measured depends on the
// neighbours in time:
//
//   sustained   the defaults: each contender runs until its own clock has settled. This compares energy as
//               much as speed.
//   burst       milliseconds=2 settle=0 pause=30: the clock stays high. This compares what kernels do per
//               clock.
#include <cuda_fp8.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/gemm_int8_sm90.cuh"
#include "kernels/cuda/lessons/lesson.cuh"
#include "kernels/cuda/lessons/rivals.cuh"

namespace switchback::lessons {
namespace {

// ---- memory and data ----------------------------------------------------------------

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) { CUDA_CHECK(cudaMalloc(&data_, count * sizeof(T))); }
  Buffer(Buffer&& other) : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
  ~Buffer() { cudaFree(data_); }
  T* data() const { return data_; }
  void fill_bytes(int value) { CUDA_CHECK(cudaMemset(data_, value, count_ * sizeof(T))); }
  void upload(const std::vector<T>& from) {
    CUDA_CHECK(cudaMemcpy(data_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> download() const {
    std::vector<T> to(count_);
    CUDA_CHECK(cudaMemcpy(to.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  T* data_ = nullptr;
  int64_t count_;
};

__host__ __device__ inline uint32_t hash(uint64_t i, uint32_t seed) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 16);
}

// The same normal variables for all formats: what a quantiser would make of an activation whose absolute
// maximum is 4.2.
enum class Data { normal, uniform };
template <class T>
__global__ void fill_random(T* to, int64_t count, uint32_t seed, Data data) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float u = (hash(i, seed) + 1.0f) * 2.3283064e-10f, v = hash(i, seed + 1000) * 2.3283064e-10f;
    float g = fminf(fmaxf(sqrtf(-2.0f * logf(fminf(u, 1.0f))) * cospif(2.0f * v), -4.2f), 4.2f);
    if (data == Data::uniform) g = (2.0f * v - 1.0f) * 4.2f;
    if constexpr (sizeof(T) == 2)
      to[i] = T(g);
    else if constexpr (std::is_same_v<T, int8_t>)
      to[i] = static_cast<int8_t>(__float2int_rn(g * (127.0f / 4.2f)));
    else if constexpr (std::is_same_v<T, float>)
      to[i] = 0.5f + v;
    else
      to[i] = T(g * (448.0f / 4.2f));
  }
}
template <class T>
Buffer<T> random_buffer(int64_t count, uint32_t seed, Data data = Data::normal) {
  Buffer<T> buffer(count);
  fill_random<<<1024, 256>>>(buffer.data(), count, seed, data);
  CUDA_CHECK(cudaGetLastError());
  return buffer;
}

// ---- references on the device ----------------------------------------------------------------

__global__ void reference_y(Problem p, const int* accumulators, __nv_bfloat16* y) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < int64_t{p.M} * p.N;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float scale = __fmul_rn(p.row_scale[i / p.N], *p.tensor_scale);
    y[i] = __float2bfloat16_rn(gemm_int8_element<Extra::none>(accumulators[i], scale,
                                                              __bfloat162float(p.bias[i % p.N]), 0.0f, 1.0f));
  }
}
template <class T>
__global__ void count_differences(const T* a, const T* b, int64_t count, unsigned long long* differences) {
  unsigned long long mine = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    if (a[i] != b[i]) ++mine;
  }
  if (mine) atomicAdd(differences, mine);
}
template <class T>
int64_t differences(const T* a, const T* b, int64_t count) {
  Buffer<unsigned long long> counter(1);
  counter.fill_bytes(0);
  count_differences<<<1024, 256>>>(a, b, count, counter.data());
  CUDA_CHECK(cudaGetLastError());
  return static_cast<int64_t>(counter.download()[0]);
}

// ---- contenders ----------------------------------------------------------------

struct Contender {
  std::string name;
  std::function<void(const Problem&, cudaStream_t)> run;
};

GemmInt8 as_gemm(const Problem& p) {
  const Device gpu{};
  GemmInt8 a;
  a.y = {p.y, {p.M, p.N}, DType::bf16, gpu};
  a.x = {p.x, {p.M, p.K}, DType::i8, gpu};
  a.w = {p.w, {p.N, p.K}, DType::i8, gpu};
  a.row_scale = {p.row_scale, {p.M}, DType::f32, gpu};
  a.weight_scale = {p.tensor_scale, {1}, DType::f32, gpu};
  a.bias = {p.bias, {p.N}, DType::bf16, gpu};
  return a;
}

template <class T>
Contender tile(const std::string& name, int64_t band_bytes = 16 << 20, int stagger = 3, bool overlap = true) {
  return {name, [=](const Problem& p, cudaStream_t stream) {
            using namespace sm90;
            const LaunchOptions options = {
                .band_bytes = band_bytes, .stagger = stagger, .overlap_previous = overlap};
            if (p.accumulators) {
              launch_int8_sums<T>(p.accumulators, as_gemm(p), options, stream);
            } else {
              launch_int8<T, Extra::none, false>(as_gemm(p), options, stream);
            }
          }};
}

// The same product with a residual (the matrix y of another buffer set stands for it) or GELU's derivative.
const __nv_bfloat16* other_matrix = nullptr;
template <class T, Extra kExtra>
Contender tile_with(const std::string& name) {
  return {name, [](const Problem& p, cudaStream_t stream) {
            if (p.accumulators || !other_matrix) return;
            GemmInt8 a = as_gemm(p);
            a.extra_kind = kExtra;
            a.extra = {other_matrix, {p.M, p.N}, DType::bf16, {}};
            sm90::launch_int8<T, kExtra, false>(a, {}, stream);
          }};
}
template <Extra kExtra>
Contender entry_with(const std::string& name) {
  return {name, [](const Problem& p, cudaStream_t stream) {
            if (p.accumulators || !other_matrix) return;
            GemmInt8 a = as_gemm(p);
            a.extra_kind = kExtra;
            a.extra = {other_matrix, {p.M, p.N}, DType::bf16, {}};
            gemm_int8_sm90(a, stream);
          }};
}

std::vector<Contender> rungs() {
  return {
      {"1 naive", naive},         {"2 tensor cores", tensor_cores}, {"3 warpgroups", warpgroups},
      {"4 ring", ring},           {"5 clusters", clusters},         {"6 bulk stores", bulk_stores},
      {"7 ping-pong", ping_pong},
  };
}

#include "kernels/cuda/lessons/tiles.inc"

// ---- check: small shapes against the CPU ----------------------------------------------------------------

struct HostProblem {
  int M, N, K;
  std::vector<int8_t> x, w;
  std::vector<float> row_scale, column_scale;
  std::vector<__nv_bfloat16> bias, gamma, extra;
  std::vector<int> accumulators;
};

enum class Pattern { random, one_hot_x, one_hot_w, index, extreme };
constexpr Pattern kPatterns[] = {Pattern::random, Pattern::one_hot_x, Pattern::one_hot_w, Pattern::index,
                                 Pattern::extreme};
const char* const kPatternNames[] = {"random", "one-hot x", "one-hot w", "index", "+-127"};

int8_t pattern_value(Pattern pattern, bool is_x, int row, int k, int K) {
  const uint32_t h = hash(static_cast<uint64_t>(row) * K + k, is_x ? 1 : 2);
  switch (pattern) {
    case Pattern::random:
      break;
    case Pattern::one_hot_x:
      if (is_x) return k == (row * 7) % K ? 1 : 0;
      break;
    case Pattern::one_hot_w:
      if (!is_x) return k == (row * 5) % K ? 1 : 0;
      break;
    case Pattern::index:
      return static_cast<int8_t>(is_x ? row % 127 + 1 : (k * 3 + row) % 255 - 127);
    case Pattern::extreme:
      return (is_x ? row % 3 == 0 : row % 5 == 0) ? -127 : 127;
  }
  return static_cast<int8_t>(static_cast<int>(h % 255) - 127);
}

HostProblem make_host(int M, int N, int K, Pattern pattern) {
  HostProblem h{M, N, K, {}, {}, {}, {}, {}, {}, {}, {}};
  for (int m = 0; m < M; ++m) {
    for (int k = 0; k < K; ++k) h.x.push_back(pattern_value(pattern, true, m, k, K));
    h.row_scale.push_back(1e-3f + 1e-9f * (hash(m, 3) >> 12));
  }
  for (int n = 0; n < N; ++n) {
    for (int k = 0; k < K; ++k) h.w.push_back(pattern_value(pattern, false, n, k, K));
    h.column_scale.push_back(1e-2f + 1e-8f * (hash(n, 4) >> 12));
    h.bias.push_back(__float2bfloat16_rn((hash(n, 5) >> 8) * 1e-7f - 0.8f));
    h.gamma.push_back(__float2bfloat16_rn((hash(n, 6) >> 8) * 1e-7f - 0.8f));
  }
  for (int64_t i = 0; i < int64_t{M} * N; ++i) {
    h.extra.push_back(__float2bfloat16_rn((hash(i, 7) >> 8) * 6e-7f - 5.0f));
  }
  h.accumulators.resize(static_cast<size_t>(M) * N);
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      int sum = 0;
      for (int k = 0; k < K; ++k)
        sum += h.x[static_cast<size_t>(m) * K + k] * h.w[static_cast<size_t>(n) * K + k];
      h.accumulators[static_cast<size_t>(m) * N + n] = sum;
    }
  }
  return h;
}

template <Extra kExtra>
std::vector<uint16_t> host_y(const HostProblem& h, bool column_scale, bool bias, bool gamma) {
  std::vector<uint16_t> y;
  for (int m = 0; m < h.M; ++m) {
    for (int n = 0; n < h.N; ++n) {
      const size_t i = static_cast<size_t>(m) * h.N + n;
      const float scale = multiply_rounded(h.row_scale[m], h.column_scale[column_scale ? n : 0]);
      const float value = gemm_int8_element<kExtra>(
          h.accumulators[i], scale, bias ? __bfloat162float(h.bias[n]) : 0.0f, __bfloat162float(h.extra[i]),
          gamma ? __bfloat162float(h.gamma[n]) : 1.0f);
      y.push_back(bfloat16(value).bits);
    }
  }
  return y;
}

int64_t mismatches(const std::vector<uint16_t>& expected, const Buffer<__nv_bfloat16>& y) {
  const std::vector<__nv_bfloat16> got = y.download();
  int64_t count = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, &got[i], 2);
    count += bits != expected[i];
  }
  return count;
}

int64_t failures = 0, checks = 0;
void report(int64_t wrong, const std::string& who, const std::string& what, int M, int N, int K) {
  ++checks;
  if (wrong == 0) return;
  if (++failures <= 40) {
    std::printf("WRONG %-28s %-24s M %d N %d K %d: %lld elements differ\n", who.c_str(), what.c_str(), M, N,
                K, static_cast<long long>(wrong));
  }
}

void check_shape(const std::vector<Contender>& contenders, int M, int N, int K, Pattern pattern) {
  const HostProblem h = make_host(M, N, K, pattern);
  const std::string what = kPatternNames[static_cast<int>(pattern)];
  Buffer<int8_t> x(int64_t{M} * K), w(int64_t{N} * K);
  Buffer<float> row_scale(M), column_scale(N);
  Buffer<__nv_bfloat16> bias(N), gamma(N), extra(int64_t{M} * N), y(int64_t{M} * N);
  Buffer<int> accumulators(int64_t{M} * N);
  x.upload(h.x), w.upload(h.w), row_scale.upload(h.row_scale), column_scale.upload(h.column_scale);
  bias.upload(h.bias), gamma.upload(h.gamma), extra.upload(h.extra);
  Problem p = {M,           N,        K,      x.data(), w.data(), row_scale.data(), column_scale.data(),
               bias.data(), y.data(), nullptr};
  const std::vector<uint16_t> expected = host_y<Extra::none>(h, false, true, false);
  other_matrix = extra.data();
  for (const Contender& contender : contenders) {
    y.fill_bytes(0xff), accumulators.fill_bytes(0x55);
    if (contender.name.find("with") != std::string::npos) {
      contender.run(p, nullptr);
      const bool residual = contender.name.find("residual") != std::string::npos;
      report(mismatches(residual ? host_y<Extra::residual>(h, false, true, false)
                                 : host_y<Extra::gelu_derivative>(h, false, true, false),
                        y),
             contender.name, what, M, N, K);
      continue;
    }
    contender.run(p, nullptr);
    Problem exact = p;
    exact.accumulators = accumulators.data();
    contender.run(exact, nullptr);
    const cudaError_t error = cudaDeviceSynchronize();
    if (error != cudaSuccess)
      fail(contender.name, " M ", M, " N ", N, " K ", K, ": ", cudaGetErrorString(error));
    const std::vector<int> got = accumulators.download();
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) wrong += got[i] != h.accumulators[i];
    report(wrong, contender.name, "s32, " + what, M, N, K);
    report(mismatches(expected, y), contender.name, "bf16, " + what, M, N, K);
  }
  // The public entries, with every epilogue.
  using Entry = void (*)(const GemmInt8&, cudaStream_t);
  const std::pair<const char*, Entry> entries[] = {{"gemm_int8_sm90", gemm_int8_sm90},
                                                   {"gemm_int8_mma", gemm_int8_mma}};
  const Device gpu{};
  for (const auto& named : entries) {
    const char* const name = named.first;
    const Entry entry = named.second;
    for (int variant = 0; variant < 24; ++variant) {
      const bool with_bias = variant & 1, by_column = variant & 2, with_gamma = variant & 4;
      const Extra kind = static_cast<Extra>(variant / 8);
      if (with_gamma && kind != Extra::residual) continue;
      GemmInt8 a = as_gemm(p);
      if (!with_bias) a.bias = {};
      if (by_column) a.weight_scale = {column_scale.data(), {N}, DType::f32, gpu};
      a.extra_kind = kind;
      if (kind != Extra::none) a.extra = {extra.data(), {M, N}, DType::bf16, gpu};
      if (with_gamma) a.gamma = {gamma.data(), {N}, DType::bf16, gpu};
      y.fill_bytes(0xff);
      entry(a, nullptr);
      const cudaError_t error = cudaDeviceSynchronize();
      if (error != cudaSuccess) fail(name, " M ", M, " N ", N, " K ", K, ": ", cudaGetErrorString(error));
      const auto want = kind == Extra::none ? host_y<Extra::none>(h, by_column, with_bias, with_gamma)
                        : kind == Extra::residual
                            ? host_y<Extra::residual>(h, by_column, with_bias, with_gamma)
                            : host_y<Extra::gelu_derivative>(h, by_column, with_bias, with_gamma);
      report(mismatches(want, y), name,
             std::string(kind == Extra::none       ? "plain"
                         : kind == Extra::residual ? "residual"
                                                   : "gelu'") +
                 (with_bias ? " bias" : "") + (by_column ? " columns" : "") + (with_gamma ? " gamma" : "") +
                 ", " + what,
             M, N, K);
    }
  }
}

void check(const std::vector<Contender>& contenders, bool tiny) {
  const int shapes[][2] = {{8, 16}, {264, 208}, {136, 1296}, {520, 144}, {256, 256}, {1280, 640}};
  for (const auto& shape : shapes) {
    const int N = shape[0], K = shape[1];
    for (int M : {1, 15, 129, 257}) {
      for (Pattern pattern : kPatterns) {
        if (tiny && !((N == 264 || N == 8) && (M == 129) && pattern == Pattern::random)) continue;
        if (N == 1280 && pattern != Pattern::random) continue;
        check_shape(contenders, M, N, K, pattern);
      }
    }
  }
  std::printf("check: %lld comparisons, %lld wrong\n", static_cast<long long>(checks),
              static_cast<long long>(failures));
}

// ---- production shapes ----------------------------------------------------------------

struct Shape3 {
  int M, N, K;
};
constexpr Shape3 kShapes[] = {{32896, 3840, 1280},
                              {32896, 1280, 1280},
                              {32896, 5120, 1280},
                              {32896, 1280, 5120},
                              {32896, 1280, 3840},
                              // the text tower and ViT-L, larger dimensions, a batch of texts, a square
                              {32896, 1024, 1024},
                              {32896, 3072, 1024},
                              {32896, 4096, 1024},
                              {32896, 1024, 4096},
                              {32896, 1024, 3072},
                              {32768, 8192, 2048},
                              {32768, 2048, 8192},
                              {9856, 4096, 1024},
                              {9856, 1024, 4096},
                              {8192, 8192, 8192}};
constexpr int kMainShapes = 5;

// A kernel that starts early (dependent_launch.cuh) must not read what its predecessor has not written yet:
// the last rows of y from one product are the residual of the first tiles of the next.
void check_chain() {
  const int M = 32896, N = 1280, K = 5120, last = 4224;
  const Buffer<int8_t> x = random_buffer<int8_t>(int64_t{M} * K, 1),
                       w = random_buffer<int8_t>(int64_t{N} * K, 2);
  const Buffer<float> row_scale = random_buffer<float>(M, 3), tensor_scale = random_buffer<float>(1, 4);
  const Buffer<__nv_bfloat16> bias = random_buffer<__nv_bfloat16>(N, 5);
  Buffer<__nv_bfloat16> first(int64_t{M} * N), second(int64_t{last} * N), expected(int64_t{last} * N);
  const int64_t skipped = M - last;
  const Problem p1 = {
      M, N, K, x.data(), w.data(), row_scale.data(), tensor_scale.data(), bias.data(), first.data(), nullptr};
  const Problem p2 = {last,
                      N,
                      K,
                      x.data() + skipped * K,
                      w.data(),
                      row_scale.data() + skipped,
                      tensor_scale.data(),
                      bias.data(),
                      second.data(),
                      nullptr};
  GemmInt8 b = as_gemm(p2);
  b.extra_kind = Extra::residual;
  b.extra = {first.data() + skipped * N, {last, N}, DType::bf16, {}};
  int64_t wrong = 0;
  for (int i = 0; i <= 50; ++i) {
    CUDA_CHECK(cudaMemsetAsync(first.data(), 0xff, int64_t{M} * N * 2));
    CUDA_CHECK(cudaMemsetAsync(second.data(), 0xff, int64_t{last} * N * 2));
    gemm_int8_sm90(as_gemm(p1), nullptr);
    if (i == 0) CUDA_CHECK(cudaDeviceSynchronize());
    gemm_int8_sm90(b, nullptr);
    if (i == 0)
      CUDA_CHECK(cudaMemcpy(expected.data(), second.data(), int64_t{last} * N * 2, cudaMemcpyDeviceToDevice));
    else
      wrong += differences(reinterpret_cast<const uint16_t*>(second.data()),
                           reinterpret_cast<const uint16_t*>(expected.data()), int64_t{last} * N);
  }
  report(wrong, "gemm_int8_sm90", "chain of two", M, N, K);
}

void check_big(const std::vector<Contender>& contenders, cublasLtHandle_t handle, void* workspace) {
  for (const Shape3& shape : kShapes) {
    if (&shape - kShapes >= kMainShapes) continue;
    const int M = shape.M, N = shape.N, K = shape.K;
    const int64_t count = int64_t{M} * N;
    const Buffer<int8_t> x = random_buffer<int8_t>(int64_t{M} * K, 1, Data::uniform);
    const Buffer<int8_t> w = random_buffer<int8_t>(int64_t{N} * K, 2, Data::uniform);
    const Buffer<float> row_scale = random_buffer<float>(M, 3), tensor_scale = random_buffer<float>(1, 4);
    const Buffer<__nv_bfloat16> bias = random_buffer<__nv_bfloat16>(N, 5);
    Buffer<int> expected(count), accumulators(count);
    Buffer<__nv_bfloat16> y(count), expected_y(count);
    Problem p = {M,
                 N,
                 K,
                 x.data(),
                 w.data(),
                 row_scale.data(),
                 tensor_scale.data(),
                 bias.data(),
                 nullptr,
                 expected.data()};
    naive(p, nullptr);
    reference_y<<<1024, 256>>>(p, expected.data(), expected_y.data());
    CublasLt int8(handle, workspace, Rival::int8, M, N, K, nullptr, nullptr, nullptr);
    if (int8.choose(x.data(), w.data(), accumulators.data(), nullptr)) {
      report(differences(accumulators.data(), expected.data(), count), "cuBLASLt int8", "s32", M, N, K);
    }
    for (const Contender& contender : contenders) {
      if (contender.name.find("with") != std::string::npos) continue;
      accumulators.fill_bytes(0x55), y.fill_bytes(0xff);
      p.accumulators = accumulators.data(), p.y = y.data();
      contender.run(p, nullptr);
      report(differences(accumulators.data(), expected.data(), count), contender.name, "s32", M, N, K);
      p.accumulators = nullptr;
      contender.run(p, nullptr);
      report(differences(reinterpret_cast<const uint16_t*>(y.data()),
                         reinterpret_cast<const uint16_t*>(expected_y.data()), count),
             contender.name, "bf16", M, N, K);
    }
  }
  check_chain();
  std::printf("big: %lld comparisons, %lld wrong\n", static_cast<long long>(checks),
              static_cast<long long>(failures));
}

// ---- time ----------------------------------------------------------------

struct Timed {
  std::string name;
  std::function<void(int)> run;  // with the index of the buffers to use
  std::vector<double> microseconds;
};

struct Method {
  int rounds = 7, shape = -1, more = 0;
  double milliseconds = 150, settle = 150, pause = 0;
  std::string filter;
};

void time_all(std::vector<Timed>& all, const Method& method, int sets) {
  cudaEvent_t start, stop;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&stop));
  const auto run_for = [&](Timed& t, double microseconds, double guess) {
    const int launches = std::clamp(static_cast<int>(microseconds / guess), 1, 20000);
    CUDA_CHECK(cudaEventRecord(start));
    for (int i = 0; i < launches; ++i) t.run(i % sets);
    CUDA_CHECK(cudaEventRecord(stop));
    CUDA_CHECK(cudaEventSynchronize(stop));
    float elapsed;
    CUDA_CHECK(cudaEventElapsedTime(&elapsed, start, stop));
    return elapsed * 1e3 / launches;
  };
  std::vector<size_t> order;
  std::vector<double> guess;
  for (Timed& t : all) {
    order.push_back(order.size());
    run_for(t, 3, 1);
    guess.push_back(run_for(t, 3, 1));
  }
  for (int round = 0; round < method.rounds; ++round) {
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[hash(i, 77 + round) % (i + 1)]);
    for (size_t who : order) {
      if (guess[who] > 2e4 && round >= 3) continue;  // the slow rungs: three rounds tell enough
      if (method.pause > 0) usleep(static_cast<useconds_t>(method.pause * 1e3));
      if (method.settle > 0) run_for(all[who], method.settle * 1e3, guess[who]);
      all[who].microseconds.push_back(run_for(all[who], method.milliseconds * 1e3, guess[who]));
    }
  }
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(stop));
}

void time_shapes(const std::vector<Contender>& contenders, cublasLtHandle_t handle, void* workspace,
                 const Method& method, bool uniform_too) {
  for (const Shape3& shape : kShapes) {
    if (method.shape >= 0 ? &shape != &kShapes[method.shape]
                          : &shape - kShapes >= (method.more ? 99 : kMainShapes))
      continue;
    const int M = shape.M, N = shape.N, K = shape.K;
    constexpr int kSets =
        3;  // activations must come from memory, as in a network; weights stay in L2, likewise
    std::vector<Buffer<int8_t>> x, x_uniform;
    std::vector<Buffer<__nv_fp8_e4m3>> x_fp8;
    std::vector<Buffer<__nv_bfloat16>> x_bf16, y;
    for (int i = 0; i < kSets; ++i) {
      const int64_t count = int64_t{M} * K;
      x.push_back(random_buffer<int8_t>(count, 10 + i));
      x_uniform.push_back(random_buffer<int8_t>(count, 10 + i, Data::uniform));
      x_fp8.push_back(random_buffer<__nv_fp8_e4m3>(count, 10 + i));
      x_bf16.push_back(random_buffer<__nv_bfloat16>(count, 10 + i));
      y.push_back(Buffer<__nv_bfloat16>(int64_t{M} * N));
    }
    const int64_t weights = int64_t{N} * K;
    const Buffer<int8_t> w = random_buffer<int8_t>(weights, 2),
                         w_uniform = random_buffer<int8_t>(weights, 2, Data::uniform);
    const Buffer<__nv_fp8_e4m3> w_fp8 = random_buffer<__nv_fp8_e4m3>(weights, 2);
    const Buffer<__nv_bfloat16> w_bf16 = random_buffer<__nv_bfloat16>(weights, 2);
    const Buffer<float> row_scale = random_buffer<float>(M, 3), column_scale = random_buffer<float>(N, 4);
    const Buffer<__nv_bfloat16> bias = random_buffer<__nv_bfloat16>(N, 5);
    const Buffer<int> sums(int64_t{M} * N);

    const Buffer<__nv_bfloat16> residual = random_buffer<__nv_bfloat16>(int64_t{M} * N, 6);
    std::vector<Timed> all;
    const auto problem = [&](int i) {
      other_matrix = residual.data();
      return Problem{
          M,           N,           K,      x[i].data(), w.data(), row_scale.data(), column_scale.data(),
          bias.data(), y[i].data(), nullptr};
    };
    CublasLt fp8(handle, workspace, Rival::fp8, M, N, K, column_scale.data(), row_scale.data(), bias.data());
    CublasLt fp8_plain(handle, workspace, Rival::fp8, M, N, K, column_scale.data(), row_scale.data(),
                       nullptr);
    CublasLt bf16(handle, workspace, Rival::bf16, M, N, K, nullptr, nullptr, bias.data());
    CublasLt int8(handle, workspace, Rival::int8, M, N, K, nullptr, nullptr, nullptr);
    if (fp8.supported() && fp8.choose(x_fp8[0].data(), w_fp8.data(), y[0].data(), nullptr)) {
      all.push_back({"cuBLASLt fp8 row-wise, bias",
                     [&](int i) { fp8.run(x_fp8[i].data(), w_fp8.data(), y[i].data(), nullptr); },
                     {}});
    }
    if (fp8_plain.supported() && fp8_plain.choose(x_fp8[0].data(), w_fp8.data(), y[0].data(), nullptr)) {
      all.push_back({"cuBLASLt fp8 row-wise",
                     [&](int i) { fp8_plain.run(x_fp8[i].data(), w_fp8.data(), y[i].data(), nullptr); },
                     {}});
    }
    if (bf16.supported() && bf16.choose(x_bf16[0].data(), w_bf16.data(), y[0].data(), nullptr)) {
      all.push_back({"cuBLASLt bf16, bias",
                     [&](int i) { bf16.run(x_bf16[i].data(), w_bf16.data(), y[i].data(), nullptr); },
                     {}});
    }
    if (int8.supported() && int8.choose(x[0].data(), w.data(), sums.data(), nullptr)) {
      all.push_back({"cuBLASLt int8 -> s32",
                     [&](int i) { int8.run(x[i].data(), w.data(), sums.data(), nullptr); },
                     {}});
    }
    for (const Contender& contender : contenders) {
      all.push_back({contender.name, [&, run = contender.run](int i) { run(problem(i), nullptr); }, {}});
      if (uniform_too && contender.name == "final") {
        all.push_back({contender.name + ", uniform bytes",
                       [&, run = contender.run](int i) {
                         Problem p = problem(i);
                         p.x = x_uniform[i].data(), p.w = w_uniform.data();
                         run(p, nullptr);
                       },
                       {}});
      }
    }
    time_all(all, method, kSets);
    double fp8_time = 1e30;
    for (const Timed& t : all) {
      std::vector<double> sorted = t.microseconds;
      std::sort(sorted.begin(), sorted.end());
      const double median = sorted[sorted.size() / 2];
      if (t.name.find("fp8") != std::string::npos) fp8_time = std::min(fp8_time, median);
      const double operations = 2.0 * M * N * K;
      std::printf("%d x %d x %d | %-44s | %9.1f us | %7.0f TOPS (%.0f .. %.0f) | %.3f of fp8\n", M, N, K,
                  t.name.c_str(), median, operations / median * 1e-6, operations / sorted.back() * 1e-6,
                  operations / sorted.front() * 1e-6, fp8_time / median);
    }
    std::fflush(stdout);
  }
}

int run(int count, char** arguments) {
  const std::string command = count > 1 ? arguments[1] : "";
  Method method;
  for (int i = 2; i < count; ++i) {
    const std::string option = arguments[i];
    const size_t equals = option.find('=');
    CHECK(equals != std::string::npos, "options are name=value, got ", option);
    const std::string name = option.substr(0, equals), value = option.substr(equals + 1);
    if (name == "rounds")
      method.rounds = std::atoi(value.c_str());
    else if (name == "shape")
      method.shape = std::atoi(value.c_str());
    else if (name == "more")
      method.more = std::atoi(value.c_str());
    else if (name == "milliseconds")
      method.milliseconds = std::atof(value.c_str());
    else if (name == "settle")
      method.settle = std::atof(value.c_str());
    else if (name == "pause")
      method.pause = std::atof(value.c_str());
    else if (name == "filter")
      method.filter = value;
    else
      fail("no option ", name);
  }
  CHECK(command == "check" || command == "tiny" || command == "big" || command == "time" || command == "tune",
        "usage: int8_ladder check | tiny | big | time | tune, with options name=value");
  cudaDeviceProp device;
  CUDA_CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors, %s\n", device.name, device.multiProcessorCount, command.c_str());

  std::vector<Contender> contenders = rungs();
  const std::vector<Contender> extra = command == "time" ? finals() : tiles();
  if (command == "tune") contenders.clear();
  if (command == "big") contenders.erase(contenders.begin());
  contenders.insert(contenders.end(), extra.begin(), extra.end());
  if (!method.filter.empty()) {
    std::erase_if(contenders,
                  [&](const Contender& c) { return c.name.find(method.filter) == std::string::npos; });
  }
  if (command == "check" || command == "tiny") {
    check(contenders, command == "tiny");
    return failures != 0;
  }
  cublasLtHandle_t handle;
  CUBLAS_CHECK(cublasLtCreate(&handle));
  const Buffer<uint8_t> workspace(CublasLt::kWorkspaceBytes);
  if (command == "big")
    check_big(contenders, handle, workspace.data());
  else
    time_shapes(contenders, handle, workspace.data(), method, command == "time");
  CUBLAS_CHECK(cublasLtDestroy(handle));
  return failures != 0;
}

}  // namespace
}  // namespace switchback::lessons

int main(int count, char** arguments) {
  try {
    return switchback::lessons::run(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
