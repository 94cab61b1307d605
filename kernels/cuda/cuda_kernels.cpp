// cuda_kernels.cpp: which GPUs there are, their kernels, and the way between host and device memory.
#include "kernels/cuda/cuda_kernels.h"

#include <array>
#include <cstring>
#include <mutex>

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "runtime/allocator.h"
#include "runtime/cuda_memory.h"

namespace switchback::cuda {

// Small uploads (the scalars of a step, a batch of token numbers) go through page-locked memory, so that
// nobody waits: a ring whose wrap-around waits for the stream once.
struct CudaKernels::Staging {
  static constexpr size_t bytes = size_t{1} << 20, largest = bytes / 4;
  Tensor buffer = Tensor::page_locked({bytes}, DType::u8);
  size_t used = 0;

  char* take(size_t size, cudaStream_t stream) {
    const size_t rounded = (size + 63) / 64 * 64;
    if (used + rounded > bytes) {
      CUDA_CHECK(cudaStreamSynchronize(stream));
      used = 0;
    }
    char* place = static_cast<char*>(buffer.data()) + used;
    used += rounded;
    return place;
  }
};

CudaKernels::CudaKernels(Device device) : device_(device) {
  CUDA_CHECK(cudaSetDevice(device.index));
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaStreamCreateWithFlags(&upload_stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaStreamCreateWithFlags(&beside_stream_, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&fork_, &join_})
    CUDA_CHECK(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
  register_allocator(device, cuda_memory(device));
  register_page_locked_memory([device] { return page_locked_memory(device); });
  products_ = std::make_unique<GemmPlans>(device, stream_);
  staging_ = std::make_unique<Staging>();
}

CudaKernels::~CudaKernels() {
  products_.reset();
  for (cudaEvent_t event : {fork_, join_}) cudaEventDestroy(event);
  cudaStreamDestroy(beside_stream_);
  cudaStreamDestroy(upload_stream_);
  cudaStreamDestroy(stream_);
}

void CudaKernels::fork_beside(const std::function<void(cudaStream_t)>& begin) {
  CUDA_CHECK(cudaEventRecord(fork_, stream_));
  CUDA_CHECK(cudaStreamWaitEvent(beside_stream_, fork_));
  begin(beside_stream_);
  CUDA_CHECK(cudaEventRecord(join_, beside_stream_));
}
void CudaKernels::join_beside() { CUDA_CHECK(cudaStreamWaitEvent(stream_, join_)); }

void CudaKernels::upload(View to, CView host) {
  CHECK(to.size() == host.size() && to.dtype == host.dtype, "upload of ", host.dtype, " ", host.shape, " to ",
        to.dtype, " ", to.shape);
  CHECK(to.device.kind == Device::cuda && host.device.kind == Device::cpu, "upload from ", host.device,
        " to ", to.device);
  require_no_recording("upload");
  const size_t bytes = host.bytes();
  if (bytes == 0) return;
  if (bytes <= Staging::largest) {
    char* staged = staging_->take(bytes, stream_);
    std::memcpy(staged, host.data, bytes);
    CUDA_CHECK(cudaMemcpyAsync(to.data, staged, bytes, cudaMemcpyHostToDevice, stream_));
    return;
  }
  CUDA_CHECK(cudaMemcpyAsync(to.data, host.data, bytes, cudaMemcpyHostToDevice, stream_));
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

void CudaKernels::download(View host, CView from) {
  CHECK(host.size() == from.size() && host.dtype == from.dtype, "download of ", from.dtype, " ", from.shape,
        " to ", host.dtype, " ", host.shape);
  CHECK(from.device.kind == Device::cuda && host.device.kind == Device::cpu, "download from ", from.device,
        " to ", host.device);
  if (from.bytes() > 0) download_later(host, from);
  synchronize();
}

void CudaKernels::synchronize() {
  require_no_recording("synchronize");
  CUDA_CHECK(cudaStreamSynchronize(stream_));
}

int device_count(std::string* why_none) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    count = 0;
  }
  if (why_none)
    *why_none = error != cudaSuccess ? cudaGetErrorString(error)
                : count == 0         ? "the driver shows no GPU"
                                     : "";
  return count;
}

Kernels& kernels_of(Device device) {
  // Never destroyed: static tensors may outlive it, and the driver ends before static destructors do.
  static std::array<CudaKernels*, 64> made{};
  static std::mutex mutex;
  thread_local int current = -1;
  CHECK(device.kind == Device::cuda, "CUDA kernels of ", device);
  if (current != device.index || !made[static_cast<size_t>(device.index)]) {
    const std::lock_guard lock(mutex);
    std::string why;
    const int count = device_count(&why);
    if (count == 0) fail("kernels of ", device, ": no usable GPU here (", why, "); use --device cpu");
    if (device.index < 0 || device.index >= count)
      fail("kernels of ", device, ": this machine has GPUs 0 to ", count - 1);
    CUDA_CHECK(cudaSetDevice(device.index));
    CudaKernels*& slot = made.at(static_cast<size_t>(device.index));
    if (!slot) slot = new CudaKernels(device);
    current = device.index;
  }
  return *made[static_cast<size_t>(device.index)];
}

}  // namespace switchback::cuda
