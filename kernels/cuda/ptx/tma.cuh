// tma.cuh: the bulk tensor copy engine ("tensor memory accelerator") of Hopper.
//
// One thread asks for a whole box of a matrix; the engine computes the addresses, fills what lies outside the
// matrix with zeros (and leaves it out when storing), applies the shared-memory swizzle and reports the bytes to an
// mbarrier. What the matrix looks like is in a CUtensorMap made by the host (tensor_map.cuh) and passed as
// a __grid_constant__ kernel parameter. Coordinates are (column, row): the inner one first.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/ptx/mbarrier.cuh"

namespace switchback::ptx {

// What L2 should do with the lines of a copy when it needs room: throw them out first (streams that nobody reads again
// soon), last (operands that every block reads), or in the ordinary order.
enum class Keep { normal, briefly, long_time };

template <Keep kKeep>
__device__ __forceinline__ uint64_t cache_policy() {
  uint64_t policy;
  if constexpr (kKeep == Keep::briefly) asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  else asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// global -> shared of this block
template <Keep kKeep>
__device__ __forceinline__ void tma_load(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  if constexpr (kKeep == Keep::normal) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "l"(cache_policy<kKeep>())
        : "memory");
  }
}

// global -> the same place in the shared memory of every block of the cluster whose bit is set in `blocks`; each
// block's own barrier (at the same place, too) counts the bytes. One read of L2 feeds all of them.
template <Keep kKeep>
__device__ __forceinline__ void tma_load_multicast(void* to, const CUtensorMap* map, int column, int row,
                                                   uint64_t* barrier, uint16_t blocks) {
  if constexpr (kKeep == Keep::normal) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "h"(blocks)
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "h"(blocks), "l"(cache_policy<kKeep>())
        : "memory");
  }
}

// shared -> global. Asynchronous: the source may be overwritten after tma_store_wait_read.
template <Keep kKeep>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, int column, int row, const void* from) {
  if constexpr (kKeep == Keep::normal) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(shared_address(from)), "r"(column), "r"(row)
                 : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group.L2::cache_hint [%0, {%2, %3}], [%1], %4;" ::"l"(map),
        "r"(shared_address(from)), "r"(column), "r"(row), "l"(cache_policy<kKeep>())
        : "memory");
  }
}

// Closes the group of stores this thread has issued so far.
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's groups still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Orders ordinary writes to shared memory before what the copy engine (or wgmma) does with them next. Every
// writing thread executes it, then the threads synchronise, then one of them starts the copy.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace switchback::ptx
