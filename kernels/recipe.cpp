#include "kernels/recipe.h"

#include <algorithm>
#include <array>
#include <map>
#include <string>

namespace switchback {
namespace {

using Kind = LinearRecipe::Kind;
using Operand = LinearRecipe::Operand;
using Product = LinearRecipe::Product;
constexpr Granularity tensor = Granularity::tensor, row = Granularity::row, column = Granularity::column;

constexpr Product sixteen_bit{};
constexpr Product codes(Operand left, Operand right) { return {LinearRecipe::codes, left, right}; }
constexpr Product simulated(Operand left, Operand right) { return {LinearRecipe::simulated, left, right}; }
constexpr Operand int8(Granularity by) { return {Format::int8, by}; }
constexpr Operand e4m3(Granularity by) { return {Format::e4m3, by}; }
constexpr Operand e5m2(Granularity by) { return {Format::e5m2, by}; }
constexpr Operand paper_e4m3(Granularity by) { return {Format::paper_e4m3, by}; }
constexpr Operand paper_e5m2(Granularity by) { return {Format::paper_e5m2, by}; }

constexpr std::array recipes{
    LinearRecipe{.name = "standard", .what = "16-bit products"},
    // Algorithm 1
    LinearRecipe{.name = "switchback",
                 .forward = codes(int8(row), int8(tensor)),
                 .backward_input = codes(int8(row), int8(tensor)),
                 .what = "int8, the weight's gradient in 16 bits"},
    // Algorithm 3
    LinearRecipe{.name = "switchback-m",
                 .forward = codes(int8(row), int8(tensor)),
                 .backward_input = codes(int8(row), int8(tensor)),
                 .saved = LinearRecipe::input_codes,
                 .what = "switchback that saves its input in 8 bits"},
    // Algorithm 4
    LinearRecipe{.name = "switchback-q",
                 .forward = codes(int8(row), int8(row)),
                 .backward_input = codes(int8(row), int8(column)),
                 .what = "switchback with a scale for each row or column of the weight"},
    LinearRecipe{.name = "llm-int8",
                 .forward = codes(int8(row), int8(row)),
                 .backward_input = codes(int8(row), int8(column)),
                 .backward_weight = codes(int8(column), int8(column)),
                 .what = "int8 in all three products"},
    LinearRecipe{.name = "fp8-sim",
                 .forward = simulated(paper_e4m3(tensor), paper_e4m3(tensor)),
                 .backward_input = simulated(paper_e5m2(tensor), paper_e4m3(tensor)),
                 .backward_weight = simulated(paper_e5m2(tensor), paper_e4m3(tensor)),
                 .what = "8-bit floats in all three products, simulated, one scale a tensor"},
    LinearRecipe{.name = "switchback-fp8-sim",
                 .forward = simulated(paper_e4m3(row), paper_e4m3(tensor)),
                 .backward_input = simulated(paper_e5m2(row), paper_e4m3(tensor)),
                 .what = "8-bit floats, simulated, the weight's gradient in 16 bits"},
    // Beyond the paper: on the GPU's own 8-bit floats.
    LinearRecipe{.name = "switchback-fp8",
                 .forward = codes(e4m3(row), e4m3(tensor)),
                 .backward_input = codes(e5m2(row), e4m3(tensor)),
                 .what = "8-bit floats, the weight's gradient in 16 bits"},
    LinearRecipe{.name = "fp8",
                 .forward = codes(e4m3(row), e4m3(row)),
                 .backward_input = codes(e5m2(row), e4m3(column)),
                 .backward_weight = codes(e5m2(column), e4m3(column)),
                 .saved = LinearRecipe::input_columns,
                 .what = "8-bit floats in all three products, a scale for each row and column"},
};

// Inner sizes of transposed codes are multiples of 16: what 8-bit products want. The padding is 0.
int64_t padded(int64_t inner) { return (inner + 15) / 16 * 16; }

int64_t scales_of(const Operand& operand, int64_t rows, int64_t cols) {
  return operand.by == row ? rows : operand.by == column ? cols : 1;
}

// The codes of x (M, C) as they lie.
Codes codes_of(const Tensor& x, const Operand& o) {
  Codes made{Tensor(x.shape(), code_dtype(o.format, x.dtype()), x.device()),
             Tensor({scales_of(o, x.rows(), x.cols())}, DType::f32, x.device()), o.format};
  kernels(x.device()).quantize(made.codes, {}, made.scale, x, {}, o.format, o.by);
  return made;
}
// The codes of x (M, C) as (C, M').
Codes transposed_codes_of(const Tensor& x, const Operand& o) {
  Codes made{Tensor({x.cols(), padded(x.rows())}, code_dtype(o.format, x.dtype()), x.device()),
             Tensor({scales_of(o, x.rows(), x.cols())}, DType::f32, x.device()), o.format};
  kernels(x.device()).quantize({}, made.codes, made.scale, x, {}, o.format, o.by);
  return made;
}
Tensor rounded(const Tensor& x, const Operand& o) {
  Tensor y(x.shape(), x.dtype(), x.device());
  kernels(x.device()).round_to_grid(y, x, {}, o.format, o.by);
  return y;
}
Codes row_codes(const RowOperand& x, const Operand& o) {
  if (!x.codes.defined()) return codes_of(x.value, o);
  CHECK(x.codes.format == o.format && o.by == row, "the operand's codes are ", x.codes.format,
        ", the recipe asks for ", o.format, " by ", o.by);
  return x.codes;
}

// Memory for the codes of x's rows.
Codes row_codes_for(const Tensor& x, Format format) {
  return {Tensor(x.shape(), code_dtype(format, x.dtype()), x.device()),
          Tensor({x.rows()}, DType::f32, x.device()), format};
}
// x, as a 16-bit weight gradient reads it.
Tensor input_values(const LinearRecipe& r, const SavedInput& saved, DType dtype) {
  if (r.saved != LinearRecipe::input_codes) return saved.value;
  const Tensor codes = saved.codes.codes;
  Tensor x({codes.rows(), codes.cols()}, dtype, codes.device());
  kernels(x.device()).dequantize(x, codes, saved.codes.scale, saved.codes.format, r.forward.left.by);
  return x;
}

// A product of codes into a sink, which may add, or be wider.
void product_into(Sink to, const CodeView& a, const CodeView& b, DType values, Device device) {
  Kernels& k = kernels(device);
  if (!to.accumulate && to.to.dtype == values) return k.product_of_codes(to.to, a, b, {});
  const Tensor y(Shape{a.codes.rows(), b.codes.rows()}, values, device);
  k.product_of_codes(y, a, b, {});
  k.accumulate(to, y);
}

}  // namespace

std::span<const LinearRecipe> linear_recipes() { return recipes; }
const LinearRecipe& standard_recipe() { return recipes[0]; }

const LinearRecipe& linear_recipe(std::string_view name) {
  for (const LinearRecipe& recipe : recipes)
    if (recipe.name == name) return recipe;
  std::string known;
  for (const LinearRecipe& recipe : recipes) known += concat(known.empty() ? "" : ", ", recipe.name);
  fail("the recipe ", name, " of linears (--linear) is not known: it is one of ", known);
}

void check_recipe(const LinearRecipe& r) {
  const auto check = [&](const char* which, const Product& p, Granularity left_not, Granularity right_not) {
    CHECK(p.left.by != left_not, r.name, ", ", which, ": the left scale changes along the sum");
    CHECK(p.right.by != right_not, r.name, ", ", which, ": the right scale changes along the sum");
    for (const Operand& o : {p.left, p.right}) {
      const bool coded = has_codes(o.format) || o.format == Format::exact, plain = o.format == Format::none;
      CHECK(p.kind == LinearRecipe::codes         ? coded
            : p.kind == LinearRecipe::sixteen_bit ? plain
                                                  : !plain,
            r.name, ", ", which, ": an operand in ", o.format);
    }
  };
  check("forward", r.forward, column, column);
  check("backward_input", r.backward_input, column, row);
  check("backward_weight", r.backward_weight, row, row);
  CHECK(r.forward.kind == r.backward_input.kind, r.name, ": forward and backward_input are of one kind");
  CHECK(r.saved == LinearRecipe::input || r.forward.kind == LinearRecipe::codes, r.name, ": saves codes of ",
        "a product that has none");
  CHECK((r.saved == LinearRecipe::input_codes) <= (r.backward_weight.kind == LinearRecipe::sixteen_bit),
        r.name, ": codes of rows are dequantised for a 16-bit product");
  CHECK((r.saved == LinearRecipe::input_columns) <= (r.backward_weight.kind == LinearRecipe::codes), r.name,
        ": codes of columns are for a product of codes");
}

// One scale for all comes as a vector where cuBLASLt's 8-bit floats are to read it.
int64_t scale_copies(const LinearRecipe& r, Shape shape) {
  return r.forward.right.format == Format::int8 ? 1 : std::max(shape.rows(), shape.cols());
}

PreparedWeight prepared_weight(const LinearRecipe& r, Shape shape, DType values, Device device,
                               const Codes& memory) {
  PreparedWeight w;
  const int64_t rows = shape.rows(), cols = shape.cols();
  if (r.forward.kind == LinearRecipe::simulated) w.rounded = Tensor({rows, cols}, values, device);
  if (r.forward.kind != LinearRecipe::codes) return w;
  const Operand forward = r.forward.right, input = r.backward_input.right;
  const int64_t copies = scale_copies(r, shape);
  w.forward = memory.defined()
                  ? memory
                  : Codes{Tensor({rows, cols}, code_dtype(forward.format, values), device),
                          Tensor({forward.by == tensor ? copies : rows}, DType::f32, device), forward.format};
  w.input = {Tensor({cols, rows}, code_dtype(input.format, values), device),
             Tensor({input.by == tensor ? copies : cols}, DType::f32, device), input.format};
  if (forward.format == input.format && forward.by == input.by) w.input.scale = w.forward.scale;
  return w;
}

void prepare_weight(const PreparedWeight& to, const LinearRecipe& r, CView w, CView largest) {
  Kernels& k = kernels(w.device);
  const auto known = [&](const Operand& o) { return o.by == tensor ? largest : CView{}; };
  const Operand forward = r.forward.right, input = r.backward_input.right;
  if (r.forward.kind == LinearRecipe::simulated)
    k.round_to_grid(to.rounded, w, known(forward), forward.format, forward.by);
  if (r.forward.kind != LinearRecipe::codes) return;
  if (forward.format == input.format && forward.by == input.by) {  // both ways at once
    k.quantize(to.forward.codes, to.input.codes, to.forward.scale, w, known(forward), forward.format,
               forward.by);
    return;
  }
  k.quantize(to.forward.codes, {}, to.forward.scale, w, known(forward), forward.format, forward.by);
  k.quantize({}, to.input.codes, to.input.scale, w, known(input), input.format, input.by);
}

void prepare_weights(const std::vector<WeightToPrepare>& weights) {
  std::map<Format, std::vector<WeightCodes>> at_once;
  for (const WeightToPrepare& weight : weights) {
    const Operand forward = weight.recipe->forward.right, input = weight.recipe->backward_input.right;
    const PreparedWeight& to = *weight.to;
    if (has_codes(forward.format) && forward.by == tensor && input.by == tensor &&
        forward.format == input.format)
      at_once[forward.format].push_back(
          {to.forward.codes, to.input.codes, to.forward.scale, weight.w, weight.largest});
    else
      prepare_weight(to, *weight.recipe, weight.w, weight.largest);
  }
  for (const auto& [format, group] : at_once) kernels(group[0].w.device).quantize_weights(group, format);
}

void linear_forward(const LinearRecipe& r, View y, SavedInput* saved, const RowOperand& x, CView w,
                    const PreparedWeight& prepared, CView bias) {
  Kernels& k = kernels(y.device);
  Codes x_codes;
  switch (r.forward.kind) {
    case LinearRecipe::sixteen_bit:
      k.linear_forward(y, x.value, w, bias);
      break;
    case LinearRecipe::simulated:
      k.linear_forward(y, rounded(x.value, r.forward.left), prepared.rounded, bias);
      break;
    case LinearRecipe::codes:
      if (!x.codes.defined() && r.forward.left.by == row) {
        x_codes = row_codes_for(x.value, r.forward.left.format);
        k.product_and_codes(y, x_codes.codes, x_codes.scale, x.value, prepared.forward, bias, x_codes.format);
      } else {
        x_codes = row_codes(x, r.forward.left);
        k.product_of_codes(y, x_codes, prepared.forward, bias);
      }
      break;
  }
  if (!saved) return;
  switch (r.saved) {
    case LinearRecipe::input:
      saved->value = x.value;
      break;
    case LinearRecipe::input_codes:
      saved->codes = x_codes;
      break;
    case LinearRecipe::input_columns:
      saved->codes = transposed_codes_of(x.value, r.backward_weight.right);
      break;
  }
}

bool quantize_gradient(const LinearRecipe& r, RowOperand& dy, Sink dbias) {
  const Format format = r.gradient_row_codes();
  if (format == Format::none || dy.codes.defined()) return false;
  dy.codes = row_codes_for(dy.value, format);
  kernels(dy.value.device())
      .quantize(dy.codes.codes, {}, dy.codes.scale, dy.value, {}, format, Granularity::row, dbias);
  return true;
}

void quantize_gradient(const LinearRecipe& r, RowOperand& dy, Sink& dw, Sink& dbias,
                       const SavedInput& saved) {
  const Format format = r.gradient_row_codes();
  if (!dw || format == Format::none || dy.codes.defined() ||
      r.backward_weight.kind != LinearRecipe::sixteen_bit) {
    if (quantize_gradient(r, dy, dbias)) dbias = {};
    return;
  }
  dy.codes = row_codes_for(dy.value, format);
  kernels(dy.value.device())
      .linear_backward_weight_and_codes(dw, dy.codes.codes, dy.codes.scale, dbias, dy.value,
                                        input_values(r, saved, dy.value.dtype()), format);
  dw = dbias = {};
}

void linear_backward_input(const LinearRecipe& r, Sink dx, const RowOperand& dy, CView w,
                           const PreparedWeight& prepared) {
  if (!dx) return;
  Kernels& k = kernels(dx.to.device);
  switch (r.backward_input.kind) {
    case LinearRecipe::sixteen_bit:
      return k.linear_backward_input(dx, dy.value, w);
    case LinearRecipe::simulated:
      return k.linear_backward_input(dx, rounded(dy.value, r.backward_input.left), prepared.rounded);
    case LinearRecipe::codes:
      return product_into(dx, row_codes(dy, r.backward_input.left), prepared.input, dy.value.dtype(),
                          dy.value.device());
  }
}

void linear_backward_weight(const LinearRecipe& r, Sink dw, Sink dbias, const Tensor& dy,
                            const SavedInput& saved) {
  Kernels& k = kernels(dy.device());
  const Product& product = r.backward_weight;
  if (!dw) return k.linear_backward_weight({}, dbias, dy, dy);  // reads no x
  if (product.kind == LinearRecipe::sixteen_bit)
    return k.linear_backward_weight(dw, dbias, dy, input_values(r, saved, dy.dtype()));
  if (dbias) k.linear_backward_weight({}, dbias, dy, dy);
  if (product.kind == LinearRecipe::simulated)
    return k.linear_backward_weight(dw, {}, rounded(dy, product.left), rounded(saved.value, product.right));
  const Codes x =
      r.saved == LinearRecipe::input_columns ? saved.codes : transposed_codes_of(saved.value, product.right);
  product_into(dw, transposed_codes_of(dy, product.left), x, dy.dtype(), dy.device());
}

}  // namespace switchback
