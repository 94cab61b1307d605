#include "distributed/socket_communicator.h"

#include <thread>

#include "distributed/rank_order.h"
#include "distributed/watch.h"

namespace switchback {
namespace {

enum class Operation : int32_t { all_reduce, reduce, reduce_scatter, all_gather, broadcast, shift, barrier };
constexpr const char* operation_names[] = {"all_reduce", "reduce",    "reduce_scatter",
                                           "all_gather", "broadcast", "shift", "barrier"};

// What a rank is about to do: all of them must say the same.
struct Call {
  int64_t number = 0;
  int64_t elements = 0;
  Operation operation{};
  int32_t dtype = 0, reduction = 0, root = 0;
  friend bool operator==(const Call&, const Call&) = default;

  std::string describe() const {
    return concat(operation_names[static_cast<int>(operation)], " number ", number, " (", elements, " ",
                  static_cast<DType>(dtype), ")");
  }
};

class SocketCommunicator final : public Communicator {
 public:
  SocketCommunicator(int rank, int world_size, std::vector<Socket> data, Watch* watch, double patience)
      : Communicator(rank, world_size), sockets_(std::move(data)), watch_(watch), patience_(patience) {}

  void barrier() override {
    char nothing = 0;
    begin(Operation::barrier, {&nothing, {0}, DType::u8, cpu_device}, Reduction::sum, 0);
    if (rank() == 0) {
      gather(nullptr, 0);
      for (int r = 1; r < world_size(); ++r) send(r, &nothing, 1);
    } else {
      receive(0, &nothing, 1);
    }
    end();
  }

 private:
  // ---- words between this rank and another, with whom and at what in every error ----

  template <class F>
  void with(int peer, F&& f) {
    const double deadline = steady_seconds() + patience_;
    const auto tick = [&] {
      if (watch_) watch_->check();
      if (steady_seconds() > deadline)
        fail("rank ", rank(), " has waited ", patience_, " s for rank ", peer, " in ", call_.describe());
    };
    try {
      f(sockets_[rank() == 0 ? static_cast<size_t>(peer) : 0], tick);
    } catch (const ConnectionClosed&) {
      // The watch knows more than "closed", a moment later.
      for (int i = 0; watch_ && i < 30; ++i) {
        watch_->check();
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
      fail("rank ", rank(), ": rank ", peer, " has closed its connection in ", call_.describe());
    }
  }
  void send(int peer, const void* data, size_t bytes) {
    with(peer, [&](const Socket& s, const auto& tick) { s.send(data, bytes, tick); });
  }
  void receive(int peer, void* data, size_t bytes) {
    with(peer, [&](const Socket& s, const auto& tick) { s.receive(data, bytes, tick); });
  }

  void begin(Operation operation, const CView& data, Reduction reduction, int root) {
    CHECK(data.device == cpu_device, "sockets carry host memory, not that of ", data.device);
    call_ = {
        ++calls_, data.size(), operation, static_cast<int32_t>(data.dtype), static_cast<int32_t>(reduction),
        root};
    if (watch_) watch_->waiting(true, call_.describe());
    if (rank() != 0) send(0, &call_, sizeof call_);
  }
  void end() {
    if (watch_) watch_->waiting(false);
  }

  // Rank 0: every other rank's call, and its `bytes` of data behind one another in order of ranks.
  void gather(char* to, size_t bytes) {
    for (int r = 1; r < world_size(); ++r) {
      Call theirs;
      receive(r, &theirs, sizeof theirs);
      if (!(theirs == call_))
        fail("rank ", r, " is at ", theirs.describe(), ", rank 0 at ", call_.describe(),
             ": the ranks do not run the same "
             "program on the same batch");
      if (bytes > 0) receive(r, to + static_cast<size_t>(r - 1) * bytes, bytes);
    }
  }

  // Rank 0: data combined with the others' into `to` (which may be the data).
  void combine(void* to, const CView& data, Reduction reduction) {
    std::vector<char> others(data.bytes() * static_cast<size_t>(world_size() - 1));
    gather(others.data(), data.bytes());
    std::vector<const void*> parts{data.data};
    for (int r = 1; r < world_size(); ++r)
      parts.push_back(others.data() + static_cast<size_t>(r - 1) * data.bytes());
    combine_in_rank_order(to, parts, 0, data.size(), data.dtype, reduction);
  }

  void run_all_reduce(View data, Reduction reduction) override {
    begin(Operation::all_reduce, data, reduction, 0);
    if (rank() == 0) {
      combine(data.data, data, reduction);
      for (int r = 1; r < world_size(); ++r) send(r, data.data, data.bytes());
    } else {
      send(0, data.data, data.bytes());
      receive(0, data.data, data.bytes());
    }
    end();
  }

  void run_reduce(View data, int root, Reduction reduction) override {
    begin(Operation::reduce, data, reduction, root);
    if (rank() == 0) {
      std::vector<char> sum(data.bytes());
      combine(sum.data(), data, reduction);
      if (root == 0)
        copy_bytes(data.data, sum.data(), sum.size());
      else
        send(root, sum.data(), sum.size());
    } else {
      send(0, data.data, data.bytes());
      if (rank() == root) receive(0, data.data, data.bytes());
    }
    end();
  }

  void run_reduce_scatter(View own, CView all, Reduction reduction) override {
    begin(Operation::reduce_scatter, all, reduction, 0);
    if (rank() == 0) {
      std::vector<char> sum(all.bytes());
      combine(sum.data(), all, reduction);
      for (int r = 1; r < world_size(); ++r)
        send(r, sum.data() + static_cast<size_t>(r) * own.bytes(), own.bytes());
      copy_bytes(own.data, sum.data(), own.bytes());
    } else {
      send(0, all.data, all.bytes());
      receive(0, own.data, own.bytes());
    }
    end();
  }

  void run_all_gather(View all, CView own) override {
    begin(Operation::all_gather, own, Reduction::sum, 0);
    if (rank() == 0) {
      char* to = static_cast<char*>(all.data);
      if (to != own.data) copy_bytes(to, own.data, own.bytes());
      gather(to + own.bytes(), own.bytes());
      for (int r = 1; r < world_size(); ++r) send(r, to, all.bytes());
    } else {
      send(0, own.data, own.bytes());
      receive(0, all.data, all.bytes());
    }
    end();
  }

  void run_broadcast(View data, int root) override {
    begin(Operation::broadcast, data, Reduction::sum, root);
    if (rank() == 0) {
      gather(nullptr, 0);
      if (root != 0) receive(root, data.data, data.bytes());
      for (int r = 1; r < world_size(); ++r)
        if (r != root) send(r, data.data, data.bytes());
    } else if (rank() == root) {
      send(0, data.data, data.bytes());
    } else {
      receive(0, data.data, data.bytes());
    }
    end();
  }

  // Through rank 0, like everything here.
  void run_shift(View to, CView from) override {
    begin(Operation::shift, from, Reduction::sum, 0);
    if (rank() == 0) {
      const size_t bytes = from.bytes();
      std::vector<char> others(bytes * static_cast<size_t>(world_size() - 1));
      gather(others.data(), bytes);
      send(1, from.data, bytes);
      for (int r = 2; r < world_size(); ++r)
        send(r, others.data() + static_cast<size_t>(r - 2) * bytes, bytes);
      copy_bytes(to.data, others.data() + static_cast<size_t>(world_size() - 2) * bytes, bytes);
    } else {
      send(0, from.data, from.bytes());
      receive(0, to.data, to.bytes());
    }
    end();
  }

  std::vector<Socket> sockets_;
  Watch* watch_;
  double patience_;
  int64_t calls_ = 0;
  Call call_;
};

}  // namespace

std::unique_ptr<Communicator> make_socket_communicator(int rank, int world_size, std::vector<Socket> data,
                                                       Watch* watch, double patience_seconds) {
  return std::make_unique<SocketCommunicator>(rank, world_size, std::move(data), watch, patience_seconds);
}

}  // namespace switchback
