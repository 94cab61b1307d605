// state_dict.h: named tensors out of a file of weights, whichever format it has.
//
//   .safetensors              (runtime/safetensors.h)
//   .pt .pth .bin .ckpt       what torch.save writes: a zip archive with a pickle that names the tensors and
//   one
//                             member per tensor with its numbers; the weights may lie under "state_dict"
//   model.safetensors.index.json, *.index.json   several safetensors files as one
// The format is seen from the first bytes, not from the name. A pickle is read as data (pickle.h): a file
// that would run a program in Python runs nothing here.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace switchback {

struct StateTensor {
  std::string dtype;  // safetensors' names: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // row by row; may be unaligned
  int64_t size() const;              // number of elements
};

class StateDict {
 public:
  static StateDict read(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, StateTensor>& tensors() const { return tensors_; }
  bool contains(const std::string& name) const { return tensors_.count(name) > 0; }
  // Errors: no such tensor, naming the nearest; not floating-point.
  const StateTensor& at(const std::string& name) const;
  std::vector<float> floats(const std::string& name) const;

  // For readers of formats.
  void add(std::string name, StateTensor tensor);
  void rename(const std::string& from, const std::string& to);
  void remove(const std::string& name) { tensors_.erase(name); }
  void keep(std::shared_ptr<const void> owner) { owners_.push_back(std::move(owner)); }

 private:
  std::string path_;
  std::map<std::string, StateTensor> tensors_;
  std::vector<std::shared_ptr<const void>> owners_;  // of the bytes
};

// torch.save's archive. Errors: TorchScript, formats before PyTorch 1.6, damage.
void read_torch_file(const std::string& path, StateDict& to);

}  // namespace switchback
