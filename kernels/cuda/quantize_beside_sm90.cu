// quantize_beside_sm90.cu: a block to a multiprocessor. Rows come through a ring in shared memory, and warps
// have roles:
//
//   producer   lanes of one warp ask the copy engine for slots of whole rows, as far ahead as the ring is
//              long: registers need not hold what is on its way
//   measurers  two warps to each slot, every other row each: absmax, then scales and inverses, a row a lane
//   encoders   640 threads add to their sums, make codes and write them
//
// Instructions are what this kernel waits for, so they are counted, for 8 elements (33 in all, without what a
// slot costs; measurers 5):
//
//   A slot is seen as a list of groups of 8 columns. An encoder has the same four places of the list in every
//     slot, hence the same columns and the same row of the slot: its sums stay in registers, and its
//     addresses are constants and what moves on with the slot (3: group, inverse, codes).
//   bf16 to f32 (8); into the sums (8; the tensor cores, idle here, add S += X I in 2, which take 12 clocks
//     each); times inverse and rounded, one fused multiply-add each (8); to two words (6).
//   Where a row holds Inf or NaN, codes are masked; other slots are spared that.
//   |x| and the larger, NaN above all, of two elements at once are one instruction (measurers, 4).
//
// Barriers of a slot: full (the bytes have come), scaled (its rows have an inverse; that comes after full, so
// it is all that encoders wait for), empty (everybody has passed it, those as well who had no row there: a
// parity tells this turn from the last one, but not from the last but one). Nobody waits for the whole block.
// Format::none: sums alone; then nobody measures, and encoders wait for full.
#include <algorithm>

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/registers.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "kernels/cuda/reduce.cuh"
#include "runtime/environment_number.h"

namespace switchback::cuda {
namespace {

constexpr uint32_t columns_of_group = 8, group_bytes = 16, encoders = 640, held = 4;
constexpr uint32_t most_groups = held * encoders, most_rows = 32;            // of a slot
constexpr uint32_t most_slots = 5, measurers = 2;                            // of a slot
constexpr uint32_t first_encoder = 384, threads = first_encoder + encoders;  // whole warpgroups
static_assert(32 * (1 + most_slots * measurers) <= first_encoder && most_rows <= 32 * measurers);
constexpr uint32_t ring_bytes = 200 << 10;  // most of the shared memory: one block, nobody beside it
constexpr uint32_t piece_bytes = 16 << 10;

struct Shape {
  uint32_t rows, groups;         // of x; groups: of a row
  uint32_t slots, rows_of_slot;  // of the ring
  uint32_t slot_bytes;
};

struct Ring {
  alignas(128) uint8_t bytes[ring_bytes];
  float inverse[most_slots][most_rows];
  uint32_t not_finite[most_slots][measurers];  // Inf or NaN among what each has measured
  uint64_t full[most_slots], scaled[most_slots], empty[most_slots];
};

// Slot, where its bytes begin, parity of its phase, and the first row of x that lies there.
struct RingPlace {
  uint32_t slot = 0, offset = 0, parity = 0, first;
  __device__ explicit RingPlace(const Shape& shape) : first(blockIdx.x * shape.rows_of_slot) {}
  __device__ void advance(const Shape& shape) {
    first += gridDim.x * shape.rows_of_slot, ++slot, offset += shape.slot_bytes;
    if (slot == shape.slots) slot = 0, offset = 0, parity ^= 1;
  }
};

// A slot comes in several pieces, each asked for by a lane of its own.
__device__ __forceinline__ void produce(Ring& ring, const Shape& shape, const uint8_t* x, uint32_t lane) {
  const uint32_t row_bytes = shape.groups * group_bytes;
  for (RingPlace at(shape); at.first < shape.rows; at.advance(shape)) {
    ptx::mbarrier_wait(&ring.empty[at.slot], at.parity ^ 1, "producer", static_cast<int>(at.slot));
    const uint32_t bytes = min(shape.rows_of_slot, shape.rows - at.first) * row_bytes;
    if (lane == 0) ptx::mbarrier_arrive_and_expect(&ring.full[at.slot], bytes);
    __syncwarp();
    uint8_t* to = ring.bytes + at.offset;
    const uint8_t* from = x + int64_t{at.first} * row_bytes;
    for (uint32_t piece = lane * piece_bytes; piece < bytes; piece += 32 * piece_bytes)
      ptx::bulk_load(to + piece, from + piece, min(piece_bytes, bytes - piece), &ring.full[at.slot]);
  }
}

// Magnitudes of two elements, with any signs: codes.cuh's in one instruction, which sm_80 does not have.
__device__ __forceinline__ uint32_t larger_magnitudes(uint32_t a, uint32_t b) {
  asm("max.NaN.xorsign.abs.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ __forceinline__ void take_larger(uint4& most, uint4 v) {  // four chains: none is waited for
  most = {larger_magnitudes(most.x, v.x), larger_magnitudes(most.y, v.y), larger_magnitudes(most.z, v.z),
          larger_magnitudes(most.w, v.w)};
}
// The bits of the largest of a warp's magnitudes.
__device__ __forceinline__ uint32_t warp_maximum(uint4 most) {
  const uint32_t two =
      larger_magnitudes(larger_magnitudes(most.x, most.y), larger_magnitudes(most.z, most.w));
  return __reduce_max_sync(all_lanes, max(two >> 16 & 0x7fffu, two & 0x7fffu)) << 16;
}

// Rows `part`, part + measurers, ... of slot `own`, turn by turn; two at a time, or the halves of the last.
template <Format format>
__device__ __forceinline__ void measure(Ring& ring, const Shape& shape, float* scale, uint32_t own,
                                        uint32_t part, uint32_t lane) {
  const uint32_t to_next = measurers * shape.groups, own_row = part + lane * measurers;
  for (RingPlace at(shape); at.first < shape.rows; at.advance(shape)) {
    if (at.slot != own) continue;
    const uint32_t rows = min(shape.rows_of_slot, shape.rows - at.first);
    const uint4* one = reinterpret_cast<const uint4*>(ring.bytes + at.offset) + part * shape.groups + lane;
    ptx::mbarrier_wait(&ring.full[own], at.parity, "measurer", static_cast<int>(own));
    uint32_t absmax = 0;  // of own_row
    for (uint32_t row = part; row < rows; row += 2 * measurers, one += 2 * to_next) {
      const bool two = row + measurers < rows, halves = !two && shape.groups % 2 == 0;
      const uint32_t span = halves ? shape.groups / 2 : shape.groups;
      const uint4* other = one + (two ? to_next : halves ? span : 0);
      uint4 most{}, most_of_other{};
#pragma unroll 2
      for (uint32_t g = 0; g + lane < span; g += 32) {
        take_larger(most, one[g]);
        take_larger(most_of_other, other[g]);
      }
      const uint32_t of_one = warp_maximum(most), of_other = warp_maximum(most_of_other);
      if (own_row == row) absmax = two ? of_one : max(of_one, of_other);
      if (own_row == row + measurers) absmax = of_other;
    }
    const Scaling s = scaling_of(absmax, largest_of(format));
    const bool finite = __all_sync(all_lanes, !isnan(s.scale));
    if (own_row < rows) ring.inverse[own][own_row] = s.inverse;
    if (lane == 0) ring.not_finite[own][part] = !finite;
    ptx::mbarrier_arrive(&ring.scaled[own]);
    ptx::mbarrier_arrive(&ring.empty[own]);
    if (own_row < rows) scale[at.first + own_row] = s.scale;
  }
}

template <Format format, bool summed>
__device__ __forceinline__ void encode_rows(Ring& ring, const Shape& shape, uint2* codes, float* partials,
                                            uint32_t own) {
  constexpr bool coded = format != Format::none;
  const uint32_t of_slot = shape.rows_of_slot * shape.groups, step = gridDim.x * of_slot;
  const uint32_t whole = shape.rows - shape.rows % shape.rows_of_slot;  // rows in slots that are full
  float sums[held][columns_of_group] = {};
  uint32_t row_bytes[held];  // where the place's inverse lies
#pragma unroll
  for (uint32_t j = 0; j < held; ++j)
    row_bytes[j] = min((own + j * encoders) / shape.groups, most_rows - 1) * uint32_t{sizeof(float)};
  const uint8_t* own_bytes = ring.bytes + own * group_bytes;
  uint2* to = codes + int64_t{blockIdx.x} * of_slot + own;
  RingPlace at(shape);

  // The slot, of which this thread has `count` places. Where the compiler knows how many, all are read before
  // the first is used, and the slot is free early.
  const auto pass = [&]<int known, bool finite>(uint32_t count) {
    constexpr int at_once = known > 0 ? known : 1;
    const uint4* from = reinterpret_cast<const uint4*>(own_bytes + at.offset);
    const uint8_t* inverses = reinterpret_cast<const uint8_t*>(ring.inverse[at.slot]);
#pragma unroll
    for (int first = 0; first < (known > 0 ? known : int{held}); first += at_once) {
      if (known == 0 && uint32_t(first) >= count) break;
      uint4 raw[at_once];
      float inverse[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        raw[j] = from[(first + j) * encoders];
        inverse[j] = coded ? *reinterpret_cast<const float*>(inverses + row_bytes[first + j]) : 1.0f;
      }
      if constexpr (known > 0) ptx::mbarrier_arrive(&ring.empty[at.slot]);
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        float v[columns_of_group];
        unpack(v, raw[j]);
#pragma unroll
        for (uint32_t e = 0; summed && e < columns_of_group; ++e) sums[first + j][e] += v[e];
        if constexpr (coded)
          to[(first + j) * encoders] =
              finite ? encode_finite<format>(v, inverse[j]) : encode<format>(v, inverse[j]);
      }
    }
    if constexpr (known == 0) ptx::mbarrier_arrive(&ring.empty[at.slot]);
  };
  const auto encode_until = [&]<int known>(uint32_t end, uint32_t count) {
    for (; at.first < end; at.advance(shape), to += step) {
      uint64_t* barrier = coded ? &ring.scaled[at.slot] : &ring.full[at.slot];
      ptx::mbarrier_wait(barrier, at.parity, "encoder", static_cast<int>(at.slot));
      if (!coded || (ring.not_finite[at.slot][0] | ring.not_finite[at.slot][1]) == 0)
        pass.template operator()<known, true>(count);
      else
        pass.template operator()<0, false>(count);
    }
  };
  const auto places = [&](uint32_t groups) {  // of this thread's, those that exist
    return min(held, (max(groups, own) - own + encoders - 1) / encoders);
  };
  const uint32_t count = places(of_slot);
  if (__all_sync(all_lanes, count == 4))  // as most warps have it; the compiler knows that they go together
    encode_until.template operator()<4>(whole, count);
  else if (__all_sync(all_lanes, count == 3))
    encode_until.template operator()<3>(whole, count);
  else
    encode_until.template operator()<0>(whole, count);
  encode_until.template operator()<0>(shape.rows, places((shape.rows - whole) * shape.groups));

  if constexpr (!summed) return;
  float4* partial = reinterpret_cast<float4*>(partials) + int64_t{blockIdx.x} * of_slot * 2;
#pragma unroll
  for (uint32_t j = 0; j < held; ++j) {
    const uint32_t place = own + j * encoders;
    if (place >= of_slot) continue;
    partial[place * 2] = {sums[j][0], sums[j][1], sums[j][2], sums[j][3]};
    partial[place * 2 + 1] = {sums[j][4], sums[j][5], sums[j][6], sums[j][7]};
  }
}

template <Format format, bool summed>
__global__ void __launch_bounds__(threads, 1)
    quantize_from_ring(uint2* codes, float* scale, float* partials, const uint8_t* x, const Shape shape) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Ring& ring = *reinterpret_cast<Ring*>(raw);
  const uint32_t warp = __shfl_sync(all_lanes, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < shape.slots; ++s) {
      ptx::mbarrier_init(&ring.full[s], 1);
      ptx::mbarrier_init(&ring.scaled[s], 32 * measurers);
      ptx::mbarrier_init(&ring.empty[s], encoders + (format == Format::none ? 0 : 32 * measurers));
    }
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < first_encoder) {
    ptx::give_back_registers<40>();
    const uint32_t measurer = warp - 1;
    if (warp == 0) {
      produce(ring, shape, x, lane);
    } else if constexpr (format != Format::none) {
      if (measurer < most_slots * measurers)
        measure<format>(ring, shape, scale, measurer / measurers, measurer % measurers, lane);
    }
  } else {
    ptx::take_registers<72>();
    encode_rows<format, summed>(ring, shape, codes, partials, threadIdx.x - first_encoder);
  }
}

Shape shape_of(const QuantizeBeside& a) {
  Shape s;
  s.rows = static_cast<uint32_t>(a.rows), s.groups = static_cast<uint32_t>(a.width / columns_of_group);
  s.rows_of_slot = std::clamp<uint32_t>(most_groups / s.groups, 1, most_rows);
  s.slot_bytes = s.rows_of_slot * s.groups * group_bytes;
  s.slots = std::min(ring_bytes / s.slot_bytes, most_slots);
  return s;
}

}  // namespace

std::vector<int> candidates_beside(double wanted) {
  const int most = multiprocessor_count() / 2;
  const char* hint = ", half of this GPU's multiprocessors, and even";
  if (const auto forced = environment_number("SWITCHBACK_BESIDE", 0, most, hint)) {
    if (*forced % 2 != 0) fail("SWITCHBACK_BESIDE is ", *forced, ": it must be even");
    return {*forced};
  }
  if (wanted <= 0 || multiprocessor_count() < least_multiprocessors) return {0};
  const int likely = std::min(most / 2 * 2, std::max(2, static_cast<int>(wanted / 2 + 0.5) * 2));
  std::vector<int> candidates;
  for (int count = likely; count <= most && candidates.size() < 3; count += std::max(2, likely / 4 / 2 * 2))
    candidates.push_back(count);
  candidates.push_back(0);
  return candidates;
}

bool quantize_beside_serves(const QuantizeBeside& a) {
  return on_hopper() && a.width % columns_of_group == 0 && a.width > 0 && a.width <= 16384 && a.rows > 0 &&
         a.rows < int64_t{1} << 31 && aligned(a.x) && aligned(a.codes) && (!a.codes || has_codes(a.format));
}

int64_t partials_beside(const QuantizeBeside& a) {
  return int64_t{a.multiprocessors} * shape_of(a).rows_of_slot;
}

void quantize_beside(const QuantizeBeside& a, float* partials, cudaStream_t stream) {
  CHECK(quantize_beside_serves(a) && a.multiprocessors > 0 && a.multiprocessors % 2 == 0, "codes of ", a.rows,
        " x ", a.width, " on ", a.multiprocessors, " multiprocessors");
  CHECK(a.codes || partials, "a sweep that makes neither codes nor sums");
  const Shape shape = shape_of(a);
  const auto launch = [&]<Format format, bool summed = true>() {
    auto* kernel = quantize_from_ring<format, summed>;
    static const bool prepared = [&] {
      CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Ring)));
      return true;
    }();
    (void)prepared;
    cudaLaunchConfig_t config = {};
    config.gridDim = static_cast<unsigned>(a.multiprocessors);
    config.blockDim = threads;
    config.dynamicSmemBytes = sizeof(Ring);
    config.stream = stream;
    cudaLaunchAttribute pairs;
    pairs.id = cudaLaunchAttributeClusterDimension;
    pairs.val.clusterDim = {2, 1, 1};
    config.attrs = &pairs, config.numAttrs = 1;
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<uint2*>(a.codes), a.scale, partials,
                                  static_cast<const uint8_t*>(a.x), shape));
  };
  if (!a.codes) return launch.template operator()<Format::none>();
  if (!partials) {
    CHECK(a.format == Format::int8, a.format, " without sums: nobody has asked for that yet");
    return launch.template operator()<Format::int8, false>();
  }
  switch (a.format) {
    case Format::int8:
      return launch.template operator()<Format::int8>();
    case Format::e4m3:
      return launch.template operator()<Format::e4m3>();
    default:
      return launch.template operator()<Format::e5m2>();
  }
}

}  // namespace switchback::cuda
