// Captions to ids: any bytes; always exactly 77 ids within the vocabulary. With the CLIP vocabulary where it
// is found (SWITCHBACK_VOCABULARY), else cleaning and the byte tokenizer alone.
#include <cstdlib>
#include <memory>

#include "data/text_cleaning.h"
#include "data/tokenizer.h"
#include "data/utf8_repair.h"
#include "tests/fuzz/fuzz.h"

using namespace switchback;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const char* vocabulary = std::getenv("SWITCHBACK_VOCABULARY");
  static const std::unique_ptr<Tokenizer> tokenizer = make_tokenizer(vocabulary ? vocabulary : "bytes", 77);
  const std::string text(reinterpret_cast<const char*>(data), size);
  std::string repaired = text;
  repair_utf8(repaired);
  std::string twice = repaired;
  if (repair_utf8(twice) || twice != repaired) std::abort();  // what was repaired is valid
  int32_t ids[77];
  tokenizer->encode(text, ids);
  bool end = false;
  for (const int32_t id : ids) {
    if (id < 0 || id >= tokenizer->vocabulary_size()) std::abort();
    end = end || id == tokenizer->end_id();
  }
  if (!end || ids[0] != tokenizer->start_id()) std::abort();
  return 0;
}
