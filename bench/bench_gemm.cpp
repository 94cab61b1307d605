// bench_gemm.cpp: the bf16 products of CLIP's training step, cuBLASLt against our kernel
// (kernels/cuda/gemm_bf16.cuh), in one run.
//
//   build/bench/bench_gemm [rounds=7] [milliseconds=8] [only=TEXT] [sets=2]
//
// Per shape and kind: cuBLASLt (the fastest of its heuristic's candidates), each of our tiles, and what
// GemmPlans would take. Contenders take turns in every round, a stretch of `milliseconds` each, so that all
// meet the same clock of the chip; medians over rounds. Activations rotate over `sets` buffers, weights stay
// in L2, as in a network. Random normal values. TFLOP/s = 2 M N K / time, whatever else the epilogue does.
//
//   forward         y = x wᵀ + bias
//   forward gelu    u = x wᵀ + bias, g = gelu(u);  composed: cuBLASLt, then a kernel for gelu
//   input           dx = dy w
//   input gelu'     du = (dy w) gelu'(u) [, g = gelu(u)];  composed likewise
//   weight          dw (f32) = dyᵀ x, dbias;  composed: cuBLASLt, then a kernel that sums the rows of dy
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/gemm_weight_gradient.cuh"
#include "runtime/program.h"

using namespace switchback;
using namespace switchback::cuda;

namespace {

constexpr Device gpu{Device::cuda, 0};

struct Options {
  int rounds = 7, sets = 2;
  double milliseconds = 8;
  std::string only;
};

// A device matrix of random normal values, times `scale`: a million of them, again and again, in another
// phase in every row.
Tensor random_matrix(int64_t rows, int64_t cols, float scale, unsigned seed) {
  static const std::vector<float> normal = [] {
    std::vector<float> values;
    std::mt19937 engine;
    std::normal_distribution<float> distribution;
    for (int i = 0; i < 1 << 20; ++i) values.push_back(distribution(engine));
    return values;
  }();
  std::vector<bfloat16> values;
  for (size_t i = 0; i < normal.size(); ++i)
    values.push_back(bfloat16(scale * normal[(i + seed * 7919) % normal.size()]));
  Tensor t({rows, cols}, DType::bf16, gpu);
  auto* to = static_cast<bfloat16*>(t.data());
  const int64_t count = std::min<int64_t>(t.size(), static_cast<int64_t>(values.size()) - 1235);
  CUDA_CHECK(cudaMemcpy(to, values.data(), 2 * count, cudaMemcpyHostToDevice));
  for (int64_t at = count; at < t.size(); at += count)
    CUDA_CHECK(cudaMemcpy(to + at, to, 2 * std::min(count, t.size() - at), cudaMemcpyDeviceToDevice));
  return t;
}

struct Contender {
  std::string name;
  std::function<void(int)> run;  // with the index of the buffers to use
  std::vector<double> microseconds = {};
};

void time_all(std::vector<Contender>& all, const Options& options, cudaStream_t stream) {
  cudaEvent_t start, end;
  CUDA_CHECK(cudaEventCreate(&start));
  CUDA_CHECK(cudaEventCreate(&end));
  const auto stretch = [&](Contender& c, int launches) {
    CUDA_CHECK(cudaEventRecord(start, stream));
    for (int i = 0; i < launches; ++i) c.run(i % options.sets);
    CUDA_CHECK(cudaEventRecord(end, stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start, end));
    return milliseconds * 1e3 / launches;
  };
  std::vector<double> guess;
  for (Contender& c : all) {
    stretch(c, options.sets);
    guess.push_back(stretch(c, 2));
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < all.size(); ++i) {
      const size_t who = round % 2 ? all.size() - 1 - i : i;
      all[who].microseconds.push_back(
          stretch(all[who], std::max(2, static_cast<int>(options.milliseconds * 1e3 / guess[who]))));
    }
  }
  CUDA_CHECK(cudaEventDestroy(start));
  CUDA_CHECK(cudaEventDestroy(end));
}

void report(const std::string& what, int64_t M, int64_t N, int64_t K, std::vector<Contender>& all) {
  double first = 0;
  for (Contender& c : all) {
    std::sort(c.microseconds.begin(), c.microseconds.end());
    const double median = c.microseconds[c.microseconds.size() / 2];
    if (first == 0) first = median;
    std::printf("%-14s %6lld x %4lld x %4lld | %-26s %8.1f us %5.0f TFLOP/s  %.3f\n", what.c_str(),
                static_cast<long long>(M), static_cast<long long>(N), static_cast<long long>(K),
                c.name.c_str(), median, 2e-6 * M * N * K / median, first / median);
  }
  std::fflush(stdout);
}

class Bench {
 public:
  Bench(CudaKernels& kernels, const Options& options)
      : k_(kernels), options_(options), cublas_(gpu, kernels.stream(), GemmPlans::only_cublas) {}

  // A linear layer (N, K) of M rows: what the step does with it.
  void layer(const char* name, int64_t M, int64_t N, int64_t K, bool gelu_behind, bool gelu_before) {
    if (!options_.only.empty() && std::string(name).find(options_.only) == std::string::npos) return;
    std::printf("-- %s\n", name);
    const int sets = options_.sets;
    std::vector<Tensor> x, y, second, operand;
    for (int i = 0; i < sets; ++i) {
      x.push_back(random_matrix(M, K, 1, 1 + i));
      y.push_back(random_matrix(M, N, 1, 11 + i));
    }
    const Tensor w = random_matrix(N, K, 0.02f, 21), bias = random_matrix(1, N, 0.1f, 22);
    if (gelu_behind) {
      for (int i = 0; i < sets; ++i) second.push_back(random_matrix(M, N, 1, 31 + i));
      forward_gelu(M, N, K, x, w, bias, y, second);
      second.clear();
    } else {
      forward(M, N, K, x, w, bias, y);
    }
    if (gelu_before) {  // this layer's input is gelu of the pre-activation `operand`
      for (int i = 0; i < sets; ++i) operand.push_back(random_matrix(M, K, 1, 41 + i));
      input_gelu(M, N, K, y, w, x, operand);
    } else {
      input(M, N, K, y, w, x);
    }
    weight(M, N, K, x, y);
  }

 private:
  void own_tiles(std::vector<Contender>& all, const std::function<GemmBf16(int)>& problem,
                 const std::string& suffix) {
    for (int tile = 0; tile < gemm_bf16_tiles(); ++tile) {
      if (!gemm_bf16_has(problem(0), tile)) continue;
      const std::string chosen = gemm_bf16_choose(problem(0)) == tile ? " *" : "";
      all.push_back({gemm_bf16_name(tile) + suffix + chosen,
                     [=, this](int i) { gemm_bf16(problem(i), tile, k_.stream()); }});
    }
  }

  void forward(int64_t M, int64_t N, int64_t K, const std::vector<Tensor>& x, const Tensor& w,
               const Tensor& bias, const std::vector<Tensor>& y) {
    std::vector<Contender> all;
    all.push_back({"cuBLASLt", [&](int i) { cublas_forward(M, N, K, x[i], w, bias, y[i]); }});
    own_tiles(
        all,
        [&](int i) {
          GemmBf16 p{M, N, K, x[i].data(), w.data()};
          p.bias = bias.data(), p.y = y[i].data();
          return p;
        },
        "");
    all.push_back({"GemmPlans", [&](int i) { k_.linear_forward(y[i], x[i], w, bias); }});
    time_all(all, options_, k_.stream());
    report("forward", M, N, K, all);
  }

  void forward_gelu(int64_t M, int64_t N, int64_t K, const std::vector<Tensor>& x, const Tensor& w,
                    const Tensor& bias, const std::vector<Tensor>& y, const std::vector<Tensor>& u) {
    std::vector<Contender> all;
    all.push_back({"cuBLASLt, gelu", [&](int i) {
                     cublas_forward(M, N, K, x[i], w, bias, u[i]);
                     k_.gelu_forward(y[i], u[i], Gelu::exact);
                   }});
    all.push_back({"cuBLASLt alone", [&](int i) { cublas_forward(M, N, K, x[i], w, bias, u[i]); }});
    for (bool with_u : {true, false}) {
      own_tiles(
          all,
          [&, with_u](int i) {
            GemmBf16 p{M, N, K, x[i].data(), w.data()};
            p.bias = bias.data(), p.y = y[i].data(), p.after = After::gelu;
            if (with_u) p.second = u[i].data();
            return p;
          },
          with_u ? ", u and g" : ", g");
    }
    time_all(all, options_, k_.stream());
    report("forward gelu", M, N, K, all);
  }

  void input(int64_t M, int64_t N, int64_t K, const std::vector<Tensor>& dy, const Tensor& w,
             const std::vector<Tensor>& dx) {
    std::vector<Contender> all;
    all.push_back({"cuBLASLt", [&](int i) { cublas_input(M, N, K, dy[i], w, dx[i]); }});
    own_tiles(
        all,
        [&](int i) {
          GemmBf16 p{M, K, N, dy[i].data(), w.data(), true};
          p.y = dx[i].data();
          return p;
        },
        "");
    all.push_back({"GemmPlans", [&](int i) { k_.linear_backward_input({dx[i]}, dy[i], w); }});
    time_all(all, options_, k_.stream());
    report("input", M, K, N, all);
  }

  void input_gelu(int64_t M, int64_t N, int64_t K, const std::vector<Tensor>& dy, const Tensor& w,
                  const std::vector<Tensor>& dx, const std::vector<Tensor>& u) {
    const Tensor g({M, K}, DType::bf16, gpu);
    std::vector<Contender> all;
    all.push_back({"cuBLASLt, gelu'", [&](int i) {
                     cublas_input(M, N, K, dy[i], w, dx[i]);
                     k_.gelu_backward({dx[i]}, dx[i], u[i], Gelu::exact);
                   }});
    all.push_back({"cuBLASLt alone", [&](int i) { cublas_input(M, N, K, dy[i], w, dx[i]); }});
    for (bool with_g : {false, true}) {
      own_tiles(
          all,
          [&, with_g](int i) {
            GemmBf16 p{M, K, N, dy[i].data(), w.data(), true};
            p.y = dx[i].data(), p.after = After::gelu_backward, p.operand = u[i].data();
            if (with_g) p.second = g.data();
            return p;
          },
          with_g ? ", du and g" : ", du");
    }
    time_all(all, options_, k_.stream());
    report("input gelu'", M, K, N, all);
  }

  void weight(int64_t M, int64_t N, int64_t K, const std::vector<Tensor>& x, const std::vector<Tensor>& dy) {
    const Tensor dw({N, K}, DType::f32, gpu), dbias({N}, DType::f32, gpu);
    std::vector<Contender> all;
    GemmProblem p;
    p.m = N, p.n = K, p.k = M, p.a_transposed = true, p.inputs = DType::bf16, p.output = DType::f32;
    const auto product = [&](int i) {
      CHECK(cublas_.multiply(p, dw.data(), dy[i].data(), x[i].data()), "cuBLASLt has no algorithm");
    };
    all.push_back({"cuBLASLt, sum of rows", [&](int i) {
                     product(i);
                     k_.linear_backward_weight({}, {dbias}, dy[i], x[i]);
                   }});
    all.push_back({"cuBLASLt alone", product});
    const Tensor workspace({16 << 20}, DType::f32, gpu);
    const auto own = [&](int i, bool with_dbias) {
      GemmWeightGradient a{M, N, K, dy[i].data(), x[i].data(), static_cast<float*>(dw.data())};
      if (with_dbias) a.dbias = static_cast<float*>(dbias.data());
      gemm_weight_gradient(a, workspace.data(), workspace.view().bytes(), k_.stream());
    };
    all.push_back({"own, dw and dbias", [&](int i) { own(i, true); }});
    all.push_back({"own, dw", [&](int i) { own(i, false); }});
    time_all(all, options_, k_.stream());
    report("weight", N, K, M, all);
  }

  void cublas_forward(int64_t M, int64_t N, int64_t K, const Tensor& x, const Tensor& w, const Tensor& bias,
                      const Tensor& y) {
    GemmProblem p;
    p.m = M, p.n = N, p.k = K, p.b_transposed = true;
    p.inputs = p.output = DType::bf16, p.epilogue = GemmProblem::add_bias;
    CHECK(cublas_.multiply(p, y.data(), x.data(), w.data(), bias.data()), "cuBLASLt has no algorithm");
  }
  void cublas_input(int64_t M, int64_t N, int64_t K, const Tensor& dy, const Tensor& w, const Tensor& dx) {
    GemmProblem p;
    p.m = M, p.n = K, p.k = N;
    p.inputs = p.output = DType::bf16;
    CHECK(cublas_.multiply(p, dx.data(), dy.data(), w.data()), "cuBLASLt has no algorithm");
  }

  CudaKernels& k_;
  Options options_;
  GemmPlans cublas_;
};

int run(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string option = arguments[i];
    const size_t equals = option.find('=');
    const std::string name = option.substr(0, equals);
    const char* value = equals == std::string::npos ? "" : arguments[i] + equals + 1;
    if (name == "rounds")
      options.rounds = std::atoi(value);
    else if (name == "sets")
      options.sets = std::atoi(value);
    else if (name == "milliseconds")
      options.milliseconds = std::atof(value);
    else if (name == "only")
      options.only = value;
    else
      fail("no option ", option, ": there are rounds, sets, milliseconds, only");
  }
  Bench bench(dynamic_cast<CudaKernels&>(kernels(gpu)), options);
  struct Tower {
    const char* name;
    int64_t M, d;
  };
  const Tower towers[] = {{"B/16 image", 512 * 197, 768}, {"B/32 image", 1024 * 50, 768},
                          {"B text", 512 * 77, 512},      {"L/14 image", 224 * 257, 1024},
                          {"L/14 text", 224 * 77, 768},   {"H/14 image", 96 * 257, 1280},
                          {"H/14 text", 96 * 77, 1024}};
  for (const Tower& t : towers) {
    const std::string name = t.name;
    bench.layer((name + " qkv").c_str(), t.M, 3 * t.d, t.d, false, false);
    bench.layer((name + " out").c_str(), t.M, t.d, t.d, false, false);
    bench.layer((name + " fc").c_str(), t.M, 4 * t.d, t.d, true, false);
    bench.layer((name + " proj").c_str(), t.M, t.d, 4 * t.d, false, true);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) { return run_program("bench_gemm", run, count, arguments); }
