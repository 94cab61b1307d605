// kernels.cpp: the kernels of a device.
#include "kernels/kernels.h"

#include "kernels/cpu/cpu_kernels.h"

namespace switchback {

Kernels& kernels(Device device) {
  static CpuKernels cpu;
  if (device.kind != Device::cpu)
    fail("kernels of ", device, ": this program was built without CUDA; use --device cpu");
  return cpu;
}

}  // namespace switchback
