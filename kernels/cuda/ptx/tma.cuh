// tma.cuh: the bulk tensor copy engine ("tensor memory accelerator") of Hopper.
//
// One thread asks for a whole box of a matrix; the engine computes the addresses, fills what lies outside the
// matrix with zeros (and leaves it out when storing), applies the shared-memory swizzle and reports the bytes
// to an mbarrier. What the matrix looks like is in a CUtensorMap made by the host (tensor_map.cuh) and passed
// as a __grid_constant__ kernel parameter. Coordinates are (column, row): the inner one first.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/ptx/mbarrier.cuh"

namespace switchback::ptx {

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// None of these carries an L2 eviction hint. Measured on an H100: hints on x, w and y change nothing or cost
// up to 10 %, and the seemingly neutral evict_normal costs a fifth.

// global -> shared of this block
__device__ __forceinline__ void tma_load(void* to, const CUtensorMap* map, int column, int row,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// global -> shared of this block, a stretch of memory as it lies: both on a border of 16 bytes, as `bytes`.
__device__ __forceinline__ void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// global -> the same place in the shared memory of every block of the cluster whose bit is set in `blocks`;
// each block's own barrier (at the same place, too) counts the bytes. One read of L2 feeds all of them.
__device__ __forceinline__ void tma_load_multicast(void* to, const CUtensorMap* map, int column, int row,
                                                   uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "h"(blocks)
      : "memory");
}

// shared -> global. Asynchronous: the source may be overwritten after tma_store_wait_read.
__device__ __forceinline__ void tma_store(const CUtensorMap* map, int column, int row, const void* from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(column), "r"(row)
               : "memory");
}

// Closes the group of stores this thread has issued so far.
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most `kPending` of this thread's groups still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Orders ordinary writes to shared memory before what the copy engine (or wgmma) does with them next. Every
// writing thread executes it, then the threads synchronise, then one of them starts the copy.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace switchback::ptx
