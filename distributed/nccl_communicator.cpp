#include "distributed/nccl_communicator.h"

#ifdef SWITCHBACK_NCCL
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "distributed/socket.h"
#include "distributed/watch.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/spared.h"
#include "runtime/environment_number.h"
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

// How many multiprocessors NCCL's kernels may take, and persistent kernels leave to them meanwhile
// (spared.h); 0: as many as NCCL likes, and none are left, which was the faster of the two where it was
// measured (docs/benchmarks/h200x2.md).
int multiprocessors_of_collectives() {
  return environment_number("SWITCHBACK_COLLECTIVE_SMS", 0, 64, "; 0: NCCL's own choice").value_or(0);
}

// The communicator as the main thread and the watch's share it. Aborting frees it, so every call of NCCL is
// made under the mutex and none after `aborted`; calls do not block (config.blocking = 0), so nobody holds it
// for long.
class Handle : public std::enable_shared_from_this<Handle> {
 public:
  // f(communicator), or nothing when it is aborted.
  template <class F>
  std::optional<ncclResult_t> call(F&& f) {
    const std::lock_guard lock(mutex_);
    if (aborted_) return {};
    return f(communicator_);
  }

  // Ends NCCL's kernels, and with them every wait for this GPU. On a thread of its own: ncclCommAbort returns
  // when recorded steps that hold collectives are gone, too, and those go when the main thread does.
  void abort() {
    std::thread([handle = shared_from_this()] {
      ncclComm_t communicator = nullptr;
      {
        const std::lock_guard lock(handle->mutex_);
        if (handle->aborted_) return;
        handle->aborted_ = true;
        communicator = std::exchange(handle->communicator_, nullptr);
      }
      if (communicator) ncclCommAbort(communicator);
      const std::lock_guard lock(handle->mutex_);
      handle->gone_ = true;
      handle->changed_.notify_all();
    }).detach();
  }

  bool aborted() {
    const std::lock_guard lock(mutex_);
    return aborted_;
  }

  // The end: aborts as well, for finalising would wait for peers, and nothing is left to flush.
  void close(double seconds) {
    abort();
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return gone_; });
  }

  // What NCCL has been unhappy with for three seconds: a rank that died is noticed by the watch before that,
  // and its line says more. Empty: nothing.
  std::string trouble() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || aborted_ || !communicator_) return "";
    ncclResult_t result = ncclSuccess;
    const bool fine = ncclCommGetAsyncError(communicator_, &result) == ncclSuccess &&
                      (result == ncclSuccess || result == ncclInProgress);
    const double now = steady_seconds();
    if (fine) fine_at_ = now;
    if (now < fine_at_ + 3) return "";
    return concat("NCCL: ", ncclGetErrorString(result), " (", ncclGetLastError(communicator_), ")");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  ncclComm_t communicator_ = nullptr;
  bool aborted_ = false, gone_ = false;
  double fine_at_ = steady_seconds();
};

struct Stream {
  cudaStream_t stream = nullptr;
  ~Stream() {
    if (stream) cudaStreamDestroy(stream);
  }
};
struct Event {
  cudaEvent_t event = nullptr;
  ~Event() {
    if (event) cudaEventDestroy(event);
  }
};
// Whatever ends the communicator's life, its set-up among it, ends NCCL's as well.
struct OwnedHandle {
  std::shared_ptr<Handle> handle = std::make_shared<Handle>();
  ~OwnedHandle() { handle->close(5); }
  Handle* operator->() const { return handle.get(); }
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Device device, Communicator& host, Watch& watch)
      : Communicator(host.rank(), host.world_size()), device_(device), host_(host), watch_(watch) {
    compute_ = static_cast<cuda::CudaKernels&>(kernels(device)).stream();
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check_cuda(cudaStreamCreateWithPriority(&stream_.stream, cudaStreamNonBlocking, greatest), "cudaStreamCreate");
    check_cuda(cudaEventCreateWithFlags(&before_.event, cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventCreateWithFlags(&after_.event, cudaEventDisableTiming), "cudaEventCreate");
    watch.on_fault([handle = handle_.handle] { handle->abort(); });

    ncclUniqueId id;
    if (rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    Tensor bytes({static_cast<int64_t>(sizeof id)}, DType::u8);
    std::memcpy(bytes.data(), &id, sizeof id);
    host.broadcast(bytes, 0);
    std::memcpy(&id, bytes.data(), sizeof id);

    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    spared_ = multiprocessors_of_collectives();
    if (spared_ > 0) config.maxCTAs = spared_;
    watch.waiting(true, "setting up NCCL");
    // "In progress" is an answer, too: call() waits for the end.
    call("ncclCommInitRank", [&](ncclComm_t& communicator) {
      return ncclCommInitRankConfig(&communicator, world_size(), id, rank(), &config);
    });
    watch.waiting(false);
    watch.probe([handle = handle_.handle] { return handle->trouble(); });
  }

  ~NcclCommunicator() override {
    if (!handle_->aborted()) cudaStreamSynchronize(stream_.stream);
  }

  void barrier() override { host_.barrier(); }

  void join() override {
    if (!on_their_way_) return;
    on_their_way_ = false;
    cuda::spare_multiprocessors(0);
    check_cuda(cudaEventRecord(after_.event, stream_.stream), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(compute_, after_.event, 0), "cudaStreamWaitEvent");
  }

 private:
  [[noreturn]] void give_up(ncclResult_t result, const char* name) {
    // A rank that failed explains NCCL's error better than NCCL does; the word of it may be on its way.
    for (int i = 0; i < 30; ++i) {
      watch_.check();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    const char* more = ncclGetLastError(nullptr);
    fail(name, ": ", ncclGetErrorString(result), more && *more ? concat(" (", more, ")") : std::string(),
         "; NCCL_DEBUG=WARN says more");
  }
  void check(ncclResult_t result, const char* name) {
    if (result != ncclSuccess && result != ncclInProgress) give_up(result, name);
  }
  template <class F>
  ncclResult_t locked(const char* name, F&& f) {
    const std::optional<ncclResult_t> result = handle_->call(f);
    if (!result) {
      watch_.check();
      fail(name, ": the communicator was aborted");
    }
    check(*result, name);
    return *result;
  }

  // Returns when the operation is enqueued everywhere that it must be: a few microseconds, as a rule.
  template <class F>
  void call(const char* name, F&& f) {
    ncclResult_t result = locked(name, f);
    const double start = steady_seconds();
    while (result == ncclInProgress) {
      watch_.check();
      const ncclResult_t asked = locked(
          name, [&](ncclComm_t& communicator) { return ncclCommGetAsyncError(communicator, &result); });
      check(asked, name);
      check(result, name);
      const double waited = steady_seconds() - start;
      if (waited > set_up_seconds)
        fail(name, ": not done within ", set_up_seconds, " s; NCCL_DEBUG=INFO says where it waits");
      if (result != ncclInProgress) return;
      if (waited < 0.001)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  // The operation begins after everything that the kernels' stream holds now.
  template <class F>
  void run(const char* name, const CView& data, F&& f) {
    CHECK(data.device == device_, name, " of memory of ", data.device, " by the communicator of ", device_);
    check_cuda(cudaEventRecord(before_.event, compute_), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(stream_.stream, before_.event, 0), "cudaStreamWaitEvent");
    on_their_way_ = true;
    cuda::spare_multiprocessors(spared_);
    call(name, [&](ncclComm_t& communicator) { return f(communicator, stream_.stream); });
  }

  void run_all_reduce(View data, Reduction reduction) override {
    run("ncclAllReduce", data, [&](ncclComm_t communicator, cudaStream_t stream) {
      return ncclAllReduce(data.data, data.data, static_cast<size_t>(data.size()), nccl_type(data.dtype),
                           nccl_operation(reduction), communicator, stream);
    });
  }
  void run_reduce(View data, int root, Reduction reduction) override {
    run("ncclReduce", data, [&](ncclComm_t communicator, cudaStream_t stream) {
      return ncclReduce(data.data, data.data, static_cast<size_t>(data.size()), nccl_type(data.dtype),
                        nccl_operation(reduction), root, communicator, stream);
    });
  }
  void run_reduce_scatter(View own, CView all, Reduction reduction) override {
    run("ncclReduceScatter", all, [&](ncclComm_t communicator, cudaStream_t stream) {
      return ncclReduceScatter(all.data, own.data, static_cast<size_t>(own.size()), nccl_type(own.dtype),
                               nccl_operation(reduction), communicator, stream);
    });
  }
  void run_all_gather(View all, CView own) override {
    run("ncclAllGather", own, [&](ncclComm_t communicator, cudaStream_t stream) {
      return ncclAllGather(own.data, all.data, static_cast<size_t>(own.size()), nccl_type(own.dtype),
                           communicator, stream);
    });
  }
  void run_broadcast(View data, int root) override {
    run("ncclBroadcast", data, [&](ncclComm_t communicator, cudaStream_t stream) {
      return ncclBroadcast(data.data, data.data, static_cast<size_t>(data.size()), nccl_type(data.dtype),
                           root, communicator, stream);
    });
  }
  // All of them as one operation; f(): enqueues one after the other, until one of them fails.
  template <class F>
  static ncclResult_t together(F&& f) {
    if (const ncclResult_t begun = ncclGroupStart(); begun != ncclSuccess) return begun;
    const ncclResult_t inside = f(), end = ncclGroupEnd();  // what was begun must end
    return is_fine(inside) ? end : inside;
  }
  static bool is_fine(ncclResult_t r) { return r == ncclSuccess || r == ncclInProgress; }

  void run_broadcasts(std::span<const FromRoot> many) override {
    run("ncclBroadcast", many[0].data, [&](ncclComm_t communicator, cudaStream_t stream) {
      return together([&] {
        ncclResult_t result = ncclSuccess;
        for (const auto& [data, root] : many)
          if (data.size() > 0 && is_fine(result))
            result = ncclBroadcast(data.data, data.data, static_cast<size_t>(data.size()),
                                   nccl_type(data.dtype), root, communicator, stream);
        return result;
      });
    });
  }
  void run_shift(View to, CView from) override {
    run("ncclSend and ncclRecv", from, [&](ncclComm_t communicator, cudaStream_t stream) {
      const auto count = static_cast<size_t>(from.size());
      const int next = (rank() + 1) % world_size(), before = (rank() + world_size() - 1) % world_size();
      return together([&] {
        const ncclResult_t sent =
            ncclSend(from.data, count, nccl_type(from.dtype), next, communicator, stream);
        if (!is_fine(sent)) return sent;
        return ncclRecv(to.data, count, nccl_type(to.dtype), before, communicator, stream);
      });
    });
  }

  Device device_;
  Communicator& host_;
  Watch& watch_;
  cudaStream_t compute_ = nullptr;
  Stream stream_;
  Event before_, after_;
  int spared_ = 0;
  bool on_their_way_ = false;  // operations that nobody has joined yet
  OwnedHandle handle_;         // goes first: NCCL's kernels end before their stream does
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
