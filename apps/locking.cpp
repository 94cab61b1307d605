#include "apps/locking.h"

#include <charconv>

#include "nn/parameter.h"
#include "runtime/check.h"

namespace switchback {

std::optional<TowerGroup> tower_group(std::string_view name, const ClipConfig& config) {
  if (name == "logit_scale" || name == "logit_bias") return std::nullopt;
  const bool image = name.starts_with("visual.");
  const Tower tower = image ? Tower::image : Tower::text;
  const int64_t layers = image ? config.vision.layers : config.text.layers;
  if (image) name.remove_prefix(7);
  constexpr std::string_view blocks = "transformer.resblocks.";
  if (name.starts_with(blocks)) {
    int64_t block = 0;
    name.remove_prefix(blocks.size());
    std::from_chars(name.data(), name.data() + name.size(), block);
    return TowerGroup{tower, block + 1};
  }
  if (name.starts_with("ln_post") || name.starts_with("ln_final")) return TowerGroup{tower, layers};
  if (name == "proj" || name == "text_projection") return TowerGroup{tower, layers + 1};
  return TowerGroup{tower, 0};
}

int64_t lock_tower(ParameterArena& arena, const ClipConfig& config, Tower tower, int64_t unlocked) {
  const int64_t groups = (tower == Tower::image ? config.vision.layers : config.text.layers) + 2;
  if (unlocked > groups)
    fail(tower == Tower::image ? "--lock-image-unlocked-groups " : "--lock-text-unlocked-layers ", unlocked,
         ": the tower has only ", groups, " groups (embeddings, ", groups - 2, " blocks, projection)");
  int64_t locked = 0;
  for (size_t i = 0; i < arena.segments().size(); ++i) {
    const auto group = tower_group(arena.segments()[i].name, config);
    if (!group || group->tower != tower || group->number >= groups - unlocked) continue;
    arena.freeze(i);
    locked += arena.segments()[i].shape.size();
  }
  return locked;
}

}  // namespace switchback
