// pickle.h: Python's pickle format as data, never as a program.
//
// A pickle is a program for a small stack machine, and Python's own reader runs whatever function it names.
// This one builds numbers, texts, lists, tuples and dictionaries, keeps the names of classes and functions as
// names, and the call of one as "name applied to arguments": what it means is decided by whoever reads the
// result (torch_file.h knows torch._utils._rebuild_tensor_v2). Nothing is called.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace switchback {

struct PickleValue {
  enum Kind { none, boolean, integer, real, text, list, tuple, dictionary, name, call, persistent, other };
  Kind kind = none;
  int64_t number = 0;  // boolean, integer; an integer beyond 64 bits is `other`
  double real_number = 0;
  std::string string;                     // text; name: "torch._utils _rebuild_tensor_v2"
  std::vector<const PickleValue*> items;  // list, tuple; call: {function, arguments}; persistent: {id}
  std::vector<std::pair<const PickleValue*, const PickleValue*>> entries;  // dictionary; call of OrderedDict

  const PickleValue* find(std::string_view key) const;  // in entries, the last one of that key; or null
  bool is_call_of(std::string_view function) const;     // call whose function is this name
  // dict, or OrderedDict() filled afterwards
  bool is_dictionary() const;
};

class Pickle {
 public:
  // Errors: an instruction that is not understood, a stack that does not fit, a text cut off; at which byte.
  // where: for messages, "epoch_3.pt: archive/data.pkl".
  Pickle(std::span<const std::byte> bytes, const std::string& where);
  const PickleValue& value() const { return *value_; }

 private:
  std::deque<PickleValue> values_;  // owns all; no value is freed before the whole
  const PickleValue* value_ = nullptr;
};

}  // namespace switchback
