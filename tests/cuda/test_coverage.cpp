// Every op of op_list.h has a case that is held against the CPU, and the case calls the op that it is named
// after. Needs no GPU: a Kernels that only notes who was called stands in for one.
#include <set>

#include "tests/cuda/testing.h"
#include "tests/cuda/wide_cases.h"

using namespace switchback;

namespace {

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
class Witness final : public Kernels {
 public:
  std::string called;
#define KERNEL(op, arguments) \
  void op arguments override { called = #op; }
#include "kernels/op_list.h"
#undef KERNEL
  void upload(View, CView) override {}
  void download(View, CView) override {}
  std::unique_ptr<Moment> mark() override { return nullptr; }
  std::unique_ptr<Moment> upload_beside(View, CView, const Moment*) override { return nullptr; }
  void wait_for(const Moment&) override {}
  void download_later(View, CView) override {}
  std::unique_ptr<Recording> record(const std::function<void()>&) override { return nullptr; }
};
#pragma GCC diagnostic pop

// Codes are held to the bit, not within a tolerance: test_quantize.cpp has them.
const std::set<std::string> held_to_the_bit = {
    "absolute_maximum", "quantize",         "quantize_weights",       "transpose_codes",        "dequantize",
    "round_to_grid",    "product_of_codes", "gelu_forward_quantized", "gelu_backward_quantized",
    "linear_backward_weight_and_codes", "product_and_codes"};

}  // namespace

TEST_CASE("every op has a case on the GPU") {
  std::set<std::string> seen = held_to_the_bit;
  for (const std::vector<OpCase>& cases : {op_cases(), wide_cases()})
    for (const OpCase& op : cases) {
      const Bound bound = bind(op, {.dtype = DType::f32});
      Witness witness;
      op.call({witness, bound.options, bound.tensors});
      CHECK_MESSAGE(op.name.starts_with(witness.called + " "), op.name, " calls ", witness.called);
      seen.insert(witness.called);
    }
#define KERNEL(op, arguments) \
  CHECK_MESSAGE(seen.contains(#op), #op " has no case in op_cases() or wide_cases()");
#include "kernels/op_list.h"
#undef KERNEL
}
