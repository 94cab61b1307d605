#include "bench/learning_results.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/chart.h"
#include "runtime/check.h"

namespace switchback {
namespace {

using Json = nlohmann::ordered_json;
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// The records of a file; a last line that was cut off is left out.
std::vector<Json> records(const std::string& path) {
  std::ifstream file(path);
  if (!file) fail("cannot read ", path);
  std::vector<Json> all;
  for (std::string text; std::getline(file, text);) {
    Json record = Json::parse(text, nullptr, false);
    if (!record.is_discarded()) all.push_back(std::move(record));
  }
  return all;
}

// JSON has no NaN: it is written as null.
double number_or_nan(const Json& record, const char* key) {
  const auto found = record.find(key);
  return found == record.end() || found->is_null() ? not_a_number : found->get<double>();
}

struct Spread {
  double mean = not_a_number,
         deviation = not_a_number;  // of the sample: divided by n - 1; NaN for a single value
  size_t count = 0;
};

Spread spread(const std::vector<double>& values) {
  Spread s{.count = values.size()};
  if (values.empty()) return s;
  s.mean = 0;
  for (double v : values) s.mean += v / static_cast<double>(values.size());
  if (values.size() < 2) return s;
  double squares = 0;
  for (double v : values) squares += (v - s.mean) * (v - s.mean);
  s.deviation = std::sqrt(squares / static_cast<double>(values.size() - 1));
  return s;
}

std::string written(const Spread& s, bool with_sign = false) {
  if (s.count == 0) return "";
  char text[64];
  std::snprintf(text, sizeof text, with_sign ? "%+.4f" : "%.4f", s.mean);
  std::string result = text;
  if (s.count > 1) {
    std::snprintf(text, sizeof text, " ± %.4f", s.deviation);
    result += text;
  }
  return result;
}

const LearningRun* standard_beside(const std::vector<LearningRun>& runs, const LearningRun& run) {
  for (const LearningRun& other : runs)
    if (other.recipe == "standard" && other.layer_scale == run.layer_scale && other.seed == run.seed)
      return &other;
  return nullptr;
}

// Names in the order of their first runs.
std::vector<std::string> names_of(const std::vector<LearningRun>& runs) {
  std::vector<std::string> names;
  for (const LearningRun& run : runs)
    if (std::find(names.begin(), names.end(), run.name()) == names.end()) names.push_back(run.name());
  return names;
}

// Epoch by epoch, of(run, epoch) over the runs of this name.
template <class Of>
Series series_of(const std::vector<LearningRun>& runs, const std::string& name, std::string label,
                 const Of& of) {
  Series series{std::move(label), {}, {}};
  for (size_t epoch = 0;; ++epoch) {
    std::vector<double> values;
    bool any = false;
    for (const LearningRun& run : runs) {
      if (run.name() != name || epoch >= run.curve.size()) continue;
      any = true;
      if (const double value = of(run, epoch); std::isfinite(value)) values.push_back(value);
    }
    if (!any) return series;
    series.x.push_back(static_cast<double>(epoch + 1));
    series.y.push_back(spread(values).mean);
  }
}

// A sentence a recipe: how far its mean loss lies from standard's, in standard errors of that difference.
// Three or four seeds of one recipe say little about the noise between seeds, so it is pooled over all
// recipes.
std::string verdicts(const std::vector<LearningRun>& runs) {
  const auto losses_of = [&](const std::string& name) {
    std::vector<double> losses;
    for (const LearningRun& run : runs)
      if (run.name() == name && std::isfinite(run.loss)) losses.push_back(run.loss);
    return losses;
  };
  std::string text;
  for (const bool scaled : {false, true}) {  // layer-scale
    LearningRun standard;
    standard.recipe = "standard", standard.layer_scale = scaled ? 0 : -1;
    double squares = 0;
    size_t freedom = 0;
    std::vector<std::string> names;
    for (const std::string& name : names_of(runs)) {
      const auto any =
          std::find_if(runs.begin(), runs.end(), [&](const auto& r) { return r.name() == name; });
      if ((any->layer_scale >= 0) != scaled) continue;
      names.push_back(name);
      const std::vector<double> losses = losses_of(name);
      if (losses.size() < 2) continue;
      const auto free = static_cast<double>(losses.size() - 1);
      squares += free * spread(losses).deviation * spread(losses).deviation;
      freedom += losses.size() - 1;
    }
    const std::vector<double> others = losses_of(standard.name());
    if (others.empty() || freedom == 0) continue;
    const double noise = std::sqrt(squares / static_cast<double>(freedom));
    for (const std::string& name : names) {
      const std::vector<double> own = losses_of(name);
      if (name == standard.name() || own.empty()) continue;
      const double apart = spread(own).mean - spread(others).mean;
      const double error =
          noise * std::sqrt(1.0 / static_cast<double>(own.size()) + 1.0 / static_cast<double>(others.size()));
      char line[240];
      std::snprintf(
          line, sizeof line,
          "- %s: mean loss %+.4f from %s's, %.1f standard errors (seeds deviate by %.4f, pooled): %s\n",
          name.c_str(), apart, standard.name().c_str(), std::fabs(apart) / error, noise,
          std::fabs(apart) <= 2 * error ? "within the noise"
          : apart > 0                   ? "behind"
                                        : "ahead");
      text += line;
    }
  }
  return text;
}

}  // namespace

std::string LearningRun::name() const {
  if (layer_scale < 0) return recipe;
  if (layer_scale == 0) return recipe + ", zero-init";
  char text[64];
  std::snprintf(text, sizeof text, ", layer-scale %g", layer_scale);
  return recipe + text;
}

LearningRun read_learning_run(const std::string& folder) {
  LearningRun run;
  std::vector<double> losses;
  std::map<int64_t, std::vector<double>> epochs;
  int64_t last = -1;
  for (const Json& record : records(folder + "/train.jsonl")) {
    const std::string kind = record.value("kind", "");
    if (kind == "configuration") {
      const Json& options = record.at("options");
      run.recipe = options.at("linear").get<std::string>();
      if (run.recipe.empty()) run.recipe = "standard";
      if (!options.at("layer_scale").is_null()) run.layer_scale = options.at("layer_scale");
      run.seed = options.at("seed");
    } else if (kind == "step") {
      losses.push_back(number_or_nan(record, "loss"));
      epochs[record.at("epoch")].push_back(losses.back());
      last = record.at("step");
      run.seconds += record.value("step_seconds", 0.0);
    }
  }
  if (run.recipe.empty() || losses.empty()) fail(folder, "/train.jsonl has no configuration or no steps");
  run.steps = last + 1;
  const size_t tail = std::max<size_t>(1, losses.size() / 10);
  run.loss = spread({losses.end() - static_cast<std::ptrdiff_t>(tail), losses.end()}).mean;
  for (const auto& [epoch, values] : epochs) run.curve.push_back(spread(values).mean);

  const std::vector<Json> evaluations = records(folder + "/checkpoints/results.jsonl");
  if (evaluations.empty() || evaluations.back().value("step", int64_t{-1}) < last)
    fail(folder, ": the run was cut off, it has not evaluated after step ", last);
  const Json& final = evaluations.back();
  run.validation_loss = number_or_nan(final, "clip_val_loss");
  run.image_to_text = number_or_nan(final, "image_to_text_R@1");
  run.text_to_image = number_or_nan(final, "text_to_image_R@1");
  return run;
}

std::string json_line(const LearningRun& run) {
  Json line = {{"recipe", run.recipe},
               {"layer_scale", run.layer_scale < 0 ? Json(nullptr) : Json(run.layer_scale)},
               {"seed", run.seed},
               {"steps", run.steps},
               {"loss", run.loss},
               {"validation_loss", run.validation_loss},
               {"image_to_text_R@1", run.image_to_text},
               {"text_to_image_R@1", run.text_to_image},
               {"seconds", run.seconds}};
  Json& curve = line["curve"] = Json::array();
  for (double loss : run.curve)  // five digits are enough for a picture
    curve.push_back(std::isfinite(loss) ? Json(std::round(loss * 1e5) / 1e5) : Json(nullptr));
  return line.dump();
}

std::vector<LearningRun> read_learning_lines(const std::string& path) {
  std::vector<LearningRun> runs;
  for (const Json& line : records(path)) {
    LearningRun run;
    run.recipe = line.at("recipe");
    if (!line.at("layer_scale").is_null()) run.layer_scale = line.at("layer_scale");
    run.seed = line.at("seed");
    run.steps = line.at("steps");
    run.loss = number_or_nan(line, "loss");
    run.validation_loss = number_or_nan(line, "validation_loss");
    run.image_to_text = number_or_nan(line, "image_to_text_R@1");
    run.text_to_image = number_or_nan(line, "text_to_image_R@1");
    run.seconds = number_or_nan(line, "seconds");
    for (const Json& loss : line.at("curve"))
      run.curve.push_back(loss.is_null() ? not_a_number : loss.get<double>());
    const auto same = [&](const LearningRun& r) { return r.name() == run.name() && r.seed == run.seed; };
    if (std::none_of(runs.begin(), runs.end(), same)) runs.push_back(run);
  }
  if (runs.empty()) fail(path, " has no runs");
  return runs;
}

std::string learning_table(const std::vector<LearningRun>& runs) {
  std::string table =
      "| linears | seeds | final loss | minus standard's, same seed | validation loss | R@1 image to text | "
      "R@1 text "
      "to image | s a run |\n|---|---|---|---|---|---|---|---|\n";
  for (const std::string& name : names_of(runs)) {
    std::vector<double> loss, difference, validation, image_to_text, text_to_image, seconds;
    size_t seeds = 0;
    for (const LearningRun& run : runs) {
      if (run.name() != name) continue;
      ++seeds;
      if (!std::isfinite(run.loss)) continue;
      loss.push_back(run.loss);
      validation.push_back(run.validation_loss);
      image_to_text.push_back(run.image_to_text);
      text_to_image.push_back(run.text_to_image);
      seconds.push_back(run.seconds);
      const LearningRun* standard = standard_beside(runs, run);
      if (standard && run.recipe != "standard" && std::isfinite(standard->loss))
        difference.push_back(run.loss - standard->loss);
    }
    const std::string diverged = loss.size() < seeds ? concat(", ", seeds - loss.size(), " diverged") : "";
    char time[32] = "";
    if (!seconds.empty()) std::snprintf(time, sizeof time, "%.1f", spread(seconds).mean);
    table +=
        concat("| ", name, " | ", seeds, diverged, " | ", written(spread(loss)), " | ",
               written(spread(difference), true), " | ", written(spread(validation)), " | ",
               written(spread(image_to_text)), " | ", written(spread(text_to_image)), " | ", time, " |\n");
  }
  return table + "\n" + verdicts(runs);
}

std::string learning_picture(const std::vector<LearningRun>& runs, const std::string& title) {
  const std::vector<std::string> names = names_of(runs);
  const auto loss = [](const LearningRun& run, size_t epoch) { return run.curve[epoch]; };
  const auto difference = [&](const LearningRun& run, size_t epoch) {
    const LearningRun* standard = standard_beside(runs, run);
    return standard && epoch < standard->curve.size() ? run.curve[epoch] - standard->curve[epoch]
                                                      : not_a_number;
  };
  std::vector<Panel> panels(1);
  panels[0] = {
      .title = "loss of a batch, mean of an epoch and of all seeds", .series = {}, .x_label = "epoch"};
  for (const std::string& name : names)
    if (name.starts_with("standard")) panels[0].series.push_back(series_of(runs, name, name, loss));
  // A panel each for integers, floats, and those with layer-scale; beside them what a seed alone does.
  const auto add = [&](std::string panel_title, double layer_scale, const auto& belongs) {
    Panel panel{.title = std::move(panel_title), .series = {}, .x_label = "epoch"};
    LearningRun standard{.recipe = "standard", .layer_scale = layer_scale};
    for (const std::string& name : names) {
      const auto run =
          std::find_if(runs.begin(), runs.end(), [&](const auto& r) { return r.name() == name; });
      if (run->recipe != "standard" && (run->layer_scale >= 0) == (layer_scale >= 0) && belongs(run->recipe))
        panel.series.push_back(series_of(runs, name, name, difference));
    }
    if (panel.series.empty()) return;
    const std::string of = standard.name();
    Series noise{"deviation between seeds", {}, {}};
    for (size_t epoch = 0; epoch < panel.series[0].x.size(); ++epoch) {
      std::vector<double> values;
      for (const LearningRun& run : runs)
        if (run.name() == of && epoch < run.curve.size()) values.push_back(run.curve[epoch]);
      noise.x.push_back(static_cast<double>(epoch + 1)), noise.y.push_back(spread(values).deviation);
    }
    panel.series.push_back(noise);
    panels.push_back(panel);
  };
  const auto is_fp8 = [](const std::string& recipe) { return recipe.find("fp8") != std::string::npos; };
  add("int8: loss minus standard's", -1, [&](const auto& r) { return !is_fp8(r); });
  add("8-bit floats: the same", -1, is_fp8);
  add("zero-init layer-scale: the same", 0, [](const auto&) { return true; });
  return svg_chart(title, panels);
}

}  // namespace switchback
