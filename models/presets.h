// presets.h: the sizes of open_clip's ViT models, and of a few small ones for trials on a CPU.
#pragma once

#include <vector>

#include "models/config.h"

namespace switchback {

const std::vector<ClipConfig>& presets();

}  // namespace switchback
