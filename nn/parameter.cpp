#include "nn/parameter.h"

#include <algorithm>
#include <utility>

#include "autograd/tape.h"
#include "kernels/transfer.h"
#include "runtime/allocator.h"
#include "runtime/parallel.h"

namespace switchback {
namespace {

// Of a weight in the shard [from, from + count): with shards that cut no tensor all of it lies there.
bool begins_in(const ParameterArena::Segment& s, int64_t from, int64_t count) {
  return s.from >= from && s.from < from + count;
}

}  // namespace

const std::string& Parameter::name() const { return value_->name; }

std::string part_of(const std::string& parameter) {
  const std::string blocks = ".resblocks.";
  if (const size_t at = parameter.find(blocks); at != std::string::npos)
    return parameter.substr(0, parameter.find('.', at + blocks.size()));
  return parameter.starts_with("visual.") ? "visual" : "text";
}

ParameterArena::ParameterArena(DType values, Device device, uint64_t seed)
    : value_dtype_(values), device_(device), seed_(seed) {
  CHECK(is_float(values), "parameters are floating-point, got ", values);
}

Parameter ParameterArena::add(std::string name, Shape shape, Init init, bool full_precision) {
  CHECK(!masters_.defined(), "parameter ", name, " is added after allocate()");
  CHECK(!find(name), "two parameters are named ", name);
  Parameter p;
  p.value_ = std::make_shared<Variable::Value>();
  p.value_->name = name;
  p.gradient_ = Gradient(shape, value_dtype_, device_, true);
  p.gradient_.node_->is_fixed = true;
  segments_.push_back({std::move(name), shape, init, full_precision, 0, 0, p});
  weight_decay_.push_back(0);
  rate_scale_.push_back(1);
  return p;
}

int64_t ParameterArena::padded(const Segment& s) {
  return (s.shape.size() + segment_alignment - 1) / segment_alignment * segment_alignment;
}

int64_t ParameterArena::elements_of(size_t first, size_t count) const {
  const Segment& last = segments_[first + count - 1];
  return last.from + padded(last) - segments_[first].from;
}

// Shards without a tensor in two of them need room: the smallest shard that they all fit in, in order, is
// found by bisection. A shard is as large as the largest tensor at least, so with many shards too much would
// be empty; then tensors are laid out without gaps and cut wherever a shard ends.
int64_t ParameterArena::lay_out(int64_t shards) {
  int64_t compact = 0, largest = 0;
  for (const Segment& s : segments_) {
    compact += padded(s);
    largest = std::max(largest, padded(s));
  }
  const auto place = [&](int64_t shard) {  // shards that are needed
    int64_t at = 0;
    for (Segment& s : segments_) {
      if (shard > 0 && at / shard != (at + padded(s) - 1) / shard) at = (at / shard + 1) * shard;
      s.from = at;
      at += padded(s);
    }
    return shard > 0 ? (at + shard - 1) / shard : 1;
  };
  const int64_t unit = segment_alignment;
  int64_t enough = compact, too_small = std::max(largest, compact / shards / unit * unit) - unit;
  while (enough - too_small > unit) {
    const int64_t middle = (enough + too_small) / 2 / unit * unit;
    (place(middle) <= shards ? enough : too_small) = middle;
  }
  if (2 * enough * shards <= 3 * compact) {
    place(enough);
    return enough * shards;
  }
  place(0);
  return (compact + unit * shards - 1) / (unit * shards) * unit * shards;
}

void ParameterArena::share_gradients() {
  CHECK(!masters_.defined(), "where gradients lie is decided before allocate()");
  shares_gradients_ = true;
}

// Parts that share nothing come first, then the two buffers.
int64_t ParameterArena::lay_out_gradients() {
  for (size_t i = 0; i < segments_.size(); ++i) {
    const std::string name = part_of(segments_[i].name);
    if (parts_.empty() || parts_.back().name != name) {
      const bool is_block = name != "visual" && name != "text";
      CHECK(!is_block || std::ranges::find(parts_, name, &Part::name) == parts_.end(), "the parameters of ",
            name, " do not follow each other");
      parts_.push_back({name, {i, 0}, is_block});
    }
    ++parts_.back().range.count;
  }
  int64_t own = 0, largest = 0;
  for (const Part& part : parts_) {
    const int64_t elements = elements_of(part.range.first, part.range.count);
    if (part.shares)
      largest = std::max(largest, elements);
    else
      own += elements;
  }
  int64_t next = 0;
  bool second = false;
  for (Part& part : parts_) {
    const size_t first = part.range.first, count = part.range.count;
    int64_t at = next;
    if (part.shares)
      at = std::exchange(second, !second) ? own + largest : own;
    else
      next += elements_of(first, count);
    for (size_t i = first; i < first + count; ++i)
      segments_[i].gradient_from = at + segments_[i].from - segments_[first].from;
    part.range = range(first, count);
  }
  return own + 2 * largest;
}

void ParameterArena::allocate(int64_t shards) {
  CHECK(!masters_.defined(), "allocate() is called once");
  CHECK(shards >= 1, "the arena in ", shards, " shards");
  CHECK(shards == 1 || !shares_gradients_, "gradients of blocks share memory on one rank only");
  const int64_t total = lay_out(shards);
  for (Segment& s : segments_) s.gradient_from = s.from;
  const int64_t gradients_total = shares_gradients_ ? lay_out_gradients() : total;
  const DType master_dtype = statistics_dtype(value_dtype_);
  Kernels& k = kernels(device_);
  MemoryContext context("parameters");
  masters_ = Tensor({total}, master_dtype, device_);
  k.fill(masters_,
         0);  // padding too: it is read by nobody, but checkpoints of the flat buffers are equal bytes
  if (value_dtype_ != master_dtype) values_ = Tensor({total}, value_dtype_, device_);
  {
    MemoryContext gradients("gradients");
    gradients_ = Tensor({gradients_total}, master_dtype, device_);
    k.fill(gradients_, 0);
  }
  // First values depend on the seed and the tensor's name alone, so every core draws tensors of its own: a
  // billion normal numbers on one core take half a minute.
  const size_t at_once = static_cast<size_t>(cpu_threads());
  for (size_t first = 0; first < segments_.size(); first += at_once) {
    const size_t count = std::min(at_once, segments_.size() - first);
    std::vector<Tensor> hosts;
    for (size_t i = 0; i < count; ++i) hosts.emplace_back(segments_[first + i].shape, master_dtype);
    parallel_for(static_cast<int64_t>(count), 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        const Segment& s = segments_[first + static_cast<size_t>(i)];
        initialize(hosts[static_cast<size_t>(i)], s.init, seed_, s.name);
      }
    });
    for (size_t i = 0; i < count; ++i) k.upload(master_of(segments_[first + i]), hosts[i]);
  }
  for (Segment& s : segments_) {
    Tensor& value = s.parameter.value_->tensor;
    value = values_.defined() && !s.full_precision ? values_.part(s.from, s.shape) : master_of(s);
    s.parameter.gradient_.node_->tensor = gradient_of(s);
    s.parameter.gradient_.node_->dtype = value.dtype();
  }
  {
    MemoryContext weights("low-precision weights");
    share_memory_of_codes(shards);
    for (Prepared& p : prepared_) {
      Codes memory;
      if (codes_.defined())
        memory = {codes_.part(p.weight->from, p.weight->shape),
                  scales_.part(p.scale_from, {scale_copies(*p.recipe, p.weight->shape)}),
                  p.recipe->weight_codes()};
      *p.to = prepared_weight(*p.recipe, p.weight->shape, value_dtype_, device_, memory);
    }
    if (!prepared_.empty()) {
      largest_ = Tensor({static_cast<int64_t>(segments_.size())}, DType::f32, device_);
      k.fill(largest_, 0);
    }
  }
  publish_masters();
}

void ParameterArena::begin_part(const std::string& part) const {
  if (!listener_) return;
  when_grads_ready("part", [this, part] {
    if (listener_) listener_(part);
  });
}

std::shared_ptr<const PreparedWeight> ParameterArena::prepare(const Parameter& weight,
                                                              const LinearRecipe& recipe) {
  CHECK(!masters_.defined(), "weight ", weight.name(), " is to be prepared after allocate()");
  if (recipe.is_standard()) return nullptr;
  const Segment* segment = find(weight.name());
  const auto number =
      std::find_if(segments_.begin(), segments_.end(), [&](const Segment& s) { return &s == segment; }) -
      segments_.begin();
  prepared_.push_back({segment, number, &recipe, std::make_shared<PreparedWeight>()});
  return prepared_.back().to;
}

void ParameterArena::prepare_weights(bool largest_known) {
  prepare_weights_within(0, masters_.size(), largest_known);
}

void ParameterArena::prepare_weights_within(int64_t from, int64_t count, bool largest_known) {
  std::vector<WeightToPrepare> weights;
  for (const Prepared& p : prepared_)
    if (begins_in(*p.weight, from, count))
      weights.push_back({p.to.get(), p.recipe, master_of(*p.weight),
                         largest_known ? CView(largest_.part(p.segment, {1})) : CView{}});
  switchback::prepare_weights(weights);
}

void ParameterArena::share_memory_of_codes(int64_t shards) {
  if (shards == 1 || prepared_.empty() || shards_cut_tensors(shards)) return;
  const Format format = prepared_[0].recipe->weight_codes();
  for (const Prepared& p : prepared_)
    if (p.recipe->weight_codes() != format || format == Format::none) return;
  std::ranges::sort(prepared_, {}, &Prepared::segment);
  int64_t scales = 0;
  for (Prepared& p : prepared_) {
    p.scale_from = scales;
    scales += scale_copies(*p.recipe, p.weight->shape);
  }
  codes_ = Tensor({masters_.size()}, code_dtype(format, value_dtype_), device_);
  scales_ = Tensor({scales}, DType::f32, device_);
}

Tensor ParameterArena::scales_within(int64_t from, int64_t count) const {
  int64_t first = scales_.size(), end = 0;
  for (const Prepared& p : prepared_) {
    if (!begins_in(*p.weight, from, count)) continue;
    first = std::min(first, p.scale_from);
    end = p.scale_from + scale_copies(*p.recipe, p.weight->shape);
  }
  return end > first ? scales_.part(first, {end - first}) : Tensor();
}

bool ParameterArena::has_codes(size_t segment) const {
  return std::ranges::any_of(prepared_, [&](const Prepared& p) {
    return p.segment == static_cast<int64_t>(segment);
  });
}

void ParameterArena::finish_weights_outside(int64_t from, int64_t count) {
  std::vector<WeightCodes> weights;
  for (const Prepared& p : prepared_)
    if (!begins_in(*p.weight, from, count))
      weights.push_back({p.to->forward.codes, p.to->input.codes, p.to->forward.scale, {}, {}});
  kernels(device_).transpose_codes(weights);
}

void ParameterArena::publish_masters() {
  if (values_.defined()) kernels(device_).cast(values_, masters_);
  for (const Prepared& p : prepared_)
    kernels(device_).absolute_maximum(largest_.part(p.segment, {1}), master_of(*p.weight),
                                      Granularity::tensor);
  prepare_weights(true);
}

void ParameterArena::begin_backward() {
  for (Segment& s : segments_) s.parameter.gradient_.node_->written = false;
}

void ParameterArena::finish_backward() {
  for (size_t i = 0; i < segments_.size(); ++i) finish_gradient(i);
}

void ParameterArena::finish_gradient(size_t segment) {
  Segment& s = segments_.at(segment);
  if (!std::exchange(s.parameter.gradient_.node_->written, true)) kernels(device_).fill(gradient_of(s), 0);
}

const ParameterArena::Segment* ParameterArena::find(std::string_view name) const {
  auto it =
      std::find_if(segments_.begin(), segments_.end(), [&](const Segment& s) { return s.name == name; });
  return it == segments_.end() ? nullptr : &*it;
}

bool ParameterArena::shards_cut_tensors(int64_t shards) const {
  const int64_t shard = masters_.size() / shards;
  return std::ranges::any_of(
      segments_, [&](const Segment& s) { return s.from / shard != (s.from + s.shape.size() - 1) / shard; });
}

int64_t ParameterArena::parameter_count() const {
  int64_t n = 0;
  for (const Segment& s : segments_) n += s.shape.size();
  return n;
}

void ParameterArena::freeze(size_t segment) {
  segments_.at(segment).parameter.set_needs_grad(false);
  set_rate_scale(segment, 0);
  set_weight_decay(segment, 0);
}

Segments ParameterArena::table() {
  if (!ranges_table_.defined()) {
    const int64_t count = static_cast<int64_t>(segments_.size());
    std::vector<int64_t> ranges;
    for (const Segment& s : segments_) ranges.insert(ranges.end(), {s.from, s.shape.size()});
    ranges_table_ = to_device(Tensor::of<int64_t>({count, 2}, ranges), device_);
    decay_table_ = to_device(Tensor::of<double>({count}, weight_decay_), device_);
    rate_table_ = to_device(Tensor::of<double>({count}, rate_scale_), device_);
  }
  return {ranges_table_, decay_table_, rate_table_};
}

ParameterRange ParameterArena::range(size_t first, size_t count) const {
  CHECK(count > 0 && first + count <= segments_.size(), "a range of ", count, " parameters from ", first,
        " of ", segments_.size());
  const Segment& begin = segments_[first];
  std::vector<int64_t> ranges;
  for (size_t i = first; i < first + count; ++i) {
    const Segment& s = segments_[i];
    CHECK(s.gradient_from - begin.gradient_from == s.from - begin.from, "the gradients of ", begin.name,
          " and ", s.name, " lie elsewhere");
    ranges.insert(ranges.end(), {s.from - begin.from, s.shape.size()});
  }
  return {first, count, begin.from, elements_of(first, count), begin.gradient_from,
          to_device(Tensor::of<int64_t>({static_cast<int64_t>(count), 2}, ranges), device_)};
}

Segments ParameterArena::table(const ParameterRange& range) {
  table();
  const auto first = static_cast<int64_t>(range.first), count = static_cast<int64_t>(range.count);
  return {range.table, decay_table_.slice(first, count), rate_table_.slice(first, count)};
}

}  // namespace switchback
