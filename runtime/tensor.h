// tensor.h: a contiguous array that owns (a share of) its memory.
//
// Copying a Tensor copies the handle, not the elements. Row slices and reshapes share storage with the whole.
// There are no strides: a layout change is an operation (design non-goal: general strides and broadcasting).
// Memory is uninitialised: every kernel writes its whole destination.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "runtime/view.h"

namespace switchback {

class CachingAllocator;

class Tensor {
 public:
  Tensor() = default;  // undefined: converts to an empty view
  Tensor(Shape shape, DType dtype, Device device = cpu_device);
  // A CPU tensor in page-locked memory (allocator.h), for copies that nobody waits for.
  static Tensor page_locked(Shape shape, DType dtype);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int64_t size() const { return shape_.size(); }
  int64_t rows() const { return shape_.rows(); }
  int64_t cols() const { return shape_.cols(); }
  void* data() const { return data_; }

  operator View() const { return {data_, shape_, dtype_, device_}; }
  operator CView() const { return {data_, shape_, dtype_, device_}; }
  View view() const { return *this; }

  // Whether another handle (a slice, a reshape, a copy of this one) shares the memory.
  bool is_shared() const { return storage_.use_count() > 1; }

  // Elements [from, from + count) of the first size; shares storage. (B, ...) -> (count, ...)
  Tensor slice(int64_t from, int64_t count) const;
  Tensor reshape(Shape shape) const;  // same number of elements; shares storage
  // `size` elements of a flat tensor from `from` on, seen with `shape`; shares storage.
  Tensor part(int64_t from, Shape shape) const;

  // CPU tensors only: the elements.
  template <class T>
  std::span<T> span() const {
    CHECK(device_.kind == Device::cpu, "span() of a tensor on ", device_);
    CHECK(dtype_ == dtype_of<T>, "tensor is ", dtype_, ", asked for ", dtype_of<T>);
    return {static_cast<T*>(data_), static_cast<size_t>(size())};
  }

  // A CPU tensor with these values.
  template <class T>
  static Tensor of(Shape shape, const std::vector<T>& values) {
    Tensor t(shape, dtype_of<T>);
    CHECK(static_cast<int64_t>(values.size()) == shape.size(), values.size(), " values for shape ", shape);
    std::memcpy(t.data(), values.data(), values.size() * sizeof(T));
    return t;
  }

 private:
  Tensor(Shape shape, DType dtype, Device device, CachingAllocator& memory);
  std::shared_ptr<void> storage_;
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_;
};

}  // namespace switchback
