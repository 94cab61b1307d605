#include "models/text_length.h"

#include <algorithm>

#include "kernels/recipe.h"

namespace switchback {

bool text_may_stop(const ClipConfig& config) {
  return !config.whole_text && !linear_recipe(config.text.linear).rows_share_scales();
}

int64_t text_length(const Tensor& tokens) {
  CHECK(tokens.shape().rank() == 2, "tokens are ", tokens.shape(), ", they must be (B, T)");
  const int64_t columns = tokens.cols();
  const auto ids = tokens.span<int32_t>();
  int64_t longest = 0;
  for (auto row = ids.begin(); row != ids.end(); row += columns)  // of equal ids the first one counts
    longest = std::max(longest, std::max_element(row, row + columns) - row + 1);
  constexpr int64_t finest = 8, lengths = 10;
  const int64_t step = finest * std::max<int64_t>((columns + finest * lengths - 1) / (finest * lengths), 1);
  return std::min((std::max<int64_t>(longest, 1) + step - 1) / step * step, columns);
}

void copy_columns(const Tensor& to, const Tensor& from) {
  const int64_t length = to.cols(), columns = from.cols();
  CHECK(to.rows() == from.rows() && length <= columns, "the columns of ", from.shape(), " to ", to.shape());
  const auto source = from.span<int32_t>(), destination = to.span<int32_t>();
  for (int64_t row = 0; row < to.rows(); ++row)
    std::copy_n(source.begin() + row * columns, length, destination.begin() + row * length);
}

}  // namespace switchback
