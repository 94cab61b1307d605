// torch.save's files. The first byte chooses: the whole as a zip archive, or the rest as a pickle, bare or
// wrapped into an archive that is right (a fuzzer does not find that on its own).
#include <vector>

#include "models/pickle.h"
#include "models/state_dict.h"
#include "tests/fuzz/fuzz.h"

using namespace switchback;

namespace {

void put(std::string& to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to.push_back(i < 8 ? static_cast<char>(value >> 8 * i) : 0);
}

std::string archive_of(const std::string& pickle) {
  const std::vector<std::pair<std::string, std::string>> members = {
      {"a/data.pkl", pickle}, {"a/byteorder", "little"}, {"a/data/0", std::string(64, 'x')}};
  std::string zip, directory;
  for (const auto& [name, bytes] : members) {
    const uint64_t header = zip.size();
    put(zip, 0x04034b50, 4), put(zip, 0, 14), put(zip, bytes.size(), 4), put(zip, bytes.size(), 4);
    put(zip, name.size(), 2), put(zip, 0, 2);
    zip += name + bytes;
    put(directory, 0x02014b50, 4), put(directory, 0, 16), put(directory, bytes.size(), 4);
    put(directory, bytes.size(), 4), put(directory, name.size(), 2), put(directory, 0, 12),
        put(directory, header, 4);
    directory += name;
  }
  const uint64_t start = zip.size();
  zip += directory;
  put(zip, 0x06054b50, 4), put(zip, 0, 4), put(zip, members.size(), 2), put(zip, members.size(), 2);
  put(zip, directory.size(), 4), put(zip, start, 4), put(zip, 0, 2);
  return zip;
}

void read_all(const std::string& path) {
  const StateDict state = StateDict::read(path);
  for (const auto& [name, tensor] : state.tensors()) {
    refusing([&, name = name] { state.floats(name); });
    if (tensor.size() < 0) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 4 == 0) {
    const MemoryFile file(data + 1, size - 1);
    refusing([&] { read_all(file.path()); });
  } else if (data[0] % 4 == 1) {
    refusing([&] { Pickle(std::as_bytes(std::span(rest)), "fuzz"); });
  } else {
    const std::string zip = archive_of(rest);
    const MemoryFile file(reinterpret_cast<const uint8_t*>(zip.data()), zip.size());
    refusing([&] { read_all(file.path()); });
  }
  return 0;
}
