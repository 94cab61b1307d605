// The same bits with 1, 2 and 4 threads: every op, every type; and a second run repeats the first.
#include "runtime/parallel.h"
#include "tests/kernels/testing.h"

using namespace switchback;

TEST_CASE("results have the same bits for any number of threads") {
  const int threads = cpu_threads();
  std::vector<OpCase> cases = op_cases();
  // Larger than one thread's share of work.
  cases.push_back(linear_forward_case(1000, 96, 200, true));
  cases.push_back(linear_backward_weight_case(5000, 40, 60));
  cases.push_back(layernorm_forward_case(1000, 96));
  cases.push_back(layernorm_backward_case(1000, 96));
  cases.push_back(residual_backward_case(1000, 96));
  cases.push_back(gelu_backward_case(1000, 96, Gelu::exact));
  cases.push_back(text_embed_backward_case(200, 20, 50, 300));
  cases.push_back(contrastive_backward_case({600, 600, 0, 40}, false));
  for (DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const OpCase& op : cases) {
      set_cpu_threads(1);
      const Arrays one = run(op, {dtype});
      for (int count : {2, 4}) {
        set_cpu_threads(count);
        INFO(op.name, " ", std::string(name_of(dtype)), " ", count, " threads");
        CHECK(run(op, {dtype}) == one);
      }
    }
  set_cpu_threads(threads);
}
