// first_non_finite.h: where a NaN or an infinity came from, for the message that ends a run.
#pragma once

#include <functional>
#include <string>

#include "nn/parameter.h"

namespace switchback {

// The first tensor that is not finite: "parameter visual.conv1.weight", or "the result of gelu in REGION" of
// the forward pass, which is run again without a tape.
std::string first_non_finite(const ParameterArena& arena, const std::function<void()>& forward_pass);

}  // namespace switchback
