// model_test.h: small models and random batches for the tests of models/.
// Include it last: from here on CHECK is doctest's.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/transfer.h"
#include "models/clip.h"
#include "runtime/philox.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

namespace switchback {

// A Clip and the arena that holds it.
struct Model {
  ParameterArena arena;
  Clip clip;

  Model(const ClipConfig& config, DType dtype, uint64_t seed = 1)
      : arena(dtype, cpu_device, seed), clip(arena, config) {
    arena.allocate();
  }
  Tensor master(const std::string& name) const { return arena.master_of(segment(name)); }
  Tensor gradient(const std::string& name) const { return arena.gradient_of(segment(name)); }
  const ParameterArena::Segment& segment(const std::string& name) const {
    const auto* s = arena.find(name);
    if (!s) fail("the model has no parameter ", name);
    return *s;
  }
  // Every gradient of the loss of this batch. Returns the loss.
  double run(const std::function<Variable()>& loss) {
    arena.begin_backward();
    Variable l = loss();
    tape().backward(l);
    arena.finish_backward();
    return number(l.value());
  }
};

struct Batch {
  Tensor images;  // (B, S, S, 3) u8
  Tensor tokens;  // (B, T) i32, end-of-text (the largest id) somewhere after the first place
};

inline Batch random_batch(const ClipConfig& c, int64_t size, uint64_t seed = 5) {
  PhiloxStream random(seed, RandomPurpose::test, 0);
  Batch b{Tensor({size, c.vision.image_size, c.vision.image_size, 3}, DType::u8),
          Tensor({size, c.text.context_length}, DType::i32)};
  for (uint8_t& v : b.images.span<uint8_t>()) v = static_cast<uint8_t>(random.below(256));
  std::span<int32_t> tokens = b.tokens.span<int32_t>();
  for (int32_t& v : tokens)
    v = static_cast<int32_t>(random.below(static_cast<uint64_t>(c.text.vocab_size - 1)));
  for (int64_t i = 0; i < size; ++i) {
    const int64_t end =
        1 + static_cast<int64_t>(random.below(static_cast<uint64_t>(c.text.context_length - 1)));
    tokens[i * c.text.context_length + end] = static_cast<int32_t>(c.text.vocab_size - 1);
  }
  return b;
}

// Gains, biases and layer-scales away from 0 and 1, where mistakes could not be seen.
inline void roughen(ParameterArena& arena, uint64_t seed = 9) {
  PhiloxStream random(seed, RandomPurpose::test, 1);
  for (const auto& s : arena.segments()) {
    if (s.shape.rank() != 1) continue;
    Tensor master = arena.master_of(s);
    visit_float(master.dtype(), "roughen", [&](auto tag) {
      using T = decltype(tag);
      if constexpr (!std::is_same_v<T, bfloat16>)
        for (T& v : master.span<T>()) v += static_cast<T>(0.3f * random.normal());
    });
  }
  arena.publish_masters();
}

inline ClipConfig tiny_config() { return find_model("tiny"); }

// Any float tensor as f64.
inline std::vector<double> doubles(const Tensor& t) {
  std::vector<double> values;
  visit_float(t.dtype(), "doubles", [&](auto tag) {
    for (auto v : t.span<decltype(tag)>())
      values.push_back(static_cast<double>(static_cast<Statistics<decltype(tag)>>(v)));
  });
  return values;
}

// ‖a - b‖ / ‖b‖; ‖a‖ where b is 0
inline double relative_error(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = doubles(a), y = doubles(b);
  if (x.size() != y.size()) fail("relative_error of ", a.shape(), " and ", b.shape());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// The message of the Error that f throws; "" when it throws none.
inline std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace switchback
