// cases_linear.h: matrix products. flops = 2 M N K.
#pragma once

#include "tests/kernels/cases_rows.h"

namespace switchback {

// c (m, n) = op(a) op(b)
inline Array product(const Array& a, bool ta, const Array& b, bool tb, int64_t m, int64_t n, int64_t k) {
  Array c(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p)
        sum += (ta ? a[p * m + i] : a[i * k + p]) * (tb ? b[j * k + p] : b[p * n + j]);
      c[i * n + j] = sum;
    }
  return c;
}

inline OpCase matmul_case(int64_t m, int64_t n, int64_t k, bool ta, bool tb) {
  const Transpose a = ta ? Transpose::yes : Transpose::no, b = tb ? Transpose::yes : Transpose::no;
  return {
      .name = concat("matmul ", ta ? "T" : "N", tb ? "T" : "N", " ", Shape{m, n, k}),
      .operands = {random("a", ta ? Shape{k, m} : Shape{m, k}), random("b", tb ? Shape{n, k} : Shape{k, n}),
                   sink("c", {m, n})},
      .call = [=](const Bound& x) { x.k.matmul(x.sink("c"), x("a"), a, x("b"), b); },
      .define = [=](Arrays& x) { x["c"] = product(x["a"], ta, x["b"], tb, m, n, k); },
      .flops = 2.0 * static_cast<double>(m * n * k),
  };
}

inline OpCase linear_forward_case(int64_t m, int64_t k, int64_t n, bool with_bias) {
  return {
      .name = concat("linear_forward ", with_bias ? "+ bias " : "", Shape{m, k, n}),
      .operands = {random("x", {m, k}), random("w", {n, k}), random("bias", {n}), output("y", {m, n})},
      .call =
          [=](const Bound& x) {
            x.k.linear_forward(x("y"), x("x"), x("w"), with_bias ? CView(x("bias")) : CView{});
          },
      .define =
          [=](Arrays& x) {
            x["y"] = product(x["x"], false, x["w"], true, m, n, k);
            for (int64_t i = 0; with_bias && i < m * n; ++i) x["y"][i] += x["bias"][i % n];
          },
      .flops = 2.0 * static_cast<double>(m * n * k),
  };
}

inline OpCase linear_backward_input_case(int64_t m, int64_t k, int64_t n) {
  return {
      .name = concat("linear_backward_input ", Shape{m, k, n}),
      .operands = {random("dy", {m, n}), random("w", {n, k}), sink("dx", {m, k})},
      .call = [=](const Bound& x) { x.k.linear_backward_input(x.sink("dx"), x("dy"), x("w")); },
      .define = [=](Arrays& x) { x["dx"] = product(x["dy"], false, x["w"], false, m, k, n); },
      .flops = 2.0 * static_cast<double>(m * n * k),
  };
}

inline OpCase linear_backward_weight_case(int64_t m, int64_t k, int64_t n) {
  return {
      .name = concat("linear_backward_weight ", Shape{m, k, n}),
      .operands = {random("dy", {m, n}), random("x", {m, k}), sink("dw", {n, k}), sink("dbias", {n})},
      .call =
          [=](const Bound& x) { x.k.linear_backward_weight(x.sink("dw"), x.sink("dbias"), x("dy"), x("x")); },
      .define =
          [=](Arrays& x) {
            x["dw"] = product(x["dy"], true, x["x"], false, n, k, m);
            for (int64_t i = 0; i < m * n; ++i) x["dbias"][i % n] += x["dy"][i];
          },
      .flops = 2.0 * static_cast<double>(m * n * k),
  };
}

// y = gelu(x wᵀ + bias), with and without u beside it
inline OpCase linear_gelu_forward_case(int64_t m, int64_t k, int64_t n, Gelu kind, bool with_preactivation,
                                       bool with_bias = true) {
  OpCase op{
      .name =
          concat("linear_gelu_forward ", kind == Gelu::exact ? "exact " : "quick ",
                 with_preactivation ? "+ preactivation " : "", with_bias ? "" : "no bias ", Shape{m, k, n}),
      .operands = {random("x", {m, k}), random("w", {n, k}), random("bias", {n}), output("y", {m, n})},
      .call =
          [=](const Bound& x) {
            x.k.linear_gelu_forward(x("y"), with_preactivation ? x("preactivation") : View{}, x("x"), x("w"),
                                    with_bias ? CView(x("bias")) : CView{}, kind);
          },
      .define =
          [=](Arrays& x) {
            Array u = product(x["x"], false, x["w"], true, m, n, k);
            for (int64_t i = 0; i < m * n; ++i) {
              if (with_bias) u[i] += x["bias"][i % n];
              x["y"][i] = u[i] * (kind == Gelu::exact ? normal_cdf(u[i]) : logistic(1.702 * u[i]));
            }
            if (with_preactivation) x["preactivation"] = u;
          },
      .flops = 2.0 * static_cast<double>(m * n * k),
  };
  if (with_preactivation) op.operands.push_back(output("preactivation", {m, n}));
  return op;
}

// du = (dy w) gelu'(u), with and without gelu(u) beside it; dy (m, n), w (n, k), u (m, k)
inline OpCase linear_gelu_backward_input_case(int64_t m, int64_t k, int64_t n, Gelu kind, bool with_y) {
  OpCase op{
      .name = concat("linear_gelu_backward_input ", kind == Gelu::exact ? "exact " : "quick ",
                     with_y ? "+ y " : "", Shape{m, k, n}),
      .operands = {random("dy", {m, n}), random("w", {n, k}), random("preactivation", {m, k}, 4),
                   sink("dpreactivation", {m, k})},
      .call =
          [=](const Bound& x) {
            x.k.linear_gelu_backward_input(x.sink("dpreactivation"), with_y ? x("y") : View{}, x("dy"),
                                           x("w"), x("preactivation"), kind);
          },
      .define =
          [=](Arrays& x) {
            const Array dg = product(x["dy"], false, x["w"], false, m, k, n);
            for (int64_t i = 0; i < m * k; ++i) {
              const double u = x["preactivation"][i], s = logistic(1.702 * u);
              x["dpreactivation"][i] = dg[i] * (kind == Gelu::exact ? normal_cdf(u) + u * normal_density(u)
                                                                    : s + 1.702 * u * s * (1 - s));
              if (with_y) x["y"][i] = u * (kind == Gelu::exact ? normal_cdf(u) : s);
            }
          },
      .flops = 2.0 * static_cast<double>(m * n * k),
      .tolerance_bf16 = 7e-3,  // dy w may be rounded before the product with the slope
  };
  if (with_y) op.operands.push_back(output("y", {m, k}));
  return op;
}

}  // namespace switchback
