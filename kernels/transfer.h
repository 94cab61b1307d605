// transfer.h: whole tensors between host and device.
#pragma once

#include "kernels/kernels.h"
#include "runtime/tensor.h"

namespace switchback {

// A host tensor on `device`: the tensor itself when it is there already.
inline Tensor to_device(const Tensor& host, Device device) {
  if (host.device() == device) return host;
  Kernels& k = kernels(device);  // first: a GPU's memory comes with its kernels
  Tensor t(host.shape(), host.dtype(), device);
  k.upload(t, host);
  return t;
}

// A tensor in host memory: the tensor itself when it is there already.
inline Tensor to_host(const Tensor& tensor) {
  if (tensor.device() == cpu_device) return tensor;
  Tensor t(tensor.shape(), tensor.dtype());
  kernels(tensor.device()).download(t, tensor);
  return t;
}

// The one number of a () or (1) float tensor.
inline double number(const Tensor& tensor) {
  CHECK(tensor.size() == 1, "number() of a tensor of shape ", tensor.shape());
  Tensor host = to_host(tensor);
  return visit_float(host.dtype(), "number", [&](auto tag) {
    return static_cast<double>(host.span<decltype(tag)>()[0]);
  });
}

}  // namespace switchback
