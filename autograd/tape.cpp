#include "autograd/tape.h"

#include <utility>

#include "kernels/kernels.h"
#include "runtime/allocator.h"
#include "runtime/ranges.h"

namespace switchback {
namespace {

thread_local Tape base_tape;
thread_local Tape* current_tape = nullptr;
thread_local int pauses = 0;
thread_local std::string_view current_region;
thread_local Tape::Observer current_observer;
thread_local Tape::BackwardObserver backward_observer;

}  // namespace

Tape& tape() { return current_tape ? *current_tape : base_tape; }

Tape::Pause::Pause() { ++pauses; }
Tape::Pause::~Pause() { --pauses; }
bool Tape::paused() { return pauses > 0; }

Tape::Resume::Resume() : pauses_(std::exchange(pauses, 0)) {}
Tape::Resume::~Resume() { pauses = pauses_; }

Tape::Scope::Scope() : outer_(std::exchange(current_tape, &tape_)) {}
Tape::Scope::~Scope() { current_tape = outer_; }

Tape::Region::Region(std::string_view name) : outer_(std::exchange(current_region, name)) {
  MemoryContext::set_place(name);
  begin_range(name);
}
Tape::Region::~Region() {
  end_range();
  MemoryContext::set_place(outer_);
  current_region = outer_;
}

void Tape::observe(Observer observer) { current_observer = std::move(observer); }
void Tape::observe_backward(BackwardObserver observer) { backward_observer = std::move(observer); }
void Tape::part_done(std::string_view op, std::string_view part) {
  if (backward_observer) backward_observer(op, part);
}
bool Tape::observed() { return current_observer || backward_observer; }

void Tape::record(std::string_view name, const Variable& result, std::function<void()> backward) {
  record(name, result, {}, std::move(backward));
}

void Tape::record(std::string_view name, const Variable& result, const Variable& second,
                  std::function<void()> backward) {
  if (current_observer) {
    current_observer(current_region, name, result);
    if (second.defined()) current_observer(current_region, name, second);
  }
  if (paused() || !(result.needs_grad() || second.needs_grad())) return;
  entries_.push_back({name, false, result.gradient(), second.gradient(), std::move(backward)});
}

void Tape::mark(std::string_view name, std::function<void()> f) {
  if (paused()) return;
  entries_.push_back({name, true, {}, {}, std::move(f)});
}

void Tape::backward(const Variable& loss) {
  CHECK(loss.shape().size() == 1, "backward starts at a single number, got shape ", loss.shape());
  kernels(loss.device()).fill(loss.grad_sink().to, 1.0);
  backward_from_gradients();
}

void Tape::backward_from_gradients() {
  Pause pause;  // what closures compute is not differentiated again
  while (!entries_.empty()) {
    Entry entry = std::move(entries_.back());
    entries_.pop_back();
    if (!entry.is_mark && !entry.result.written() && !entry.second.written()) continue;
    begin_range(entry.name);
    entry.backward();
    end_range();
    if (backward_observer) backward_observer(entry.name, {});
  }
}

void when_grads_ready(std::string_view name, std::function<void()> f) { tape().mark(name, std::move(f)); }

}  // namespace switchback
