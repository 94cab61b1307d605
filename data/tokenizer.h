// tokenizer.h: captions become token ids.
//
//   ids = [start, text ..., end, 0, 0, ...]      (context_length), 77 for every CLIP model
//
// A caption that does not fit is cut, and its last id is `end`. `end` is the largest id of a vocabulary
// because CLIP's text tower pools at the position of the largest id.
//
// Two vocabularies:
//   CLIP   49,408 ids: OpenAI's byte-pair merges after open_clip's cleaning (repair, unescape, lower-case).
//          The ids are those of open_clip's SimpleTokenizer.
//   bytes  259 ids, needs no file: pad 0, byte b is 1 + b, start 257, end 258. For tests and experiments.
//
// Text is UTF-8; what is not valid UTF-8 counts as U+FFFD, by the rules of Python's decode(errors='replace').
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace switchback {

class Tokenizer {
 public:
  explicit Tokenizer(int32_t context_length);  // at least 2: room for start and end
  virtual ~Tokenizer();

  int32_t context_length() const { return context_length_; }
  virtual int32_t vocabulary_size() const = 0;
  virtual int32_t start_id() const = 0;
  virtual int32_t end_id() const = 0;

  // Writes exactly context_length ids; `ids` must have that size. Safe to call from many threads at once.
  virtual void encode(std::string_view text, std::span<int32_t> ids) const = 0;

 private:
  int32_t context_length_;
};

// `path`: OpenAI's bpe_simple_vocab_16e6.txt, or the merges.txt that Hugging Face makes of it; plain or gzip.
// Which one it is, is seen from the content. Throws Error, naming the file, for anything else.
std::unique_ptr<Tokenizer> make_clip_tokenizer(const std::string& path, int32_t context_length);

std::unique_ptr<Tokenizer> make_byte_tokenizer(int32_t context_length);

// `vocabulary` is what a user types: "bytes", or a path as above, or "" for the usual places:
// $SWITCHBACK_VOCABULARY, then ~/.cache/switchback/bpe_simple_vocab_16e6.txt.gz
// (scripts/fetch_vocabulary.sh).
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& vocabulary, int32_t context_length);

}  // namespace switchback
