#include "apps/training_log.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/chart.h"
#include "runtime/event_file.h"
#include "runtime/file.h"
#include "runtime/logger.h"

namespace switchback {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[512];
  const int length = std::snprintf(text, sizeof text, pattern, values...);
  return {text, static_cast<size_t>(std::clamp(length, 0, static_cast<int>(sizeof text) - 1))};
}

std::string duration(double seconds) {
  const auto s = static_cast<long long>(seconds + 0.5);
  if (s < 60) return format("%llds", s);
  if (s < 3600) return format("%lldm%02llds", s / 60, s % 60);
  return format("%lldh%02lldm", s / 3600, s / 60 % 60);
}

nlohmann::ordered_json metrics_json(const RetrievalMetrics& m, const std::string& prefix) {
  return {{prefix + "_mean_rank", m.mean_rank},
          {prefix + "_median_rank", m.median_rank},
          {prefix + "_R@1", m.r1},
          {prefix + "_R@5", m.r5},
          {prefix + "_R@10", m.r10}};
}

}  // namespace

std::string open_clip_line(const StepRecord& r, double mean_loss, double data_seconds, double step_seconds) {
  const long long per_epoch = static_cast<long long>(r.steps_per_epoch) * r.global_batch;
  const long long samples = static_cast<long long>(r.step_in_epoch + 1) * r.global_batch;
  const int digits = static_cast<int>(std::ceil(std::log10(static_cast<double>(per_epoch + 1))));
  const double rate = static_cast<double>(r.global_batch) / r.step_seconds;
  return format(
      "Train Epoch: %lld [%*lld/%lld (%.0f%%)] Data (t): %.3f Batch (t): %.3f, %#g/s, %#g/s/gpu LR: %5f "
      "Logit Scale: %.3f Contrastive_loss: %#.5g (%#.5g) Loss: %#.5g (%#.5g)",
      static_cast<long long>(r.epoch), digits, samples, per_epoch,
      100.0 * static_cast<double>(r.step_in_epoch + 1) / static_cast<double>(r.steps_per_epoch), data_seconds,
      step_seconds, rate, rate / static_cast<double>(r.ranks), r.learning_rate, r.logit_scale, r.loss,
      mean_loss, r.loss, mean_loss);
}

TrainingLog::TrainingLog(const TrainingLogOptions& options)
    : options_(options),
      logger_(std::make_unique<Logger>(options.folder.empty() ? "" : options.folder + "/out.log",
                                       options.quiet)) {}

TrainingLog::~TrainingLog() = default;

void TrainingLog::info(const std::string& line) { logger_->info(line); }
void TrainingLog::warning(const std::string& line) { logger_->warning(line); }
void TrainingLog::error(const std::string& line) { logger_->error(line); }

void TrainingLog::start(int64_t first_step, const std::string& options_json, const std::string& model_json) {
  if (options_.folder.empty()) return;
  if (first_step > 0) recall(first_step);
  records_ = std::make_unique<JsonLines>(options_.folder + "/train.jsonl");
  const auto configuration = nlohmann::ordered_json::parse(options_json);
  nlohmann::ordered_json record;
  record["kind"] = "configuration";
  record["first_step"] = first_step;
  record["options"] = configuration;
  record["model"] = nlohmann::ordered_json::parse(model_json);
  records_->write(record.dump());
  // open_clip's params.txt: "key: value", sorted
  std::vector<std::string> lines;
  for (const auto& [key, value] : configuration.items())
    lines.push_back(key + ": " +
                    (value.is_string() ? value.get<std::string>()
                     : value.is_null() ? "None"
                                       : value.dump()));
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  write_file(options_.folder + "/params.txt", text);
  if (options_.tensorboard)
    events_ = std::make_unique<EventFile>(options_.folder + "/tensorboard", first_step);
}

SpikeDetector::Notice TrainingLog::remember(int64_t step, double loss, double rate, double patch_rms,
                                            double largest_rms) {
  steps_.push_back(static_cast<double>(step));
  losses_.push_back(loss);
  rates_.push_back(rate);
  patch_rms_.push_back(std::max(0.0, patch_rms));
  largest_rms_.push_back(largest_rms);
  return spikes_.add({step, loss, patch_rms});
}

// Steps that were done twice (a run that was killed between two checkpoints, or went back): the later record
// counts.
void TrainingLog::recall(int64_t first_step) {
  std::map<int64_t, std::array<double, 4>> steps;  // loss, rate, RMS of the patch embedding, largest RMS
  std::ifstream in(options_.folder + "/train.jsonl");
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("{\"kind\":\"step\"")) continue;
    const auto record = nlohmann::json::parse(line, nullptr, false);
    if (!record.is_object()) continue;  // the torn line of a killed run
    auto value = [&record](const char* key) {
      const auto it = record.find(key);
      return it != record.end() && it->is_number() ? it->get<double>() : std::nan("");
    };
    const double step = value("step");
    if (step >= 0 && step < static_cast<double>(first_step))
      steps[static_cast<int64_t>(step)] = {value("loss"), value("lr"), value("patch_embedding_rms"),
                                           value("largest_rms")};
  }
  for (const auto& [step, v] : steps) remember(step, v[0], v[1], v[2], v[3]);
}

void TrainingLog::step(const StepRecord& r) {
  epoch_loss_.add(r.loss);
  data_seconds_.add(r.data_seconds);
  step_seconds_.add(r.step_seconds);
  point_data_seconds_.add(r.data_seconds);
  point_step_seconds_.add(r.step_seconds);
  text_length_.add(static_cast<double>(r.text_length));
  data_total_ += r.data_seconds;
  step_total_ += r.step_seconds;
  ++steps_timed_;
  const SpikeDetector::Notice notice =
      remember(r.step, r.loss, r.learning_rate, r.patch_embedding_rms, r.largest_rms);
  if (notice.rms_event)
    info(format("RMS spike: visual.conv1.weight has RMS %.2f at step %lld", r.patch_embedding_rms,
                static_cast<long long>(*notice.rms_event)));
  if (notice.loss_event)
    info(format("loss spike at step %lld", static_cast<long long>(*notice.loss_event)) +
         (notice.explained_by
              ? format(", after the RMS spike at step %lld", static_cast<long long>(*notice.explained_by))
              : ""));
  if (!r.skipped.empty())  // one line, though all tensors may be concerned
    warning(concat("step ", r.step, ": the gradient of ", r.skipped.front(),
                   r.skipped.size() > 1 ? concat(" and ", r.skipped.size() - 1, " more") : "",
                   " has an Inf or a NaN; the update is skipped there"));

  if (records_) {
    nlohmann::ordered_json record = {{"kind", "step"},
                                     {"step", r.step},
                                     {"epoch", r.epoch},
                                     {"samples", r.samples_seen},
                                     {"loss", r.loss},
                                     {"lr", r.learning_rate},
                                     {"logit_scale", r.logit_scale},
                                     {"gradient_norm", r.gradient_norm},
                                     {"visual_gradient_norm", r.visual_gradient_norm},
                                     {"text_gradient_norm", r.text_gradient_norm},
                                     {"largest_rms", r.largest_rms},
                                     {"largest_rms_name", r.largest_rms_name},
                                     {"patch_embedding_rms", r.patch_embedding_rms},
                                     {"text_length", r.text_length},
                                     {"data_seconds", r.data_seconds},
                                     {"step_seconds", r.step_seconds},
                                     {"peak_memory", r.peak_memory}};
    records_->write(record.dump());
  }
  const bool last = r.step_in_epoch + 1 == r.steps_per_epoch || r.step + 1 == r.total_steps;
  const auto due = [&](int64_t interval) { return r.step_in_epoch % interval == 0 || last; };
  if (events_ &&
      due(options_.metric_every_n_steps > 0 ? options_.metric_every_n_steps : options_.log_every_n_steps))
    add_point(r);
  if (due(options_.log_every_n_steps)) print_line(r);
}

// The means are those of the steps since the last point.
void TrainingLog::add_point(const StepRecord& r) {
  const double step_seconds = point_step_seconds_.value();
  const double rate = static_cast<double>(r.global_batch) / step_seconds;
  const std::pair<std::string, double> scalars[] = {
      {"train/data_time", point_data_seconds_.value()},
      {"train/batch_time", step_seconds},
      {"train/samples_per_second", rate},
      {"train/samples_per_second_per_gpu", rate / static_cast<double>(r.ranks)},
      {"train/scale", r.logit_scale},
      {"train/lr", r.learning_rate},
      {"train/contrastive_loss", r.loss},
      {"train/loss", r.loss},
      {"train/grad_norm", r.gradient_norm},
      {"train/largest_rms", r.largest_rms}};
  events_->add(r.step, scalars);
  events_->flush();
  point_data_seconds_ = {};
  point_step_seconds_ = {};
}

void TrainingLog::print_line(const StepRecord& r) {
  const double step_seconds = step_seconds_.value();
  const double rate = static_cast<double>(r.global_batch) / step_seconds;
  const double rate_each = rate / static_cast<double>(r.ranks);
  // The rate of the whole session tells the time that is left; the first step's warm-up weighs little in it.
  const double left =
      step_total_ / static_cast<double>(steps_timed_) * static_cast<double>(r.total_steps - r.step - 1);
  std::string line = open_clip_line(r, epoch_loss_.value(), data_seconds_.value(), step_seconds);
  line +=
      format(" | data wait %.0f%% grad norm %.3g RMS %.2f %s text %.1f %.3g TFLOP/s memory %.2f GiB left %s",
             100 * data_seconds_.value() / step_seconds, r.gradient_norm, r.largest_rms,
             r.largest_rms_name.c_str(), text_length_.value(), rate_each * options_.flops_per_sample * 1e-12,
             static_cast<double>(r.peak_memory) / (1 << 30), duration(left).c_str());
  info(line);
  data_seconds_ = {};
  step_seconds_ = {};
  text_length_ = {};
  if (now() - last_picture_ > 30) write_picture();
}

void TrainingLog::end_epoch(int64_t epoch) {
  info(format("End epoch %lld | Avg Contrastive_loss: %#.5g  Avg Loss: %#.5g", static_cast<long long>(epoch),
              epoch_loss_.value(), epoch_loss_.value()));
  epoch_loss_ = {};
}

void TrainingLog::evaluation(int64_t epoch, int64_t step, const std::optional<Retrieval>& retrieval,
                             const std::optional<ZeroShot>& zero_shot, double seconds) {
  nlohmann::ordered_json metrics;
  if (zero_shot) {
    metrics["zeroshot-val-top1"] = zero_shot->top1;
    metrics["zeroshot-val-top5"] = zero_shot->top5;
    metrics["zeroshot-val-mean-per-class"] = zero_shot->mean_per_class_recall;
  }
  if (retrieval) {
    metrics.update(metrics_json(retrieval->image_to_text, "image_to_text"));
    metrics.update(metrics_json(retrieval->text_to_image, "text_to_image"));
    metrics["clip_val_loss"] = retrieval->loss;
    metrics["num_samples"] = retrieval->samples;
  }
  metrics["epoch"] = epoch;
  std::string line = format("Eval Epoch: %lld ", static_cast<long long>(epoch));
  bool first = true;
  for (const auto& [key, value] : metrics.items()) {
    if (key == "epoch" || key == "num_samples") continue;
    line += (first ? "" : "\t") + key + format(": %.4f", value.get<double>());
    first = false;
    if (events_) events_->add(epoch, "val/" + key, value.get<double>());
  }
  info(line + "\t| " + duration(seconds));
  if (events_) events_->flush();
  if (options_.folder.empty()) return;
  metrics["step"] = step;
  JsonLines(options_.folder + "/checkpoints/results.jsonl").write(metrics.dump());
  nlohmann::ordered_json record = {{"kind", "evaluation"}};
  record.update(metrics);
  records_->write(record.dump());
}

void TrainingLog::write_picture() {
  last_picture_ = now();
  if (options_.folder.empty() || steps_.size() < 2) return;
  const SpikeSummary spikes = spikes_.summary();
  std::vector<double> rms_marks(spikes.rms_events.begin(), spikes.rms_events.end());
  std::vector<double> loss_marks(spikes.loss_events.begin(), spikes.loss_events.end());
  Panel loss{"loss", {{"loss", steps_, losses_}}};
  loss.marks = loss_marks;
  Panel rate{"learning rate", {{"learning rate", steps_, rates_}}};
  Panel rms{"RMS of g/√u",
            {{"largest of all tensors", steps_, largest_rms_}, {"patch embedding", steps_, patch_rms_}}};
  rms.marks = rms_marks;
  try {
    write_file(options_.folder + "/training.svg", svg_chart("training", {loss, rate, rms}));
  } catch (const Error& error) {  // a full disk must not end the run for a picture
    if (!std::exchange(picture_failed_, true))
      warning(concat(error.what(), "; going on without the picture"));
  }
}

}  // namespace switchback
