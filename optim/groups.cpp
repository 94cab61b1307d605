#include "optim/groups.h"

#include <fnmatch.h>

#include <algorithm>
#include <array>

#include "runtime/check.h"

namespace switchback {

namespace {

// What open_clip's modules name in no_weight_decay().
constexpr std::array<std::string_view, 3> undecayed_embeddings{
    "positional_embedding", "visual.positional_embedding", "visual.class_embedding"};
constexpr std::array<std::string_view, 4> undecayed_parts{"bn", "ln", "bias", "logit_scale"};

}  // namespace

DecayRule decay_rule(std::string_view name) {
  if (name == "head") return DecayRule::head;
  if (name == "v3") return DecayRule::v3;
  fail("--wd-groups ", name, " is not known: use head or v3");
}

bool matches_glob(std::string_view name, std::string_view glob) {
  return fnmatch(std::string(glob).c_str(), std::string(name).c_str(), FNM_NOESCAPE) == 0;
}

bool decays(std::string_view name, const Shape& shape, DecayRule rule,
            std::span<const std::string> excluded) {
  if (shape.rank() < 2) return false;
  if (std::ranges::any_of(excluded, [&](const std::string& glob) { return matches_glob(name, glob); }))
    return false;
  if (rule == DecayRule::head)
    return std::ranges::find(undecayed_embeddings, name) == undecayed_embeddings.end();
  return std::ranges::none_of(
      undecayed_parts, [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

}  // namespace switchback
