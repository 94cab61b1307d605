#include "distributed/communicator.h"

#include <cstring>

#include "kernels/kernels.h"

namespace switchback {
namespace {

class SingleRank final : public Communicator {
 public:
  SingleRank() : Communicator(0, 1) {}

 private:
  void run_all_reduce(View, Reduction) override {}
  void run_reduce(View, int, Reduction) override {}
  void run_reduce_scatter(View, CView, Reduction) override {}
  void run_all_gather(View, CView) override {}
  void run_broadcast(View, int) override {}
  void run_shift(View, CView) override {}
};

void copy(View to, CView from) {
  if (from.size() == 0) return;  // maybe without memory at all
  if (to.device == cpu_device)
    std::memcpy(to.data, from.data, from.bytes());
  else
    kernels(to.device).cast(to, from);
}

void check_reducible(const char* op, const CView& data) {
  CHECK(is_float(data.dtype) || data.dtype == DType::i64 || data.dtype == DType::i32, op, " of ", data.dtype);
}

}  // namespace

Communicator::Communicator(int rank, int world_size) : rank_(rank), world_size_(world_size) {
  CHECK(world_size >= 1 && rank >= 0 && rank < world_size, "rank ", rank, " of ", world_size);
}

void Communicator::all_reduce(View data, Reduction reduction) {
  check_reducible("all_reduce", data);
  if (world_size_ > 1 && data.size() > 0) run_all_reduce(data, reduction);
}

void Communicator::reduce(View data, int root, Reduction reduction) {
  check_reducible("reduce", data);
  CHECK(root >= 0 && root < world_size_, "reduce to rank ", root, " of ", world_size_);
  if (world_size_ > 1 && data.size() > 0) run_reduce(data, root, reduction);
}

void Communicator::reduce_scatter(View own, CView all, Reduction reduction) {
  check_reducible("reduce_scatter", all);
  CHECK(own.dtype == all.dtype && own.size() * world_size_ == all.size(), "reduce_scatter of ", all.dtype,
        " ", all.shape, " to ", world_size_, " times ", own.dtype, " ", own.shape);
  if (own.size() == 0) return;
  if (world_size_ > 1)
    run_reduce_scatter(own, all, reduction);
  else if (own.data != all.data)
    copy(own, {all.data, own.shape, all.dtype, all.device});
}

void Communicator::all_gather(View all, CView own) {
  CHECK(own.dtype == all.dtype && own.size() * world_size_ == all.size(), "all_gather of ", world_size_,
        " times ", own.dtype, " ", own.shape, " to ", all.dtype, " ", all.shape);
  if (own.size() == 0) return;
  if (world_size_ > 1)
    run_all_gather(all, own);
  else if (own.data != all.data)
    copy({all.data, own.shape, all.dtype, all.device}, own);
}

void Communicator::broadcast(View data, int root) {
  CHECK(root >= 0 && root < world_size_, "broadcast from rank ", root, " of ", world_size_);
  if (world_size_ > 1 && data.size() > 0) run_broadcast(data, root);
}

void Communicator::broadcast(std::span<const FromRoot> many) {
  for (const auto& [data, root] : many)
    CHECK(root >= 0 && root < world_size_, "broadcast from rank ", root, " of ", world_size_);
  if (world_size_ > 1 && !many.empty()) run_broadcasts(many);
}

void Communicator::run_broadcasts(std::span<const FromRoot> many) {
  for (const auto& [data, root] : many) broadcast(data, root);
}

void Communicator::shift(View to, CView from) {
  CHECK(to.dtype == from.dtype && to.size() == from.size(), "shift of ", from.dtype, " ", from.shape, " to ",
        to.dtype, " ", to.shape);
  CHECK(to.size() == 0 || to.data != from.data, "shift in place");
  if (from.size() == 0) return;
  if (world_size_ > 1)
    run_shift(to, from);
  else
    copy(to, from);
}

Communicator& single_rank() {
  static SingleRank one;
  return one;
}

}  // namespace switchback
