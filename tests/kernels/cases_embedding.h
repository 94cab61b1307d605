// cases_embedding.h: pixels, patches, tokens and positions in; one row per sample out.
#pragma once

#include <algorithm>

#include "tests/kernels/op_case.h"

namespace switchback {

// (samples, kept) numbers below `patches`, ascending in each row.
inline Operand random_choice(int64_t samples, int64_t kept, int64_t patches) {
  Random r(91);
  Array values;
  for (int64_t b = 0; b < samples; ++b) {
    Array all(patches);
    for (int64_t n = 0; n < patches; ++n) all[n] = static_cast<double>(n);
    for (int64_t n = 0; n < kept; ++n) std::swap(all[n], all[n + r.below(patches - n)]);
    std::sort(all.begin(), all.begin() + kept);
    values.insert(values.end(), all.begin(), all.begin() + kept);
  }
  return given("keep", {samples, kept}, values, Operand::i32);
}

inline Operand random_integers(const std::string& name, Shape shape, int64_t below, Operand::Kind kind) {
  const double half = static_cast<double>(below) / 2;
  if (shape.size() > largest_drawn) return {name, kind, Operand::input, shape, {}, half, half};
  Random r(shape.size() + below);
  Array values(shape.size());
  for (double& v : values) v = static_cast<double>(r.below(below));
  return given(name, shape, values, kind);
}

// kept == patches of the image: without `keep`.
inline OpCase extract_patches_case(int64_t samples, int64_t height, int64_t width, int64_t patch,
                                   int64_t kept) {
  const int64_t columns = width / patch, count = height / patch * columns, elements = 3 * patch * patch;
  const PixelNormalization normalization;
  const bool chosen = kept < count;
  return {
      .name = concat("extract_patches ", Shape{samples, height, width, patch}, " keeping ", kept),
      .operands = {random_integers("pixels", {samples, height, width, 3}, 256, Operand::u8),
                   random_choice(samples, kept, count), output("patches", {samples * kept, elements})},
      .call =
          [=](const Bound& x) {
            x.k.extract_patches(x("patches"), x("pixels"), chosen ? CView(x("keep")) : CView{}, patch,
                                normalization);
          },
      .define =
          [=](Arrays& x) {
            for (int64_t b = 0; b < samples; ++b)
              for (int64_t k = 0; k < kept; ++k)
                for (int64_t i = 0; i < elements; ++i) {
                  const int64_t n = chosen ? static_cast<int64_t>(x["keep"][b * kept + k]) : k;
                  const int64_t c = i / (patch * patch), dy = i / patch % patch, dx = i % patch;
                  const int64_t y = n / columns * patch + dy, z = n % columns * patch + dx;
                  x["patches"][(b * kept + k) * elements + i] =
                      (x["pixels"][((b * height + y) * width + z) * 3 + c] / 255 -
                       static_cast<double>(normalization.mean[c])) /
                      static_cast<double>(normalization.std[c]);
                }
          },
  };
}

inline OpCase vision_embed_forward_case(int64_t samples, int64_t patches, int64_t kept, int64_t width) {
  const bool chosen = kept < patches;
  return {
      .name = concat("vision_embed_forward ", Shape{samples, patches, width}, " keeping ", kept),
      .operands = {random("patches", {samples * kept, width}), random("class_embedding", {width}),
                   random("positions", {patches + 1, width}), random_choice(samples, kept, patches),
                   output("x", {samples, kept + 1, width})},
      .call =
          [=](const Bound& x) {
            x.k.vision_embed_forward(x("x"), x("patches"), x("class_embedding"), x("positions"),
                                     chosen ? CView(x("keep")) : CView{});
          },
      .define =
          [=](Arrays& x) {
            for (int64_t b = 0; b < samples; ++b)
              for (int64_t c = 0; c < width; ++c) {
                Array& to = x["x"];
                to[b * (kept + 1) * width + c] = x["class_embedding"][c] + x["positions"][c];
                for (int64_t k = 0; k < kept; ++k) {
                  const int64_t n = chosen ? static_cast<int64_t>(x["keep"][b * kept + k]) : k;
                  to[(b * (kept + 1) + 1 + k) * width + c] =
                      x["patches"][(b * kept + k) * width + c] + x["positions"][(1 + n) * width + c];
                }
              }
          },
  };
}

inline OpCase vision_embed_backward_case(int64_t samples, int64_t patches, int64_t kept, int64_t width) {
  const bool chosen = kept < patches;
  return {
      .name = concat("vision_embed_backward ", Shape{samples, patches, width}, " keeping ", kept),
      .operands = {random("dx", {samples, kept + 1, width}), random_choice(samples, kept, patches),
                   sink("dpatches", {samples * kept, width}), sink("dclass_embedding", {width}),
                   sink("dpositions", {patches + 1, width})},
      .call =
          [=](const Bound& x) {
            x.k.vision_embed_backward(x.sink("dpatches"), x.sink("dclass_embedding"), x.sink("dpositions"),
                                      x("dx"), chosen ? CView(x("keep")) : CView{});
          },
      .define =
          [=](Arrays& x) {
            for (int64_t b = 0; b < samples; ++b)
              for (int64_t c = 0; c < width; ++c) {
                const Array& dx = x["dx"];
                x["dclass_embedding"][c] += dx[b * (kept + 1) * width + c];
                x["dpositions"][c] += dx[b * (kept + 1) * width + c];
                for (int64_t k = 0; k < kept; ++k) {
                  const int64_t n = chosen ? static_cast<int64_t>(x["keep"][b * kept + k]) : k;
                  const double g = dx[(b * (kept + 1) + 1 + k) * width + c];
                  x["dpatches"][(b * kept + k) * width + c] = g;
                  x["dpositions"][(1 + n) * width + c] += g;
                }
              }
          },
  };
}

inline OpCase text_embed_forward_case(int64_t samples, int64_t tokens, int64_t vocabulary, int64_t width) {
  return {
      .name = concat("text_embed_forward ", Shape{samples, tokens, vocabulary, width}),
      .operands = {random("table", {vocabulary, width}), random("positions", {tokens + 2, width}),
                   random_integers("tokens", {samples, tokens}, vocabulary, Operand::i32),
                   output("x", {samples, tokens, width})},
      .call = [](const Bound& x) { x.k.text_embed_forward(x("x"), x("table"), x("positions"), x("tokens")); },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < samples * tokens * width; ++i) {
              const int64_t place = i / width, c = i % width,
                            token = static_cast<int64_t>(x["tokens"][place]);
              x["x"][i] = x["table"][token * width + c] + x["positions"][place % tokens * width + c];
            }
          },
  };
}

inline OpCase text_embed_backward_case(int64_t samples, int64_t tokens, int64_t vocabulary, int64_t width) {
  return {
      .name = concat("text_embed_backward ", Shape{samples, tokens, vocabulary, width}),
      .operands = {random("dx", {samples, tokens, width}),
                   random_integers("tokens", {samples, tokens}, vocabulary, Operand::i32),
                   sink("dtable", {vocabulary, width}), sink("dpositions", {tokens + 2, width})},
      .call =
          [](const Bound& x) {
            x.k.text_embed_backward(x.sink("dtable"), x.sink("dpositions"), x("dx"), x("tokens"));
          },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < samples * tokens * width; ++i) {
              const int64_t place = i / width, c = i % width,
                            token = static_cast<int64_t>(x["tokens"][place]);
              x["dtable"][token * width + c] += x["dx"][i];
              x["dpositions"][place % tokens * width + c] += x["dx"][i];
            }
          },
  };
}

inline OpCase find_largest_token_case(int64_t samples, int64_t tokens) {
  return {
      .name = concat("find_largest_token ", Shape{samples, tokens}),
      .operands = {random_integers("tokens", {samples, tokens}, 9, Operand::i32),  // few values: many ties
                   output("place", {samples}, Operand::i32)},
      .call = [](const Bound& x) { x.k.find_largest_token(x("place"), x("tokens")); },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < samples * tokens; ++i) {
              double& best = x["place"][i / tokens];
              const double largest = x["tokens"][i / tokens * tokens + static_cast<int64_t>(best)];
              if (x["tokens"][i] > largest) best = static_cast<double>(i % tokens);
            }
          },
  };
}

inline OpCase pool_forward_case(int64_t samples, int64_t tokens, int64_t width, bool placed) {
  return {
      .name = concat("pool_forward ", placed ? "placed " : "", Shape{samples, tokens, width}),
      .operands = {random("x", {samples, tokens, width}),
                   random_integers("place", {samples}, tokens, Operand::i32), output("y", {samples, width})},
      .call = [=](const Bound& x) { x.k.pool_forward(x("y"), x("x"), placed ? CView(x("place")) : CView{}); },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < samples * width; ++i) {
              const int64_t b = i / width, t = placed ? static_cast<int64_t>(x["place"][b]) : 0;
              x["y"][i] = x["x"][(b * tokens + t) * width + i % width];
            }
          },
  };
}

inline OpCase pool_backward_case(int64_t samples, int64_t tokens, int64_t width, bool placed) {
  return {
      .name = concat("pool_backward ", placed ? "placed " : "", Shape{samples, tokens, width}),
      .operands = {random("dy", {samples, width}), random_integers("place", {samples}, tokens, Operand::i32),
                   sink("dx", {samples, tokens, width})},
      .call =
          [=](const Bound& x) {
            x.k.pool_backward(x.sink("dx"), x("dy"), placed ? CView(x("place")) : CView{});
          },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < samples * width; ++i) {
              const int64_t b = i / width, t = placed ? static_cast<int64_t>(x["place"][b]) : 0;
              x["dx"][(b * tokens + t) * width + i % width] = x["dy"][i];
            }
          },
  };
}

}  // namespace switchback
