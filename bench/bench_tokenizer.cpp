// bench_tokenizer: captions per second on one core, and whether every caption has the ids it should have.
//
//   bench_tokenizer VOCABULARY CASES     CASES is a file in the layout of tests/golden/tokenizer.bin.gz
//
// bench/tokenizer_baseline.py writes such a file from shards, times open_clip's own tokenizer on the same
// captions and prints the ratio.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "data/tokenizer.h"
#include "runtime/check.h"
#include "tests/data/tokenizer_golden.h"

using namespace switchback;

int main(int argument_count, char** arguments) {
  if (argument_count != 3) {
    std::fprintf(stderr, "usage: bench_tokenizer VOCABULARY CASES\n");
    return 2;
  }
  try {
    constexpr int32_t kContext = 77;
    constexpr int kPasses = 7;
    constexpr double kSecondsPerPass = 0.3;
    const auto tokenizer = make_clip_tokenizer(arguments[1], kContext);
    const std::vector<TokenizedText> cases = read_tokenized_texts(arguments[2], kContext);
    std::vector<int32_t> ids(kContext);
    size_t differing = 0;
    for (const TokenizedText& one : cases) {
      tokenizer->encode(one.text, ids);
      differing += ids != one.ids;
    }
    double best = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
      size_t captions = 0;
      const auto start = std::chrono::steady_clock::now();
      double seconds = 0;
      do {
        for (const TokenizedText& one : cases) tokenizer->encode(one.text, ids);
        captions += cases.size();
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      } while (seconds < kSecondsPerPass);
      best = std::max(best, static_cast<double>(captions) / seconds);
    }
    std::printf("switchback: %zu captions, %zu differ, %.0f captions/s on one core (best of %d)\n",
                cases.size(), differing, best, kPasses);
    return differing == 0 ? 0 : 1;
  } catch (const Error& error) {
    std::fprintf(stderr, "bench_tokenizer: %s\n", error.what());
    return 1;
  }
}
