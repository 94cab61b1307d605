// bench_linear.cpp: one linear layer, forward and backward, by recipe: the paper's Figure 3 and Figure 4
// (left) on this GPU (paper section 4.1).
//
//   build/bench/bench_linear [--dims 1024,1280,2048] [--tokens 32768] [--recipes switchback,switchback-fp8]
//     [--json FILE]
//
// For every dim two layers, dim -> 4 dim and 4 dim -> dim, in bf16 with a bias; the last lines give the
// average of both. Parts are timed apart, and a whole layer as one stretch: forward, input gradient, weight
// and bias gradient, with all quantising that the layer does for itself; where codes of dy's rows are made,
// the bias gradient comes out of that sweep and counts as quantising. In the whole the sweeps run beside
// products, over dy beside the weight gradient, over x beside y ("with x's codes", "with dy's codes": both as
// they run there; quantising is what that is more than the product alone). What a training step does once for
// many products (the weight's codes) is a part of its own and is counted in the whole; as there, the weight's
// largest magnitude is known, because the optimizer has left it ("sought": codes of a weight of which it has
// to be looked for).
// Normal random values: zeros and small integers make a GPU faster than it is. Medians of 3 to 9 stretches of
// recorded calls; standard and recipe take turns within one run, and the ratio is taken of those. bench_plot
// makes pictures of the --json lines.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "bench/whole_number.h"
#include "kernels/recipe.h"
#include "kernels/transfer.h"
#include "runtime/program.h"

using namespace switchback;

namespace {

constexpr Device gpu{Device::cuda, 0};

// Normal values: copies of one tile whose length no row size divides.
Tensor normal_values(Shape shape, double deviation) {
  static const Tensor tile = [] {
    constexpr int64_t count = 7919 * 128;
    Tensor values({count}, DType::f32);
    uint64_t state = 1;
    for (float& v : values.span<float>()) {
      double sum = -6;
      for (int i = 0; i < 12; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += static_cast<double>(state >> 11) * 0x1p-53;
      }
      v = static_cast<float>(sum);
    }
    return values;
  }();
  Tensor scaled(tile.shape(), DType::f32);
  for (int64_t i = 0; i < tile.size(); ++i)
    scaled.span<float>()[i] = static_cast<float>(tile.span<float>()[i] * deviation);
  const Tensor on_gpu = to_device(scaled, gpu);
  Tensor flat({shape.size()}, DType::bf16, gpu);
  for (int64_t from = 0; from < shape.size(); from += tile.size()) {
    const int64_t count = std::min(tile.size(), shape.size() - from);
    kernels(gpu).cast(flat.slice(from, count), on_gpu.slice(0, count));
  }
  return flat.reshape(shape);
}

// Seconds of one call of each, medians; they take turns, and have done so for a while before it counts: under
// load the chip lowers its clock to stay within its power, and that is where a layer works. A stretch is 4
// calls, fewer where a call is long.
std::vector<double> times_of(const std::vector<std::function<void()>>& works) {
  Kernels& k = kernels(gpu);
  std::vector<std::unique_ptr<Recording>> recordings;
  double longest = 0;
  for (const auto& work : works) {
    work();
    const auto start = k.mark();
    work();
    const auto end = k.mark();
    longest = std::max(longest, end->seconds_since(*start));
  }
  const int calls = longest < 5e-3 ? 4 : longest < 10e-3 ? 2 : 1, stretches = longest < 20e-3 ? 9 : longest < 40e-3 ? 5 : 3;
  for (const auto& work : works) {
    const auto several = [&] {
      for (int i = 0; i < calls; ++i) work();
    };
    if (calls > 1) several(), several();  // what is recorded has run twice
    recordings.push_back(k.record(several));
  }
  const auto seconds_of = [&](size_t i) {
    const auto start = k.mark();
    recordings[i]->replay();
    const auto end = k.mark();
    return end->seconds_since(*start);
  };
  for (double loaded = 0; loaded < 0.3;)
    for (size_t i = 0; i < works.size(); ++i) loaded += seconds_of(i);
  std::vector<std::vector<double>> times(works.size());
  for (int s = 0; s < stretches; ++s)
    for (size_t i = 0; i < works.size(); ++i) times[i].push_back(seconds_of(i) / calls);
  std::vector<double> medians;
  for (auto& t : times) {
    std::sort(t.begin(), t.end());
    medians.push_back(t[t.size() / 2]);
  }
  return medians;
}

struct Totals {
  double standard = 0, recipe = 0, quantise = 0;
  std::vector<double> parts;  // seconds, by the names below
};
constexpr const char* part_names[] = {"standard", "whole", "standard forward", "forward", "standard dx", "dx",
                                      "standard dw", "dw", "quantise x", "quantise dy", "prepare w",
                                      "standard dw alone", "dw with dy's codes",
                                      "prepare w, largest sought", "forward with x's codes"};

// A layer K -> N for M tokens.
Totals show(const LinearRecipe& recipe, int64_t M, int64_t K, int64_t N) {
  Kernels& k = kernels(gpu);
  const Tensor x = normal_values({M, K}, 1), w = normal_values({N, K}, 1 / std::sqrt(double(K))),
               bias = normal_values({N}, 0.1), dy = normal_values({M, N}, 1e-4);
  Tensor masters({N, K}, DType::f32, gpu), y({M, N}, DType::bf16, gpu), dx({M, K}, DType::bf16, gpu),
      dw({N, K}, DType::f32, gpu), dbias({N}, DType::f32, gpu);
  k.cast(masters, w);
  const PreparedWeight prepared = prepared_weight(recipe, w.shape(), DType::bf16, gpu), none;
  const Tensor largest({1}, DType::f32, gpu);
  k.absolute_maximum(largest, masters, Granularity::tensor);
  const std::vector<WeightToPrepare> weights = {{&prepared, &recipe, masters, largest}},
                                     unknown = {{&prepared, &recipe, masters}};
  const auto codes_of = [](const Tensor& t, Format format) {
    return Codes{Tensor(t.shape(), code_dtype(format, DType::bf16), gpu), Tensor({t.rows()}, DType::f32, gpu), format};
  };
  const bool coded = recipe.input_row_codes() != Format::none;
  Codes x_codes;
  if (coded) x_codes = codes_of(x, recipe.input_row_codes());
  const auto quantise = [&](const Codes& to, const Tensor& t) {
    if (coded) k.quantize(to.codes, {}, to.scale, t, {}, to.format, Granularity::row);
  };
  // Without codes of x the layer makes them.
  const auto forward = [&](const LinearRecipe& r, const PreparedWeight& p, SavedInput* saved, const Codes& left) {
    linear_forward(r, y, saved, {x, left}, w, p, bias);
  };
  // The codes of dy; dbias is done where the recipe has it in the same sweep, else it is left to the weight
  // gradient.
  RowOperand quantised{dy, {}};
  const Sink left_dbias = quantize_gradient(recipe, quantised, {dbias}) ? Sink{} : Sink{dbias};
  const auto backward_input = [&](const LinearRecipe& r, const PreparedWeight& p,
                                  const RowOperand& gradient) {
    linear_backward_input(r, {dx}, gradient, w, p);
  };
  prepare_weights(weights);
  quantise(x_codes, x);
  SavedInput kept;
  forward(recipe, prepared, &kept, x_codes);
  const LinearRecipe& standard = standard_recipe();
  const auto whole = [&](const LinearRecipe& r, const PreparedWeight& p) {
    SavedInput saved;
    RowOperand gradient{dy, {}};
    if (&r == &recipe) prepare_weights(weights);
    forward(r, p, &saved, {});
    Sink left_dw{dw}, left_dbias{dbias};
    quantize_gradient(r, gradient, left_dw, left_dbias, saved);
    backward_input(r, p, gradient);
    linear_backward_weight(r, left_dw, left_dbias, dy, saved);
  };
  const std::vector<double> t = times_of({
      [&] { whole(standard, none); },
      [&] { whole(recipe, prepared); },
      [&] { forward(standard, none, nullptr, {}); },
      [&] { forward(recipe, prepared, nullptr, x_codes); },
      [&] {
        backward_input(standard, none, {dy, {}});
      },
      [&] { backward_input(recipe, prepared, quantised); },
      [&] {
        linear_backward_weight(standard, {dw}, {dbias}, dy, {x, {}});
      },
      [&] { linear_backward_weight(recipe, {dw}, left_dbias, dy, kept); },
      [&] { quantise(x_codes, x); },
      [&] {
        RowOperand gradient{dy, {}};
        quantize_gradient(recipe, gradient, {dbias});
      },
      [&] { prepare_weights(weights); },
      [&] {
        linear_backward_weight(standard, {dw}, {}, dy, {x, {}});
      },
      [&] {
        RowOperand gradient{dy, {}};
        Sink left_dw{dw}, left_dbias{dbias};
        quantize_gradient(recipe, gradient, left_dw, left_dbias, kept);
        linear_backward_weight(recipe, left_dw, left_dbias, dy, kept);
      },
      [&] { prepare_weights(unknown); },
      [&] { forward(recipe, prepared, nullptr, {}); },
  });
  const double of_quantisers = std::max(0.0, t[14] - t[3]) + std::max(0.0, t[12] - t[7]) + t[10];
  const auto bandwidth = [&](int64_t elements, double seconds) { return 3.0 * double(elements) / seconds * 1e-12; };
  std::printf(
      "%-18s %6lld x %5lld -> %5lld | standard %7.1f us, recipe %7.1f us: %.3fx | fwd %6.1f -> %6.1f (with x's codes %6.1f)  dx %6.1f -> %6.1f  "
      "dw %6.1f -> %6.1f (no bias %6.1f, with dy's codes %6.1f) | x %5.1f us (%.2f TB/s)  dy %5.1f us (%.2f TB/s)  w %5.1f us (sought %5.1f) | quantise %4.1f %%\n",
      std::string(recipe.name).c_str(), static_cast<long long>(M), static_cast<long long>(K), static_cast<long long>(N),
      t[0] * 1e6, t[1] * 1e6, t[0] / t[1], t[2] * 1e6, t[3] * 1e6, t[14] * 1e6, t[4] * 1e6, t[5] * 1e6, t[6] * 1e6, t[7] * 1e6, t[11] * 1e6, t[12] * 1e6,
      t[8] * 1e6, coded ? bandwidth(M * K, t[8]) : 0, t[9] * 1e6, coded ? bandwidth(M * N, t[9]) : 0, t[10] * 1e6,
      t[13] * 1e6, 100 * of_quantisers / t[1]);
  std::fflush(stdout);
  return {t[0], t[1], of_quantisers, t};
}

std::vector<std::string> parts_of(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream in(list);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

int run(int count, char** arguments) {
  std::string dims = "1024,1280,2048", tokens = "32768", recipes = "switchback,switchback-fp8", json;
  for (int i = 1; i < count; ++i) {
    const std::string flag = arguments[i];
    std::string* to = flag == "--dims" ? &dims : flag == "--tokens" ? &tokens : flag == "--recipes" ? &recipes
                      : flag == "--json" ? &json : nullptr;
    if (!to || i + 1 == count)
      fail("bench_linear: ", flag, ": known are --dims, --tokens and --recipes, each with a list, and --json FILE");
    *to = arguments[++i];
  }
  for (const std::string& name : parts_of(recipes))
    for (const std::string& m : parts_of(tokens))
      for (const std::string& d : parts_of(dims)) {
        const LinearRecipe& recipe = linear_recipe(name);
        const int64_t M = whole_number("--tokens", m), dim = whole_number("--dims", d);
        const Totals up = show(recipe, M, dim, 4 * dim), down = show(recipe, M, 4 * dim, dim);
        const double standard = up.standard + down.standard, total = up.recipe + down.recipe;
        std::printf("%-18s %6s tokens, dim %5s: average of both %.3fx (%.1f %% of the time saved), quantise %.1f %%\n",
                    name.c_str(), m.c_str(), d.c_str(), standard / total, 100 * (1 - total / standard),
                    100 * (up.quantise + down.quantise) / total);
        std::fflush(stdout);
        if (json.empty()) continue;
        nlohmann::json line = {{"recipe", name}, {"tokens", M}, {"dim", dim}};
        for (size_t i = 0; i < std::size(part_names); ++i)  // average of both layers, microseconds
          line[part_names[i]] = (up.parts[i] + down.parts[i]) / 2 * 1e6;
        line["up whole"] = up.recipe * 1e6, line["down whole"] = down.recipe * 1e6;
        if (!(std::ofstream(json, std::ios::app) << line.dump() << "\n")) fail("cannot write to --json ", json);
      }
  return 0;
}

}  // namespace

int main(int count, char** arguments) { return run_program("bench_linear", run, count, arguments); }
