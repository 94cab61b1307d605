// torch_file.cpp: what torch.save(checkpoint) leaves behind.
//
//   archive/data.pkl     a pickle: {"epoch": 3, "state_dict": {"visual.proj": tensor, ...}, ...}
//   archive/data/17      the numbers of storage 17, raw
//   archive/byteorder    "little"
// A tensor in the pickle is the call
//   torch._utils._rebuild_tensor_v2(persistent id, offset, sizes, strides, requires_grad, hooks)
// whose persistent id is ("storage", torch.FloatStorage, "17", "cpu", number of elements). Several tensors
// may be views of one storage, and their rows need not lie one behind the other.
#include <algorithm>
#include <cstring>
#include <memory>

#include "models/pickle.h"
#include "models/state_dict.h"
#include "models/zip_archive.h"
#include "runtime/check.h"

namespace switchback {
namespace {

struct ElementKind {
  const char* storage;
  const char* dtype;
  uint64_t bytes;
};
constexpr ElementKind kinds[] = {
    {"torch FloatStorage", "F32", 4},  {"torch HalfStorage", "F16", 2}, {"torch BFloat16Storage", "BF16", 2},
    {"torch DoubleStorage", "F64", 8}, {"torch LongStorage", "I64", 8}, {"torch IntStorage", "I32", 4},
    {"torch ShortStorage", "I16", 2},  {"torch CharStorage", "I8", 1},  {"torch ByteStorage", "U8", 1},
    {"torch BoolStorage", "BOOL", 1},
};
constexpr uint64_t largest_pickle = uint64_t{1} << 28;

class TorchFile {
 public:
  explicit TorchFile(const std::string& path) : archive_(std::make_shared<ZipArchive>(path)) {}

  void read(StateDict& to) {
    const std::string& path = archive_->path();
    std::string pickle_name;
    for (const auto& [name, member] : archive_->members()) {
      if (name == "constants.pkl" || name.ends_with("/constants.pkl"))
        fail(path,
             ": a TorchScript program, as OpenAI published its weights; load it once with open_clip and save "
             "the state_dict");
      if (name.ends_with("/data.pkl")) pickle_name = name;
    }
    if (pickle_name.empty()) fail(path, ": a zip archive, but not one of torch.save (it has no data.pkl)");
    folder_ = pickle_name.substr(0, pickle_name.size() - 8);  // "archive/"
    if (archive_->contains(folder_ + "byteorder")) {
      const auto order = archive_->at(folder_ + "byteorder");
      if (std::string(reinterpret_cast<const char*>(order.data()), order.size()) != "little")
        fail(path, ": written on a big-endian machine, which is not read");
    }
    const auto bytes = archive_->at(pickle_name);
    if (bytes.size() > largest_pickle)
      fail(path, ": ", pickle_name, " has ", bytes.size(), " bytes, more than any list of tensors");
    where_ = path + ": " + pickle_name;
    const Pickle pickle(bytes, where_);
    const PickleValue& weights = find_weights(pickle.value());
    for (const auto& [key, value] : weights.entries)
      if (key->kind == PickleValue::text && is_tensor(*value)) add(key->string, *value, to);
    if (to.tensors().empty()) fail(path, " holds no tensors");
    to.keep(archive_);
  }

 private:
  static bool is_tensor(const PickleValue& value) {
    return value.is_call_of("torch._utils _rebuild_tensor_v2") ||
           value.is_call_of("torch._utils _rebuild_tensor") ||
           value.is_call_of("torch._utils _rebuild_parameter");
  }

  // The dictionary of tensors: the value itself, or what it holds under one of the usual names.
  const PickleValue& find_weights(const PickleValue& value) const {
    if (!value.is_dictionary())
      fail(archive_->path(),
           ": not a dictionary of tensors (a whole model was saved instead of its state_dict?)");
    const auto has_tensor = [](const PickleValue& v) {
      return std::any_of(v.entries.begin(), v.entries.end(),
                         [](const auto& e) { return is_tensor(*e.second); });
    };
    for (const char* name : {"state_dict", "model", "module"}) {
      const PickleValue* inner = value.find(name);
      if (inner && inner->is_dictionary() && has_tensor(*inner)) return *inner;
    }
    if (!has_tensor(value))
      fail(archive_->path(), ": no tensors in it, neither at the top nor under \"state_dict\"");
    return value;
  }

  void add(const std::string& name, const PickleValue& value, StateDict& to) {
    const auto bad = [&](const auto&... parts) { fail(where_, ": tensor ", name, ": ", parts...); };
    const PickleValue* call = &value;
    const auto arguments = [&]() -> const std::vector<const PickleValue*>& { return call->items[1]->items; };
    if (call->items.size() != 2) bad("no arguments");
    if (call->is_call_of("torch._utils _rebuild_parameter")) {  // (data, requires_grad, hooks)
      if (arguments().empty() || !is_tensor(*arguments()[0]) || arguments()[0]->items.size() != 2)
        bad("no data");
      call = arguments()[0];
    }
    const auto& a = arguments();
    if (a.size() < 4 || a[0]->kind != PickleValue::persistent || a[1]->kind != PickleValue::integer)
      bad("not (storage, offset, sizes, strides)");
    const auto& id = a[0]->items[0]->items;  // ("storage", class, key, device, elements)
    if (id.size() < 5 || id[1]->kind != PickleValue::name || id[2]->kind != PickleValue::text)
      bad("unknown storage");
    const auto kind = std::find_if(std::begin(kinds), std::end(kinds),
                                   [&](const ElementKind& k) { return id[1]->string == k.storage; });
    if (kind == std::end(kinds)) bad("storage of type ", id[1]->string, " is not understood");
    const auto bytes = archive_->at(folder_ + "data/" + id[2]->string);

    const auto& sizes = a[2]->items;
    const auto& strides = a[3]->items;
    if (sizes.size() != strides.size() || sizes.size() > 8) bad("sizes and strides do not fit together");
    StateTensor tensor{kind->dtype, {}, {}};
    uint64_t count = 1, last = 0;  // elements; place of the last one
    bool overflow =
        a[1]->number < 0 || __builtin_add_overflow(last, static_cast<uint64_t>(a[1]->number), &last);
    for (size_t i = 0; i < sizes.size(); ++i) {
      const int64_t size = sizes[i]->number, stride = strides[i]->number;
      if (sizes[i]->kind != PickleValue::integer || strides[i]->kind != PickleValue::integer || size < 0 ||
          stride < 0)
        bad("sizes and strides must be whole numbers from 0");
      tensor.shape.push_back(size);
      uint64_t reach = 0;
      overflow = overflow || __builtin_mul_overflow(count, static_cast<uint64_t>(size), &count) ||
                 (size > 0 && __builtin_mul_overflow(static_cast<uint64_t>(size - 1),
                                                     static_cast<uint64_t>(stride), &reach)) ||
                 __builtin_add_overflow(last, reach, &last);
    }
    if (overflow || (count > 0 && last >= bytes.size() / kind->bytes))
      bad("reaches beyond its storage of ", bytes.size(), " bytes (truncated?)");
    // Zero strides could make a few bytes a tensor of any size.
    if (count > bytes.size() / kind->bytes) bad("has more elements than its storage");
    const uint64_t offset = static_cast<uint64_t>(a[1]->number);
    if (count == 0) {
      tensor.bytes = {};
    } else if (contiguous(sizes, strides)) {
      tensor.bytes = bytes.subspan(offset * kind->bytes, count * kind->bytes);
    } else {
      tensor.bytes = gather(bytes, offset, kind->bytes, count, sizes, strides, to);
    }
    to.add(name, std::move(tensor));
  }

  static bool contiguous(const std::vector<const PickleValue*>& sizes,
                         const std::vector<const PickleValue*>& strides) {
    int64_t expected = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
      if (sizes[i]->number != 1 && strides[i]->number != expected) return false;
      expected *= sizes[i]->number;
    }
    return true;
  }

  static std::span<const std::byte> gather(std::span<const std::byte> bytes, uint64_t offset,
                                           uint64_t element, uint64_t count,
                                           const std::vector<const PickleValue*>& sizes,
                                           const std::vector<const PickleValue*>& strides, StateDict& to) {
    const auto copy = std::make_shared<std::vector<std::byte>>(count * element);
    std::vector<int64_t> index(sizes.size(), 0);
    for (uint64_t n = 0; n < count; ++n) {
      uint64_t from = offset;
      for (size_t i = 0; i < index.size(); ++i) from += static_cast<uint64_t>(index[i] * strides[i]->number);
      std::memcpy(copy->data() + n * element, bytes.data() + from * element, element);
      for (size_t i = index.size(); i-- > 0 && ++index[i] == sizes[i]->number;) index[i] = 0;
    }
    to.keep(copy);
    return *copy;
  }

  std::shared_ptr<ZipArchive> archive_;
  std::string folder_, where_;
};

}  // namespace

void read_torch_file(const std::string& path, StateDict& to) { TorchFile(path).read(to); }

}  // namespace switchback
