// decoders.h: the decoders behind decode_image, one per file format. Each reads the size in the header,
// passes it to allocate(), which may refuse it, and fills `to`. Inside the folder only.
#pragma once

#include "data/image.h"

namespace switchback {

// Sets the size of `to` and of its pixels; fails when there are more than options.max_image_pixels, or none.
void allocate(Image& to, int64_t height, int64_t width, const DecodeOptions& options);

// Fails for a size that options do not allow.
void check_size(int64_t height, int64_t width, const DecodeOptions& options);

void decode_jpeg(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options);
void decode_png(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options);
#ifdef SWITCHBACK_WEBP
void decode_webp(Image& to, std::span<const uint8_t> bytes, const DecodeOptions& options);
#endif

}  // namespace switchback
