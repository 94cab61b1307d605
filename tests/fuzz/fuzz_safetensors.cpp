// safetensors: the header is checked whole; every tensor that may be loaded is.
#include "runtime/dtype.h"
#include "runtime/safetensors.h"
#include "tests/fuzz/fuzz.h"

using namespace switchback;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile path(data, size);
  refusing([&] {
    const SafetensorsFile file(path.path());
    for (const std::string& name : file.names()) {
      const StoredTensor& tensor = file.at(name);
      if (tensor.bytes.size() > size) std::abort();
      if (tensor.shape.size() > 4) continue;
      int64_t sizes[4] = {1, 1, 1, 1}, count = 1;
      for (size_t i = 0; i < tensor.shape.size(); ++i) count *= sizes[i] = tensor.shape[i];
      const Shape shape = tensor.shape.empty()       ? Shape{}
                          : tensor.shape.size() == 1 ? Shape{sizes[0]}
                          : tensor.shape.size() == 2 ? Shape{sizes[0], sizes[1]}
                          : tensor.shape.size() == 3 ? Shape{sizes[0], sizes[1], sizes[2]}
                                                     : Shape{sizes[0], sizes[1], sizes[2], sizes[3]};
      std::vector<float> values(static_cast<size_t>(count) + 1);
      refusing([&] { file.load_into(name, View{values.data(), shape, DType::f32, cpu_device}); });
    }
  });
  return 0;
}
