// cases_loss.h: the contrastive losses, for one of several ranks. The definitions are written on the whole N
// x N matrix of logits; a rank's share are its own rows of it.
#pragma once

#include "tests/kernels/op_case.h"

namespace switchback {

struct LossSizes {
  int64_t all, own, first_row, width;  // N, B
};

// Unit rows (rows, cols).
inline Operand random_unit_rows(const std::string& name, int64_t rows, int64_t cols) {
  Operand x = random(name, {rows, cols}, 1, 0, Operand::statistics);
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < cols; ++c) squares += x.values[r * cols + c] * x.values[r * cols + c];
    for (int64_t c = 0; c < cols; ++c)
      x.values[r * cols + c] = round_as(Operand::statistics, x.values[r * cols + c] / std::sqrt(squares));
  }
  return x;
}
inline Operand own_rows(const std::string& name, const Operand& all, const LossSizes& s) {
  const auto from = all.values.begin() + s.first_row * s.width;
  return given(name, {s.own, s.width}, Array(from, from + s.own * s.width), Operand::statistics);
}

// exp(scale) I Tᵀ + bias (N, N)
inline Array logits_of(const Array& images, const Array& texts, const LossSizes& s, double scale,
                       double bias) {
  Array logits(s.all * s.all);
  for (int64_t i = 0; i < s.all; ++i)
    for (int64_t j = 0; j < s.all; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < s.width; ++c) dot += images[i * s.width + c] * texts[j * s.width + c];
      logits[i * s.all + j] = std::exp(scale) * dot + bias;
    }
  return logits;
}
// Of rows (images) or columns (texts) of the logits.
inline Array log_sum_exp(const Array& logits, int64_t n, bool of_rows) {
  Array lse(n);
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += std::exp(logits[of_rows ? i * n + j : j * n + i] - 50);
    lse[i] = std::log(sum) + 50;
  }
  return lse;
}

// dimages_i = exp(s) Σ_j g_ij T_j, dtexts_i = exp(s) Σ_j g_ji I_j for own i
inline void define_feature_gradients(Arrays& x, const Array& g, const LossSizes& s) {
  const double factor = std::exp(x["logit_scale"][0]);
  for (int64_t i = 0; i < s.own; ++i)
    for (int64_t j = 0; j < s.all; ++j)
      for (int64_t c = 0; c < s.width; ++c) {
        const int64_t row = s.first_row + i;
        x["dimages"][i * s.width + c] += factor * g[row * s.all + j] * x["all_texts"][j * s.width + c];
        x["dtexts"][i * s.width + c] += factor * g[j * s.all + row] * x["all_images"][j * s.width + c];
      }
}

inline std::vector<Operand> loss_operands(const LossSizes& s) {
  const Operand images = random_unit_rows("all_images", s.all, s.width),
                texts = random_unit_rows("all_texts", s.all, s.width);
  return {images, texts, own_rows("images", images, s), own_rows("texts", texts, s),
          given("logit_scale", {}, {std::log(1 / 0.07)}, Operand::statistics)};
}
inline std::vector<Operand> join(std::vector<Operand> a, const std::vector<Operand>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
inline std::vector<Operand> loss_gradient_operands(const LossSizes& s) {
  return join(loss_operands(s), {given("dloss", {}, {0.75}, Operand::statistics),
                                 sink("dimages", {s.own, s.width}, Operand::statistics),
                                 sink("dtexts", {s.own, s.width}, Operand::statistics),
                                 sink("dlogit_scale", {}, Operand::statistics)});
}
inline std::string loss_name(const char* op, const LossSizes& s) {
  return concat(op, " rows ", s.first_row, " to ", s.first_row + s.own, " of ", Shape{s.all, s.width});
}
inline double loss_flops(const LossSizes& s, int products) {
  return 2.0 * products * static_cast<double>(s.own * s.all * s.width);
}

inline OpCase contrastive_forward_case(const LossSizes& s) {
  return {
      .name = loss_name("contrastive_forward", s),
      .operands = join(loss_operands(s), {output("loss", {}, Operand::statistics),
                                          output("image_lse", {s.own}, Operand::statistics),
                                          output("text_lse", {s.own}, Operand::statistics)}),
      .call =
          [=](const Bound& x) {
            x.k.contrastive_forward(x("loss"), x("image_lse"), x("text_lse"), x("images"), x("texts"),
                                    x("all_images"), x("all_texts"), x("logit_scale"), s.first_row);
          },
      .define =
          [=](Arrays& x) {
            const Array logits = logits_of(x["all_images"], x["all_texts"], s, x["logit_scale"][0], 0);
            const Array rows = log_sum_exp(logits, s.all, true), columns = log_sum_exp(logits, s.all, false);
            for (int64_t i = 0; i < s.own; ++i) {
              const int64_t row = s.first_row + i;
              x["image_lse"][i] = rows[row];
              x["text_lse"][i] = columns[row];
              x["loss"][0] += (rows[row] + columns[row] - 2 * logits[row * s.all + row]) /
                              (2.0 * static_cast<double>(s.all));
            }
          },
      .flops = loss_flops(s, 2),
      .tolerance_bf16 = 3e-6,  // everything is in R
  };
}

inline OpCase contrastive_backward_case(const LossSizes& s, bool with_definition = true) {
  std::vector<Operand> operands = loss_gradient_operands(s);
  Array image_lse(s.all, 15.0), text_lse(s.all, 15.0);
  if (with_definition) {
    const Array logits = logits_of(operands[0].values, operands[1].values, s, operands[4].values[0], 0);
    image_lse = log_sum_exp(logits, s.all, true);
    text_lse = log_sum_exp(logits, s.all, false);
  }
  return {
      .name = loss_name("contrastive_backward", s),
      .operands = join(operands, {given("all_image_lse", {s.all}, image_lse, Operand::f64),
                                  given("all_text_lse", {s.all}, text_lse, Operand::f64)}),
      .call =
          [=](const Bound& x) {
            // f64 values of lse, so that the f64 run is exact; rounded here for f32.
            const DType dtype = statistics_dtype(x.options.dtype);
            Tensor images({s.all}, dtype, x.options.device), texts({s.all}, dtype, x.options.device);
            x.k.cast(images, x("all_image_lse"));
            x.k.cast(texts, x("all_text_lse"));
            x.k.contrastive_backward(x.sink("dimages"), x.sink("dtexts"), x.sink("dlogit_scale"), x("dloss"),
                                     x("images"), x("texts"), x("all_images"), x("all_texts"), images, texts,
                                     x("logit_scale"), s.first_row);
          },
      .define =
          [=](Arrays& x) {
            const Array logits = logits_of(x["all_images"], x["all_texts"], s, x["logit_scale"][0], 0);
            const double factor = x["dloss"][0] / (2.0 * static_cast<double>(s.all));
            Array g(s.all * s.all);
            for (int64_t i = 0; i < s.all; ++i)
              for (int64_t j = 0; j < s.all; ++j) {
                const double l = logits[i * s.all + j], match = i == j ? 1 : 0;
                const double by_row = std::exp(l - x["all_image_lse"][i]),
                             by_column = std::exp(l - x["all_text_lse"][j]);
                g[i * s.all + j] = (by_row + by_column - 2 * match) * factor;
                const auto own = [&](int64_t row) { return row >= s.first_row && row < s.first_row + s.own; };
                if (own(i)) x["dlogit_scale"][0] += (by_row - match) * l * factor;
                if (own(j)) x["dlogit_scale"][0] += (by_column - match) * l * factor;
              }
            define_feature_gradients(x, g, s);
          },
      .flops = loss_flops(s, 4),
      .tolerance_f32 = 2e-5,
      .tolerance_bf16 = 2e-5,
  };
}

// A tile of the batch's pairs: some images against some texts.
struct TileSizes {
  int64_t batch, first_row, rows, first_column, columns, width;  // N; B images, C texts
};
// Own rows against all columns, as the other loss has them.
inline TileSizes tile_of(const LossSizes& s) { return {s.all, s.first_row, s.own, 0, s.all, s.width}; }

inline std::vector<Operand> tile_operands(const TileSizes& s) {
  const Operand images = random_unit_rows("all_images", s.batch, s.width),
                texts = random_unit_rows("all_texts", s.batch, s.width);
  const auto part = [&](const std::string& name, const Operand& all, int64_t from, int64_t count) {
    const auto first = all.values.begin() + from * s.width;
    return given(name, {count, s.width}, Array(first, first + count * s.width), Operand::statistics);
  };
  return {part("images", images, s.first_row, s.rows), part("texts", texts, s.first_column, s.columns),
          given("logit_scale", {}, {std::log(1 / 0.07)}, Operand::statistics),
          given("logit_bias", {}, {-3}, Operand::statistics)};
}
inline std::string tile_name(const char* op, const TileSizes& s) {
  return concat(op, " rows ", s.first_row, " to ", s.first_row + s.rows, ", columns ", s.first_column, " to ",
                s.first_column + s.columns, " of ", Shape{s.batch, s.width});
}
// Calls f(i, j, z_ij, e^s I_i·T_j) for all pairs of the tile.
template <class F>
void for_pairs(Arrays& x, const TileSizes& s, F&& f) {
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < s.columns; ++j) {
      double dot = 0;
      for (int64_t c = 0; c < s.width; ++c) dot += x["images"][i * s.width + c] * x["texts"][j * s.width + c];
      f(i, j, s.first_row + i == s.first_column + j ? 1.0 : -1.0, std::exp(x["logit_scale"][0]) * dot);
    }
}

inline OpCase siglip_forward_case(const TileSizes& s) {
  return {
      .name = tile_name("siglip_forward", s),
      .operands = join(tile_operands(s), {sink("loss", {}, Operand::statistics)}),
      .call =
          [=](const Bound& x) {
            x.k.siglip_forward(x.sink("loss"), x("images"), x("texts"), x("logit_scale"), x("logit_bias"),
                               s.first_row - s.first_column, s.batch);
          },
      .define =
          [=](Arrays& x) {
            for_pairs(x, s, [&](int64_t, int64_t, double z, double cosine) {
              x["loss"][0] += std::log(1 + std::exp(-z * (cosine + x["logit_bias"][0]))) /
                              static_cast<double>(s.batch);
            });
          },
      .flops = 2.0 * static_cast<double>(s.rows * s.columns * s.width),
      .tolerance_bf16 = 3e-6,
  };
}

inline OpCase siglip_backward_case(const TileSizes& s) {
  return {
      .name = tile_name("siglip_backward", s),
      .operands = join(tile_operands(s), {given("dloss", {}, {0.75}, Operand::statistics),
                                          sink("dimages", {s.rows, s.width}, Operand::statistics),
                                          sink("dtexts", {s.columns, s.width}, Operand::statistics),
                                          sink("dlogit_scale", {}, Operand::statistics),
                                          sink("dlogit_bias", {}, Operand::statistics)}),
      .call =
          [=](const Bound& x) {
            x.k.siglip_backward(x.sink("dimages"), x.sink("dtexts"), x.sink("dlogit_scale"),
                                x.sink("dlogit_bias"), x("dloss"), x("images"), x("texts"), x("logit_scale"),
                                x("logit_bias"), s.first_row - s.first_column, s.batch);
          },
      .define =
          [=](Arrays& x) {
            const double scale = std::exp(x["logit_scale"][0]);
            for_pairs(x, s, [&](int64_t i, int64_t j, double z, double cosine) {
              const double g = -z / (1 + std::exp(z * (cosine + x["logit_bias"][0]))) /
                               static_cast<double>(s.batch) * x["dloss"][0];
              for (int64_t c = 0; c < s.width; ++c) {
                x["dimages"][i * s.width + c] += scale * g * x["texts"][j * s.width + c];
                x["dtexts"][j * s.width + c] += scale * g * x["images"][i * s.width + c];
              }
              x["dlogit_scale"][0] += g * cosine;
              x["dlogit_bias"][0] += g;
            });
          },
      .flops = 6.0 * static_cast<double>(s.rows * s.columns * s.width),
      .tolerance_f32 = 2e-5,
      .tolerance_bf16 = 2e-5,
  };
}

}  // namespace switchback
