// png_writer.h: pixels to the bytes of a PNG file.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace switchback {

// pixels (height, width, channels), 8 bits; channels 1: grey, 3: RGB. The bytes depend on the pixels only.
std::vector<uint8_t> encode_png(std::span<const uint8_t> pixels, int64_t height, int64_t width, int channels);

}  // namespace switchback
