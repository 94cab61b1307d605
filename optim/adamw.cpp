#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/transfer.h"
#include "distributed/communicator.h"
#include "nn/parameter.h"
#include "optim/schedule.h"
#include "runtime/allocator.h"

namespace switchback {
namespace {

void check(const AdamWOptions& o) {
  auto in_unit_range = [](double beta) { return beta >= 0 && beta < 1; };
  if (!in_unit_range(o.beta1)) fail("--beta1 is ", o.beta1, ": it must be at least 0 and below 1");
  if (!in_unit_range(o.beta2)) fail("--beta2 is ", o.beta2, ": it must be at least 0 and below 1");
  if (!(o.beta2_lambda >= 0)) fail("--beta2-lambda is ", o.beta2_lambda, ": it must be above 0 (0: off)");
  if (!(o.weight_decay >= 0)) fail("--wd is ", o.weight_decay, ": it must be 0 or more");
  if (!(o.update.epsilon > 0)) fail("--eps is ", o.update.epsilon, ": it must be above 0");
  if (!(o.update.clip_threshold > 0))
    fail("the threshold of update clipping is ", o.update.clip_threshold, ": it must be above 0");
  if (!(o.update.max_gradient_norm >= 0))
    fail("--grad-clip-norm is ", o.update.max_gradient_norm, ": it must be 0 (off) or more");
  if (!(o.gradient_scale > 0) || !std::isfinite(o.gradient_scale))
    fail("the gradient scale is ", o.gradient_scale, ": it must be a finite number above 0");
}

void set_weight_decay(ParameterArena& arena, const AdamWOptions& options) {
  const auto& segments = arena.segments();
  for (const std::string& glob : options.undecayed)
    if (std::ranges::none_of(segments, [&](const auto& s) { return matches_glob(s.name, glob); }))
      fail("--wd-exclude ", glob,
           " matches no parameter (names are like visual.conv1.weight, globs like *.weight)");
  for (size_t i = 0; i < segments.size(); ++i) {
    const auto& s = segments[i];
    const bool decayed =
        s.parameter.needs_grad() && decays(s.name, s.shape, options.decay_rule, options.undecayed);
    arena.set_weight_decay(i, decayed ? options.weight_decay : 0);
  }
}

// The elements of a float tensor on the host, as doubles.
std::vector<double> doubles(const Tensor& host) {
  return visit_float(host.dtype(), "optimizer", [&](auto tag) {
    const auto values = host.span<decltype(tag)>();
    std::vector<double> out;
    out.reserve(values.size());
    for (auto value : values) out.push_back(static_cast<double>(value));
    return out;
  });
}

}  // namespace

AdamW::AdamW(ParameterArena& arena, AdamWOptions options, OptimizerShard shard)
    : arena_(arena), options_(std::move(options)), shard_(shard) {
  check(options_);
  CHECK(arena.masters().defined(), "the optimizer comes after ParameterArena::allocate()");
  set_weight_decay(arena, options_);

  MemoryContext context("optimizer");
  const Device device = arena.device();
  const DType dtype = arena.masters().dtype();
  const auto tensors = static_cast<int64_t>(arena.segments().size());
  if (!shard_.ranks) shard_ = {nullptr, 0, arena.masters().size()};
  CHECK(shard_.from >= 0 && shard_.count > 0 && shard_.from + shard_.count <= arena.masters().size(),
        "a shard of ", shard_.count, " elements from ", shard_.from, " of ", arena.masters().size());
  if (shard_.ranks) {
    std::vector<int64_t> ranges;
    for (const auto& s : arena.segments()) {
      const int64_t from = std::clamp(s.from - shard_.from, int64_t{0}, shard_.count);
      const int64_t to = std::clamp(s.from + s.shape.size() - shard_.from, int64_t{0}, shard_.count);
      ranges.insert(ranges.end(), {from, to - from});
      shard_counts_.push_back(to - from);
    }
    shards_cut_tensors_ = arena.shards_cut_tensors(shard_.ranks->world_size());
    shard_ranges_ = to_device(Tensor::of<int64_t>({tensors, 2}, ranges), device);
  }
  first_ = Tensor({shard_.count}, dtype, device);
  second_ = Tensor({shard_.count}, dtype, device);
  numbers_ = Tensor({2, tensors}, dtype, device);
  sum_squares_ = numbers_.part(0, {tensors});
  rms_ = numbers_.part(tensors, {tensors});
  scalars_ = Tensor({step_scalar_count}, DType::f64, device);
  steps_ = Tensor::of<int64_t>({}, {0});
  for (const Tensor& t : {first_, second_, numbers_, scalars_}) kernels(device).fill(t, 0);
  report_.rms.assign(static_cast<size_t>(tensors), -1);
}

void AdamW::step(double learning_rate) {
  begin_step(learning_rate);
  update();
  receive(steps_done(), to_host(numbers_));
}

void AdamW::begin_step(double learning_rate) {
  CHECK(std::isfinite(learning_rate), "the learning rate is ", learning_rate);
  const int64_t t = ++steps_.span<int64_t>()[0];
  const double beta2 = options_.beta2_lambda > 0 ? scheduled_beta2(t, options_.beta2_lambda)
                                                 : debiased_beta(t, options_.beta2);
  std::vector<double> scalars(step_scalar_count);
  scalars[scalar_learning_rate] = learning_rate;
  scalars[scalar_beta1] = debiased_beta(t, options_.beta1);
  scalars[scalar_beta2] = beta2;
  scalars[scalar_gradient_scale] = options_.gradient_scale;
  kernels(arena_.device()).upload(scalars_, Tensor::of<double>({step_scalar_count}, scalars));
}

void AdamW::take_back_step() {
  CHECK(steps_done() > 0, "no step was begun");
  --steps_.span<int64_t>()[0];
}

void AdamW::update() {
  CHECK(!arena_.shares_gradients(), "gradients that share memory are used range by range");
  const auto part = [this](const Tensor& whole) {
    return whole.defined() ? whole.part(shard_.from, {shard_.count}) : whole;
  };
  const bool cuts = shard_.ranks && shards_cut_tensors_;  // then a shard's maxima are not those of tensors
  update({part(arena_.masters()), part(arena_.values()), part(arena_.gradients()), first_, second_,
          sum_squares_, rms_, cuts ? Tensor() : arena_.largest(), shard_table()});
  if (!shard_.ranks) finish_update();  // else after the values were shared
}

void AdamW::update(const ParameterRange& range) {
  CHECK(!shard_.ranks && !(options_.update.max_gradient_norm > 0),
        "an update in pieces needs all of the optimizer and no global norm");
  const auto of_elements = [&](const Tensor& whole, int64_t from) {
    return whole.defined() ? whole.part(from, {range.elements}) : whole;
  };
  const auto of_segments = [&](const Tensor& whole) {
    return whole.defined() ? whole.slice(static_cast<int64_t>(range.first), static_cast<int64_t>(range.count))
                           : whole;
  };
  update({of_elements(arena_.masters(), range.from), of_elements(arena_.values(), range.from),
          of_elements(arena_.gradients(), range.gradients_from), of_elements(first_, range.from),
          of_elements(second_, range.from), of_segments(sum_squares_), of_segments(rms_),
          of_segments(arena_.largest()), arena_.table(range)});
}

void AdamW::finish_update() { arena_.prepare_weights(arena_.largest().defined()); }

void AdamW::update(const Flat& f) {
  Kernels& k = kernels(arena_.device());
  k.gradient_statistics(f.sum_squares, f.gradients, f.table);
  if (shard_.ranks) {
    shard_.ranks->all_reduce(f.sum_squares);
    shard_.ranks->join();
  }
  if (!options_.update.clip_update) {
    k.adam_step(f.masters, f.values, f.first, f.second, f.rms, f.gradients, f.sum_squares, f.table, scalars_,
                options_.update, f.largest);
    if (shard_.ranks) share_rms();  // for the report
  } else {
    k.adam_moments(f.first, f.second, f.rms, f.gradients, f.sum_squares, f.table, scalars_, options_.update);
    if (shard_.ranks) share_rms();
    k.adam_update(f.masters, f.values, f.first, f.second, f.rms, f.table, scalars_, options_.update,
                  f.largest);
  }
}

Segments AdamW::shard_table() const {
  Segments table = arena_.table();
  if (shard_.ranks) table.ranges = shard_ranges_;
  return table;
}

// rms_ of this rank's part of each tensor -> of the whole tensor. A tensor that lies in one shard alone has
// RMS 0 on all ranks but one, or is skipped, below 0, on all: the sum says it. One that is cut has
//   sqrt(Σ_ranks count rms² / Σ_ranks count)
// which goes through the host: S numbers, and the device waits; a step that does this is not captured.
void AdamW::share_rms() {
  if (!shards_cut_tensors_) {
    shard_.ranks->all_reduce(rms_);
    return shard_.ranks->join();
  }
  const auto& segments = arena_.segments();
  const auto tensors = static_cast<int64_t>(segments.size());
  std::vector<double> sums = doubles(to_host(rms_));
  for (size_t i = 0; i < sums.size(); ++i)
    if (sums[i] >= 0) sums[i] *= sums[i] * static_cast<double>(shard_counts_[i]);
  const Tensor shares = to_device(Tensor::of<double>({tensors}, sums), arena_.device());
  shard_.ranks->all_reduce(shares);
  shard_.ranks->join();
  sums = doubles(to_host(shares));
  const Tensor whole({tensors}, rms_.dtype());
  visit_float(rms_.dtype(), "rms", [&](auto tag) {
    using R = decltype(tag);
    for (size_t i = 0; i < sums.size(); ++i)
      whole.span<R>()[i] = static_cast<R>(
          sums[i] < 0 ? -1 : std::sqrt(sums[i] / static_cast<double>(segments[i].shape.size())));
  });
  kernels(arena_.device()).upload(rms_, whole);
}

void AdamW::receive(int64_t step, const Tensor& numbers) {
  const auto& segments = arena_.segments();
  const auto tensors = static_cast<int64_t>(segments.size());
  CHECK(numbers.size() == 2 * tensors, "numbers of a step are (2, ", tensors, "), got ", numbers.shape());
  const std::vector<double> sum_squares = doubles(numbers.part(0, {tensors}));
  OptimizerReport report;
  report.step = step;
  report.rms = doubles(numbers.part(tensors, {tensors}));
  report.largest_rms = -1;
  double visual = 0, text = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const std::string& name = segments[i].name;
    if (!std::isfinite(sum_squares[i])) {
      report.skipped.push_back(name);
      report.rms[i] = -1;  // a sum over ranks, with ZeRO-1
      continue;
    }
    (name.starts_with("visual.") ? visual : text) += sum_squares[i];
    if (report.rms[i] > report.largest_rms) {
      report.largest_rms = report.rms[i];
      report.largest_rms_name = name;
    }
  }
  report.largest_rms = std::max(report.largest_rms, 0.0);
  report.gradient_norm = options_.gradient_scale * std::sqrt(visual + text);
  report.visual_gradient_norm = options_.gradient_scale * std::sqrt(visual);
  report.text_gradient_norm = options_.gradient_scale * std::sqrt(text);
  report_ = std::move(report);
}

double AdamW::rms_of(std::string_view name) const {
  const auto& segments = arena_.segments();
  for (size_t i = 0; i < segments.size(); ++i)
    if (segments[i].name == name) return report_.rms[i];
  CHECK(false, "no parameter is named ", name);
  return -1;
}

// first, second: flat as the arena's masters
AdamW::State AdamW::by_name(const Tensor& first, const Tensor& second, const Tensor& steps) const {
  State state;
  for (const auto& s : arena_.segments()) {
    state.emplace_back("optimizer.first." + s.name, first.part(s.from, s.shape));
    state.emplace_back("optimizer.second." + s.name, second.part(s.from, s.shape));
  }
  state.emplace_back("optimizer.step", steps);
  return state;
}

AdamW::State AdamW::state(bool wanted, int64_t at_once) const {
  if (!shard_.ranks) return by_name(first_, second_, steps_);
  const int64_t ranks = shard_.ranks->world_size();
  const int64_t piece = std::clamp(at_once / ranks, int64_t{1}, shard_.count);  // of each shard
  Kernels& k = kernels(arena_.device());
  const Tensor gathered({ranks * piece}, first_.dtype(), arena_.device());
  const auto whole = [&](const Tensor& moments) {
    const Tensor all = wanted ? Tensor(arena_.masters().shape(), moments.dtype()) : Tensor();
    for (int64_t from = 0; from < shard_.count; from += piece) {
      const int64_t count = std::min(piece, shard_.count - from);
      shard_.ranks->all_gather(gathered.part(0, {ranks * count}), moments.part(from, {count}));
      shard_.ranks->join();
      for (int64_t rank = 0; rank < ranks && wanted; ++rank)
        k.download(all.part(rank * shard_.count + from, {count}), gathered.part(rank * count, {count}));
    }
    return all;
  };
  const Tensor first = whole(first_), second = whole(second_);
  return wanted ? by_name(first, second, Tensor::of<int64_t>({}, {steps_done()})) : State();
}

AdamW::State AdamW::state_to_fill() const {
  const Shape shape = arena_.masters().shape();
  return by_name(Tensor(shape, first_.dtype()), Tensor(shape, second_.dtype()), Tensor({}, DType::i64));
}

void AdamW::restore(const State& state) {
  const auto& segments = arena_.segments();
  CHECK(state.size() == 2 * segments.size() + 1, "the state of another optimizer");
  Kernels& k = kernels(arena_.device());
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t count = shard_.ranks ? shard_counts_[i] : segments[i].shape.size();
    if (count == 0) continue;
    const int64_t at = std::max(segments[i].from - shard_.from, int64_t{0});
    const int64_t within = shard_.from + at - segments[i].from;  // where in the tensor the shard begins
    k.upload(first_.part(at, {count}), state[2 * i].second.part(within, {count}));
    k.upload(second_.part(at, {count}), state[2 * i + 1].second.part(within, {count}));
  }
  steps_.span<int64_t>()[0] = state.back().second.span<int64_t>()[0];
}

}  // namespace switchback
