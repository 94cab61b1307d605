// Every op on the GPU, in f32 and bf16, against the CPU's f64 run of the same inputs (rounded to bf16).
// Outputs start as NaN. Odd rows and widths; sinks that overwrite, add, are wider or empty; the same bits
// twice.
// SWITCHBACK_SHOW_ERRORS=1 prints the largest error of each op and type.
#include <cstdlib>

#include "runtime/philox.h"
#include "tests/cuda/testing.h"
#include "tests/cuda/wide_cases.h"

using namespace switchback;

namespace {

// The CPU's cases, with rows of 257 and the widths of real models; and attention of the head sizes that have
// tuned kernels as well as of others.
std::vector<OpCase> cases() {
  std::vector<OpCase> all = op_cases(), wide = wide_cases();
  all.insert(all.end(), wide.begin(), wide.end());
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{257, 96}, {257, 768}, {33, 1285}, {5, 2051}}) {
    all.push_back(layernorm_forward_case(rows, cols));
    all.push_back(layernorm_backward_case(rows, cols));
    all.push_back(residual_forward_case(rows, cols, true));
    all.push_back(residual_forward_case(rows, cols, false));
    all.push_back(residual_backward_case(rows, cols));
    for (bool scaled : {false, true}) {
      all.push_back(residual_layernorm_forward_case(rows, cols, scaled));
      for (bool with_dsum : {false, true})
        all.push_back(residual_layernorm_backward_case(rows, cols, scaled, with_dsum));
    }
    all.push_back(l2_normalize_forward_case(rows, cols));
    all.push_back(l2_normalize_backward_case(rows, cols));
    all.push_back(gelu_forward_case(rows, cols, Gelu::exact));
    all.push_back(gelu_backward_case(rows, cols, Gelu::exact));
    all.push_back(accumulate_case(rows * cols));
  }
  for (const Shape& s : {Shape{257, 64, 128}, Shape{257, 128, 384}, Shape{3, 257, 129}, Shape{1, 8, 8}}) {
    for (bool with_bias : {false, true}) all.push_back(linear_forward_case(s[0], s[1], s[2], with_bias));
    all.push_back(linear_backward_input_case(s[0], s[1], s[2]));
    all.push_back(linear_backward_weight_case(s[0], s[1], s[2]));
    for (Gelu kind : {Gelu::exact, Gelu::quick})
      for (bool extra : {false, true}) {
        all.push_back(linear_gelu_forward_case(s[0], s[1], s[2], kind, extra));
        all.push_back(linear_gelu_backward_input_case(s[0], s[1], s[2], kind, extra));
      }
  }
  for (const AttentionSizes& s : {AttentionSizes{1, 1, 1, 64, false}, AttentionSizes{2, 15, 2, 64, true},
                                  AttentionSizes{1, 129, 1, 80, false}, AttentionSizes{1, 257, 1, 64, false},
                                  AttentionSizes{1, 77, 2, 64, true}, AttentionSizes{1, 50, 1, 104, false},
                                  AttentionSizes{1, 33, 1, 88, true}}) {
    all.push_back(attention_forward_case(s));
    all.push_back(attention_backward_case(s));
  }
  all.push_back(extract_patches_case(2, 32, 48, 16, 6));
  all.push_back(vision_embed_forward_case(129, 49, 49, 64));
  all.push_back(vision_embed_backward_case(129, 49, 49, 64));
  all.push_back(vision_embed_backward_case(33, 49, 20, 136));
  all.push_back(text_embed_forward_case(15, 77, 700, 72));
  all.push_back(text_embed_backward_case(257, 12, 3, 72));     // long runs over many chunks
  all.push_back(
      text_embed_backward_case(33, 77, 70000, 16));  // three bytes of token number, most tokens absent
  all.push_back(text_embed_backward_case(1, 1, 5, 520));
  all.push_back(find_largest_token_case(257, 12));
  return all;
}

// Where the CPU's tolerance is not the GPU's: attention rounds p and ds to bf16 before their products.
double tolerance(const OpCase& op, DType dtype) {
  if (dtype == DType::f32) return std::max(op.tolerance_f32, 4e-6);
  if (op.name.starts_with("attention")) return 1e-2;
  if (op.name.starts_with("linear_gelu_backward")) return 1e-2;  // composed, dy w is rounded in between
  return std::max(op.tolerance_bf16, 4e-6);
}

// The same for f32 sinks of bf16 operands, where nothing is rounded at the end. The GELU of bf16 operands is
// an approximation to a part of a bf16 step (kernels/cuda/gelu.cuh): its slope is off by up to 2e-5, and a
// wide sink shows it.
double wide_tolerance(const OpCase& op) {
  if (op.name.starts_with("gelu_backward exact") || op.name.starts_with("linear_gelu_backward_input exact"))
    return 4e-5;
  return std::max(op.tolerance_wide, 4e-6);
}

std::string short_name(const OpCase& op) { return op.name.substr(0, op.name.find(' ')); }

// Doubles between -4 and 4 that no shorter type holds exactly.
Tensor random_values(int64_t count) {
  return Tensor::of<double>({count}, random("values", {count}, 4, 0, Operand::f64).values);
}

bool has_sink(const OpCase& op) {
  return std::ranges::any_of(op.operands, [](const Operand& o) { return o.role == Operand::sink; });
}

// The CPU's f64 results of every case, computed once.
struct Known {
  OpCase op;
  Arrays expected;
};
const std::vector<Known>& known() {
  static const std::vector<Known> all = [] {
    std::vector<Known> made;
    for (OpCase& op : cases()) {
      Arrays expected = run(op, {DType::f64});
      made.push_back({std::move(op), std::move(expected)});
    }
    return made;
  }();
  return all;
}

void compare(const OpCase& op, const Arrays& results, const Arrays& expected, double allowed,
             const std::string& what, std::map<std::string, double>& largest) {
  for (const auto& [name, values] : results) {
    const double error = error_of(values, expected.at(name));
    double& shown = largest[short_name(op)];
    shown = std::max(shown, error);
    INFO(op.name, " ", what, " ", name, ": error ", error, " allowed ", allowed);
    CHECK(error <= allowed);
  }
}

void show(const char* what, const std::map<std::string, double>& largest) {
  if (!std::getenv("SWITCHBACK_SHOW_ERRORS")) return;
  for (const auto& [name, error] : largest)
    std::printf("%-24s %-18s largest error %.2e\n", name.c_str(), what, error);
}

}  // namespace

TEST_CASE("every op on the GPU is the CPU's, and the same twice") {
  if (no_gpu()) return;
  for (DType dtype : {DType::f32, DType::bf16}) {
    std::map<std::string, double> largest;
    for (const Known& k : known()) {
      const Arrays once = run(k.op, {.dtype = dtype, .device = gpu}),
                   again = run(k.op, {.dtype = dtype, .device = gpu});
      compare(k.op, once, k.expected, tolerance(k.op, dtype), name_of(dtype), largest);
      INFO(k.op.name, " ", std::string(name_of(dtype)), " a second time");
      CHECK(once == again);
    }
    show(name_of(dtype), largest);
  }
}

TEST_CASE("sinks on the GPU add, and may be wider") {
  if (no_gpu()) return;
  for (DType dtype : {DType::f32, DType::bf16})
    for (bool wide : {false, true}) {
      if (wide && dtype == DType::f32) continue;
      std::map<std::string, double> largest;
      for (bool accumulate : {false, true})
        for (const Known& k : known()) {
          if (!has_sink(k.op)) continue;
          Arrays expected = k.expected;
          for (const Operand& o : k.op.operands)
            if (accumulate && o.role == Operand::sink)
              for (size_t i = 0; i < expected.at(o.name).size(); ++i)
                expected.at(o.name)[i] += start_of_sink(i);
          Arrays results =
              run(k.op, {.dtype = dtype, .accumulate = accumulate, .wide_sinks = wide, .device = gpu});
          std::erase_if(results, [&](const auto& entry) {
            return std::ranges::find(k.op.operands, entry.first, &Operand::name)->role != Operand::sink;
          });
          // The start of a bf16 sink may be larger than the result: both are rounded once.
          const double allowed = wide ? wide_tolerance(k.op)
                                      : std::max(tolerance(k.op, dtype), dtype == DType::bf16 ? 6e-3 : 0);
          compare(k.op, results, expected, allowed,
                  concat(name_of(dtype), accumulate ? " added" : "", wide ? " wide" : ""), largest);
        }
      show(wide ? "bf16, f32 sinks" : dtype == DType::f32 ? "f32 sinks" : "bf16 sinks", largest);
    }
}

TEST_CASE("an empty sink on the GPU changes no other result") {
  if (no_gpu()) return;
  for (const Known& k : known()) {
    if (!has_sink(k.op)) continue;
    const Arrays whole = run(k.op, {.dtype = DType::bf16, .device = gpu});
    for (const Operand& o : k.op.operands) {
      if (o.role != Operand::sink) continue;
      const Arrays results = run(k.op, {.dtype = DType::bf16, .empty = o.name, .device = gpu});
      INFO(k.op.name, " without ", o.name);
      CHECK(results.size() + 1 == whole.size());
      for (const auto& [name, values] : results) {
        const double error = error_of(values, whole.at(name));
        INFO(name, " differs by ", error);
        // These sum their rows elsewhere when a result less is asked for.
        const bool other_sum = k.op.name.starts_with("linear_backward_weight") ||
                               k.op.name.find("layernorm_backward") != std::string::npos;
        CHECK(error <= (other_sum ? 4e-3 : 0));
      }
    }
  }
}

TEST_CASE("choose_patches on the GPU draws the CPU's patches") {
  if (no_gpu()) return;
  for (const auto& [kept, patches] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {5, 16}, {20, 49}, {128, 256}, {0, 4}}) {
    const Tensor step = Tensor::of<int64_t>({}, {(int64_t{7} << 32) + 11});
    Tensor own({33, kept}, DType::i32), theirs({33, kept}, DType::i32, gpu);
    kernels(cpu_device).choose_patches(own, patches, 0x123456789abcdefu, step, (int64_t{5} << 32) + 3);
    kernels(gpu).choose_patches(theirs, patches, 0x123456789abcdefu, to_device(step, gpu),
                                (int64_t{5} << 32) + 3);
    CHECK(as_doubles(own) == as_doubles(theirs));
  }
}

TEST_CASE("extract_patches on the GPU has the CPU's bits") {
  if (no_gpu()) return;
  const OpCase op = extract_patches_case(3, 28, 28, 7, 11);
  for (DType dtype : {DType::f32, DType::bf16})
    CHECK(run(op, {.dtype = dtype, .device = gpu}) == run(op, {dtype}));
}

TEST_CASE("cast, fill and clamp on the GPU") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  const Tensor from = to_device(random_values(259), gpu);
  for (DType a : {DType::f64, DType::f32, DType::bf16})
    for (DType b : {DType::f64, DType::f32, DType::bf16}) {
      Tensor first({259}, a, gpu), second({259}, b, gpu), own_first({259}, a), own_second({259}, b);
      k.cast(first, from);
      k.cast(second, first);
      kernels(cpu_device).cast(own_first, random_values(259));
      kernels(cpu_device).cast(own_second, own_first);
      CHECK(as_doubles(second) == as_doubles(own_second));
    }
  for (DType dtype : {DType::f32, DType::bf16}) {
    Tensor x({33}, dtype, gpu);
    k.fill(x, -2.5);
    CHECK(as_doubles(x) == Array(33, -2.5));
    k.clamp(x, -1, 1);
    CHECK(as_doubles(x) == Array(33, -1.0));
    k.fill(x, NAN);
    k.clamp(x, -1, 1);
    CHECK(std::isnan(as_doubles(x)[32]));
  }
}

TEST_CASE("numbers out of range give NaN and write nothing outside") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  const Tensor tokens = to_device(Tensor::of<int32_t>({1, 3}, {1, 10, -1}), gpu);
  Tensor table({10, 4}, DType::f32, gpu), positions({3, 4}, DType::f32, gpu), x({1, 3, 4}, DType::f32, gpu);
  k.fill(table, 1);
  k.fill(positions, 2);
  k.text_embed_forward(x, table, positions, tokens);
  const Array values = as_doubles(x);
  CHECK(values[0] == 3);
  for (size_t i = 4; i < 12; ++i) CHECK(std::isnan(values[i]));
  k.fill(x, 1);
  k.text_embed_backward({table}, {}, x, tokens);
  Array expected(40, 0.0);
  for (size_t i = 4; i < 8; ++i) expected[i] = 1;
  CHECK(as_doubles(table) == expected);
}

TEST_CASE("broken preconditions on the GPU name op, operand and shapes") {
  if (no_gpu()) return;
  Kernels& k = kernels(gpu);
  const auto message_of = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const Tensor wide({4, 6}, DType::f32, gpu), narrow({4, 5}, DType::f32, gpu),
      weight({7, 5}, DType::f32, gpu), host({4, 5}, DType::f32);
  CHECK(message_of([&] {
          k.linear_forward(wide, narrow, weight, {});
        }).starts_with("linear_forward: y is (4, 6), it must be (4, 7)"));
  CHECK(message_of([&] {
          k.gelu_forward(narrow, host, Gelu::exact);
        }).starts_with("gelu_forward: x is on cpu"));
}
