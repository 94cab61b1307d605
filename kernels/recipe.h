// recipe.h: the paper's ways to compute a linear layer in low precision, as a table (its section 2).
//
//   forward          y  = x wᵀ      x (M, K), w (N, K), y (M, N)      the sum runs over K
//   backward_input   dx = dy w      dy (M, N)                         over N
//   backward_weight  dw = dyᵀ x                                       over M, the tokens
//
// A recipe says for each product whether it is computed in 16 bits, in 16 bits with operands rounded to an
// 8-bit grid (a simulation), or on 8-bit codes; and for each operand its format and what shares a scale. A
// scale must not change along the sum: rows of x and w in the forward product, rows of dy and columns of w in
// the second, columns of both in the third.
//
// Why SwitchBack leaves the third product alone: the noise of a sum grows with its length, and M (tokens of a
// batch) is ten times K and N.
//
// The functions below are one linear layer on tensors; autograd's ops call them. Weights are prepared once a
// step for both products that read them.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace switchback {

struct LinearRecipe {
  enum Kind : uint8_t { sixteen_bit, simulated, codes };
  enum Saved : uint8_t {
    input,         // x
    input_codes,   // the codes of the forward product (SwitchBack-M): a byte an element
    input_columns  // those of the weight's product, transposed
  };
  struct Operand {
    Format format = Format::none;
    Granularity by = Granularity::tensor;
  };
  struct Product {
    Kind kind = sixteen_bit;
    Operand left, right;
  };

  std::string_view name;
  Product forward;          // x, w
  Product backward_input;   // dy, w
  Product backward_weight;  // dy, x
  Saved saved = input;
  std::string_view what;  // for --help

  // What the rows of a linear's input, and of its output's gradient, are coded in; none: they are not.
  Format input_row_codes() const {
    return forward.kind == codes && forward.left.by == Granularity::row ? forward.left.format : Format::none;
  }
  Format gradient_row_codes() const {
    return backward_input.kind == codes && backward_input.left.by == Granularity::row
               ? backward_input.left.format
               : Format::none;
  }
  // What the weight's codes are in when they are the same both ways, with one scale, so that those of the
  // second product are the first one's transposed; none: they are not.
  Format weight_codes() const {
    const bool same = forward.kind == codes && backward_input.kind == codes &&
                      forward.right.format == backward_input.right.format &&
                      forward.right.by == Granularity::tensor &&
                      backward_input.right.by == Granularity::tensor;
    return same && has_codes(forward.right.format) ? forward.right.format : Format::none;
  }
  // Whether the rows of an input share a scale, so that a row changes what its neighbours are rounded to.
  bool rows_share_scales() const {
    return (forward.kind != sixteen_bit && forward.left.by != Granularity::row) ||
           backward_weight.kind != sixteen_bit;
  }
  bool is_standard() const {
    return forward.kind == sixteen_bit && backward_input.kind == sixteen_bit &&
           backward_weight.kind == sixteen_bit;
  }
};

// standard, switchback, switchback-m, switchback-q, llm-int8, fp8-sim, switchback-fp8-sim, switchback-fp8,
// fp8
std::span<const LinearRecipe> linear_recipes();
// Error for a name that is not in the table: it lists what is.
const LinearRecipe& linear_recipe(std::string_view name);
const LinearRecipe& standard_recipe();
// Throws an Error where a scale changes along a sum, or a product mixes kinds.
void check_recipe(const LinearRecipe& recipe);

// What a recipe makes of a weight, once a step. Undefined tensors: not needed.
struct PreparedWeight {
  Tensor rounded;  // (N, K) on the grid, for simulated products
  Codes forward;   // codes (N, K)
  Codes input;     // codes (K, N): transposed
};
// Memory for it (T: the type of the values). forward: for the codes of the forward product, where they have
// memory already.
PreparedWeight prepared_weight(const LinearRecipe& recipe, Shape shape, DType values, Device device,
                               const Codes& forward = {});
// How many numbers the scale of a weight (N, K) with weight_codes() takes.
int64_t scale_copies(const LinearRecipe& recipe, Shape shape);
// w (N, K): the values, or the f32 masters that they were rounded from. largest (1) f32: max |w|, where it is
// known.
void prepare_weight(const PreparedWeight& to, const LinearRecipe& recipe, CView w, CView largest = {});
// Many at once, in few launches where recipes allow.
struct WeightToPrepare {
  const PreparedWeight* to;
  const LinearRecipe* recipe;
  CView w;
  CView largest = {};
};
void prepare_weights(const std::vector<WeightToPrepare>& weights);

// An activation or a gradient on its way into a linear layer. codes: of its rows, where the kernel that made
// the value has made them, too (in the format that the recipe asks for).
struct RowOperand {
  Tensor value;
  Codes codes;
};

// Before linear_backward_input: makes the codes of dy's rows where the recipe wants some and nobody has made
// them, and in the same sweep dbias. True: dbias is done; linear_backward_weight is to have none.
bool quantize_gradient(const LinearRecipe& recipe, RowOperand& dy, Sink dbias);

// What the forward pass keeps for dw.
struct SavedInput {
  Tensor value;  // (M, K)
  Codes codes;   // input_codes: (M, K); input_columns: (K, M')
};

// quantize_gradient as above, and dw meanwhile, where that is a 16-bit product: it does not wait for the
// codes. The sinks of what is done are empty afterwards.   dy (M, N), dw (N, K), dbias (N)
void quantize_gradient(const LinearRecipe& recipe, RowOperand& dy, Sink& dw, Sink& dbias,
                       const SavedInput& saved);

// y = x wᵀ + bias. Fills `saved` when it is given. w: the values; read by 16-bit products alone.
void linear_forward(const LinearRecipe& recipe, View y, SavedInput* saved, const RowOperand& x, CView w,
                    const PreparedWeight& prepared, CView bias);
// dx = dy w
void linear_backward_input(const LinearRecipe& recipe, Sink dx, const RowOperand& dy, CView w,
                           const PreparedWeight& prepared);
// dw = dyᵀ x, dbias = Σ_rows dy (always of the unquantised dy)
void linear_backward_weight(const LinearRecipe& recipe, Sink dw, Sink dbias, const Tensor& dy,
                            const SavedInput& saved);

}  // namespace switchback
