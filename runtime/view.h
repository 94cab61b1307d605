// view.h: what kernels see. A view borrows memory and knows its shape, type and device; it never owns.
//
//   CView  read-only source
//   View   writable
//   Sink   a destination of a gradient: overwrite it, or add to it. An empty sink is a gradient nobody wants:
//          kernels skip the work.
//
// An empty view (data == nullptr) stands for an absent optional operand (no bias, no layer-scale).
#pragma once

#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/shape.h"

namespace switchback {

struct CView {
  const void* data = nullptr;
  Shape shape;
  DType dtype = DType::f32;
  Device device;

  explicit operator bool() const { return data != nullptr; }
  int64_t size() const { return shape.size(); }
  int64_t rows() const { return shape.rows(); }
  int64_t cols() const { return shape.cols(); }
  size_t bytes() const { return static_cast<size_t>(shape.size()) * size_of(dtype); }
  template <class T>
  const T* as() const {
    CHECK(!data || dtype == dtype_of<T>, "view is ", dtype, ", asked for ", dtype_of<T>);
    return static_cast<const T*>(data);
  }
};

struct View {
  void* data = nullptr;
  Shape shape;
  DType dtype = DType::f32;
  Device device;

  explicit operator bool() const { return data != nullptr; }
  operator CView() const { return {data, shape, dtype, device}; }
  int64_t size() const { return shape.size(); }
  int64_t rows() const { return shape.rows(); }
  int64_t cols() const { return shape.cols(); }
  size_t bytes() const { return static_cast<size_t>(shape.size()) * size_of(dtype); }
  template <class T>
  T* as() const {
    CHECK(!data || dtype == dtype_of<T>, "view is ", dtype, ", asked for ", dtype_of<T>);
    return static_cast<T*>(data);
  }
};

struct Sink {
  View to;
  bool accumulate = false;
  explicit operator bool() const { return static_cast<bool>(to); }
};

}  // namespace switchback
