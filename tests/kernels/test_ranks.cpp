// A loss that is split over ranks adds up to the whole, in value and in every gradient (f64, 1e-12). Nothing
// is scaled by the number of ranks: each rank's share is divided by the global N already.
#include "tests/kernels/testing.h"

using namespace switchback;

namespace {

void add(Array& sum, const Array& more) {
  sum.resize(std::max(sum.size(), more.size()));
  for (size_t i = 0; i < more.size(); ++i) sum[i] += more[i];
}

// Rows of all ranks one after the other; scalars (rank 0) added.
Arrays joined(const std::function<OpCase(const LossSizes&)>& make, int64_t all, int64_t width,
              int64_t ranks) {
  Arrays whole;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t from = all * rank / ranks, to = all * (rank + 1) / ranks;
    const OpCase op = make({all, to - from, from, width});
    for (const auto& [name, values] : run(op, {DType::f64})) {
      const auto operand = std::ranges::find(op.operands, name, &Operand::name);
      if (operand->shape.rank() == 0)
        add(whole[name], values);
      else
        whole[name].insert(whole[name].end(), values.begin(), values.end());
    }
  }
  return whole;
}

void check_ranks(const std::function<OpCase(const LossSizes&)>& make) {
  for (int64_t all : {20, 77, 301}) {
    const Arrays one = joined(make, all, 24, 1);
    for (int64_t ranks : {2, 4}) {
      const Arrays shared = joined(make, all, 24, ranks);
      REQUIRE(shared.size() == one.size());
      for (const auto& [name, values] : one) {
        const double error = error_of(shared.at(name), values);
        INFO(name, " of ", ranks, " ranks, N = ", all, ": error ", error);
        CHECK(error <= 1e-12);
      }
    }
  }
}

}  // namespace

TEST_CASE("softmax loss over ranks adds up") {
  check_ranks([](const LossSizes& s) { return contrastive_forward_case(s); });
  check_ranks([](const LossSizes& s) { return contrastive_backward_case(s); });
}

TEST_CASE("sigmoid loss over ranks adds up") {
  // As a ring: every rank its images against every rank's texts.
  for (int64_t all : {20, 76, 300}) {
    for (const auto& make : {&siglip_forward_case, &siglip_backward_case}) {
      const Arrays one = run(make({all, 0, all, 0, all, 24}), {DType::f64});
      for (int64_t ranks : {2, 4}) {
        const int64_t own = all / ranks;
        Arrays sums;
        for (int64_t row = 0; row < all; row += own)
          for (int64_t column = 0; column < all; column += own)
            for (const auto& [name, values] : run(make({all, row, own, column, own, 24}), {DType::f64})) {
              const int64_t first = name == "dimages" ? row * 24 : name == "dtexts" ? column * 24 : 0;
              Array& sum = sums[name];
              sum.resize(one.at(name).size());
              for (size_t i = 0; i < values.size(); ++i) sum[static_cast<size_t>(first) + i] += values[i];
            }
        REQUIRE(sums.size() == one.size());
        for (const auto& [name, values] : one) {
          const double error = error_of(sums.at(name), values);
          INFO(name, " of ", ranks, " ranks, N = ", all, ": error ", error);
          CHECK(error <= 1e-12);
        }
      }
    }
  }
}

TEST_CASE("losses far out stay finite") {
  // Logits of ±100 times cosine 1: exp would overflow f32 without the two-pass sums.
  const int64_t n = 40, width = 8;
  Operand images = random_unit_rows("all_images", n, width);
  Tensor rows({n, width}, DType::f32), scale = Tensor::of<float>({}, {std::log(100.0f)}),
                                       loss({}, DType::f32);
  Tensor image_lse({n}, DType::f32), text_lse({n}, DType::f32);
  for (int64_t i = 0; i < n * width; ++i) rows.span<float>()[i] = static_cast<float>(images.values[i]);
  Kernels& k = kernels(cpu_device);
  k.contrastive_forward(loss, image_lse, text_lse, rows, rows, rows, rows, scale, 0);
  CHECK(std::isfinite(loss.span<float>()[0]));
  k.siglip_forward({loss, false}, rows, rows, scale, Tensor::of<float>({}, {-100.0f}), 0, n);
  CHECK(std::isfinite(loss.span<float>()[0]));
}

TEST_CASE("one pair has no softmax loss and no gradient") {
  const Arrays forward = run(contrastive_forward_case({1, 1, 0, 8}), {DType::f64});
  const Arrays backward = run(contrastive_backward_case({1, 1, 0, 8}), {DType::f64});
  CHECK(std::fabs(forward.at("loss")[0]) < 1e-13);
  // lse comes rounded to f64 from exp and log: 14 nats, so about 1e-15 relative
  for (double g : backward.at("dimages")) CHECK(std::fabs(g) < 1e-12);
}
