// bpe.h: byte-pair encoding, the merges of CLIP's vocabulary.
//
// A word starts as its UTF-8 bytes, the last one marked as the end of a word. Again and again the pair of
// neighbours that was learned earliest becomes one symbol, the leftmost first, until no pair is known. Ids:
//   0 ... 255        bytes, in the order of GPT-2's printable characters ('!' is 0)
//   256 ... 511      the same bytes at the end of a word
//   512 + rank       the symbol made by merge number `rank`: so the earliest merge is the smallest id
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace switchback {

class BytePairs {
 public:
  // `merges` is the text of a merges file (plain, not gzip): OpenAI's full list or Hugging Face's. `path` is
  // for errors.
  static BytePairs parse(std::string_view merges, const std::string& path);

  int32_t symbol_count() const { return symbol_count_; }  // 512 + merges

  // Appends the ids of one word, which must not be empty.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  // The definition of encode: looks through the whole word for every single merge. encode uses it for short
  // words and a priority queue for long ones.
  void merge_by_scan(std::vector<int32_t>& symbols) const;
  void merge_by_queue(std::vector<int32_t>& symbols) const;

 private:
  static constexpr int32_t kNone = -1;

  int32_t merged(int32_t left, int32_t right) const;  // the id of the pair's symbol, or kNone
  void insert(int32_t left, int32_t right, int32_t id);

  struct Slot {
    uint64_t pair = ~0ull;
    int32_t id = kNone;
  };
  std::vector<Slot> slots_;  // open addressing; the size is a power of two and at least twice the merges
  int32_t symbol_count_ = 0;
  std::array<int32_t, 256> id_of_byte_{};
};

// The whole content of a file, unpacked if it is gzip. Throws Error naming the file.
std::string read_possibly_gzip(const std::string& path);

}  // namespace switchback
