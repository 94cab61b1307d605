// locking.h: towers that keep their weights while the other one learns (--lock-image, --lock-text).
//
// A tower of L blocks has L + 2 groups, from bottom to top as open_clip counts them:
//   0 embeddings (conv1, class_embedding, ln_pre / token_embedding; positional_embedding)
//   1 ... L-1 the blocks but the last   L the last block and ln_post / ln_final   L+1 proj / text_projection
// "unlocked" counts groups from the top that learn after all. logit_scale always learns.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "models/config.h"

namespace switchback {

class ParameterArena;

enum class Tower { image, text };
struct TowerGroup {
  Tower tower;
  int64_t number;  // 0 ... L+1
};
// Nothing for logit_scale and logit_bias.
std::optional<TowerGroup> tower_group(std::string_view parameter, const ClipConfig& config);

// Freezes a tower but for its last `unlocked` groups. Returns how many parameters (numbers) keep their value.
int64_t lock_tower(ParameterArena& arena, const ClipConfig& config, Tower tower, int64_t unlocked);

}  // namespace switchback
