// tokenizer.cpp: what tokenizers share, the byte tokenizer, and finding the vocabulary.
#include "data/tokenizer.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr const char* kUsualName = "bpe_simple_vocab_16e6.txt.gz";

class ByteTokenizer final : public Tokenizer {
 public:
  using Tokenizer::Tokenizer;

  int32_t vocabulary_size() const override { return 259; }
  int32_t start_id() const override { return 257; }
  int32_t end_id() const override { return 258; }

  void encode(std::string_view text, std::span<int32_t> ids) const override {
    CHECK(ids.size() == static_cast<size_t>(context_length()), ids.size(), " ids for a context of ",
          context_length());
    const size_t kept = std::min(text.size(), ids.size() - 2);
    auto place = ids.begin();
    *place++ = start_id();
    place = std::transform(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(kept), place,
                           [](char byte) { return 1 + static_cast<int32_t>(static_cast<uint8_t>(byte)); });
    *place++ = end_id();
    std::fill(place, ids.end(), 0);
  }
};

// An environment variable, or "" where it is unset.
std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

Tokenizer::Tokenizer(int32_t context_length) : context_length_(context_length) {
  if (context_length < 2)
    fail("a context length of ", context_length, " has no room for start and end; use at least 2");
}

Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer> make_byte_tokenizer(int32_t context_length) {
  return std::make_unique<ByteTokenizer>(context_length);
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& vocabulary, int32_t context_length) {
  if (vocabulary == "bytes") return make_byte_tokenizer(context_length);
  if (!vocabulary.empty()) return make_clip_tokenizer(vocabulary, context_length);
  if (const std::string named = environment("SWITCHBACK_VOCABULARY"); !named.empty())
    return named == "bytes" ? make_byte_tokenizer(context_length)
                            : make_clip_tokenizer(named, context_length);
  const std::string home = environment("HOME");
  const std::string usual = (home.empty() ? "." : home) + "/.cache/switchback/" + kUsualName;
  std::error_code ignored;
  if (std::filesystem::exists(usual, ignored)) return make_clip_tokenizer(usual, context_length);
  fail("no tokenizer vocabulary: $SWITCHBACK_VOCABULARY is not set and ", usual, " does not exist; run ",
       "scripts/fetch_vocabulary.sh once, or use --tokenizer bytes, which needs no file");
}

}  // namespace switchback
