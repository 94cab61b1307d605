// safetensors.h: the file format of weights, read through a memory map and written in one piece.
//
//   8 bytes       length of the header, little endian
//   header        JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//                        "__metadata__": {"key": "text", ...}}, padded with spaces to a multiple of 8
//   data          the tensors; offsets count from here
//
// A file is checked completely when it is opened: a damaged one never gets as far as a tensor. Tensors may
// have more than four sizes here; a View has at most four.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/file.h"
#include "runtime/view.h"

namespace switchback {

struct StoredTensor {
  std::string dtype;                 // F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL
  std::vector<int64_t> shape;        // empty: a scalar
  std::span<const std::byte> bytes;  // in the mapped file; may be unaligned in files of other writers
};

class SafetensorsFile {
 public:
  // Errors name the file and, where there is one, the tensor, with the sizes that do not agree.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<std::string>& names() const { return names_; }  // in the order of the data
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  const StoredTensor& at(const std::string& name) const;  // error: no such tensor, with the most similar name
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Copies a tensor into a CPU view of the same shape, converting among F64, F32, F16 and BF16 (rounding to
  // nearest even); other types must be the same on both sides. Errors name the tensor and both shapes or
  // types.
  void load_into(const std::string& name, View to) const;

 private:
  MappedFile file_;
  std::vector<std::string> names_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Collects views of CPU memory, which must stay alive and unchanged until write(). Tensors are stored without
// gaps (the reference reader refuses them), wide element types first and otherwise in the order of add(): so
// each lies at a multiple of its element size.
class SafetensorsWriter {
 public:
  void add(std::string name, CView tensor);
  void set_metadata(std::string key, std::string value);
  void write(const std::string& path) const;  // through an AtomicFile: complete or not at all

 private:
  std::vector<std::pair<std::string, CView>> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace switchback
