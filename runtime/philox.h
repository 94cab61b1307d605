// philox.h: Philox 4x32-10, random numbers as a function of (counter, key), and a small generator.
//
// One call maps 128 bits of counter and 64 bits of key to four 32-bit words that pass the usual batteries of
// tests. There is no state to save: whoever knows seed, step and sample index can draw the numbers of that
// sample again, on any thread, rank or device. That is why resuming and changing the number of workers change
// no bit.
//
//   one round:  (c0, c1, c2, c3) -> (high(M1 c2) ^ c1 ^ k0,  low(M1 c2),  high(M0 c0) ^ c3 ^ k1,  low(M0 c0))
//   between rounds the key grows by the Weyl constants (W0, W1); ten rounds.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SWITCHBACK_HOST_DEVICE __host__ __device__
#else
#define SWITCHBACK_HOST_DEVICE
#endif

namespace switchback {

template <int n>
struct PhiloxWords {
  uint32_t word[n];
  SWITCHBACK_HOST_DEVICE constexpr uint32_t operator[](int64_t i) const { return word[i]; }
  SWITCHBACK_HOST_DEVICE constexpr uint32_t& operator[](int64_t i) { return word[i]; }
};
using PhiloxCounter = PhiloxWords<4>;  // the result has the same type
using PhiloxKey = PhiloxWords<2>;

SWITCHBACK_HOST_DEVICE constexpr PhiloxCounter philox(PhiloxCounter c, PhiloxKey k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xd2511f53u} * c[0], b = uint64_t{0xcd9e8d57u} * c[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)}};
    k[0] += 0x9e3779b9u;  // the golden ratio
    k[1] += 0xbb67ae85u;  // the square root of 3, less 1
  }
  return c;
}

SWITCHBACK_HOST_DEVICE constexpr PhiloxKey philox_key(uint64_t seed) {
  return {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
}

// What numbers are drawn for. The purpose goes into the top byte of the key, so none share a stream.
enum class RandomPurpose : uint32_t {
  augmentation = 0,
  initialization = 0x10,
  patch_dropout,
  shuffle,
  synthetic_data,
  test,
};

// A sequence of numbers: key = seed, counter = (block of four, stream). Streams of one seed are independent.
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, uint64_t stream) : key_(philox_key(seed)), stream_(stream) {}
  PhiloxStream(uint64_t seed, RandomPurpose purpose, uint64_t stream)
      : PhiloxStream(seed ^ static_cast<uint64_t>(purpose) << 56, stream) {}

  uint32_t next_u32() {
    const int i = static_cast<int>(drawn_ % 4);
    if (i == 0) {
      const uint64_t block = drawn_ / 4;
      words_ = philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                        static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)}},
                      key_);
    }
    ++drawn_;
    return words_[i];
  }
  uint64_t next_u64() {
    const uint64_t high = next_u32();
    return high << 32 | next_u32();
  }

  float uniform() { return static_cast<float>(next_u32() >> 8) * 0x1p-24f; }           // [0, 1), 24 bits
  double uniform_double() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }  // [0, 1), 53 bits

  // Standard normal (Box-Muller; the pair's second half is kept). |value| <= 6.7: 32 bits.
  float normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const float u = (static_cast<float>(next_u32()) + 1.0f) * 0x1p-32f;  // (0, 1]
    const float angle = 6.283185307f * uniform();
    const float radius = std::sqrt(-2.0f * std::log(u));
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

  // A whole number in [0, n), n > 0, every one equally likely: draws below 2^64 mod n are thrown away.
  uint64_t below(uint64_t n) {
    const uint64_t uneven = (0 - n) % n;
    uint64_t x = next_u64();
    while (x < uneven) x = next_u64();
    return x % n;
  }

 private:
  PhiloxKey key_;
  uint64_t stream_;
  uint64_t drawn_ = 0;
  PhiloxCounter words_{};
  float spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace switchback
