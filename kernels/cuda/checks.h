// checks.h: preconditions of the CUDA launchers: the op's name, the operand, what it is and what it should
// be. Plain C++: host code alone.
#pragma once

#include "runtime/view.h"

namespace switchback::cuda {

inline void check_place(const char* op, const char* name, const CView& x, DType dtype) {
  CHECK(x.data || x.size() == 0, op, ": ", name, " is missing");
  CHECK(x.device.kind == Device::cuda, op, ": ", name, " is on ", x.device, ", this kernel runs on a GPU");
  CHECK(x.dtype == dtype, op, ": ", name, " is ", x.dtype, ", it must be ", dtype);
}
inline void check_shape(const char* op, const char* name, const CView& x, const Shape& shape, DType dtype) {
  check_place(op, name, x, dtype);
  CHECK(x.shape == shape, op, ": ", name, " is ", x.shape, ", it must be ", shape);
}
// Leading sizes may be split differently: only rows and columns count.
inline void check_matrix(const char* op, const char* name, const CView& x, int64_t rows, int64_t cols,
                         DType dtype) {
  check_place(op, name, x, dtype);
  CHECK(x.size() == rows * cols && (x.size() == 0 || x.cols() == cols), op, ": ", name, " is ", x.shape,
        ", it must be ", Shape{rows, cols});
}
inline void check_vector(const char* op, const char* name, const CView& x, int64_t size, DType dtype) {
  check_place(op, name, x, dtype);
  CHECK(x.size() == size, op, ": ", name, " is ", x.shape, ", it must be ", Shape{size});
}
// Sinks may be empty, and may have the type of statistics.
inline void check_sink(const char* op, const char* name, const Sink& sink, int64_t rows, int64_t cols,
                       DType dtype) {
  if (!sink) return;
  const bool wider = sink.to.dtype == statistics_dtype(dtype);
  check_matrix(op, name, sink.to, rows, cols, wider ? sink.to.dtype : dtype);
}
inline void check_sink_vector(const char* op, const char* name, const Sink& sink, int64_t size, DType dtype) {
  if (!sink) return;
  const bool wider = sink.to.dtype == statistics_dtype(dtype);
  check_vector(op, name, sink.to, size, wider ? sink.to.dtype : dtype);
}
inline void check_scalar(const char* op, const char* name, const CView& x, DType dtype) {
  CHECK(x.data && x.size() == 1, op, ": ", name, " is ", x.shape, ", it must be one number");
  check_place(op, name, x, dtype);
}

}  // namespace switchback::cuda
