// tokenizer_golden.h: reads the layout that scripts/make_tokenizer_golden.py writes: strings and their ids.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "data/bpe.h"
#include "runtime/check.h"

namespace switchback {

struct TokenizedText {
  std::string text;          // any bytes
  std::vector<int32_t> ids;  // (context_length), padded with 0
};

inline std::vector<TokenizedText> read_tokenized_texts(const std::string& path, size_t context_length) {
  const std::string content = read_possibly_gzip(path);
  size_t position = 0;
  const auto take = [&](size_t size) {
    if (size > content.size() - position) fail(path, " ends early");
    position += size;
    return content.data() + position - size;
  };
  const auto number = [&]<class T>(T value) {
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  };
  std::vector<TokenizedText> texts(number(uint32_t{}));
  for (TokenizedText& one : texts) {
    const uint32_t size = number(uint32_t{});
    one.text.assign(take(size), size);
    const uint16_t count = number(uint16_t{});
    for (uint16_t i = 0; i < count; ++i) one.ids.push_back(number(uint16_t{}));
    one.ids.resize(context_length, 0);
  }
  return texts;
}

}  // namespace switchback
