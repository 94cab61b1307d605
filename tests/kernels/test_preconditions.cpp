// Broken preconditions throw one line that names the op, the operand and both shapes or types.
#include "tests/kernels/testing.h"

using namespace switchback;

namespace {

Tensor f32(Shape shape) { return Tensor(shape, DType::f32); }
Tensor i32(Shape shape, int32_t value) {
  return Tensor::of<int32_t>(shape, std::vector<int32_t>(shape.size(), value));
}

template <class F>
void throws(F&& f, const std::vector<std::string>& parts) {
  std::string message = "no error";
  try {
    f();
  } catch (const Error& e) {
    message = e.what();
  }
  INFO(message);
  for (const std::string& part : parts) CHECK(message.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("shapes") {
  Kernels& k = kernels(cpu_device);
  throws(
      [&] {
        k.linear_forward(f32({4, 6}), f32({4, 5}), f32({7, 5}), {});
      },
      {"linear_forward", "y", "(4, 6)", "(4, 7)"});
  throws(
      [&] {
        k.linear_forward(f32({4, 7}), f32({4, 5}), f32({7, 6}), {});
      },
      {"linear_forward", "w", "(7, 6)", "(7, 5)"});
  throws(
      [&] {
        k.linear_forward(f32({4, 7}), f32({4, 5}), f32({7, 5}), f32({6}));
      },
      {"linear_forward", "bias", "(6)", "(7)"});
  throws(
      [&] {
        k.linear_backward_input({f32({4, 4})}, f32({4, 7}), f32({7, 5}));
      },
      {"linear_backward_input", "dx", "(4, 4)", "(4, 5)"});
  throws(
      [&] {
        k.linear_backward_weight({f32({7, 4})}, {}, f32({4, 7}), f32({4, 5}));
      },
      {"linear_backward_weight", "dw", "(7, 4)", "(7, 5)"});
  throws(
      [&] {
        k.matmul({f32({4, 4})}, f32({4, 5}), Transpose::no, f32({6, 4}), Transpose::no);
      },
      {"matmul", "(4, 5)", "(6, 4)"});
  throws([&] { k.gelu_forward(f32({4}), f32({5}), Gelu::exact); }, {"gelu_forward", "(4)", "(5)"});
  throws(
      [&] {
        k.layernorm_forward(f32({2, 4}), f32({2}), f32({2}), f32({2, 4}), f32({3}), f32({4}), 1e-5);
      },
      {"layernorm_forward", "gain", "(3)", "(4)"});
  throws(
      [&] {
        k.layernorm_backward({f32({2, 4})}, {f32({5})}, {}, f32({2, 4}), f32({2, 4}), f32({2}), f32({2}),
                             f32({4}));
      },
      {"layernorm_backward", "dgain", "(5)", "(4)"});
  throws(
      [&] {
        k.residual_forward(f32({2, 4}), f32({2, 4}), f32({4, 2}), {});
      },
      {"residual_forward", "branch", "(4, 2)", "(2, 4)"});
  throws(
      [&] {
        k.residual_layernorm_forward(f32({2, 4}), f32({2, 3}), f32({2}), f32({2}), f32({2, 4}), f32({2, 4}), {},
                                     f32({4}), f32({4}), 1e-5);
      },
      {"residual_layernorm_forward", "normed", "(2, 3)", "(2, 4)"});
  throws(
      [&] {
        k.residual_layernorm_backward(f32({2, 4}), {}, {}, {}, {}, {}, f32({2, 5}), f32({2, 4}), f32({2, 4}),
                                      f32({2}), f32({2}), f32({4}), {}, {});
      },
      {"residual_layernorm_backward", "dsum", "(2, 5)", "(2, 4)"});
  throws(
      [&] {
        k.linear_gelu_forward(f32({4, 7}), f32({4, 6}), f32({4, 5}), f32({7, 5}), {}, Gelu::exact);
      },
      {"linear_gelu_forward", "preactivation", "(4, 6)", "(4, 7)"});
  throws(
      [&] {
        k.linear_gelu_backward_input({f32({4, 4})}, {}, f32({4, 7}), f32({7, 5}), f32({4, 5}), Gelu::exact);
      },
      {"linear_gelu_backward_input", "dpreactivation", "(4, 4)", "(4, 5)"});
  throws(
      [&] {
        k.attention_forward(f32({1, 2, 4}), f32({1, 3, 2}), f32({1, 2, 12}), 3, false);
      },
      {"attention_forward", "3 heads", "(1, 2, 12)"});
  throws(
      [&] {
        k.attention_forward(f32({1, 2, 4}), f32({1, 2, 3}), f32({1, 2, 12}), 2, false);
      },
      {"attention_forward", "lse", "(1, 2, 3)", "(1, 2, 2)"});
  throws([&] { k.pool_forward(f32({2, 3}), f32({2, 5, 4}), {}); }, {"pool_forward", "(2, 3)", "(2, 4)"});
  throws(
      [&] {
        k.extract_patches(f32({4, 48}), Tensor({1, 8, 9, 3}, DType::u8), {}, 4, {});
      },
      {"extract_patches", "(1, 8, 9, 3)", "4"});
  throws(
      [&] {
        k.contrastive_forward(f32({}), f32({2}), f32({2}), f32({2, 4}), f32({2, 4}), f32({3, 4}), f32({3, 4}),
                              f32({}), 2);
      },
      {"contrastive_forward", "2 to 4", "(3, 4)"});
}

TEST_CASE("types") {
  Kernels& k = kernels(cpu_device);
  const Tensor half({4}, DType::bf16);
  throws([&] { k.gelu_forward(half, f32({4}), Gelu::exact); }, {"gelu_forward", "y is bf16", "f32"});
  throws([&] { k.gelu_backward({half}, f32({4}), f32({4}), Gelu::exact); },
         {"gelu_backward", "dx is bf16", "f32"});
  throws([&] { k.gelu_forward(i32({4}, 0), i32({4}, 0), Gelu::exact); },
         {"gelu_forward", "floating-point", "i32"});
  throws(
      [&] {
        k.find_largest_token(f32({1}), i32({1, 4}, 0));
      },
      {"find_largest_token", "place is f32", "i32"});
}

TEST_CASE("numbers out of range") {
  Kernels& k = kernels(cpu_device);
  throws(
      [&] {
        k.text_embed_forward(f32({1, 2, 4}), f32({10, 4}), f32({2, 4}), i32({1, 2}, 10));
      },
      {"text_embed_forward", "token 10", "10 rows"});
  throws(
      [&] {
        k.text_embed_backward({f32({10, 4})}, {}, f32({1, 2, 4}), i32({1, 2}, -1));
      },
      {"text_embed_backward", "token -1"});
  throws(
      [&] {
        k.vision_embed_forward(f32({1, 2, 4}), f32({1, 4}), f32({4}), f32({3, 4}), i32({1, 1}, 2));
      },
      {"vision_embed_forward", "patch 2", "(3, 4)"});
  throws(
      [&] {
        k.pool_forward(f32({1, 4}), f32({1, 5, 4}), i32({1}, 5));
      },
      {"pool_forward", "place 5", "(1, 5, 4)"});
  throws(
      [&] {
        k.choose_patches(Tensor({1, 5}, DType::i32), 4, 0, Tensor::of<int64_t>({}, {0}), 0);
      },
      {"choose_patches", "(1, 5)", "4"});
}

TEST_CASE("a device that is not there") {
  if (!cuda_available()) throws([&] { kernels(Device{Device::cuda, 0}); }, {"cuda:0", "--device cpu"});
}
