// Where operands lie must not matter. Every op runs with operands inside larger blocks of memory, between
// guard zones that nobody may touch: once on borders of 256 bytes, once one element beside them, and once
// with f32 sinks that are added to (other paths, with scratch of their own). Before it runs, the allocator's
// free memory is filled with NaN: scratch that a kernel reads before anybody wrote it shows.
#include "tests/cuda/testing.h"
#include "tests/cuda/wide_cases.h"

using namespace switchback;

namespace {

constexpr int64_t guard = 1024;   // elements before and behind; whole lines of 256 bytes in every type
constexpr double untouched = 97;  // what guard zones hold: exact in every type

// A case's operands, each a part of its own block.
struct Guarded {
  Bound bound;
  std::map<std::string, Tensor> blocks;

  Guarded(const OpCase& op, const RunOptions& options, int64_t shift)
      : bound{kernels(options.device), options, {}} {
    const Bound plain = bind(op, {options.dtype, options.accumulate, options.wide_sinks, {}, cpu_device});
    for (const Operand& o : op.operands) {
      const Tensor& host = plain.tensors.at(o.name);
      Tensor block({host.size() + 2 * guard}, host.dtype());
      visit_any(host.dtype(), [&](auto tag) {
        using T = decltype(tag);
        std::ranges::fill(block.span<T>(), static_cast<T>(untouched));
        std::ranges::copy(host.span<T>(), block.span<T>().begin() + guard + shift);
      });
      blocks[o.name] = to_device(block, options.device);
      bound.tensors[o.name] = blocks[o.name].part(guard + shift, o.shape);
    }
  }

  bool guards_hold(const std::string& name, int64_t shift) const {
    const Array values = as_doubles(blocks.at(name));
    const size_t from = static_cast<size_t>(guard + shift),
                 to = from + static_cast<size_t>(bound.tensors.at(name).size());
    for (size_t i = 0; i < values.size(); ++i)
      if ((i < from || i >= to) && values[i] != untouched) return false;
    return true;
  }
};

bool has_sink(const OpCase& op) {
  return std::ranges::any_of(op.operands, [](const Operand& o) { return o.role == Operand::sink; });
}

// Sums of another order are allowed where another alignment takes another kernel.
bool same_kernel_anywhere(const OpCase& op) {
  for (const char* name : {"matmul", "linear", "contrastive", "siglip", "attention", "layernorm", "residual"})
    if (op.name.starts_with(name)) return false;
  return true;
}

}  // namespace

TEST_CASE("operands beside their borders, guarded, with poisoned scratch memory") {
  if (no_gpu()) return;
  for (const std::vector<OpCase>& cases : {op_cases(), wide_cases()})
    for (const OpCase& op : cases)
      for (const RunOptions& options :
           {RunOptions{.dtype = DType::f32, .device = gpu}, RunOptions{.dtype = DType::bf16, .device = gpu},
            RunOptions{.dtype = DType::bf16, .accumulate = true, .wide_sinks = true, .device = gpu}}) {
        if (options.accumulate && !has_sink(op)) continue;
        const DType dtype = options.dtype;
        const Arrays expected = run(op, options);
        for (int64_t shift : {0, 1}) {
          if (options.accumulate && shift) continue;
          INFO(op.name, " ", std::string(name_of(dtype)), options.accumulate ? ", f32 sinks added to" : "",
               ", ", shift, " elements beside a border");
          const Guarded guarded(op, options, shift);
          poison_free_memory();
          try {
            op.call(guarded.bound);
            guarded.bound.k.synchronize();
          } catch (const Error& error) {
            FAIL_CHECK(error.what());
            continue;
          }
          for (const Operand& o : op.operands) {
            INFO(o.name);
            CHECK(guarded.guards_hold(o.name, shift));
            if (o.role == Operand::input) continue;
            const Array values = as_doubles(guarded.bound.tensors.at(o.name));
            const bool exact = shift == 0 || same_kernel_anywhere(op);
            const double allowed = exact ? 0 : dtype == DType::f32 ? 8e-6 : 1e-2;
            const double error = error_of(values, expected.at(o.name));
            INFO("differs by ", error);
            CHECK(error <= allowed);
          }
        }
      }
}

// compute-sanitizer --tool memcheck (racecheck, initcheck, synccheck) test_cuda --no-skip -tc='each op once*'
TEST_CASE("each op once on small operands, for compute-sanitizer" * doctest::skip()) {
  if (no_gpu()) return;
  int calls = 0;
  for (const std::vector<OpCase>& cases : {op_cases(), wide_cases()})
    for (const OpCase& op : cases)
      for (DType dtype : {DType::f32, DType::bf16}) {
        if (op.bytes(dtype) > 1e6) continue;
        run(op, {.dtype = dtype, .device = gpu});
        if (has_sink(op)) run(op, {.dtype = dtype, .accumulate = true, .wide_sinks = true, .device = gpu});
        ++calls;
      }
  std::printf("%d cases\n", calls);
}
