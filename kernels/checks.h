// checks.h: preconditions of kernels, for both devices: the op's name, the operand, what it is and what it
// should be. Plain C++ that nvcc reads as well.
//
// The functions are members of a class of the device, so that each side says where its operands must lie once
// (kernels/cpu/access.h, kernels/cuda/launch.cuh) and its kernels just write check_shape(op, "y", y, ...).
#pragma once

#include "runtime/view.h"

namespace switchback {

template <Device::Kind kind>
struct Checks {
  static void place(const char* op, const char* name, const CView& x, DType dtype) {
    CHECK(x.data || x.size() == 0, op, ": ", name, " is missing");
    CHECK(x.device.kind == kind, op, ": ", name, " is on ", x.device, ", this kernel runs on ",
          kind == Device::cpu ? "the cpu" : "a GPU");
    CHECK(x.dtype == dtype, op, ": ", name, " is ", x.dtype, ", it must be ", dtype);
  }
  static void shape(const char* op, const char* name, const CView& x, const Shape& shape, DType dtype) {
    place(op, name, x, dtype);
    CHECK(x.shape == shape, op, ": ", name, " is ", x.shape, ", it must be ", shape);
  }
  // Leading sizes may be split differently: only rows and columns count.
  static void matrix(const char* op, const char* name, const CView& x, int64_t rows, int64_t cols,
                     DType dtype) {
    place(op, name, x, dtype);
    CHECK(x.size() == rows * cols && (x.size() == 0 || x.cols() == cols), op, ": ", name, " is ", x.shape,
          ", it must be ", Shape{rows, cols});
  }
  static void vector(const char* op, const char* name, const CView& x, int64_t size, DType dtype) {
    place(op, name, x, dtype);
    CHECK(x.size() == size, op, ": ", name, " is ", x.shape, ", it must be ", Shape{size});
  }
  static void scalar(const char* op, const char* name, const CView& x, DType dtype) {
    CHECK(x.data && x.size() == 1, op, ": ", name, " is ", x.shape, ", it must be one number");
    place(op, name, x, dtype);
  }
  // Sinks may be empty, and may have the type of statistics.
  static void sink(const char* op, const char* name, const Sink& sink, int64_t rows, int64_t cols,
                   DType dtype) {
    if (!sink) return;
    const bool wider = sink.to.dtype == statistics_dtype(dtype);
    matrix(op, name, sink.to, rows, cols, wider ? sink.to.dtype : dtype);
  }
  static void sink_vector(const char* op, const char* name, const Sink& sink, int64_t size, DType dtype) {
    if (!sink) return;
    const bool wider = sink.to.dtype == statistics_dtype(dtype);
    vector(op, name, sink.to, size, wider ? sink.to.dtype : dtype);
  }
};

}  // namespace switchback
