// cases_attention.h: softmax(q kᵀ/√D) v and its gradients, head by head.
#pragma once

#include "tests/kernels/op_case.h"

namespace switchback {

struct AttentionSizes {
  int64_t samples, tokens, heads, head_size;
  bool causal;
  int64_t channels() const { return heads * head_size; }
  int64_t allowed(int64_t i) const { return causal ? i + 1 : tokens; }  // query i sees keys below this
  double flops(int products) const {  // products (T, T, D) per head, the masked half not counted
    return 2.0 * static_cast<double>(samples * heads * tokens * tokens * head_size) * products *
           (causal ? 0.5 : 1);
  }
  // Element d of part 0 (q), 1 (k), 2 (v) of a head's token in qkv; and in out.
  int64_t packed(int64_t b, int64_t h, int64_t t, int64_t part, int64_t d) const {
    return ((b * tokens + t) * 3 + part) * channels() + h * head_size + d;
  }
  int64_t place(int64_t b, int64_t h, int64_t t, int64_t d) const {
    return (b * tokens + t) * channels() + h * head_size + d;
  }
};

// Scores of one query: (q_i·k_j)/√D for the allowed j.
inline Array scores_of(const AttentionSizes& s, const Array& qkv, int64_t b, int64_t h, int64_t i) {
  Array scores(s.allowed(i));
  for (int64_t j = 0; j < s.allowed(i); ++j) {
    for (int64_t d = 0; d < s.head_size; ++d)
      scores[j] += qkv[s.packed(b, h, i, 0, d)] * qkv[s.packed(b, h, j, 1, d)];
    scores[j] /= std::sqrt(static_cast<double>(s.head_size));
  }
  return scores;
}

// out and lse from qkv
inline void define_attention(const AttentionSizes& s, const Array& qkv, Array& out, Array& lse) {
  for (int64_t b = 0; b < s.samples; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.tokens; ++i) {
        const Array scores = scores_of(s, qkv, b, h, i);
        double sum = 0;
        for (double score : scores) sum += std::exp(score);
        lse[(b * s.heads + h) * s.tokens + i] = std::log(sum);
        for (int64_t d = 0; d < s.head_size; ++d) {
          double value = 0;
          for (size_t j = 0; j < scores.size(); ++j)
            value += std::exp(scores[j]) / sum * qkv[s.packed(b, h, static_cast<int64_t>(j), 2, d)];
          out[s.place(b, h, i, d)] = value;
        }
      }
}

inline OpCase attention_forward_case(const AttentionSizes& s) {
  const Shape rows{s.samples, s.tokens, s.channels()};
  return {
      .name = concat("attention_forward ", s.causal ? "causal " : "",
                     Shape{s.samples, s.tokens, s.heads, s.head_size}),
      .operands = {random("qkv", rows.with_cols(3 * s.channels()), 2), output("out", rows),
                   output("lse", {s.samples, s.heads, s.tokens}, Operand::statistics)},
      .call = [=](const Bound& x) { x.k.attention_forward(x("out"), x("lse"), x("qkv"), s.heads, s.causal); },
      .define = [=](Arrays& x) { define_attention(s, x["qkv"], x["out"], x["lse"]); },
      .flops = s.flops(2),
      .tolerance_f32 = 1e-5,
  };
}

inline OpCase attention_backward_case(const AttentionSizes& s, bool with_definition = true) {
  const Shape rows{s.samples, s.tokens, s.channels()};
  Operand qkv = random("qkv", rows.with_cols(3 * s.channels()), 2);
  Array out(rows.size()), lse(s.samples * s.heads * s.tokens);
  if (with_definition) define_attention(s, qkv.values, out, lse);  // too slow for sizes that are only timed
  return {
      .name = concat("attention_backward ", s.causal ? "causal " : "",
                     Shape{s.samples, s.tokens, s.heads, s.head_size}),
      .operands = {qkv, random("dout", rows), given("out", rows, out, Operand::value),
                   given("lse", {s.samples, s.heads, s.tokens}, lse, Operand::statistics),
                   sink("dqkv", rows.with_cols(3 * s.channels()))},
      .call =
          [=](const Bound& x) {
            x.k.attention_backward(x.sink("dqkv"), x("dout"), x("qkv"), x("out"), x("lse"), s.heads,
                                   s.causal);
          },
      .define =
          [=](Arrays& x) {
            const Array &qkv = x["qkv"], &dout = x["dout"], &out = x["out"];
            Array& dqkv = x["dqkv"];
            const double root = std::sqrt(static_cast<double>(s.head_size));
            for (int64_t b = 0; b < s.samples; ++b)
              for (int64_t h = 0; h < s.heads; ++h)
                for (int64_t i = 0; i < s.tokens; ++i) {
                  const Array scores = scores_of(s, qkv, b, h, i);
                  double delta = 0;
                  for (int64_t d = 0; d < s.head_size; ++d)
                    delta += dout[s.place(b, h, i, d)] * out[s.place(b, h, i, d)];
                  for (int64_t j = 0; j < s.allowed(i); ++j) {
                    const double p = std::exp(scores[j] - x["lse"][(b * s.heads + h) * s.tokens + i]);
                    double dp = 0;
                    for (int64_t d = 0; d < s.head_size; ++d) {
                      dp += dout[s.place(b, h, i, d)] * qkv[s.packed(b, h, j, 2, d)];
                      dqkv[s.packed(b, h, j, 2, d)] += p * dout[s.place(b, h, i, d)];
                    }
                    const double ds = p * (dp - delta) / root;
                    for (int64_t d = 0; d < s.head_size; ++d) {
                      dqkv[s.packed(b, h, i, 0, d)] += ds * qkv[s.packed(b, h, j, 1, d)];
                      dqkv[s.packed(b, h, j, 1, d)] += ds * qkv[s.packed(b, h, i, 0, d)];
                    }
                  }
                }
          },
      .flops = s.flops(5),
      .tolerance_f32 = 1e-5,
  };
}

}  // namespace switchback
