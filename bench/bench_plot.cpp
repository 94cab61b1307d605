// bench_plot.cpp: the picture of a comparison, from the JSON lines of framework_baseline.py.
//
//   build/bench/bench_plot lines.jsonl picture.svg [TITLE]
//
// A group of bars for each model, in the order of the file: training speed relative to torch.compile's, with
// samples per second above each bar (the median of all runs of its kind).
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

using namespace switchback;

namespace {

struct Kind {
  char letter;  // of framework_baseline.py's --order
  const char* name;
};
constexpr Kind kinds[] = {
    {'A', "switchback"},
    {'Q', "switchback, int8 linears"},
    {'B', "torch.compile + open_clip"},
    {'E', "PyTorch eager + open_clip"},
};

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

int run(int count, char** arguments) {
  if (count < 3) fail("usage: bench_plot LINES.jsonl PICTURE.svg [TITLE]");
  std::ifstream file(arguments[1]);
  if (!file) fail("cannot read ", arguments[1]);
  std::vector<std::string> models;                                   // "ViT-B-32, batch 1024"
  std::map<std::string, std::map<char, std::vector<double>>> rates;  // by model and kind
  std::string text;
  while (std::getline(file, text)) {
    if (text.empty()) continue;
    const nlohmann::json line = nlohmann::json::parse(text);
    const std::string model =
        concat(line.at("model").get<std::string>(), ", batch ", line.at("batch").get<int64_t>());
    if (std::find(models.begin(), models.end(), model) == models.end()) models.push_back(model);
    rates[model][line.at("letter").get<std::string>().at(0)].push_back(line.at("samples_per_second"));
  }
  BarChart chart{.title = count > 3 ? arguments[3] : "Training speed on one H100, bf16, samples per second",
                 .y_label = "relative to torch.compile",
                 .marks = {1}};
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
  write_file(arguments[2], svg_bars(chart));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_plot: %s\n", e.what());
    return 1;
  }
}
