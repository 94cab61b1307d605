// quantize_beside_sm90.cu: a block to a multiprocessor. Rows come through a ring in shared memory, and warps
// have roles:
//
//   producer   lanes of one warp ask the copy engine for slots of whole rows, as far ahead as the ring is
//              long: registers need not hold what is on its way
//   maxima     6 warps, two rows at a time each: absmax, scale and its inverse
//   encoders   640 threads add to their sums, make codes and write them
//
// A slot is seen as a list of groups of 8 columns. An encoder has the same four places of the list in every
// slot, hence the same columns and the same row of the slot: its sums stay in registers, and its addresses
// are one pointer and constants. (Instructions are what this kernel waits for: 7 an element here, 1 for
// maxima.)
//
// Barriers of a slot: full (the bytes have come), scaled (all its rows have an inverse), empty (everybody has
// passed it, those as well who had no row there: a parity tells this turn from the last one, but not from the
// last but one). Nobody waits for the whole block. A row's scale is computed once, not by every thread.
// Format::none: sums alone; then nobody looks for maxima, and nobody waits for them.
#include <algorithm>

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/quantize_beside.cuh"
#include "kernels/cuda/reduce.cuh"

namespace switchback::cuda {
namespace {

constexpr uint32_t columns_of_group = 8, maximum_warps = 6, encoders = 640, held = 4;
constexpr uint32_t threads = 32 * (1 + maximum_warps) + encoders;
constexpr uint32_t most_groups = held * encoders, group_bytes = 16;  // of a slot
constexpr uint32_t most_slots = 16, most_rows = 32, piece_bytes = 16 << 10;
constexpr uint32_t ring_bytes = 200 << 10;  // most of the shared memory: one block, nobody beside it

struct Shape {
  uint32_t rows, groups;         // of x; groups: of a row
  uint32_t slots, rows_of_slot;  // of the ring
};

struct Ring {
  alignas(128) uint8_t bytes[ring_bytes];
  float inverse[most_slots][most_rows];
  uint64_t full[most_slots], scaled[most_slots], empty[most_slots];

  __device__ uint4* slot(const Shape& shape, uint32_t which) {
    return reinterpret_cast<uint4*>(bytes) + which * shape.rows_of_slot * shape.groups;
  }
};

// Slot and parity of its phase, and the first row of x that lies there.
struct RingPlace {
  uint32_t slot = 0, parity = 0, first;
  __device__ explicit RingPlace(const Shape& shape) : first(blockIdx.x * shape.rows_of_slot) {}
  __device__ void advance(const Shape& shape) {
    if (++slot == shape.slots) slot = 0, parity ^= 1;
    first += gridDim.x * shape.rows_of_slot;
  }
  __device__ uint32_t groups(const Shape& shape) const {
    return min(shape.rows_of_slot, shape.rows - first) * shape.groups;
  }
};

// A slot comes in several pieces, each asked for by a lane of its own.
__device__ __forceinline__ void produce(Ring& ring, const Shape& shape, const uint4* x, uint32_t lane) {
  for (RingPlace at(shape); at.first < shape.rows; at.advance(shape)) {
    ptx::mbarrier_wait(&ring.empty[at.slot], at.parity ^ 1, "producer", static_cast<int>(at.slot));
    const uint32_t bytes = at.groups(shape) * group_bytes;
    if (lane == 0) ptx::mbarrier_arrive_and_expect(&ring.full[at.slot], bytes);
    __syncwarp();
    uint8_t* to = reinterpret_cast<uint8_t*>(ring.slot(shape, at.slot));
    const uint8_t* from = reinterpret_cast<const uint8_t*>(x + int64_t{at.first} * shape.groups);
    for (uint32_t piece = lane * piece_bytes; piece < bytes; piece += 32 * piece_bytes)
      ptx::bulk_load(to + piece, from + piece, min(piece_bytes, bytes - piece), &ring.full[at.slot]);
  }
}

// Rows of a slot are dealt out to warps, on from slot to slot; a warp looks at two at a time.
template <Format format>
__device__ __forceinline__ void find_maxima(Ring& ring, const Shape& shape, float* scale, uint32_t warp,
                                            uint32_t lane) {
  uint32_t next = warp;
  for (RingPlace at(shape); at.first < shape.rows; at.advance(shape)) {
    ptx::mbarrier_wait(&ring.full[at.slot], at.parity, "maxima", static_cast<int>(at.slot));
    bool two;
    for (; next < shape.rows_of_slot; next += (two ? 2 : 1) * maximum_warps) {
      two = next + maximum_warps < shape.rows_of_slot;
      // Rows beyond the last: whatever lies there, for nobody.
      const uint4* one = ring.slot(shape, at.slot) + next * shape.groups + lane;
      const uint4* other = one + (two ? maximum_warps * shape.groups : 0);
      uint32_t most = 0, of_other = 0, g = lane;
      if (two) {
#pragma unroll 2
        for (; g + 32 < shape.groups; g += 64, one += 64, other += 64) {
          most = larger_magnitudes(larger_magnitudes(most, one[0]), one[32]);
          of_other = larger_magnitudes(larger_magnitudes(of_other, other[0]), other[32]);
        }
        if (g < shape.groups) {
          most = larger_magnitudes(most, *one);
          of_other = larger_magnitudes(of_other, *other);
        }
      } else {
#pragma unroll 2
        for (; g + 96 < shape.groups; g += 128, one += 128) {
          most = larger_magnitudes(larger_magnitudes(most, one[0]), one[32]);
          of_other = larger_magnitudes(larger_magnitudes(of_other, one[64]), one[96]);
        }
        for (; g < shape.groups; g += 32, one += 32) most = larger_magnitudes(most, *one);
        most = __vmaxu2(most, of_other);
      }
      most = __reduce_max_sync(all_lanes, max(most >> 16, most & 0xffffu));
      of_other = __reduce_max_sync(all_lanes, max(of_other >> 16, of_other & 0xffffu));
      // Lane 0 has the one row, lane 1 the other.
      const uint32_t row = next + lane * maximum_warps;
      const Scaling s = scaling_of((lane == 0 ? most : of_other) << 16, largest_of(format));
      if (lane < (two ? 2 : 1)) {
        ring.inverse[at.slot][row] = s.inverse;
        if (at.first + row < shape.rows) scale[at.first + row] = s.scale;
        ptx::mbarrier_arrive(&ring.scaled[at.slot]);
      }
    }
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&ring.empty[at.slot]);
    next -= shape.rows_of_slot;
  }
}

template <Format format>
__device__ __forceinline__ void encode_rows(Ring& ring, const Shape& shape, uint2* codes, float* partials,
                                            uint32_t own, uint32_t lane) {
  constexpr bool coded = format != Format::none;
  float sums[held][columns_of_group] = {};
  uint32_t row[held];
#pragma unroll
  for (uint32_t j = 0; j < held; ++j) row[j] = min((own + j * encoders) / shape.groups, most_rows - 1);
  uint2* to = codes + int64_t{blockIdx.x} * shape.rows_of_slot * shape.groups + own;
  for (RingPlace at(shape); at.first < shape.rows; at.advance(shape)) {
    ptx::mbarrier_wait(&ring.full[at.slot], at.parity, "encoder", static_cast<int>(at.slot));
    if constexpr (coded)
      ptx::mbarrier_wait(&ring.scaled[at.slot], at.parity, "encoder", static_cast<int>(at.slot));
    const uint32_t groups = at.groups(shape);
    const uint4* from = ring.slot(shape, at.slot) + own;
    const auto pass = [&]<bool all>() {
      const auto here = [&](uint32_t j) { return all || own + j * encoders < groups; };
      uint4 raw[held];
      float inverse[held];
#pragma unroll
      for (uint32_t j = 0; j < held; ++j) {
        raw[j] = here(j) ? from[j * encoders] : uint4{};
        inverse[j] = coded && here(j) ? ring.inverse[at.slot][row[j]] : 1.0f;
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&ring.empty[at.slot]);
#pragma unroll
      for (uint32_t j = 0; j < held; ++j) {
        if (!here(j)) continue;
        float v[columns_of_group];
        unpack(v, raw[j]);
#pragma unroll
        for (uint32_t e = 0; e < columns_of_group; ++e) sums[j][e] += v[e];
        if constexpr (coded) to[j * encoders] = encode<format>(v, inverse[j]);
      }
    };
    if (groups == most_groups)
      pass.template operator()<true>();
    else
      pass.template operator()<false>();
    to += gridDim.x * shape.rows_of_slot * shape.groups;
  }
  const uint32_t of_slot = shape.rows_of_slot * shape.groups;
  float4* partial = reinterpret_cast<float4*>(partials) + int64_t{blockIdx.x} * of_slot * 2;
#pragma unroll
  for (uint32_t j = 0; j < held; ++j) {
    const uint32_t place = own + j * encoders;
    if (place >= of_slot) continue;
    partial[place * 2] = {sums[j][0], sums[j][1], sums[j][2], sums[j][3]};
    partial[place * 2 + 1] = {sums[j][4], sums[j][5], sums[j][6], sums[j][7]};
  }
}

template <Format format>
__global__ void __launch_bounds__(threads, 1)
    quantize_from_ring(uint2* codes, float* scale, float* partials, const uint4* x, const Shape shape) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Ring& ring = *reinterpret_cast<Ring*>(raw);
  const uint32_t warp = __shfl_sync(all_lanes, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < shape.slots; ++s) {
      ptx::mbarrier_init(&ring.full[s], 1);
      ptx::mbarrier_init(&ring.scaled[s], shape.rows_of_slot);
      ptx::mbarrier_init(&ring.empty[s], encoders / 32 + (format == Format::none ? 0 : maximum_warps));
    }
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (warp == 0) {
    produce(ring, shape, x, lane);
  } else if (warp <= maximum_warps) {
    if constexpr (format != Format::none) find_maxima<format>(ring, shape, scale, warp - 1, lane);
  } else {
    encode_rows<format>(ring, shape, codes, partials, threadIdx.x - 32 * (1 + maximum_warps), lane);
  }
}

Shape shape_of(const QuantizeBeside& a) {
  Shape s;
  s.rows = static_cast<uint32_t>(a.rows), s.groups = static_cast<uint32_t>(a.width / columns_of_group);
  s.rows_of_slot = std::clamp<uint32_t>(most_groups / s.groups, 1, most_rows);
  s.slots = std::min<uint32_t>(ring_bytes / (s.rows_of_slot * s.groups * group_bytes), most_slots);
  return s;
}

}  // namespace

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
  const Shape shape = shape_of(a);
  const auto launch = [&]<Format format>() {
    auto* kernel = quantize_from_ring<format>;
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
                                  static_cast<const uint4*>(a.x), shape));
  };
  if (!a.codes) return launch.template operator()<Format::none>();
  switch (a.format) {
    case Format::int8: return launch.template operator()<Format::int8>();
    case Format::e4m3: return launch.template operator()<Format::e4m3>();
    default: return launch.template operator()<Format::e5m2>();
  }
}

}  // namespace switchback::cuda
