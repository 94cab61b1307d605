// philox.h: random numbers without a state. Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", 2011) turns a 128-bit counter and a 64-bit key into 128 random bits. A number is addressed by what it is
// for (seed, purpose, step, sample, ...), so results depend on no order, no thread and no device, and there is
// nothing to save in a checkpoint.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SWITCHBACK_HOST_DEVICE __host__ __device__
#else
#define SWITCHBACK_HOST_DEVICE
#endif

namespace switchback {

using PhiloxWords = std::array<uint32_t, 4>;

// Ten rounds: two 32 x 32 -> 64 products mix the counter's words; the key grows by two odd constants a round.
SWITCHBACK_HOST_DEVICE constexpr PhiloxWords philox(PhiloxWords counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// What random numbers are used for: part of the counter or key, so that no two uses share a stream.
enum class RandomPurpose : uint32_t { initialization = 1, augmentation, patch_dropout, shuffle, replacement, templates };

// A stream of numbers on the host: key = seed, counter = (number of the draw, stream).
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  uint32_t next_u32() {
    if (used_ == 4) {
      block_ = philox({static_cast<uint32_t>(draw_), static_cast<uint32_t>(draw_ >> 32),
                       static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                      {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
      ++draw_;
      used_ = 0;
    }
    return block_[used_++];
  }
  uint64_t next_u64() {
    const uint64_t high = next_u32();
    return high << 32 | next_u32();
  }
  float uniform() { return static_cast<float>(next_u32() >> 8) * 0x1p-24f; }          // [0, 1), 24 bits
  double uniform_double() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }  // [0, 1), 53 bits

  // N(0, 1) by Box and Muller; both numbers of a pair are used.
  double normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(1 - uniform_double()));  // 1 - u is in (0, 1]
    const double angle = 6.283185307179586 * uniform_double();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

  // 0, ..., n - 1, each exactly as likely: values that would favour the small ones are drawn again.
  uint64_t below(uint64_t n) {
    const uint64_t reject = (0 - n) % n;  // 2^64 mod n
    uint64_t x;
    do x = next_u64();
    while (x < reject);
    return x % n;
  }

 private:
  uint64_t seed_, stream_, draw_ = 0;
  PhiloxWords block_{};
  int used_ = 4;
  bool has_spare_ = false;
  double spare_ = 0;
};

}  // namespace switchback
