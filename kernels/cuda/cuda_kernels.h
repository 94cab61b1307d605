// cuda_kernels.h: the ops of op_list.h on one GPU; the file of an op family carries its name, like the CPU's.
//
// All work goes to one stream that the object owns; uploads beside the kernels go to a second one, and an
// op that does two things at once forks to a third and joins before it returns. No op waits for the device,
// and none takes memory from the driver: temporary tensors come from the caching allocator, whose blocks
// may be used again at once because whoever gets them works on the same stream. Every result has the same
// bits every time: sums are cut into chunks that depend on the shape alone, and no kernel adds floats
// atomically.
//
// Numbers that index (tokens, patches, places) lie on the device, so the host cannot check them: a number
// out of range gives a row of NaN in a forward pass and is left out in a backward pass. Nothing is read or
// written outside.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kernels/kernels.h"
#include "runtime/tensor.h"

namespace switchback::cuda {

class GemmPlans;
struct GemmWeightGradient;
struct QuantizeBeside;

class CudaKernels final : public Kernels {
 public:
  explicit CudaKernels(Device device);  // registers the device's memory, too
  ~CudaKernels() override;
#define KERNEL(op, arguments) void op arguments override;
#include "kernels/op_list.h"
#undef KERNEL
  void upload(View to, CView host) override;
  void download(View host, CView from) override;
  void synchronize() override;
  std::unique_ptr<Moment> mark() override;
  std::unique_ptr<Moment> upload_beside(View to, CView host, const Moment* after) override;
  void wait_for(const Moment& moment) override;
  void download_later(View host, CView from) override;
  std::unique_ptr<Recording> record(const std::function<void()>& work) override;

  cudaStream_t stream() const { return stream_; }
  Device device() const { return device_; }
  Tensor scratch(Shape shape, DType dtype = DType::f32) const { return Tensor(shape, dtype, device_); }
  GemmPlans& products() const { return *products_; }

 private:
  // Has begin(stream) put work on another stream, which starts when all that was put on this one has ended;
  // join_beside: what comes next here waits for it.
  void fork_beside(const std::function<void(cudaStream_t)>& begin);
  void join_beside();
  // dw, and beside it a sweep over dy that makes codes (unless `codes` has nowhere to put them) and sums of
  // its rows. False, and nothing done, where that is not worth it.
  bool weight_gradient_beside(const GemmWeightGradient& product, const QuantizeBeside& codes, Sink sums);
  struct Staging;
  void require_no_recording(const char* what) const;
  Device device_;
  cudaStream_t stream_ = nullptr, upload_stream_ = nullptr, beside_stream_ = nullptr;
  cudaEvent_t fork_ = nullptr, join_ = nullptr;
  bool recording_ = false;
  std::unique_ptr<GemmPlans> products_;
  std::unique_ptr<Staging> staging_;
};

// How many GPUs this process can use; when none, why not ("" otherwise). Works without a driver.
int device_count(std::string* why_none = nullptr);

// The kernels of a GPU, made on first use. Makes it the calling thread's current device.
Kernels& kernels_of(Device device);

}  // namespace switchback::cuda
