// quantization_study: the noise of a linear layer's three products in 8 bits, on tensors of a training run.
//
//   quantization_study --train-data 'shards/{00..03}.tar' --output study
//
// Trains a small CLIP for some steps (or goes on from a checkpoint of clip_train), then takes x, w and dy of
// the linears of one block a tower from a few batches, and computes every product y = x wᵀ, dx = dy w, dw =
// dyᵀ x with operands rounded to int8 and to simulated 8-bit floats, over more and more of its sum's terms.
// docs/int8.md says what to see in the result:
//
//   study/noise.jsonl   one line for each linear, product, quantiser and length of the sum
//   study/noise.svg     the picture
// and a table on stdout.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "apps/checkpoint.h"
#include "apps/flags.h"
#include "apps/quantization_noise.h"
#include "apps/training_step.h"
#include "autograd/tape.h"
#include "data/loader.h"
#include "data/sample_source.h"
#include "data/tokenizer.h"
#include "kernels/transfer.h"
#include "runtime/chart.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "runtime/parallel.h"
#include "runtime/philox.h"
#include "runtime/program.h"

namespace switchback {
namespace {

struct Options {
  std::string model = "mini-28", checkpoint, train_data, tokenizer;
  std::string output = "quantization_study", device = "cpu";
  std::vector<std::string> blocks;
  int64_t steps = 60, batch_size = 64, batches = 8, samples = 64, smallest = 16, seed = 0, threads = 0;
  double lr = 1e-3;
};

// ---- batches ----------------------------------------------------------------------------------------------
// Where the user gives no data: a bright disc of one of 6 colours in one of 16 places on a noisy ground, and
// a caption that says so. A CLIP learns it in a few dozen steps.
Batch discs(int64_t size, int64_t side, uint64_t number, uint64_t seed, const Tokenizer& tokenizer) {
  constexpr std::array<const char*, 6> names{"red", "green", "blue", "yellow", "purple", "cyan"};
  Batch batch;
  batch.size = size;
  batch.images = Tensor({size, side, side, 3}, DType::u8);
  batch.tokens = Tensor({size, tokenizer.context_length()}, DType::i32);
  PhiloxStream random(seed, RandomPurpose::synthetic_data, number);
  uint8_t* pixel = batch.images.span<uint8_t>().data();
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t color = random.below(6), place = random.below(16);
    const double row = (0.5 + static_cast<double>(place / 4)) / 4,
                 column = (0.5 + static_cast<double>(place % 4)) / 4;
    for (int64_t y = 0; y < side; ++y)
      for (int64_t x = 0; x < side; ++x) {
        const double dy = (static_cast<double>(y) + 0.5) / static_cast<double>(side) - row;
        const double dx = (static_cast<double>(x) + 0.5) / static_cast<double>(side) - column;
        const bool inside = dx * dx + dy * dy < 0.15 * 0.15;
        for (uint64_t c = 0; c < 3; ++c) {  // colours 3 to 5 are two channels together
          const bool lit = color < 3 ? c == color : c != (color + 2) % 3;
          *pixel++ = static_cast<uint8_t>(random.below(64) + (inside && lit ? 190 : 30));
        }
      }
    const std::string caption = concat("a ", names[color], " disc ", place);
    tokenizer.encode(caption,
                     batch.tokens.span<int32_t>().subspan(static_cast<size_t>(i * tokenizer.context_length()),
                                                          static_cast<size_t>(tokenizer.context_length())));
  }
  return batch;
}

class Batches {
 public:
  Batches(const Options& o, const ClipConfig& config) : o_(o), side_(config.vision.image_size) {
    const bool bytes = o.tokenizer.empty() && config.text.vocab_size == 259;
    tokenizer_ =
        make_tokenizer(bytes ? "bytes" : o.tokenizer, static_cast<int32_t>(config.text.context_length));
    if (tokenizer_->vocabulary_size() > config.text.vocab_size)
      fail("the tokenizer has ", tokenizer_->vocabulary_size(), " ids, model ", config.name, " only ",
           config.text.vocab_size, ": choose another --tokenizer or --model");
    if (o.train_data.empty()) return;
    SourceOptions source;
    source.data = o.train_data;
    LoaderOptions loader;
    loader.batch_size = o.batch_size;
    loader.seed = static_cast<uint64_t>(o.seed);
    loader.image_size = static_cast<int>(side_);
    loader_ = std::make_unique<Loader>(open_source(source), tokenizer_, loader);
  }
  Batch next() {
    if (!loader_) return discs(o_.batch_size, side_, number_++, static_cast<uint64_t>(o_.seed), *tokenizer_);
    Batch batch;
    loader_->next(batch);
    return batch;
  }

 private:
  const Options& o_;
  int64_t side_;
  uint64_t number_ = 0;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Loader> loader_;
};

// ---- tensors of a run -------------------------------------------------------------------------------------
Tensor below_one_another(const Tensor& a, const Tensor& b) {  // (M1, C), (M2, C) -> (M1 + M2, C), f32
  const Tensor both({a.rows() + b.rows(), a.cols()}, DType::f32);
  const auto to = std::ranges::copy(a.span<float>(), both.span<float>().begin()).out;
  std::ranges::copy(b.span<float>(), to);
  return both;
}

// Blocks in the middle of both towers, unless the user names some.
std::vector<std::string> chosen_blocks(const Options& o, const ClipConfig& config) {
  const std::string image = "visual.transformer.resblocks.", text = "transformer.resblocks.";
  std::set<std::string> all;
  for (int64_t i = 0; i < config.vision.layers; ++i) all.insert(image + std::to_string(i));
  for (int64_t i = 0; i < config.text.layers; ++i) all.insert(text + std::to_string(i));
  if (o.blocks.empty())
    return {image + std::to_string(config.vision.layers / 2), text + std::to_string(config.text.layers / 2)};
  for (const std::string& block : o.blocks)
    if (!all.contains(block))
      fail("--block ", block, ": ", config.name, " has ", image, "0 to ", config.vision.layers - 1, " and ",
           text, "0 to ", config.text.layers - 1);
  return o.blocks;
}

std::vector<LinearCapture> trained_linears(const Options& o, const ClipConfig& config, Device device) {
  ParameterArena arena(device == cpu_device ? DType::f32 : DType::bf16, device,
                       static_cast<uint64_t>(o.seed));
  const Clip clip(arena, config);
  arena.allocate();
  AdamW optimizer(arena, {});
  Clip::Options clip_options;
  if (!o.checkpoint.empty()) {
    load_checkpoint(o.checkpoint, arena, optimizer);
    clip_options.normalization = checkpoint_normalization(o.checkpoint);
  }
  const std::vector<std::string> blocks = chosen_blocks(o, config);
  Batches batches(o, config);
  {
    TrainingStep step(clip, arena, optimizer, o.batch_size, {clip_options, static_cast<uint64_t>(o.seed)});
    for (int64_t i = 0; i < o.steps; ++i) {
      const Batch batch = batches.next();
      step.bring(batch.images, batch.tokens);
      step.launch(i, o.lr * std::min(1.0, static_cast<double>(i + 1) / 20));
      const auto done = step.collect(true);
      if (!std::isfinite(done->loss)) fail("the loss is not a number at step ", i, ": try a lower --lr");
      if (i % 20 == 0 || i + 1 == o.steps)
        std::fprintf(stderr, "step %d: loss %.4f\n", static_cast<int>(i), done->loss);
    }
  }
  std::vector<LinearCapture> linears;
  for (int64_t i = 0; i < o.batches;
       ++i) {  // no updates in between: as if they were one batch of more tokens
    const Batch batch = batches.next();
    const Tensor images = to_device(batch.images, device), tokens = to_device(batch.tokens, device);
    const auto captured = capture_linears(arena, blocks, config.quick_gelu ? Gelu::quick : Gelu::exact, [&] {
      arena.begin_backward();
      tape().backward(
          clip.loss(clip.encode_image(images, clip_options), clip.encode_text(tokens, clip_options)));
      arena.finish_backward();
    });
    if (linears.empty()) {
      linears = captured;
      continue;
    }
    for (size_t l = 0; l < linears.size(); ++l) {
      linears[l].x = below_one_another(linears[l].x, captured[l].x);
      linears[l].dy = below_one_another(linears[l].dy, captured[l].dy);
    }
  }
  std::ranges::sort(linears, {}, &LinearCapture::name);
  return linears;
}

// ---- results ----------------------------------------------------------------------------------------------
struct Line {
  const LinearCapture* linear;
  LinearProduct product;
  const NoiseQuantizer* quantizer;
  int64_t inner;
  Noise noise;
};

std::vector<Line> measure_all(const Options& o, const std::vector<LinearCapture>& linears) {
  std::vector<Line> lines;
  const uint64_t seed = static_cast<uint64_t>(o.seed);
  for (const LinearCapture& linear : linears)
    for (const LinearProduct product : linear_products) {
      const int64_t whole = inner_size(linear, product);
      for (int64_t inner = std::min(o.smallest, whole);; inner = std::min(2 * inner, whole)) {
        for (const NoiseQuantizer& quantizer : noise_quantizers()) {
          const Noise noise = measure_noise(linear, product, quantizer, inner, o.samples, seed);
          // Padding behind a text has no gradient: a few tokens may have nothing to multiply.
          if (std::isfinite(noise.relative)) lines.push_back({&linear, product, &quantizer, inner, noise});
        }
        if (inner == whole) break;
      }
    }
  return lines;
}

double growth(const std::vector<Line>& lines, const Line& of) {
  std::vector<double> inner, variance;
  for (const Line& l : lines)
    if (l.linear == of.linear && l.product == of.product && l.quantizer == of.quantizer &&
        l.noise.variance > 0)
      inner.push_back(static_cast<double>(l.inner)), variance.push_back(l.noise.variance);
  return inner.size() < 2 ? NAN : growth_exponent(inner, variance);
}

void print_tables(const std::vector<Line>& lines) {
  std::printf("Error of the whole product in %% of its size; in brackets by the formula.\n\n%-58s %6s", "",
              "terms");
  for (const NoiseQuantizer& q : noise_quantizers()) std::printf(" %16s", std::string(q.name).c_str());
  std::vector<const Line*> row;
  const auto print_row = [&](const auto& cell) {
    const std::string name = row[0]->linear->name + ", " + name_of(row[0]->product);
    std::printf("\n%-58s %6lld", name.c_str(), static_cast<long long>(row[0]->inner));
    for (const Line* line : row) std::printf(" %16s", cell(*line).c_str());
  };
  const auto formatted = [](const char* format, auto... values) {
    char text[64];
    std::snprintf(text, sizeof text, format, values...);
    return std::string(text);
  };
  const auto print_all = [&](const auto& cell) {
    for (const Line& line : lines) {
      if (line.inner != inner_size(*line.linear, line.product)) continue;
      row.push_back(&line);
      if (row.size() == noise_quantizers().size()) print_row(cell), row.clear();
    }
  };
  print_all([&](const Line& l) {
    return formatted("%.2f (%.2f)", 100 * l.noise.relative, 100 * l.noise.predicted);
  });
  std::printf(
      "\n\nHow the variance of the error grows with the terms of the sum: p of terms^p (the formula: 1).\n");
  print_all([&](const Line& l) { return formatted("%.2f", growth(lines, l)); });
  std::printf("\n");
}

void write_lines(const std::string& path, const std::vector<Line>& lines) {
  std::string text;
  for (const Line& l : lines) {
    const nlohmann::ordered_json record{{"linear", l.linear->name},
                                        {"product", name_of(l.product)},
                                        {"quantizer", std::string(l.quantizer->name)},
                                        {"inner", l.inner},
                                        {"whole", l.inner == inner_size(*l.linear, l.product)},
                                        {"relative_error", l.noise.relative},
                                        {"predicted_relative_error", l.noise.predicted},
                                        {"noise_variance", l.noise.variance}};
    text += record.dump() + "\n";
  }
  write_file(path, text);
}

// Geometric means over all linears, at lengths that every linear has.
void write_picture(const std::string& path, const std::vector<Line>& lines) {
  using Mean = std::pair<double, int>;  // sum of logarithms, number
  const auto curve = [&](LinearProduct product, const NoiseQuantizer& quantizer, auto value) {
    std::map<int64_t, Mean> means;
    int most = 0;
    for (const Line& l : lines) {
      if (l.product != product || l.quantizer != &quantizer || !(value(l.noise) > 0)) continue;
      Mean& mean = means[l.inner];
      mean.first += std::log(value(l.noise));
      most = std::max(most, ++mean.second);
    }
    Series series;
    for (const auto& [inner, mean] : means) {
      if (mean.second < most) continue;
      series.x.push_back(std::log2(static_cast<double>(inner)));
      series.y.push_back(std::exp(mean.first / mean.second));
    }
    return series;
  };
  std::vector<Panel> panels;
  for (const LinearProduct product : linear_products) {
    Panel panel{.title = concat(name_of(product), ": error, % of the product"), .series = {}};
    panel.x_label = "log2 of the number of terms", panel.log_y = true;
    for (const NoiseQuantizer& q : noise_quantizers()) {
      panel.series.push_back(curve(product, q, [](const Noise& n) { return 100 * n.relative; }));
      panel.series.back().name = q.name;
    }
    panels.push_back(std::move(panel));
  }
  Panel variance{.title = "int8 row: variance of the error", .series = {}};
  variance.x_label = "log2 of the number of terms", variance.log_y = true;
  for (const LinearProduct product : linear_products) {
    variance.series.push_back(
        curve(product, noise_quantizers()[1], [](const Noise& n) { return n.variance; }));
    variance.series.back().name = name_of(product);
  }
  Series line{.name = "grows like the terms", .x = variance.series.back().x, .y = {}};
  for (const double x : line.x) line.y.push_back(variance.series.back().y[0] * std::exp2(x - line.x[0]));
  variance.series.push_back(std::move(line));
  panels.push_back(std::move(variance));
  write_file(path, svg_chart("Noise of a linear's products in 8 bits", panels));
}

int run(int argc, char** argv) {
  Options o;
  CLI::App app("quantization_study: the noise of linear layers in 8 bits, on tensors of a training run.");
  app.get_formatter()->column_width(34);
  app.add_option("--model", o.model, "preset or model JSON; a checkpoint brings its own")
      ->capture_default_str();
  app.add_option("--checkpoint", o.checkpoint, "checkpoint folder of clip_train to go on from");
  app.add_option("--train-data", o.train_data, "shards with braces, or a CSV file (default: coloured discs)");
  app.add_option("--tokenizer", o.tokenizer, "vocabulary file, or bytes (default: by the model)");
  app.add_option("--steps", o.steps, "of training before")
      ->check(not_negative())
      ->capture_default_str();
  app.add_option("--lr", o.lr, "of those steps")->check(positive())->capture_default_str();
  app.add_option("--batch-size", o.batch_size)->check(positive())->capture_default_str();
  app.add_option("--batches", o.batches, "to take tensors from; their tokens count as one batch")
      ->check(positive())
      ->capture_default_str();
  app.add_option("--block", o.blocks,
                 "whose linears, e.g. visual.transformer.resblocks.2; may be repeated (default: the "
                 "middle of both towers)");
  app.add_option("--samples", o.samples, "rows and columns of each result that are computed")
      ->check(positive())
      ->capture_default_str();
  app.add_option("--smallest", o.smallest, "number of terms to begin with; doubled until all are there")
      ->check(positive())
      ->capture_default_str();
  app.add_option("--output", o.output, "folder for noise.jsonl and noise.svg")->capture_default_str();
  app.add_option("--device", o.device)->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
  app.add_option("--seed", o.seed)->capture_default_str();
  app.add_option("--threads", o.threads, "CPU threads; 0: all cores")->check(not_negative());
  if (!parse_flags(app, argc, argv)) return 0;
  if (o.threads > 0) set_cpu_threads(static_cast<int>(o.threads));
  if (o.device == "cuda" && !cuda_available())
    fail("--device cuda: no GPU is found, or this program was built without CUDA");
  const Device device = o.device == "cuda" ? Device{Device::cuda, 0} : cpu_device;

  ClipConfig config = o.checkpoint.empty() ? find_model(o.model) : checkpoint_config(o.checkpoint);
  config.whole_last_block = config.whole_text = true;  // so that all blocks are alike, in all steps
  config.vision.patch_dropout = 0;
  config.vision.linear = config.text.linear = "standard";
  std::filesystem::create_directories(o.output);
  const std::vector<LinearCapture> linears = trained_linears(o, config, device);
  const std::vector<Line> lines = measure_all(o, linears);
  print_tables(lines);
  write_lines(o.output + "/noise.jsonl", lines);
  write_picture(o.output + "/noise.svg", lines);
  std::printf("\n%s/noise.jsonl has %zu lines, noise.svg the picture\n", o.output.c_str(), lines.size());
  return 0;
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  return switchback::run_program("quantization_study", switchback::run, argc, argv);
}
