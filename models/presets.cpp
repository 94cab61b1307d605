#include "models/presets.h"

namespace switchback {
namespace {

// One row of the table: open_clip's name and the sizes that differ.
struct Row {
  const char* name;
  int64_t embed, image, patch;
  int64_t vision_width, vision_layers, head_width;
  double vision_mlp_ratio;
  int64_t text_width, text_heads, text_layers;
  bool quick_gelu = false;
  int64_t context = 77, vocabulary = 49408;
};

// clang-format off
constexpr Row rows[] = {
    //                     embed image patch  vision: width layers head mlp     text: width heads layers
    {"ViT-S-32",             384,  224, 32,            384, 12,  64, 4.0,             384,  6, 12},
    {"ViT-S-16",             384,  224, 16,            384, 12,  64, 4.0,             384,  6, 12},
    {"ViT-M-32",             512,  224, 32,            512, 12,  64, 4.0,             512,  8, 12},
    {"ViT-M-16",             512,  224, 16,            512, 12,  64, 4.0,             512,  8, 12},
    {"ViT-B-32",             512,  224, 32,            768, 12,  64, 4.0,             512,  8, 12},
    {"ViT-B-32-256",         512,  256, 32,            768, 12,  64, 4.0,             512,  8, 12},
    {"ViT-B-32-quickgelu",   512,  224, 32,            768, 12,  64, 4.0,             512,  8, 12, true},
    {"ViT-B-16",             512,  224, 16,            768, 12,  64, 4.0,             512,  8, 12},
    {"ViT-B-16-quickgelu",   512,  224, 16,            768, 12,  64, 4.0,             512,  8, 12, true},
    {"ViT-B-16-plus",        640,  224, 16,            896, 12,  64, 4.0,             640, 10, 12},
    {"ViT-B-16-plus-240",    640,  240, 16,            896, 12,  64, 4.0,             640, 10, 12},
    {"ViT-L-16",             768,  224, 16,           1024, 24,  64, 4.0,             768, 12, 12},
    {"ViT-L-16-320",         768,  320, 16,           1024, 24,  64, 4.0,             768, 12, 12},
    {"ViT-L-14",             768,  224, 14,           1024, 24,  64, 4.0,             768, 12, 12},
    {"ViT-L-14-quickgelu",   768,  224, 14,           1024, 24,  64, 4.0,             768, 12, 12, true},
    {"ViT-L-14-280",         768,  280, 14,           1024, 24,  64, 4.0,             768, 12, 12},
    {"ViT-L-14-336",         768,  336, 14,           1024, 24,  64, 4.0,             768, 12, 12},
    {"ViT-L-14-336-quickgelu", 768, 336, 14,          1024, 24,  64, 4.0,             768, 12, 12, true},
    {"ViT-H-16",            1024,  224, 16,           1280, 32,  80, 4.0,            1024, 16, 24},
    {"ViT-H-14",            1024,  224, 14,           1280, 32,  80, 4.0,            1024, 16, 24},
    {"ViT-H-14-quickgelu",  1024,  224, 14,           1280, 32,  80, 4.0,            1024, 16, 24, true},
    {"ViT-H-14-378-quickgelu", 1024, 378, 14,         1280, 32,  80, 4.0,            1024, 16, 24, true},
    {"ViT-g-14",            1024,  224, 14,           1408, 40,  88, 4.3637,         1024, 16, 24},
    {"ViT-bigG-14",         1280,  224, 14,           1664, 48, 104, 4.9231,         1280, 20, 32},
    // A ViT-S for pictures of 64 pixels with short captions: a minute on a GPU.
    {"ViT-S-8-64",           256,   64,  8,            384, 12,  64, 4.0,             256,  4,  4, false, 32, 49408},
    // Small ones: minutes on a CPU. The byte tokenizer has 259 ids.
    {"mini-28",               64,   28,  7,            128,  4,  32, 4.0,              64,  2,  2, false, 32, 259},
    {"mini-64",              128,   64, 16,            192,  6,  48, 4.0,             128,  4,  4, false, 32, 49408},
    {"tiny",                  16,   16,  8,             32,  2,  16, 2.0,              24,  2,  2, false, 12, 259},
};
// clang-format on

}  // namespace

const std::vector<ClipConfig>& presets() {
  static const std::vector<ClipConfig> all = [] {
    std::vector<ClipConfig> configs;
    for (const Row& r : rows) {
      ClipConfig c;
      c.name = r.name;
      c.embed_dim = r.embed;
      c.quick_gelu = r.quick_gelu;
      c.vision.image_size = r.image;
      c.vision.patch_size = r.patch;
      c.vision.width = r.vision_width;
      c.vision.layers = r.vision_layers;
      c.vision.head_width = r.head_width;
      c.vision.mlp_ratio = r.vision_mlp_ratio;
      c.text.width = r.text_width;
      c.text.heads = r.text_heads;
      c.text.layers = r.text_layers;
      c.text.context_length = r.context;
      c.text.vocab_size = r.vocabulary;
      configs.push_back(c);
    }
    return configs;
  }();
  return all;
}

}  // namespace switchback
