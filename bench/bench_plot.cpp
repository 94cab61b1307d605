// bench_plot.cpp: pictures of JSON lines.
//
//   build/bench/bench_plot lines.jsonl picture.svg [TITLE]
//
// Lines of framework_baseline.py: a group of bars for each model, in the order of the file: training speed
// relative to torch.compile's, with samples per second above each bar (the median of all runs of its kind).
// Lines of bench_step among them (h100.sh's steps.jsonl) count where they are StableAdamW's, with the whole
// last block. Lines of bench_linear: the paper's Figure 3 and Figure 4 (left), one panel each over the
// layer's width: what each part of a layer takes (at the middle number of tokens), the time saved by the
// first recipe, and the quantisers' share of its time, a line for each number of tokens.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/chart.h"
#include "runtime/check.h"
#include "runtime/file.h"
#include "runtime/program.h"

using namespace switchback;

namespace {

struct Kind {
  char letter;  // of framework_baseline.py's --order
  const char* name;
};
constexpr Kind kinds[] = {
    {'A', "switchback"},
    {'S', "with StableAdamW"},
    {'Q', "with int8 linears"},
    {'B', "torch.compile"},
    {'E', "PyTorch eager"},
};

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

std::vector<nlohmann::json> lines_of(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("cannot read ", path);
  std::vector<nlohmann::json> lines;
  for (std::string text; std::getline(file, text);)
    if (!text.empty()) lines.push_back(nlohmann::json::parse(text));
  if (lines.empty()) fail(path, " is empty");
  return lines;
}

// What making codes adds to the layer's time: beside a product less than it takes alone.
double added(const nlohmann::json& line, const char* both, const char* product, const char* alone) {
  if (!line.contains(both)) return line.at(alone);
  return std::max(0.0, line.at(both).get<double>() - line.at(product).get<double>());
}

std::string picture_of_linears(const std::vector<nlohmann::json>& lines, std::string title) {
  const std::string recipe = lines[0].at("recipe");
  std::map<int64_t, std::map<double, nlohmann::json>> by_tokens;  // tokens -> dim -> line
  for (const nlohmann::json& line : lines)
    if (line.at("recipe") == recipe) by_tokens[line.at("tokens")][line.at("dim")] = line;
  Panel parts{.title = "", .series = {}, .x_label = "dim", .log_y = true};
  const auto middle = std::next(by_tokens.begin(), static_cast<int64_t>((by_tokens.size() - 1) / 2));
  parts.title = concat("us of each part, ", middle->first, " tokens");
  for (const char* name :
       {"standard forward", "forward", "standard dw", "quantise x", "quantise dy", "prepare w"}) {
    Series s{name, {}, {}};
    for (const auto& [dim, line] : middle->second) s.x.push_back(dim), s.y.push_back(line.at(name));
    parts.series.push_back(s);
  }
  Panel saved{.title = "% of the bf16 layer's time saved", .series = {}, .x_label = "dim"};
  Panel share{.title = "% of the layer's time in quantisers", .series = {}, .x_label = "dim"};
  for (const auto& [tokens, by_dim] : by_tokens) {
    Series a{concat(tokens, " tokens"), {}, {}}, b = a;
    for (const auto& [dim, line] : by_dim) {
      const double whole = line.at("whole");
      a.x.push_back(dim), a.y.push_back(100 * (1 - whole / line.at("standard").get<double>()));
      b.x.push_back(dim);
      b.y.push_back(100 *
                    (added(line, "forward with x's codes", "forward", "quantise x") +
                     added(line, "dw with dy's codes", "dw", "quantise dy") +
                     line.at("prepare w").get<double>()) /
                    whole);
    }
    saved.series.push_back(a);
    share.series.push_back(b);
  }
  if (title.empty())
    title = concat("One linear layer, ", recipe, " against bf16, average of dim -> 4 dim and back");
  return svg_chart(title, {parts, saved, share});
}

std::string picture_of_steps(const std::vector<nlohmann::json>& lines, std::string title) {
  std::vector<std::string> models;                                   // "ViT-B-32, batch 1024"
  std::map<std::string, std::map<char, std::vector<double>>> rates;  // by model and kind
  for (const nlohmann::json& line : lines) {
    const std::string model =
        concat(line.at("model").get<std::string>(), ", batch ", line.at("batch").get<int64_t>());
    if (std::find(models.begin(), models.end(), model) == models.end()) models.push_back(model);
    char letter = line.value("letter", std::string(1, ' ')).at(0);
    if (letter == ' ' && line.value("optimizer", "") == "stableadamw" && line.value("whole_last_block", false))
      letter = 'S';
    rates[model][letter].push_back(line.at("samples_per_second"));
  }
  if (title.empty()) title = "Training speed on one H100, samples per second";
  BarChart chart{.title = title, .y_label = "relative to torch.compile", .marks = {1}};
  for (const Kind& kind : kinds) {
    const auto has = [&](const auto& of_model) { return of_model.second.contains(kind.letter); };
    if (std::any_of(rates.begin(), rates.end(), has)) chart.series.push_back(kind.name);
  }
  for (const std::string& model : models) {
    auto& of_model = rates[model];
    BarGroup group{model};
    const double rival = median(of_model['B']);
    for (const Kind& kind : kinds) {
      if (std::find(chart.series.begin(), chart.series.end(), kind.name) == chart.series.end()) continue;
      const double rate = median(of_model[kind.letter]);
      group.values.push_back(rate / rival);
      char label[32];
      std::snprintf(label, sizeof label, "%.0f/s", rate);
      group.texts.push_back(label);
    }
    chart.groups.push_back(group);
  }
  return svg_bars(chart);
}

int run(int count, char** arguments) {
  if (count < 3) fail("usage: bench_plot LINES.jsonl PICTURE.svg [TITLE]");
  const std::vector<nlohmann::json> lines = lines_of(arguments[1]);
  const std::string title = count > 3 ? arguments[3] : "";
  write_file(arguments[2], lines[0].contains("recipe") && lines[0].contains("dim")
                               ? picture_of_linears(lines, title)
                               : picture_of_steps(lines, title));
  return 0;
}

}  // namespace

int main(int count, char** arguments) { return run_program("bench_plot", run, count, arguments); }
