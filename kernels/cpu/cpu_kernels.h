// cpu_kernels.h: the definitions. Each op of op_list.h as plain loops over f64, f32 and bf16; the file of an
// op family carries its name. They are what every faster kernel is tested against.
#pragma once

#include "kernels/kernels.h"

namespace switchback {

class CpuKernels final : public Kernels {
 public:
#define KERNEL(op, arguments) void op arguments override;
#include "kernels/op_list.h"
#undef KERNEL
  void upload(View to, CView host) override;
  void download(View host, CView from) override;
};

}  // namespace switchback
