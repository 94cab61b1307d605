// kernels.cpp: the kernels of a device.
#include "kernels/kernels.h"

#include "kernels/cpu/cpu_kernels.h"
#ifdef SWITCHBACK_CUDA
#include "kernels/cuda/cuda_kernels.h"
#endif

namespace switchback {

Kernels& kernels(Device device) {
  static CpuKernels cpu;
  if (device.kind == Device::cpu) return cpu;
#ifdef SWITCHBACK_CUDA
  return cuda::kernels_of(device);
#else
  fail("kernels of ", device, ": this program was built without CUDA; use --device cpu");
#endif
}

bool cuda_available() {
#ifdef SWITCHBACK_CUDA
  return cuda::device_count() > 0;
#else
  return false;
#endif
}

}  // namespace switchback
