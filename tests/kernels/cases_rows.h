// cases_rows.h: elementwise ops and ops on rows: GELU, residual, LayerNorm, L2 normalisation.
#pragma once

#include "tests/kernels/op_case.h"

namespace switchback {

inline double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
inline double normal_density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)); }
inline double logistic(double x) { return 1 / (1 + std::exp(-x)); }

inline OpCase accumulate_case(int64_t n) {
  return {
      .name = concat("accumulate ", Shape{n}),
      .operands = {random("from", {n}), sink("to", {n})},
      .call = [](const Bound& x) { x.k.accumulate(x.sink("to"), x("from")); },
      .define = [](Arrays& x) { x["to"] = x["from"]; },
  };
}

inline OpCase clamp_case(int64_t n) {
  return {
      .name = concat("clamp ", Shape{n}),
      .operands = {random("x", {n}, 3, 0, Operand::value, Operand::in_out)},
      .call = [](const Bound& x) { x.k.clamp(x("x"), -0.5, 2); },
      .define =
          [](Arrays& x) {
            for (double& v : x["x"]) v = std::min(std::max(v, -0.5), 2.0);
          },
  };
}

inline OpCase gelu_forward_case(int64_t rows, int64_t cols, Gelu kind) {
  return {
      .name = concat("gelu_forward ", kind == Gelu::exact ? "exact " : "quick ", Shape{rows, cols}),
      .operands = {random("x", {rows, cols}, 6), output("y", {rows, cols})},
      .call = [=](const Bound& x) { x.k.gelu_forward(x("y"), x("x"), kind); },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < rows * cols; ++i) {
              const double v = x["x"][i];
              x["y"][i] = kind == Gelu::exact ? v * normal_cdf(v) : v * logistic(1.702 * v);
            }
          },
  };
}

inline OpCase gelu_backward_case(int64_t rows, int64_t cols, Gelu kind) {
  return {
      .name = concat("gelu_backward ", kind == Gelu::exact ? "exact " : "quick ", Shape{rows, cols}),
      .operands = {random("x", {rows, cols}, 6), random("dy", {rows, cols}), sink("dx", {rows, cols})},
      .call = [=](const Bound& x) { x.k.gelu_backward(x.sink("dx"), x("dy"), x("x"), kind); },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < rows * cols; ++i) {
              const double v = x["x"][i], s = logistic(1.702 * v);
              x["dx"][i] = x["dy"][i] * (kind == Gelu::exact ? normal_cdf(v) + v * normal_density(v)
                                                             : s + 1.702 * v * s * (1 - s));
            }
          },
  };
}

inline OpCase residual_forward_case(int64_t rows, int64_t cols, bool scaled) {
  return {
      .name = concat("residual_forward ", scaled ? "scaled " : "", Shape{rows, cols}),
      .operands = {random("x", {rows, cols}), random("branch", {rows, cols}), random("gamma", {cols}),
                   output("y", {rows, cols})},
      .call =
          [=](const Bound& x) {
            x.k.residual_forward(x("y"), x("x"), x("branch"), scaled ? CView(x("gamma")) : CView{});
          },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < rows * cols; ++i)
              x["y"][i] = x["x"][i] + (scaled ? x["gamma"][i % cols] : 1.0) * x["branch"][i];
          },
  };
}

inline OpCase residual_backward_case(int64_t rows, int64_t cols) {
  return {
      .name = concat("residual_backward ", Shape{rows, cols}),
      .operands = {random("dy", {rows, cols}), random("branch", {rows, cols}), random("gamma", {cols}),
                   sink("dbranch", {rows, cols}), sink("dgamma", {cols})},
      .call =
          [](const Bound& x) {
            x.k.residual_backward(x.sink("dbranch"), x.sink("dgamma"), x("dy"), x("branch"), x("gamma"));
          },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < rows * cols; ++i) {
              x["dbranch"][i] = x["gamma"][i % cols] * x["dy"][i];
              x["dgamma"][i % cols] += x["dy"][i] * x["branch"][i];
            }
          },
  };
}

struct RowMoments {
  Array mean, rstd;
};
inline RowMoments row_moments(const Array& x, int64_t rows, int64_t cols, double epsilon) {
  RowMoments m{Array(rows), Array(rows, 1.0)};
  if (x.empty()) return m;  // too large to be drawn, only timed
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0, squares = 0;
    for (int64_t c = 0; c < cols; ++c) sum += x[r * cols + c];
    m.mean[r] = sum / static_cast<double>(cols);
    for (int64_t c = 0; c < cols; ++c) squares += std::pow(x[r * cols + c] - m.mean[r], 2);
    m.rstd[r] = 1 / std::sqrt(squares / static_cast<double>(cols) + epsilon);
  }
  return m;
}

inline OpCase layernorm_forward_case(int64_t rows, int64_t cols) {
  return {
      .name = concat("layernorm_forward ", Shape{rows, cols}),
      .operands = {random("x", {rows, cols}, 2, 0.5), random("gain", {cols}, 0.5, 1), random("bias", {cols}),
                   output("y", {rows, cols}), output("mean", {rows}, Operand::statistics),
                   output("rstd", {rows}, Operand::statistics)},
      .call =
          [](const Bound& x) {
            x.k.layernorm_forward(x("y"), x("mean"), x("rstd"), x("x"), x("gain"), x("bias"), 1e-5);
          },
      .define =
          [=](Arrays& x) {
            const RowMoments m = row_moments(x["x"], rows, cols, 1e-5);
            x["mean"] = m.mean;
            x["rstd"] = m.rstd;
            for (int64_t i = 0; i < rows * cols; ++i)
              x["y"][i] = x["gain"][i % cols] * (x["x"][i] - m.mean[i / cols]) * m.rstd[i / cols] +
                          x["bias"][i % cols];
          },
  };
}

inline OpCase layernorm_backward_case(int64_t rows, int64_t cols) {
  Operand x = random("x", {rows, cols}, 2, 0.5);
  const RowMoments m = row_moments(x.values, rows, cols, 1e-5);
  return {
      .name = concat("layernorm_backward ", Shape{rows, cols}),
      .operands = {x, random("dy", {rows, cols}), random("gain", {cols}, 0.5, 1),
                   given("mean", {rows}, m.mean, Operand::statistics),
                   given("rstd", {rows}, m.rstd, Operand::statistics), sink("dx", {rows, cols}),
                   sink("dgain", {cols}), sink("dbias", {cols})},
      .call =
          [](const Bound& x) {
            x.k.layernorm_backward(x.sink("dx"), x.sink("dgain"), x.sink("dbias"), x("dy"), x("x"), x("mean"),
                                   x("rstd"), x("gain"));
          },
      .define =
          [=](Arrays& x) {
            for (int64_t r = 0; r < rows; ++r) {
              double mean_g = 0, mean_gx = 0;
              Array unit(cols), g(cols);
              for (int64_t c = 0; c < cols; ++c) {
                unit[c] = (x["x"][r * cols + c] - x["mean"][r]) * x["rstd"][r];
                g[c] = x["dy"][r * cols + c] * x["gain"][c];
                mean_g += g[c] / static_cast<double>(cols);
                mean_gx += g[c] * unit[c] / static_cast<double>(cols);
                x["dgain"][c] += x["dy"][r * cols + c] * unit[c];
                x["dbias"][c] += x["dy"][r * cols + c];
              }
              for (int64_t c = 0; c < cols; ++c)
                x["dx"][r * cols + c] = x["rstd"][r] * (g[c] - mean_g - unit[c] * mean_gx);
            }
          },
  };
}

inline OpCase residual_layernorm_forward_case(int64_t rows, int64_t cols, bool scaled) {
  return {
      .name = concat("residual_layernorm_forward ", scaled ? "scaled " : "", Shape{rows, cols}),
      .operands = {random("x", {rows, cols}, 2, 0.5), random("branch", {rows, cols}), random("gamma", {cols}),
                   random("gain", {cols}, 0.5, 1), random("bias", {cols}), output("sum", {rows, cols}),
                   output("normed", {rows, cols}), output("mean", {rows}, Operand::statistics),
                   output("rstd", {rows}, Operand::statistics)},
      .call =
          [=](const Bound& x) {
            x.k.residual_layernorm_forward(x("sum"), x("normed"), x("mean"), x("rstd"), x("x"), x("branch"),
                                           scaled ? CView(x("gamma")) : CView{}, x("gain"), x("bias"), 1e-5);
          },
      .define =
          [=](Arrays& x) {
            for (int64_t i = 0; i < rows * cols; ++i)
              x["sum"][i] = x["x"][i] + (scaled ? x["gamma"][i % cols] : 1.0) * x["branch"][i];
            const RowMoments m = row_moments(x["sum"], rows, cols, 1e-5);
            x["mean"] = m.mean;
            x["rstd"] = m.rstd;
            for (int64_t i = 0; i < rows * cols; ++i)
              x["normed"][i] = x["gain"][i % cols] * (x["sum"][i] - m.mean[i / cols]) * m.rstd[i / cols] +
                               x["bias"][i % cols];
          },
      .tolerance_bf16 = 8e-3,  // the sum is rounded on the way
  };
}

inline OpCase residual_layernorm_backward_case(int64_t rows, int64_t cols, bool scaled, bool with_dsum) {
  OpCase op = layernorm_backward_case(rows, cols);
  op.name = concat("residual_layernorm_backward ", scaled ? "scaled " : "", with_dsum ? "+ dsum " : "",
                   Shape{rows, cols});
  std::ranges::find(op.operands, "dx", &Operand::name)->role = Operand::output;
  op.operands.push_back(random("dsum", {rows, cols}));
  op.operands.push_back(sink("dbranch_sum", {cols}));
  if (scaled)
    for (const Operand& o : {random("branch", {rows, cols}), random("gamma", {cols}),
                             sink("dbranch", {rows, cols}), sink("dgamma", {cols})})
      op.operands.push_back(o);
  op.tolerance_bf16 = op.tolerance_wide = 8e-3;  // dbranch and dgamma are made of dx rounded to T
  op.call = [=](const Bound& x) {
    x.k.residual_layernorm_backward(
        x("dx"), scaled ? x.sink("dbranch") : Sink{}, x.sink("dbranch_sum"), scaled ? x.sink("dgamma") : Sink{},
        x.sink("dgain"), x.sink("dbias"), with_dsum ? CView(x("dsum")) : CView{}, x("dy"), x("x"), x("mean"),
        x("rstd"), x("gain"), scaled ? CView(x("branch")) : CView{}, scaled ? CView(x("gamma")) : CView{});
  };
  op.define = [=, layernorm = op.define](Arrays& x) {
    layernorm(x);
    for (int64_t i = 0; i < rows * cols; ++i) {
      if (with_dsum) x["dx"][i] += x["dsum"][i];
      x["dbranch_sum"][i % cols] += (scaled ? x["gamma"][i % cols] : 1.0) * x["dx"][i];
      if (!scaled) continue;
      x["dbranch"][i] = x["gamma"][i % cols] * x["dx"][i];
      x["dgamma"][i % cols] += x["dx"][i] * x["branch"][i];
    }
  };
  return op;
}

inline OpCase l2_normalize_forward_case(int64_t rows, int64_t cols) {
  return {
      .name = concat("l2_normalize_forward ", Shape{rows, cols}),
      .operands = {random("x", {rows, cols}, 2), output("y", {rows, cols}, Operand::statistics),
                   output("inverse_norm", {rows}, Operand::statistics)},
      .call = [](const Bound& x) { x.k.l2_normalize_forward(x("y"), x("inverse_norm"), x("x")); },
      .define =
          [=](Arrays& x) {
            for (int64_t r = 0; r < rows; ++r) {
              double squares = 0;
              for (int64_t c = 0; c < cols; ++c) squares += x["x"][r * cols + c] * x["x"][r * cols + c];
              x["inverse_norm"][r] = 1 / std::max(std::sqrt(squares), 1e-12);
              for (int64_t c = 0; c < cols; ++c)
                x["y"][r * cols + c] = x["x"][r * cols + c] * x["inverse_norm"][r];
            }
          },
  };
}

inline OpCase l2_normalize_backward_case(int64_t rows, int64_t cols) {
  return {
      .name = concat("l2_normalize_backward ", Shape{rows, cols}),
      .operands = {random("y", {rows, cols}, 0.3, 0, Operand::statistics),
                   random("dy", {rows, cols}, 1, 0, Operand::statistics),
                   random("inverse_norm", {rows}, 0.5, 1, Operand::statistics), sink("dx", {rows, cols})},
      .call =
          [](const Bound& x) { x.k.l2_normalize_backward(x.sink("dx"), x("dy"), x("y"), x("inverse_norm")); },
      .define =
          [=](Arrays& x) {
            for (int64_t r = 0; r < rows; ++r) {
              double dot = 0;
              for (int64_t c = 0; c < cols; ++c) dot += x["y"][r * cols + c] * x["dy"][r * cols + c];
              for (int64_t i = r * cols; i < (r + 1) * cols; ++i)
                x["dx"][i] = x["inverse_norm"][r] * (x["dy"][i] - x["y"][i] * dot);
            }
          },
  };
}

}  // namespace switchback
