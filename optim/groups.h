// groups.h: which parameters are decayed.
//
// Weight decay pulls weight matrices towards 0; it makes no sense for gains, biases and scales. Two rules are
// in use:
//   head  open_clip today: no decay for tensors of rank ≤ 1, nor for the three embeddings named below.
//   v3    open_clip 2 and 3, and the paper: no decay for tensors of rank < 2, nor for names that contain
//         "bn", "ln", "bias" or "logit_scale". Position embeddings are decayed.
// Under both, token_embedding.weight is decayed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/shape.h"

namespace switchback {

enum class DecayRule : uint8_t { head, v3 };

// "head" (the default) or "v3": the values of --wd-groups. Error on any other name.
DecayRule decay_rule(std::string_view name);

// True when the parameter is decayed. excluded: globs (* ? [abc] [!abc]) over the whole name, from
// --wd-exclude.
bool decays(std::string_view name, const Shape& shape, DecayRule rule = DecayRule::head,
            std::span<const std::string> excluded = {});

// Does the whole name match the glob? The rules of Python's fnmatchcase: `*` also matches dots and slashes.
bool matches_glob(std::string_view name, std::string_view glob);

}  // namespace switchback
