#include "models/state_dict.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "models/zip_archive.h"
#include "runtime/bfloat16.h"
#include "runtime/check.h"
#include "runtime/float16.h"
#include "runtime/safetensors.h"
#include "runtime/suggest.h"

namespace switchback {
namespace {

void read_safetensors(const std::string& path, StateDict& to) {
  const auto file = std::make_shared<SafetensorsFile>(path);
  for (const std::string& name : file->names()) {
    const StoredTensor& t = file->at(name);
    to.add(name, {t.dtype, t.shape, t.bytes});
  }
  to.keep(file);
}

// {"weight_map": {"tensor": "model-00001-of-00002.safetensors", ...}}
void read_index(const std::string& path, StateDict& to) {
  const auto json = nlohmann::json::parse(read_file(path), nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    fail(path, ": not an index of safetensors files (it has no \"weight_map\")");
  std::set<std::string> files;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos)
      fail(path, ": the file of tensor ", tensor, " is ", file.dump(),
           ", expected a name in the same folder");
    files.insert(file.get<std::string>());
  }
  for (const std::string& file : files)
    read_safetensors((std::filesystem::path(path).parent_path() / file).string(), to);
}

template <class T>
T element(std::span<const std::byte> bytes, size_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

int64_t StateTensor::size() const {
  int64_t n = 1;
  for (const int64_t s : shape) n *= s;
  return n;
}

StateDict StateDict::read(const std::string& path) {
  StateDict state;
  state.path_ = path;
  if (path.ends_with(".index.json")) {
    read_index(path, state);
    return state;
  }
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (ZipArchive::looks_like_one(bytes))
    read_torch_file(path, state);
  else if (bytes.size() >= 2 && bytes[0] == std::byte{0x80} && std::to_integer<int>(bytes[1]) <= 5)
    fail(
        path,
        ": written by PyTorch before version 1.6, or a bare pickle; load it once in a newer PyTorch and save "
        "the state_dict again");
  else
    read_safetensors(path, state);
  return state;
}

void StateDict::add(std::string name, StateTensor tensor) {
  if (!tensors_.emplace(name, std::move(tensor)).second) fail(path_, " has two tensors ", name);
}

void StateDict::rename(const std::string& from, const std::string& to) {
  if (from == to) return;
  auto node = tensors_.extract(from);
  node.key() = to;
  if (!tensors_.insert(std::move(node)).inserted)
    fail(path_, " has the tensor ", to, " twice (once as ", from, ")");
}

const StateTensor& StateDict::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, tensor] : tensors_) names.push_back(other);
  const std::string near = nearest(name, names);
  fail(path_, " has no tensor ", name, near.empty() ? "" : "; the most similar name is ", near);
}

std::vector<float> StateDict::floats(const std::string& name) const {
  const StateTensor& t = at(name);
  std::vector<float> values(static_cast<size_t>(t.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (t.dtype == "F32")
      values[i] = element<float>(t.bytes, i);
    else if (t.dtype == "F16")
      values[i] = float_from_half(element<uint16_t>(t.bytes, i));
    else if (t.dtype == "BF16")
      values[i] = static_cast<float>(element<bfloat16>(t.bytes, i));
    else if (t.dtype == "F64")
      values[i] = static_cast<float>(element<double>(t.bytes, i));
    else
      fail(path_, ": tensor ", name, " is ", t.dtype, ", expected floating-point numbers");
  }
  return values;
}

}  // namespace switchback
