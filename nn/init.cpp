#include "nn/init.h"

#include "runtime/philox.h"

namespace switchback {
namespace {

uint64_t fnv1a(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325u;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
  return h;
}

template <class T>
void draw(std::span<T> values, Init init, uint64_t seed, std::string_view name) {
  PhiloxStream random(seed ^ (static_cast<uint64_t>(RandomPurpose::initialization) << 56), fnv1a(name));
  for (T& v : values) {
    switch (init.kind) {
      case Init::constant: v = static_cast<T>(init.amount); break;
      case Init::normal: v = static_cast<T>(init.amount * random.normal()); break;
      case Init::uniform: v = static_cast<T>(init.amount * (2 * random.uniform() - 1)); break;
    }
  }
}

}  // namespace

void initialize(const Tensor& values, Init init, uint64_t seed, std::string_view name) {
  if (values.dtype() == DType::f64) draw(values.span<double>(), init, seed, name);
  else draw(values.span<float>(), init, seed, name);
}

}  // namespace switchback
