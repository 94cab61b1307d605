// Tar archives as shards: every header form, every sample read.
#include "data/input_file.h"
#include "data/shards.h"
#include "tests/fuzz/fuzz.h"

using namespace switchback;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(data, size);
  refusing([&] {
    Reasons reasons([](const std::string&) {});
    SampleNeeds needs;
    needs.caption = size % 2 == 0;
    needs.read_json = size % 3 == 0;
    if (size % 5 == 0) needs.json_captions = {"caption", "text"};
    const ShardIndex index(file.path(), needs, std::make_shared<OpenFiles>(), reasons, true, size % 7 == 0);
    RawSample sample;
    for (int64_t i = 0; i < index.size(); ++i) {
      index.read(i, sample);
      if (index.key(i).size() > size) std::abort();
    }
  });
  return 0;
}
