// parameter.h: learned tensors, and the arena that holds all of them in flat buffers.
//
//   masters    f32 (f64 in gradient checks)     what the optimizer updates
//   values     the model's type                 what kernels read; the same memory as masters when the types
//              agree
//   gradients  the masters' type                written by backward passes through Variable::grad_sink; they
//              lie like masters unless blocks share memory (share_gradients)
//
// Layers add their parameters in their constructors; allocate() then lays all of them out, in the order they
// were added, and fills in their first values. Every parameter is a `segment` of the buffers that starts at a
// multiple of 128 elements. One buffer instead of hundreds of tensors: the optimizer is three kernel calls,
// gradients of a block are one contiguous range to all-reduce, and a checkpoint is a loop over segments.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "autograd/variable.h"
#include "kernels/kernels.h"
#include "kernels/recipe.h"
#include "nn/init.h"

namespace switchback {

// A Variable whose value and gradient are parts of the arena. Named by open_clip's state-dict key.
class Parameter : public Variable {
 public:
  Parameter() = default;  // absent (a bias that is not there)
  const std::string& name() const;

 private:
  friend class ParameterArena;
};

// Consecutive parameters, one range of each flat buffer.
struct ParameterRange {
  size_t first = 0, count = 0;     // segments
  int64_t from = 0, elements = 0;  // in masters and values, padding included
  int64_t gradients_from = 0;      // in gradients
  Tensor table;                    // (count, 2) i64 on the device: Segments::ranges, counted from `from`
};

// The part of the model that a parameter belongs to: its block, else its tower ("visual" or "text").
std::string part_of(const std::string& parameter);

class ParameterArena {
 public:
  static constexpr int64_t segment_alignment = 128;  // elements

  struct Segment {
    std::string name;
    Shape shape;
    Init init;
    bool full_precision = false;  // kernels read the master (logit_scale)
    int64_t from = 0;             // first element in masters and values
    int64_t gradient_from = 0;    // in gradients
    Parameter parameter;
  };

  // values: f32, bf16, or f64 (masters are f64 then)
  ParameterArena(DType values, Device device, uint64_t seed);
  ParameterArena(const ParameterArena&) = delete;

  Parameter add(std::string name, Shape shape, Init init, bool full_precision = false);
  // shards: the buffers' length becomes a multiple of this many aligned parts (data_parallel.h). No tensor
  // lies in two of them as long as that leaves at most a third of the buffers empty.
  void allocate(int64_t shards = 1);
  bool shards_cut_tensors(int64_t shards) const;
  // Before allocate(): the gradients of all transformer blocks lie in two buffers in turns, as large as the
  // largest block, for whoever is done with a block's gradients as soon as they are final
  // (optim/update_in_backward.h). Two, because the op between two blocks writes gradients of both. One pass
  // over each tower then (no accumulation), and afterwards gradients() holds those of few blocks.
  void share_gradients();
  bool shares_gradients() const { return shares_gradients_; }
  // The arena in its parts: where gradients are shared, else empty.
  struct Part {
    std::string name;  // "visual.transformer.resblocks.3"; "visual" and "text" come several times
    ParameterRange range;
    bool shares = false;  // memory with other parts
  };
  const std::vector<Part>& parts() const { return parts_; }

  // A training step: begin_backward() before the first gradient is written, finish_backward() after the last
  // one. A parameter that took no part has gradient 0 then.
  void begin_backward();
  void finish_backward();
  void finish_gradient(size_t segment);  // finish_backward() of one

  // The forward pass of a part of the model begins here ("visual.transformer.resblocks.3", "visual", "text").
  // In the backward pass `listener` is called with that name when everything recorded after this place has
  // run back: the gradients of that part, and of this pass over it, are final (data_parallel.h).
  using PartListener = std::function<void(std::string_view part)>;
  void begin_part(const std::string& part) const;
  void listen(PartListener listener) { listener_ = std::move(listener); }

  // Copies masters into values (after masters were loaded or changed from outside), and prepares weights.
  void publish_masters();

  // What a recipe makes of a weight (kernels/recipe.h), from the masters; null for the standard recipe.
  // Whoever changes masters and values calls prepare_weights() afterwards: once a step, for all products of
  // that step. largest_known: max |master| of all that was changed has been written to largest().
  std::shared_ptr<const PreparedWeight> prepare(const Parameter& weight, const LinearRecipe& recipe);
  void prepare_weights(bool largest_known = false);
  const Tensor& largest() const { return largest_; }  // (S) f32; undefined where no weight is prepared
  bool prepares_weights() const { return !prepared_.empty(); }

  // With shards that cut no tensor, and recipes that code a weight with one scale: the codes can travel in
  // place of the masters, a byte an element. codes() lie like values, empty where a parameter has none.
  bool codes_travel() const { return codes_.defined(); }
  const Tensor& codes() const { return codes_; }                    // (elements); undefined: they do not
  Tensor scales_within(int64_t from, int64_t count) const;          // of the weights in that shard
  bool has_codes(size_t segment) const;
  // The codes of the weights of a shard, from its masters, whose largest() are known; and what is left to do
  // outside of it when the other codes and scales have come.
  void prepare_weights_within(int64_t from, int64_t count, bool largest_known = true);
  void finish_weights_outside(int64_t from, int64_t count);

  const std::deque<Segment>& segments() const { return segments_; }
  const Segment* find(std::string_view name) const;
  Tensor master_of(const Segment& s) const { return masters_.part(s.from, s.shape); }
  Tensor gradient_of(const Segment& s) const { return gradients_.part(s.gradient_from, s.shape); }
  static int64_t padded(const Segment& s);  // elements that it takes in the flat buffers

  const Tensor& masters() const { return masters_; }
  const Tensor& values() const { return values_; }  // undefined when masters are the values
  const Tensor& gradients() const { return gradients_; }
  DType value_dtype() const { return value_dtype_; }
  Device device() const { return device_; }
  int64_t parameter_count() const;  // without padding

  // The segment table for the optimizer's kernels, on the device. Weight decay and rate factors may be set
  // until the first call of table().
  void set_weight_decay(size_t segment, double decay) { weight_decay_.at(segment) = decay; }
  void set_rate_scale(size_t segment, double scale) { rate_scale_.at(segment) = scale; }
  // A frozen parameter wants no gradient and is not updated.
  void freeze(size_t segment);
  Segments table();

  // `count` parameters from `first` on, for an update of these alone (AdamW::update). Uploads its table.
  ParameterRange range(size_t first, size_t count) const;
  Segments table(const ParameterRange& range);

 private:
  int64_t elements_of(size_t first, size_t count) const;  // of consecutive segments, padding included
  int64_t lay_out(int64_t shards);  // sets Segment::from; elements in all
  int64_t lay_out_gradients();      // sets Segment::gradient_from and parts_; elements in all

  DType value_dtype_;
  Device device_;
  uint64_t seed_;
  std::deque<Segment> segments_;
  std::vector<double> weight_decay_, rate_scale_;
  struct Prepared {
    const Segment* weight;
    int64_t segment;  // its number
    const LinearRecipe* recipe;
    std::shared_ptr<PreparedWeight> to;
    int64_t scale_from = 0;  // in scales_
  };
  void share_memory_of_codes(int64_t shards);
  std::vector<Prepared> prepared_;
  Tensor masters_, values_, gradients_, largest_;
  Tensor codes_, scales_;
  PartListener listener_;
  Tensor ranges_table_, decay_table_, rate_table_;
  bool shares_gradients_ = false;
  std::vector<Part> parts_;
};

}  // namespace switchback
