// shape.h: at most four sizes, row-major and contiguous. Shape{} (rank 0) is a scalar with one element.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>

#include "runtime/check.h"

namespace switchback {

class Shape {
 public:
  static constexpr int max_rank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : rank_(static_cast<int>(sizes.size())) {
    CHECK(sizes.size() <= max_rank, "a shape has at most ", max_rank, " sizes");
    int i = 0;
    for (int64_t size : sizes) {
      CHECK(size >= 0, "a shape has no negative size, got ", size);
      sizes_[i++] = size;
    }
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return sizes_[i < 0 ? rank_ + i : i]; }  // negative: from the end
  int64_t size() const {                                                     // number of elements
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= sizes_[i];
    return n;
  }
  // A tensor seen as a matrix: cols() is the last size, rows() the product of the others.
  int64_t cols() const { return rank_ == 0 ? 1 : sizes_[rank_ - 1]; }
  int64_t rows() const { return cols() == 0 ? 0 : size() / cols(); }

  // The same shape with the last size replaced: (B, T, C).with_cols(N) is (B, T, N).
  Shape with_cols(int64_t cols) const {
    CHECK(rank_ > 0, "a scalar has no columns");
    Shape s = *this;
    s.sizes_[rank_ - 1] = cols;
    return s;
  }
  // The same shape with the first size replaced.
  Shape with_first(int64_t first) const {
    CHECK(rank_ > 0, "a scalar has no rows");
    Shape s = *this;
    s.sizes_[0] = first;
    return s;
  }
  void append(int64_t size) {
    CHECK(rank_ < max_rank, "a shape has at most ", max_rank, " sizes");
    sizes_[rank_++] = size;
  }

  friend bool operator==(const Shape&, const Shape&) = default;
  friend std::ostream& operator<<(std::ostream& out, const Shape& s) {
    out << '(';
    for (int i = 0; i < s.rank_; ++i) out << (i ? ", " : "") << s.sizes_[i];
    return out << ')';
  }

 private:
  std::array<int64_t, max_rank> sizes_{};
  int rank_ = 0;
};

}  // namespace switchback
