// checkpoint.h: give up activations, compute them again when they are needed.
//
// y = f(x) runs without a tape, so it keeps only x and y. Its backward pass runs f once more with a tape of
// its own and walks that one back. Exact: f must compute the same both times (random numbers come from
// counters, so they do). Costs one extra forward pass of f; gradient accumulation over parts of a batch is
// checkpoint(tower) per part.
#pragma once

#include <functional>

#include "autograd/tape.h"

namespace switchback {

Variable checkpoint(const Variable& x, const std::function<Variable(const Variable&)>& f);

}  // namespace switchback
