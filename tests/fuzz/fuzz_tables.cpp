// CSV files, lists of images, model configs in JSON. The first byte chooses.
#include "data/csv.h"
#include "data/image_folder.h"
#include "data/input_file.h"
#include "kernels/recipe.h"
#include "models/interchange.h"
#include "tests/fuzz/fuzz.h"

using namespace switchback;

// The list of recipes hangs on all kernels, which no reader needs: here there is one recipe.
const LinearRecipe& switchback::linear_recipe(std::string_view name) {
  static const LinearRecipe standard;
  if (name != "standard") fail("--linear ", name, " is unknown");
  return standard;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const MemoryFile path(data + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      refusing([&] {
        const InputFile file(path.path());
        CsvReader reader(file, data[0] & 16 ? ',' : '\t');
        std::vector<std::string> fields;
        uint64_t last = 0;
        while (reader.next(fields)) {
          if (reader.row_offset() < last || reader.row_size() > size) std::abort();
          last = reader.row_offset() + reader.row_size();
        }
      });
      break;
    case 1:
      refusing([&] {
        const auto source = open_image_list(path.path(), {"cat", "dog"});
        RawSample sample;
        source->block(0)->key(0);
      });
      break;
    case 2:
      refusing([&] { parse_model_config(text, "fuzz"); });
      break;
    default:
      refusing([&] { parse_hugging_face_config(text, "fuzz"); });
  }
  return 0;
}
