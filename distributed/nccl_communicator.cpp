#include "distributed/nccl_communicator.h"

#ifdef SWITCHBACK_NCCL
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>
#include <mutex>
#include <thread>

#include "distributed/socket.h"
#include "distributed/watch.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/kernels.h"
#include "runtime/tensor.h"

namespace switchback {
namespace {

constexpr double set_up_seconds = 120;

void check_cuda(cudaError_t error, const char* call) {
  if (error != cudaSuccess) fail(call, ": ", cudaGetErrorString(error));
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ncclFloat64;
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i64:
      return ncclInt64;
    case DType::i32:
      return ncclInt32;
    case DType::i8:
      return ncclInt8;
    case DType::u8:
      return ncclUint8;
  }
  return ncclUint8;
}

ncclRedOp_t nccl_operation(Reduction reduction) { return reduction == Reduction::sum ? ncclSum : ncclMax; }

// The communicator as the main thread and the watch's thread share it.
struct Handle {
  std::mutex mutex;
  ncclComm_t communicator = nullptr;
  bool aborted = false;

  void abort() {
    const std::lock_guard lock(mutex);
    if (communicator && !aborted) ncclCommAbort(communicator);
    aborted = true;
  }
  // What went wrong since the last call that was fine; empty: nothing.
  std::string trouble() {
    const std::lock_guard lock(mutex);
    ncclResult_t result = ncclSuccess;
    if (!communicator || aborted || ncclCommGetAsyncError(communicator, &result) != ncclSuccess) return "";
    if (result == ncclSuccess || result == ncclInProgress) return "";
    return concat("NCCL: ", ncclGetErrorString(result), " (", ncclGetLastError(communicator), ")");
  }
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Device device, Communicator& host, Watch& watch)
      : Communicator(host.rank(), host.world_size()), device_(device), host_(host), watch_(watch) {
    compute_ = static_cast<cuda::CudaKernels&>(kernels(device)).stream();
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
    check_cuda(cudaEventCreateWithFlags(&before_, cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventCreateWithFlags(&after_, cudaEventDisableTiming), "cudaEventCreate");

    ncclUniqueId id;
    if (rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    Tensor bytes({static_cast<int64_t>(sizeof id)}, DType::u8);
    std::memcpy(bytes.data(), &id, sizeof id);
    host.broadcast(bytes, 0);
    std::memcpy(&id, bytes.data(), sizeof id);

    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    watch.waiting(true, "setting up NCCL");
    // "In progress" is an answer, too: finish() waits for the end.
    finish(ncclCommInitRankConfig(&communicator_, world_size(), id, rank(), &config), "ncclCommInitRank");
    watch.waiting(false);
    handle_->communicator = communicator_;
    watch.on_fault([handle = handle_] { handle->abort(); });
    watch.probe([handle = handle_] { return handle->trouble(); });
  }

  ~NcclCommunicator() override {
    cudaStreamSynchronize(stream_);  // a failed run's communicator is aborted: its kernels have ended
    handle_->abort();                // finalising would wait for peers, and nothing is left to flush
    cudaEventDestroy(before_);
    cudaEventDestroy(after_);
    cudaStreamDestroy(stream_);
  }

  void barrier() override { host_.barrier(); }

  void join() override {
    check_cuda(cudaEventRecord(after_, stream_), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(compute_, after_, 0), "cudaStreamWaitEvent");
  }

 private:
  [[noreturn]] void give_up(ncclResult_t result, const char* call) {
    watch_.check();  // a rank that failed explains NCCL's error better than NCCL does
    const char* more = ncclGetLastError(nullptr);
    fail(call, ": ", ncclGetErrorString(result), more && *more ? concat(" (", more, ")") : std::string(),
         "; NCCL_DEBUG=WARN says more");
  }
  void check(ncclResult_t result, const char* call) {
    if (result != ncclSuccess && result != ncclInProgress) give_up(result, call);
  }

  // Waits until the call is enqueued everywhere that it must be.
  void finish(ncclResult_t result, const char* call) {
    check(result, call);
    const double deadline = steady_seconds() + set_up_seconds;
    while (result == ncclInProgress) {
      watch_.check();
      check(ncclCommGetAsyncError(communicator_, &result), call);
      if (result != ncclSuccess && result != ncclInProgress) give_up(result, call);
      if (steady_seconds() > deadline)
        fail(call, ": not done within ", set_up_seconds, " s; NCCL_DEBUG=INFO says where it waits");
      if (result == ncclInProgress) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  // The operation begins after everything that the kernels' stream holds now.
  template <class F>
  void run(const char* name, const CView& data, F&& f) {
    CHECK(data.device == device_, name, " of memory of ", data.device, " by the communicator of ", device_);
    check_cuda(cudaEventRecord(before_, compute_), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(stream_, before_, 0), "cudaStreamWaitEvent");
    finish(f(), name);
  }

  void run_all_reduce(View data, Reduction reduction) override {
    run("ncclAllReduce", data, [&] {
      return ncclAllReduce(data.data, data.data, static_cast<size_t>(data.size()), nccl_type(data.dtype),
                           nccl_operation(reduction), communicator_, stream_);
    });
  }
  void run_reduce(View data, int root, Reduction reduction) override {
    run("ncclReduce", data, [&] {
      return ncclReduce(data.data, data.data, static_cast<size_t>(data.size()), nccl_type(data.dtype),
                        nccl_operation(reduction), root, communicator_, stream_);
    });
  }
  void run_reduce_scatter(View own, CView all, Reduction reduction) override {
    run("ncclReduceScatter", all, [&] {
      return ncclReduceScatter(all.data, own.data, static_cast<size_t>(own.size()), nccl_type(own.dtype),
                               nccl_operation(reduction), communicator_, stream_);
    });
  }
  void run_all_gather(View all, CView own) override {
    run("ncclAllGather", own, [&] {
      return ncclAllGather(own.data, all.data, static_cast<size_t>(own.size()), nccl_type(own.dtype),
                           communicator_, stream_);
    });
  }
  void run_broadcast(View data, int root) override {
    run("ncclBroadcast", data, [&] {
      return ncclBroadcast(data.data, data.data, static_cast<size_t>(data.size()), nccl_type(data.dtype),
                           root, communicator_, stream_);
    });
  }

  Device device_;
  Communicator& host_;
  Watch& watch_;
  cudaStream_t compute_ = nullptr, stream_ = nullptr;
  cudaEvent_t before_ = nullptr, after_ = nullptr;
  ncclComm_t communicator_ = nullptr;
  std::shared_ptr<Handle> handle_ = std::make_shared<Handle>();
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Device device, Communicator& host, Watch& watch) {
  return std::make_unique<NcclCommunicator>(device, host, watch);
}

int visible_gpus() { return cuda::device_count(); }

std::string gpu_seat(Device device) {
  if (device.kind == Device::cpu) return "";
  char name[32] = "";
  check_cuda(cudaDeviceGetPCIBusId(name, sizeof name, device.index), "cudaDeviceGetPCIBusId");
  return concat("GPU ", name);
}

}  // namespace switchback

#else

namespace switchback {

std::unique_ptr<Communicator> make_nccl_communicator(Device device, Communicator&, Watch&) {
  fail("ranks on ", device,
       ": this program was built without NCCL; install libnccl-dev and build again, or use --device cpu");
}

int visible_gpus() { return 0; }
std::string gpu_seat(Device) { return ""; }

}  // namespace switchback
#endif
