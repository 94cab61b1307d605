#include "apps/first_non_finite.h"

#include <cmath>

#include "autograd/tape.h"
#include "kernels/transfer.h"

namespace switchback {
namespace {

bool all_finite(const Tensor& tensor) {
  const Tensor host = to_host(tensor);
  return visit_float(host.dtype(), "all_finite", [&](auto tag) {
    for (auto v : host.span<decltype(tag)>())
      if (!std::isfinite(static_cast<float>(v))) return false;
    return true;
  });
}

}  // namespace

std::string first_non_finite(const ParameterArena& arena, const std::function<void()>& forward_pass) {
  for (const auto& segment : arena.segments())
    if (!all_finite(arena.master_of(segment))) return "parameter " + segment.name;
  std::string first;
  Tape::Pause pause;
  Tape::observe([&](std::string_view region, std::string_view op, const Variable& result) {
    if (first.empty() && is_float(result.dtype()) && !all_finite(result.value()))
      first = concat("the result of ", op, " in ", region.empty() ? "the loss" : region);
  });
  forward_pass();
  Tape::observe({});
  return first.empty() ? "none when computed again" : first;
}

}  // namespace switchback
