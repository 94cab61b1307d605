#include "runtime/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "runtime/float16.h"
#include "runtime/suggest.h"

namespace switchback {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t header_limit = 100'000'000;  // the reference implementation's

size_t bytes_of(std::string_view dtype) {  // 0: not a type we know
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL") return 1;
  return 0;
}

const char* stored_name(DType dtype) {
  switch (dtype) {
    case DType::f64: return "F64";
    case DType::f32: return "F32";
    case DType::bf16: return "BF16";
    case DType::i64: return "I64";
    case DType::i32: return "I32";
    case DType::i8: return "I8";
    case DType::u8: return "U8";
  }
  return "?";
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

bool same(const std::vector<int64_t>& stored, const Shape& shape) {
  if (static_cast<int>(stored.size()) != shape.rank()) return false;
  for (int i = 0; i < shape.rank(); ++i) {
    if (stored[static_cast<size_t>(i)] != shape[i]) return false;
  }
  return true;
}

Json parse_header(const MappedFile& file, std::string_view header) {
  // Another entry of the same name would silently win: the parser is asked to stop at it.
  std::vector<std::string> seen;
  std::string twice;
  const auto notice = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth == 1 && event == Json::parse_event_t::key) seen.push_back(parsed.get<std::string>());
    return true;
  };
  Json json;
  try {
    json = Json::parse(header, notice);
  } catch (const nlohmann::json::exception& e) {
    fail(file.path(), ": the safetensors header is not valid JSON (", e.what(), ")");
  }
  std::sort(seen.begin(), seen.end());
  const auto repeated = std::adjacent_find(seen.begin(), seen.end());
  if (repeated != seen.end()) fail(file.path(), ": tensor ", *repeated, " is in the header twice");
  if (!json.is_object()) fail(file.path(), ": the safetensors header is not a JSON object");
  return json;
}

// One entry of the header, checked against the size of the data.
StoredTensor parse_tensor(const std::string& path, const std::string& name, const Json& entry,
                          std::span<const std::byte> data) {
  const auto bad = [&](const auto&... parts) { fail(path, ": tensor ", name, ": ", parts...); };
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
      !entry.contains("data_offsets")) {
    bad("the header must give dtype, shape and data_offsets");
  }
  const Json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
  StoredTensor tensor;
  if (!dtype.is_string() || bytes_of(dtype.get_ref<const std::string&>()) == 0) {
    bad("dtype ", dtype.dump(), " is none of F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL");
  }
  tensor.dtype = dtype;
  if (!shape.is_array()) bad("shape ", shape.dump(), " is not a list");
  uint64_t expected = bytes_of(tensor.dtype);
  bool overflow = false;
  for (const Json& size : shape) {
    if (!size.is_number_unsigned()) bad("shape ", shape.dump(), " must consist of whole numbers from 0");
    tensor.shape.push_back(size.get<int64_t>());
    overflow = overflow || tensor.shape.back() < 0 ||
               __builtin_mul_overflow(expected, size.get<uint64_t>(), &expected);
  }
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    bad("data_offsets ", offsets.dump(), " must be two whole numbers");
  }
  const uint64_t begin = offsets[0], end = offsets[1];
  if (begin > end || end > data.size()) {
    bad("data_offsets ", offsets.dump(), " are outside of the file, which has ", data.size(),
        " bytes of data (truncated?)");
  }
  if (overflow || end - begin != expected) {
    bad(tensor.dtype, " of shape ", text_of(tensor.shape), " takes ",
        overflow ? "more than 2^64" : std::to_string(expected), " bytes, but data_offsets ", offsets.dump(),
        " hold ", end - begin);
  }
  tensor.bytes = data.subspan(begin, end - begin);
  return tensor;
}

void check_no_overlap(const std::string& path, const std::vector<std::string>& names,
                      const std::map<std::string, StoredTensor>& tensors) {
  const std::string* last = nullptr;  // names are in the order of the data
  for (const std::string& name : names) {
    const auto bytes = tensors.at(name).bytes;
    if (bytes.empty()) continue;
    if (last) {
      const auto before = tensors.at(*last).bytes;
      if (bytes.data() < before.data() + before.size()) {
        fail(path, ": tensors ", *last, " and ", name, " share bytes of the file");
      }
    }
    last = &name;
  }
}

// ---- conversion of elements, all of which may lie unaligned in the file ----

template <class T>
T element(const std::byte* from, int64_t i) {
  T value;
  std::memcpy(&value, from + static_cast<size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

template <class Get>
void convert(View to, Get get) {
  const int64_t n = to.size();
  if (to.dtype == DType::f64) {
    for (int64_t i = 0; i < n; ++i) to.as<double>()[i] = static_cast<double>(get(i));
  } else if (to.dtype == DType::f32) {
    float* out = to.as<float>();
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(get(i));
  } else {
    bfloat16* out = to.as<bfloat16>();
    for (int64_t i = 0; i < n; ++i) out[i] = bfloat16(static_cast<float>(get(i)));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(path) {
  const auto bytes = file_.bytes();
  if (bytes.size() < 8) fail(path, ": ", bytes.size(), " bytes are too few for a safetensors file");
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < 8; ++i) header_bytes |= std::to_integer<uint64_t>(bytes[i]) << 8 * i;
  if (header_bytes > bytes.size() - 8 || header_bytes > header_limit) {
    fail(path, ": the header claims ", header_bytes, " bytes, but the file has ", bytes.size(),
         " and a header at most ", header_limit, ": not a safetensors file, or a damaged one");
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  const Json json = parse_header(file_, header);
  const auto data = bytes.subspan(8 + header_bytes);
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) fail(path, ": __metadata__ is not a JSON object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) fail(path, ": __metadata__ ", key, " is not a text");
        metadata_[key] = value;
      }
      continue;
    }
    tensors_[name] = parse_tensor(path, name, entry, data);
    names_.push_back(name);
  }
  std::stable_sort(names_.begin(), names_.end(), [&](const std::string& a, const std::string& b) {
    return tensors_.at(a).bytes.data() < tensors_.at(b).bytes.data();
  });
  check_no_overlap(path, names_, tensors_);
}

const StoredTensor& SafetensorsFile::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  const std::string near = nearest(name, names_);
  fail(path(), " has no tensor ", name, near.empty() ? "" : "; the most similar name is ", near);
}

void SafetensorsFile::load_into(const std::string& name, View to) const {
  const StoredTensor& from = at(name);
  CHECK(to.device == cpu_device, name, ": load_into needs a view of CPU memory");
  if (!same(from.shape, to.shape)) {
    fail(path(), ": tensor ", name, " has shape ", text_of(from.shape), ", expected ", to.shape);
  }
  if (from.dtype == stored_name(to.dtype)) {
    if (!from.bytes.empty()) std::memcpy(to.data, from.bytes.data(), from.bytes.size());
    return;
  }
  const std::byte* source = from.bytes.data();
  if (!is_float(to.dtype)) {
    fail(path(), ": tensor ", name, " is ", from.dtype, ", expected ", stored_name(to.dtype));
  } else if (from.dtype == "F64") {
    convert(to, [=](int64_t i) { return element<double>(source, i); });
  } else if (from.dtype == "F32") {
    convert(to, [=](int64_t i) { return element<float>(source, i); });
  } else if (from.dtype == "F16") {
    convert(to, [=](int64_t i) { return float_from_half(element<uint16_t>(source, i)); });
  } else if (from.dtype == "BF16") {
    convert(to, [=](int64_t i) { return static_cast<float>(element<bfloat16>(source, i)); });
  } else {
    fail(path(), ": tensor ", name, " is ", from.dtype, ", expected ", stored_name(to.dtype));
  }
}

// ---- writing ----

void SafetensorsWriter::add(std::string name, CView tensor) {
  CHECK(tensor && tensor.device == cpu_device, name, ": only tensors in CPU memory are written");
  CHECK(name != "__metadata__", "no tensor may be called __metadata__");
  for (const auto& [other, view] : tensors_) CHECK(other != name, "tensor ", name, " is added twice");
  tensors_.emplace_back(std::move(name), tensor);
}

void SafetensorsWriter::set_metadata(std::string key, std::string value) {
  metadata_[std::move(key)] = std::move(value);
}

void SafetensorsWriter::write(const std::string& path) const {
  // The reference reader refuses gaps between tensors, so alignment comes from the order: wide elements
  // first.
  std::vector<const std::pair<std::string, CView>*> ordered;
  for (const auto& entry : tensors_) ordered.push_back(&entry);
  std::stable_sort(ordered.begin(), ordered.end(), [](const auto* a, const auto* b) {
    return size_of(a->second.dtype) > size_of(b->second.dtype);
  });

  Json json = Json::object();
  if (!metadata_.empty()) json["__metadata__"] = metadata_;
  size_t offset = 0;
  for (const auto* entry : ordered) {
    const auto& [name, tensor] = *entry;
    Json shape = Json::array();
    for (int i = 0; i < tensor.shape.rank(); ++i) shape.push_back(tensor.shape[i]);
    json[name] = {{"dtype", stored_name(tensor.dtype)},
                  {"shape", shape},
                  {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string header;
  try {
    header = json.dump();
  } catch (const nlohmann::json::exception& e) {  // a name or text that is not UTF-8
    fail("cannot write ", path, ": ", e.what());
  }
  header.resize((header.size() + 7) / 8 * 8, ' ');

  AtomicFile file(path);
  char length[8];
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> 8 * i);
  file.write(std::string_view(length, 8));
  file.write(header);
  for (const auto* entry : ordered) {
    file.write(std::span(static_cast<const std::byte*>(entry->second.data), entry->second.bytes()));
  }
  file.commit();
}

}  // namespace switchback
