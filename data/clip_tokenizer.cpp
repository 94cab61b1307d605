// clip_tokenizer.cpp: CLIP's tokenizer: clean, cut into words, byte-pair encode, with a cache of words.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include "data/bpe.h"
#include "data/text_cleaning.h"
#include "data/tokenizer.h"
#include "data/word_scanner.h"
#include "runtime/check.h"

namespace switchback {
namespace {

constexpr std::string_view kStartMark = "<start_of_text>";
constexpr std::string_view kEndMark = "<end_of_text>";

uint64_t load_up_to_8(const char* bytes, size_t count) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, count);
  return value;
}

// Words and their ids. Captions repeat words: nearly all are found here. Each word has one place, and a
// newcomer takes it over, so the size is fixed: 512 KiB, one per thread, no lock.
class WordCache {
 public:
  static constexpr size_t kLongestWord = 35;  // bytes; longer words are rare and not kept
  static constexpr size_t kMostIds = 12;

  struct Entry {
    std::array<char, kLongestWord> word;
    uint8_t length = 0;
    uint8_t id_count = 0;
    std::array<uint16_t, kMostIds> ids;  // 49,408 ids fit
  };

  // Another vocabulary starts with an empty cache.
  void belong_to(uint64_t owner) {
    if (owner_ == owner) return;
    entries_.assign(kEntries, Entry{});
    owner_ = owner;
  }

  // The word's place: it holds the word if `holds` says so.
  Entry& place(std::string_view word) { return entries_[hash(word) % kEntries]; }

  static bool holds(const Entry& entry, std::string_view word) {
    return entry.length == word.size() && std::memcmp(entry.word.data(), word.data(), word.size()) == 0;
  }

 private:
  static constexpr size_t kEntries = 8192;

  static size_t hash(std::string_view word) {
    constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15ull;
    uint64_t value = word.size();
    for (size_t i = 0; i < word.size(); i += 8) {
      value = (value ^ load_up_to_8(word.data() + i, std::min<size_t>(8, word.size() - i))) * kMultiplier;
      value ^= value >> 29;
    }
    return static_cast<size_t>(value >> 7);
  }

  uint64_t owner_ = 0;
  std::vector<Entry> entries_;
};
static_assert(sizeof(WordCache::Entry) <= 64, "one cache line");

class ClipTokenizer final : public Tokenizer {
 public:
  ClipTokenizer(const std::string& path, int32_t context_length)
      : Tokenizer(context_length),
        pairs_(BytePairs::parse(read_possibly_gzip(path), path)),
        number_(++made_) {}

  int32_t vocabulary_size() const override { return pairs_.symbol_count() + 2; }
  int32_t start_id() const override { return pairs_.symbol_count(); }
  int32_t end_id() const override { return pairs_.symbol_count() + 1; }

  void encode(std::string_view text, std::span<int32_t> ids) const override {
    CHECK(ids.size() == static_cast<size_t>(context_length()), ids.size(), " ids for a context of ",
          context_length());
    ids[0] = start_id();
    size_t count = 1;
    if (is_plain_ascii(text)) {
      thread_local std::string lower;
      lower.resize(text.size());
      std::transform(text.begin(), text.end(), lower.begin(),
                     [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c | 0x20 : c); });
      encode_words(lower, ids, count);
    } else {
      encode_words(clean_caption(text), ids, count);
    }
    // A full row means that the caption was cut, or fitted but for its end: in both cases the end takes the
    // last place.
    ids[std::min(count, ids.size() - 1)] = end_id();
    if (count + 1 < ids.size()) std::fill(ids.begin() + static_cast<std::ptrdiff_t>(count + 1), ids.end(), 0);
  }

 private:
  // Fills ids from `count` on, until the words or the places run out.
  void encode_words(std::string_view cleaned, std::span<int32_t> ids, size_t& count) const {
    thread_local WordCache cache;
    thread_local std::vector<int32_t> fresh;
    cache.belong_to(number_);
    const auto append = [&](const auto& from, size_t number) {
      const size_t fitting = std::min(number, ids.size() - count);
      std::copy_n(from.begin(), fitting, ids.begin() + static_cast<std::ptrdiff_t>(count));
      count += fitting;
    };
    WordScanner scanner(cleaned);
    for (std::string_view word; count < ids.size() && !(word = scanner.next()).empty();) {
      const bool short_word = word.size() <= WordCache::kLongestWord;
      WordCache::Entry* entry = short_word ? &cache.place(word) : nullptr;
      if (entry && WordCache::holds(*entry, word)) {
        append(entry->ids, entry->id_count);
        continue;
      }
      fresh.clear();
      encode_word(word, fresh);
      if (entry && fresh.size() <= WordCache::kMostIds) {
        std::copy(word.begin(), word.end(), entry->word.begin());
        std::copy(fresh.begin(), fresh.end(), entry->ids.begin());
        entry->length = static_cast<uint8_t>(word.size());
        entry->id_count = static_cast<uint8_t>(fresh.size());
      }
      append(fresh, fresh.size());
    }
  }

  void encode_word(std::string_view word, std::vector<int32_t>& ids) const {
    // A mark written in a caption becomes the mark's id, as in the reference.
    if (word == kStartMark) {
      ids.push_back(start_id());
    } else if (word == kEndMark) {
      ids.push_back(end_id());
    } else {
      pairs_.encode(word, ids);
    }
  }

  static inline std::atomic<uint64_t> made_ = 0;

  BytePairs pairs_;
  uint64_t number_;  // tells this tokenizer's cached words from another's
};

}  // namespace

std::unique_ptr<Tokenizer> make_clip_tokenizer(const std::string& path, int32_t context_length) {
  return std::make_unique<ClipTokenizer>(path, context_length);
}

}  // namespace switchback
