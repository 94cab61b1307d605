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
  std::unique_ptr<Moment> mark() override;
  std::unique_ptr<Moment> upload_beside(View to, CView host, const Moment* after) override;
  void wait_for(const Moment& moment) override;
  void download_later(View host, CView from) override;
  std::unique_ptr<Recording> record(const std::function<void()>& work) override;
};

}  // namespace switchback
