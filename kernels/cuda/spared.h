// spared.h: multiprocessors that persistent kernels leave to the kernels of other streams.
//
// A persistent kernel has one block on every multiprocessor for as long as it runs. The blocks of a
// collective that is to go on beside it would wait for its end, and blocks of its own that found a
// collective's in their place would begin when the others are done: twice the time. With
// SWITCHBACK_COLLECTIVE_SMS=N, while collectives are on their way (from a bucket's start to join(),
// distributed/nccl_communicator.cpp), persistent kernels are launched with N blocks less, and NCCL has N. Who
// works out what changes, the sums do not: results have the same bits.
#pragma once

namespace switchback::cuda {

namespace spared_detail {
inline int count = 0;  // a process has one GPU and launches from one thread
}

inline int spared_multiprocessors() { return spared_detail::count; }
inline void spare_multiprocessors(int count) { spared_detail::count = count; }

// Leaves at least `count` while it lives.
class Spare {
 public:
  explicit Spare(int count) : before_(spared_multiprocessors()) {
    if (count > before_) spare_multiprocessors(count);
  }
  ~Spare() { spare_multiprocessors(before_); }
  Spare(const Spare&) = delete;

 private:
  int before_;
};

}  // namespace switchback::cuda
