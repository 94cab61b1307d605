#include "runtime/tensor.h"

#include "runtime/allocator.h"

namespace switchback {

Tensor::Tensor(Shape shape, DType dtype, Device device) : Tensor(shape, dtype, device, allocator(device)) {}

Tensor Tensor::page_locked(Shape shape, DType dtype) {
  return Tensor(shape, dtype, cpu_device, page_locked_memory());
}

Tensor::Tensor(Shape shape, DType dtype, Device device, CachingAllocator& memory)
    : shape_(shape), dtype_(dtype), device_(device) {
  const size_t bytes = static_cast<size_t>(shape.size()) * size_of(dtype);
  data_ = memory.take(bytes);
  storage_ = std::shared_ptr<void>(data_, [&memory](void* p) { memory.give(p); });
}

Tensor Tensor::slice(int64_t from, int64_t count) const {
  CHECK(shape_.rank() > 0 && from >= 0 && count >= 0 && from + count <= shape_[0], "slice [", from, ", ",
        from + count, ") of a tensor of shape ", shape_);
  const int64_t stride = shape_[0] == 0 ? 0 : size() / shape_[0];
  Tensor t = *this;
  t.shape_ = shape_.with_first(count);
  t.data_ = static_cast<char*>(data_) + static_cast<size_t>(from * stride) * size_of(dtype_);
  return t;
}

Tensor Tensor::reshape(Shape shape) const {
  CHECK(shape.size() == size(), "reshape ", shape_, " to ", shape, ": element counts differ");
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::part(int64_t from, Shape shape) const {
  CHECK(from >= 0 && from + shape.size() <= size(), "part [", from, ", ", from + shape.size(), ") of ",
        shape_);
  Tensor t = *this;
  t.shape_ = shape;
  t.data_ = static_cast<char*>(data_) + static_cast<size_t>(from) * size_of(dtype_);
  return t;
}

}  // namespace switchback
