#include "models/pickle.h"

#include <cstring>
#include <map>

#include "runtime/check.h"

namespace switchback {
namespace {

using Kind = PickleValue::Kind;

// The stack machine. Every instruction takes at least one byte and makes at most one value, so memory is
// bounded by the size of the pickle.
class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::string& where, std::deque<PickleValue>& values)
      : bytes_(bytes), where_(where), values_(values) {}

  const PickleValue* run() {
    while (true) {
      start_ = at_;
      const uint8_t op = static_cast<uint8_t>(number(1));
      switch (op) {
        case 0x80: number(1); break;                          // PROTO
        case 0x95: number(8); break;                          // FRAME
        case '.': return result();                            // STOP
        case '(': marks_.push_back(stack_.size()); break;     // MARK
        case '0': pop(); break;                               // POP
        case '1': stack_.resize(pop_mark()); break;           // POP_MARK
        case '2': push(top()); break;                         // DUP
        case 'N': make(Kind::none); break;
        case 0x88: make(Kind::boolean).number = 1; break;
        case 0x89: make(Kind::boolean).number = 0; break;
        case 'K': make(Kind::integer).number = static_cast<int64_t>(number(1)); break;
        case 'M': make(Kind::integer).number = static_cast<int64_t>(number(2)); break;
        case 'J': make(Kind::integer).number = static_cast<int32_t>(number(4)); break;
        case 0x8a: make_long(number(1)); break;               // LONG1
        case 0x8b: make_long(number(4)); break;               // LONG4
        case 'G': make_real(); break;                         // BINFLOAT
        case 'X': make(Kind::text).string = take(number(4)); break;
        case 0x8c: make(Kind::text).string = take(number(1)); break;
        case 0x8d: make(Kind::text).string = take(number(8)); break;
        // SHORT_BINSTRING, SHORT_BINBYTES
        case 'U': case 'C': make(Kind::text).string = take(number(1)); break; 
        case 'T': case 'B': make(Kind::text).string = take(number(4)); break;   // BINSTRING, BINBYTES
        case 0x8e: make(Kind::text).string = take(number(8)); break;            // BINBYTES8
        case ')': make(Kind::tuple); break;
        case 't': collect(Kind::tuple, pop_mark()); break;
        case 0x85: collect(Kind::tuple, below(1)); break;
        case 0x86: collect(Kind::tuple, below(2)); break;
        case 0x87: collect(Kind::tuple, below(3)); break;
        case ']': make(Kind::list); break;
        case 'l': collect(Kind::list, pop_mark()); break;
        case 0x8f: make(Kind::other); break;                  // EMPTY_SET
        case 0x90: stack_.resize(pop_mark()); break;          // ADDITEMS
        case 'a': append(below(1)); break;
        case 'e': append(pop_mark()); break;
        case '}': make(Kind::dictionary); break;
        case 'd': make_dictionary(pop_mark()); break;
        case 's': set_items(below(2)); break;
        case 'u': set_items(pop_mark()); break;
        case 'c': make_name_from_lines(); break;              // GLOBAL
        case 0x93: make_name_from_stack(); break;             // STACK_GLOBAL
        case 'R': case 0x81: call(below(2)); break;           // REDUCE, NEWOBJ
        case 'b': pop(); top(); break;                        // BUILD: attributes, nobody asks for them
        case 'Q': persistent(); break;                        // BINPERSID
        case 'q': memo_[number(1)] = top(); break;
        case 'r': memo_[number(4)] = top(); break;
        case 0x94: { const uint64_t next = memo_.size(); memo_[next] = top(); break; }  // MEMOIZE
        case 'h': recall(number(1)); break;
        case 'j': recall(number(4)); break;
        default:
          fail(where_, ", byte ", start_, ": pickle instruction ", static_cast<int>(op),
               " does not occur in weights: was the file written by torch.save(state_dict)?");
      }
    }
  }

 private:
  template <class... Parts>
  [[noreturn]] void damaged(const Parts&... parts) const {
    fail(where_, ", byte ", start_, ": damaged pickle (", parts..., ")");
  }

  std::string take(uint64_t size) {
    if (size > bytes_.size() - at_) damaged("it ends before the ", size, " bytes that come next");
    const std::string text(reinterpret_cast<const char*>(bytes_.data()) + at_, size);
    at_ += size;
    return text;
  }
  uint64_t number(size_t size) {
    if (size > bytes_.size() - at_) damaged("it ends in the middle of an instruction");
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) value |= std::to_integer<uint64_t>(bytes_[at_++]) << 8 * i;
    return value;
  }
  std::string line() {
    const uint64_t from = at_;
    while (at_ < bytes_.size() && bytes_[at_] != std::byte{'\n'}) ++at_;
    if (at_ == bytes_.size()) damaged("a name does not end");
    return {reinterpret_cast<const char*>(bytes_.data()) + from, at_++ - from};
  }

  PickleValue& make(Kind kind) {
    PickleValue& value = values_.emplace_back();
    value.kind = kind;
    stack_.push_back(&value);
    return value;
  }
  void push(PickleValue* value) { stack_.push_back(value); }
  // What lies above the last mark is all that an instruction may take.
  void need(size_t count) const {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() < floor + count) damaged("the stack is empty");
  }
  PickleValue* top() const {
    need(1);
    return stack_.back();
  }
  PickleValue* pop() {
    PickleValue* value = top();
    stack_.pop_back();
    return value;
  }
  size_t below(size_t count) const {
    need(count);
    return stack_.size() - count;
  }
  size_t pop_mark() {
    if (marks_.empty()) damaged("no mark");
    const size_t mark = marks_.back();
    marks_.pop_back();
    return mark;
  }
  const PickleValue* result() {
    if (stack_.empty()) damaged("it ends without a value");
    return stack_.back();
  }

  void make_long(uint64_t size) {
    const std::string digits = take(size);
    PickleValue& value = make(size <= 8 ? Kind::integer : Kind::other);
    if (size > 8) return;
    uint64_t bits = !digits.empty() && (digits.back() & 0x80) ? ~uint64_t{0} : 0;
    for (size_t i = digits.size(); i-- > 0;) bits = bits << 8 | static_cast<uint8_t>(digits[i]);
    value.number = static_cast<int64_t>(bits);
  }
  void make_real() {
    const std::string big_endian = take(8);
    uint64_t bits = 0;
    for (const char c : big_endian) bits = bits << 8 | static_cast<uint8_t>(c);
    std::memcpy(&make(Kind::real).real_number, &bits, 8);
  }
  void make_name(std::string module, const std::string& name) {
    make(Kind::name).string = std::move(module) + " " + name;
  }
  void make_name_from_lines() {
    std::string module = line();
    make_name(std::move(module), line());
  }
  void make_name_from_stack() {
    const size_t from = below(2);
    const std::string module = stack_[from]->string, name = stack_[from + 1]->string;
    stack_.resize(from);
    make_name(module, name);
  }
  void collect(Kind kind, size_t from) {
    std::vector<const PickleValue*> items(stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
    make(kind).items = std::move(items);
  }
  // Items from `from` on go into the list below them.
  void append(size_t from) {
    std::vector<const PickleValue*> items(stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
    PickleValue* to = top();
    to->items.insert(to->items.end(), items.begin(), items.end());
  }
  void set_items(size_t from) {
    if ((stack_.size() - from) % 2 != 0) damaged("a key without a value");
    const std::vector<PickleValue*> items(stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
    PickleValue* to = top();
    for (size_t i = 0; i < items.size(); i += 2) to->entries.emplace_back(items[i], items[i + 1]);
  }
  void make_dictionary(size_t from) {
    if ((stack_.size() - from) % 2 != 0) damaged("a key without a value");
    const std::vector<PickleValue*> items(stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
    PickleValue& to = make(Kind::dictionary);
    for (size_t i = 0; i < items.size(); i += 2) to.entries.emplace_back(items[i], items[i + 1]);
  }
  void call(size_t from) { collect(Kind::call, from); }
  void persistent() {
    const PickleValue* id = pop();
    make(Kind::persistent).items = {id};
  }
  void recall(uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) damaged("nothing was remembered under ", key);
    push(found->second);
  }

  std::span<const std::byte> bytes_;
  const std::string& where_;
  std::deque<PickleValue>& values_;
  uint64_t at_ = 0, start_ = 0;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::map<uint64_t, PickleValue*> memo_;
};

}  // namespace

const PickleValue* PickleValue::find(std::string_view key) const {
  for (size_t i = entries.size(); i-- > 0;)
    if (entries[i].first->kind == text && entries[i].first->string == key) return entries[i].second;
  return nullptr;
}

bool PickleValue::is_call_of(std::string_view function) const {
  return kind == call && !items.empty() && items[0]->kind == name && items[0]->string == function;
}

bool PickleValue::is_dictionary() const {
  return kind == dictionary || is_call_of("collections OrderedDict") || is_call_of("collections defaultdict");
}

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& where) {
  value_ = Machine(bytes, where, values_).run();
}

}  // namespace switchback
