// tape.h: reverse-mode differentiation as a linear tape of closures.
//
// Every op computes its result and records one closure that turns the result's gradient into its inputs'
// gradients. Program order reversed is a valid order, so backward() pops the tape from its end; nothing is
// sorted. Popping an entry destroys its closure, and with it the activations that only it kept alive. What a
// closure captures is what the op saves: capture lists are explicit.
//
//   Variable y(...);
//   k.gelu_forward(y.value(), x.value(), kind);
//   tape().record("gelu", y, [&k, x, dy = y.gradient(), kind] {
//     k.gelu_backward(x.grad_sink(), dy.take(), x.value(), kind);
//   });
//
// One tape per thread. Nothing is recorded when the result needs no gradient or while a Tape::Pause lives.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "autograd/variable.h"

namespace switchback {

class Tape {
 public:
  // name: a string literal. The closure is skipped when nobody gave `result` (or either result) a gradient.
  void record(std::string_view name, const Variable& result, std::function<void()> backward);
  void record(std::string_view name, const Variable& result, const Variable& second,
              std::function<void()> backward);
  // Runs `f` at this place of the reverse walk, whatever has a gradient.
  void mark(std::string_view name, std::function<void()> f);

  // Seeds d loss/d loss = 1 and runs the tape back to its beginning. `loss` has one element.
  void backward(const Variable& loss);
  // The same from a result whose gradient is known: y must have one already (adopt_grad).
  void backward_from_gradients();

  size_t size() const { return entries_.size(); }
  void clear() { entries_.clear(); }

  // While it lives, ops of this thread record nothing and their results need no gradient.
  class Pause {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
  };
  static bool paused();

  // Lifts every Pause of this thread while it lives (recomputation inside a backward pass).
  class Resume {
   public:
    Resume();
    ~Resume();
    Resume(const Resume&) = delete;

   private:
    int pauses_;
  };

  // While it lives, this thread records on a fresh tape (recomputation inside a backward pass).
  class Scope;

  // Names the part of the model whose ops run while it lives ("visual.transformer.resblocks.3"), for messages
  // and profiles. `name` must outlive it.
  class Region {
   public:
    explicit Region(std::string_view name);
    ~Region();
    Region(const Region&) = delete;

   private:
    std::string_view outer_;
  };

  // Calls `observer` with every result of this thread's ops, in order, recorded or not (to find the first
  // NaN). What the observer mark()s comes before that op on the tape: on the way back it runs when the op has
  // given its inputs their gradients (apps/linear_capture.cpp).
  using Observer = std::function<void(std::string_view region, std::string_view op, const Variable& result)>;
  static void observe(Observer observer);
  // Calls `observer` in backward passes of this thread after every closure that ran (for profiles), and
  // before that after each part of it that says so.
  // part "": the whole
  using BackwardObserver = std::function<void(std::string_view op, std::string_view part)>;
  static void observe_backward(BackwardObserver observer);
  // For ops of several kernels: a part ("input gradient") of the running closure is done.
  static void part_done(std::string_view op, std::string_view part);
  static bool observed();  // a step must then run op by op

 private:
  struct Entry {
    std::string_view name;
    bool is_mark;
    Gradient result, second;  // of the results
    std::function<void()> backward;
  };
  std::vector<Entry> entries_;
};

Tape& tape();

class Tape::Scope {
 public:
  Scope();
  ~Scope();
  Scope(const Scope&) = delete;
  Tape& tape() { return tape_; }

 private:
  Tape tape_;
  Tape* outer_;
};

// The result of an op with these inputs: it needs a gradient when one of them does and the tape is not
// paused.
template <class... Inputs>
Variable result_of(Tensor value, const Inputs&... inputs) {
  return Variable(std::move(value), !Tape::paused() && (inputs.needs_grad() || ...));
}

// Runs `f` in the backward pass as soon as everything recorded after this call has run back: at that moment
// the gradients of all parameters that are used only after this point are final.
void when_grads_ready(std::string_view name, std::function<void()> f);

}  // namespace switchback
