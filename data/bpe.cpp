// bpe.cpp: reading the merges, and applying them.
#include "data/bpe.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <queue>
#include <unordered_map>

#include "data/unicode.h"
#include "runtime/check.h"

namespace switchback {
namespace {

constexpr int32_t kClipMerges = 48894;  // 49,152 - 256 - 2: what OpenAI kept of a longer list
constexpr int32_t kByteSymbols = 2 * 256;
constexpr std::string_view kEndOfWord = "</w>";
constexpr size_t kShortWord = 48;  // bytes; above, the queue is faster

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t pair_hash(uint64_t pair) { return static_cast<size_t>((pair * 0x9e3779b97f4a7c15ull) >> 40); }

// GPT-2 writes every byte as one printable character: the printable bytes of Latin-1 as themselves, the
// others as U+0100 and up. First the printable ones are numbered, then the others: that order gives the ids.
bool is_printable_byte(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

template <class Use>
void for_each_byte_symbol(Use use) {  // use(id, byte, character)
  int32_t id = 0;
  for (int byte = 0; byte < 256; ++byte)
    if (is_printable_byte(byte)) use(id++, byte, static_cast<char32_t>(byte));
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte)
    if (!is_printable_byte(byte)) use(id++, byte, next++);
}

[[noreturn]] void wrong_vocabulary(const std::string& path, const std::string& what) {
  fail("tokenizer vocabulary ", path, ": ", what,
       "; expected OpenAI's bpe_simple_vocab_16e6.txt.gz (get it with ",
       "scripts/fetch_vocabulary.sh) or the merges.txt of a Hugging Face CLIP model");
}

std::string_view take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return line;
}

}  // namespace

BytePairs BytePairs::parse(std::string_view merges, const std::string& path) {
  BytePairs pairs;
  // Symbols by their text in the file, needed only while reading.
  std::unordered_map<std::string, int32_t> ids;
  ids.reserve(kByteSymbols + kClipMerges);
  for_each_byte_symbol([&](int32_t id, int byte, char32_t character) {
    std::string text;
    append_utf8(text, character);
    ids[text] = id;
    ids[text.append(kEndOfWord)] = id + 256;
    pairs.id_of_byte_[static_cast<size_t>(byte)] = id;
  });

  // Both layouts open with a line of their own; OpenAI's has more merges after those that CLIP uses.
  const std::string_view title = take_line(merges);
  if (title.find("bpe_simple_vocab_16e6.txt#version") == std::string_view::npos &&
      !title.starts_with("#version"))
    wrong_vocabulary(path, "the first line is not a '#version' line");
  size_t capacity = 1;
  while (capacity < 2 * kClipMerges) capacity *= 2;
  pairs.slots_.resize(capacity);
  for (int32_t rank = 0; rank < kClipMerges; ++rank) {
    const auto line_number = rank + 2;
    if (merges.empty())
      wrong_vocabulary(path, concat("it ends after ", rank, " of ", kClipMerges, " merges"));
    const std::string_view line = take_line(merges);
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
      wrong_vocabulary(path, concat("line ", line_number, " is not two symbols"));
    const std::string left(line.substr(0, space)), right(line.substr(space + 1));
    const auto left_id = ids.find(left), right_id = ids.find(right);
    // A merge uses only symbols that exist before it. Then merges never go back in rank, which encode relies
    // on.
    if (left_id == ids.end() || right_id == ids.end())
      wrong_vocabulary(path, concat("line ", line_number, " uses a symbol that no earlier line makes"));
    const int32_t id = kByteSymbols + rank;
    if (pairs.merged(left_id->second, right_id->second) != kNone || !ids.emplace(left + right, id).second)
      wrong_vocabulary(path, concat("line ", line_number, " makes a symbol that exists already"));
    pairs.insert(left_id->second, right_id->second, id);
  }
  pairs.symbol_count_ = kByteSymbols + kClipMerges;
  return pairs;
}

void BytePairs::insert(int32_t left, int32_t right, int32_t id) {
  const uint64_t pair = pair_key(left, right);
  size_t place = pair_hash(pair) & (slots_.size() - 1);
  while (slots_[place].id != kNone) place = (place + 1) & (slots_.size() - 1);
  slots_[place] = {pair, id};
}

int32_t BytePairs::merged(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  for (size_t place = pair_hash(pair) & (slots_.size() - 1);; place = (place + 1) & (slots_.size() - 1)) {
    if (slots_[place].pair == pair) return slots_[place].id;
    if (slots_[place].id == kNone) return kNone;
  }
}

void BytePairs::encode(std::string_view word, std::vector<int32_t>& ids) const {
  CHECK(!word.empty(), "a word to encode must have at least one byte");
  thread_local std::vector<int32_t> symbols;
  symbols.clear();
  for (char byte : word) symbols.push_back(id_of_byte_[static_cast<uint8_t>(byte)]);
  symbols.back() += 256;
  if (symbols.size() <= kShortWord) {
    merge_by_scan(symbols);
  } else {
    merge_by_queue(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void BytePairs::merge_by_scan(std::vector<int32_t>& symbols) const {
  constexpr int32_t kNever = std::numeric_limits<int32_t>::max();
  thread_local std::vector<int32_t> made;  // what symbols i and i + 1 would make
  const auto look_up = [&](size_t i) {
    const int32_t id = merged(symbols[i], symbols[i + 1]);
    return id == kNone ? kNever : id;
  };
  made.resize(symbols.size());
  for (size_t i = 0; i + 1 < symbols.size(); ++i) made[i] = look_up(i);
  while (symbols.size() > 1) {
    const auto last = made.begin() + static_cast<std::ptrdiff_t>(symbols.size() - 1);
    const auto best = std::min_element(made.begin(), last);
    if (*best == kNever) return;
    const auto i = static_cast<size_t>(best - made.begin());
    symbols[i] = *best;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i + 1));
    made.erase(made.begin() + static_cast<std::ptrdiff_t>(i));
    if (i > 0) made[i - 1] = look_up(i - 1);
    if (i + 1 < symbols.size()) made[i] = look_up(i);
  }
}

void BytePairs::merge_by_queue(std::vector<int32_t>& symbols) const {
  // Symbols in a doubly linked list over their first positions; the queue holds every pair that was a
  // neighbourhood at some time, smallest id and then leftmost first. A pair whose symbols have changed since
  // is skipped.
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> next(symbols.size()), previous(symbols.size());
  struct Candidate {
    int32_t id, position;
    bool operator>(const Candidate& other) const {
      return id != other.id ? id > other.id : position > other.position;
    }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto symbol = [&](int32_t i) -> int32_t& { return symbols[static_cast<size_t>(i)]; };
  const auto after = [&](int32_t i) -> int32_t& { return next[static_cast<size_t>(i)]; };
  const auto before = [&](int32_t i) -> int32_t& { return previous[static_cast<size_t>(i)]; };
  const auto offer = [&](int32_t left) {
    const int32_t id = merged(symbol(left), symbol(after(left)));
    if (id != kNone) queue.push({id, left});
  };
  for (int32_t i = 0; i < count; ++i) {
    after(i) = i + 1;
    before(i) = i - 1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) offer(i);
  while (!queue.empty()) {
    const auto [id, left] = queue.top();
    queue.pop();
    if (symbol(left) == kNone) continue;  // swallowed by its left neighbour
    const int32_t right = after(left);
    if (right == count || merged(symbol(left), symbol(right)) != id) continue;
    symbol(left) = id;
    symbol(right) = kNone;
    after(left) = after(right);
    if (after(left) < count) {
      before(after(left)) = left;
      offer(left);
    }
    if (before(left) >= 0) offer(before(left));
  }
  std::erase(symbols, kNone);
}

std::string read_possibly_gzip(const std::string& path) {
  // zlib passes a file that is not gzip through unchanged.
  const std::unique_ptr<gzFile_s, decltype(&gzclose)> file(gzopen(path.c_str(), "rb"), &gzclose);
  if (!file) fail("cannot open tokenizer vocabulary ", path, ": ", std::strerror(errno ? errno : ENOMEM));
  constexpr size_t kLargest = size_t{64} << 20;  // the real files unpack to 3 MB and 0.5 MB
  std::string content;
  std::array<char, 1 << 16> buffer;
  for (;;) {
    const int got = gzread(file.get(), buffer.data(), buffer.size());
    if (got < 0) {
      int code = 0;
      wrong_vocabulary(path, concat("it cannot be read (", gzerror(file.get(), &code), ")"));
    }
    if (got == 0) return content;
    content.append(buffer.data(), static_cast<size_t>(got));
    if (content.size() > kLargest) wrong_vocabulary(path, "it is larger than 64 MiB");
  }
}

}  // namespace switchback
