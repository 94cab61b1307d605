// timeline.cpp: events, copies beside the kernels, and the CUDA graph of a stretch of work.
//
// Recording: the stream is captured, so that the ops' launches become nodes of a graph. Their addresses are
// fixed from then on, so the allocator writes down what was taken meanwhile, keeps its segments, and before
// every replay makes sure that nobody else holds those addresses. A copy from or to host memory would read
// the same place at every replay: it has no business in a recorded stretch, and says so.
#include "kernels/timeline.h"

#include "kernels/cuda/cuda_check.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "runtime/allocator.h"

namespace switchback::cuda {
namespace {

class Event final : public Moment {
 public:
  explicit Event(cudaStream_t stream) {
    // The host sleeps while it waits: its cores are for decoding.
    CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventBlockingSync));
    CUDA_CHECK(cudaEventRecord(event_, stream));
  }
  ~Event() override { cudaEventDestroy(event_); }
  bool passed() const override {
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) return false;
    CUDA_CHECK(state);
    return true;
  }
  void wait() const override { CUDA_CHECK(cudaEventSynchronize(event_)); }
  double seconds_since(const Moment& earlier) const override {
    earlier.wait();
    wait();
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, of(earlier), event_));
    return milliseconds * 1e-3;
  }
  static cudaEvent_t of(const Moment& moment) { return dynamic_cast<const Event&>(moment).event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class StepGraph final : public Recording {
 public:
  StepGraph(cudaGraph_t graph, cudaStream_t stream, CachingAllocator& memory, int recording)
      : stream_(stream), memory_(memory), recording_(recording) {
    const cudaError_t error = cudaGraphInstantiate(&graph_, graph, 0);
    if (error != cudaSuccess) memory_.forget_recording(recording_);
    CHECK(error == cudaSuccess, "cudaGraphInstantiate: ", cudaGetErrorString(error));
    cudaGraphUpload(graph_, stream_);  // now rather than within the first replay
  }
  ~StepGraph() override {
    cudaStreamSynchronize(stream_);
    cudaGraphExecDestroy(graph_);
    memory_.forget_recording(recording_);
  }
  void replay() override {
    memory_.check_recording(recording_);
    CUDA_CHECK(cudaGraphLaunch(graph_, stream_));
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
  cudaStream_t stream_;
  CachingAllocator& memory_;
  int recording_;
};

}  // namespace

void CudaKernels::require_no_recording(const char* what) const {
  if (recording_) fail(what, " within a recorded step: only kernels can be replayed; run with --eager");
}

std::unique_ptr<Moment> CudaKernels::mark() {
  require_no_recording("mark");
  return std::make_unique<Event>(stream_);
}

std::unique_ptr<Moment> CudaKernels::upload_beside(View to, CView host, const Moment* after) {
  CHECK(to.size() == host.size() && to.dtype == host.dtype, "upload of ", host.dtype, " ", host.shape, " to ",
        to.dtype, " ", to.shape);
  CHECK(to.device.kind == Device::cuda && host.device.kind == Device::cpu, "upload from ", host.device,
        " to ", to.device);
  require_no_recording("upload");
  if (after) CUDA_CHECK(cudaStreamWaitEvent(upload_stream_, Event::of(*after)));
  if (host.bytes() > 0)
    CUDA_CHECK(cudaMemcpyAsync(to.data, host.data, host.bytes(), cudaMemcpyHostToDevice, upload_stream_));
  return std::make_unique<Event>(upload_stream_);
}

void CudaKernels::wait_for(const Moment& moment) {
  require_no_recording("wait_for");
  CUDA_CHECK(cudaStreamWaitEvent(stream_, Event::of(moment)));
}

void CudaKernels::download_later(View host, CView from) {
  CHECK(host.size() == from.size() && host.dtype == from.dtype, "download of ", from.dtype, " ", from.shape,
        " to ", host.dtype, " ", host.shape);
  CHECK(from.device.kind == Device::cuda && host.device.kind == Device::cpu, "download from ", from.device,
        " to ", host.device);
  require_no_recording("download");
  CUDA_CHECK(cudaMemcpyAsync(host.data, from.data, from.bytes(), cudaMemcpyDeviceToHost, stream_));
}

std::unique_ptr<Recording> CudaKernels::record(const std::function<void()>& work) {
  require_no_recording("record");
  CachingAllocator& memory = allocator(device_);
  memory.begin_recording();
  cudaGraph_t graph = nullptr;
  try {
    // Other threads may go on asking the driver for memory: only this thread's calls are restricted.
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    recording_ = true;
    work();
    recording_ = false;
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
  } catch (...) {
    if (recording_) cudaStreamEndCapture(stream_, &graph);
    recording_ = false;
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    memory.abandon_recording();
    throw;
  }
  struct Owner {
    cudaGraph_t graph;
    ~Owner() { cudaGraphDestroy(graph); }
  } owner{graph};
  return std::make_unique<StepGraph>(graph, stream_, memory, memory.end_recording());
}

}  // namespace switchback::cuda
