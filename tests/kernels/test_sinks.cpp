// What a sink promises, for every op that has one: it may add, may be wider than the tensors, may be empty.
#include "tests/kernels/testing.h"

using namespace switchback;

namespace {

bool has_sink(const OpCase& op) {
  return std::ranges::any_of(op.operands, [](const Operand& o) { return o.role == Operand::sink; });
}

template <class F>
void for_each_sink_case(F&& f) {
  for (const OpCase& op : op_cases())
    if (has_sink(op)) f(op);
}

}  // namespace

TEST_CASE("sinks that accumulate hold their start plus the result") {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16})
    for_each_sink_case([&](const OpCase& op) {
      Arrays expected = definition(op);
      const Arrays results = run(op, {.dtype = dtype, .accumulate = true});
      for (const Operand& o : op.operands) {
        if (o.role != Operand::sink) continue;
        Array& sum = expected.at(o.name);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += start_of_sink(i);
        const double error = error_of(results.at(o.name), sum);
        INFO(op.name, " ", std::string(name_of(dtype)), " ", o.name, ": error ", error);
        // The start (up to 0.75) may be larger than the result: both are rounded once.
        CHECK(error <= (dtype == DType::f64   ? op.tolerance_f64
                        : dtype == DType::f32 ? op.tolerance_f32
                                              : 6e-3));
      }
    });
}

TEST_CASE("f32 sinks of bf16 tensors are not rounded to bf16") {
  for (bool accumulate : {false, true})
    for_each_sink_case([&](const OpCase& op) {
      Arrays expected = definition(op);
      const Arrays results = run(op, {.dtype = DType::bf16, .accumulate = accumulate, .wide_sinks = true});
      for (const Operand& o : op.operands) {
        if (o.role != Operand::sink) continue;
        Array& sum = expected.at(o.name);
        for (size_t i = 0; accumulate && i < sum.size(); ++i) sum[i] += start_of_sink(i);
        const double error = error_of(results.at(o.name), sum);
        INFO(op.name, ", ", o.name, ": error ", error);
        CHECK(error <= op.tolerance_wide);
      }
    });
}

TEST_CASE("an empty sink changes no other result") {
  for (DType dtype : {DType::f64, DType::bf16})
    for_each_sink_case([&](const OpCase& op) {
      const Arrays whole = run(op, {dtype});
      for (const Operand& o : op.operands) {
        if (o.role != Operand::sink) continue;
        const Arrays results = run(op, {.dtype = dtype, .empty = o.name});
        INFO(op.name, " without ", o.name);
        CHECK(results.size() + 1 == whole.size());
        for (const auto& [name, values] : results) CHECK(values == whole.at(name));
      }
    });
}
