// CUDA kernel of quantization where blocks run along memory (inner == 1), in every case that flat.cu leaves: blocks of
// two dimensions, whole rows, last blocks that are not full, memory that is not aligned, codes of any width,
// statistics.
#include "quantization/strips_cuda.inl"

namespace lsfast::quantization {
namespace {

template <class T, class F>
__device__ __forceinline__ void load_unit(const QuantizeParams& p, const Strips& s, const T* x, const Unit& unit,
                                          F (&values)[kUnit]) {
  load_line(x + unit.line * s.length + unit.position, unit.count, s.aligned, values);
  if (p.scheme.hadamard.size > 0) transform_line(values, p.scheme.hadamard, false);
}

__device__ __forceinline__ WordPlace words_of(const QuantizeParams& p, const Strips& s, const Unit& unit) {
  if (p.word_inner == 1) return {unit.line * s.length + unit.position, 1};
  // A line [outer, row of a two-dimensional block]: outer counts what lay before and after the axis of the blocks.
  const int64_t outer = unit.line / p.height;
  const int64_t row = outer / p.word_inner * p.height + unit.line % p.height;
  return {(row * s.length + unit.position) * p.word_inner + outer % p.word_inner, p.word_inner};
}

template <class F>
__device__ __forceinline__ void store_unit_codes(const QuantizeParams& p, const Strips& s, const Unit& unit,
                                                 F (&values)[kUnit]) {
  const int bits = p.scheme.code_bits();
  uint8_t* const line = p.codes + (s.lines == p.lines() ? unit.line * p.line_bytes : 0);
  if (bits <= 8) {
    const uint64_t packed = packed_codes(values, p.scheme, unit.count);
    uint8_t* const to = line + unit.position / kUnit * bits;
    for (int byte = 0; 8 * byte < unit.count * bits; ++byte) to[byte] = static_cast<uint8_t>(packed >> (8 * byte));
    return;
  }
  const int bytes = bits <= 16 ? 2 : 4;
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    const uint32_t code = encode_rounded(static_cast<float>(values[k]), p.scheme);
    uint8_t* const to = line + (unit.position + k) * bytes;
    for (int byte = 0; byte < bytes && k < unit.count; ++byte) to[byte] = static_cast<uint8_t>(code >> (8 * byte));
  }
}

// The statistics of a strip's blocks: lanes of a block, then the warps that hold its parts. A warp always holds the
// same positions of a strip's lines, or the block is the whole strip.
__device__ __forceinline__ void write_strip_blocks(const QuantizeParams& p, const Strips& s, const Strip& strip,
                                                   Sums sums, Sums (*slots)[16]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int lanes = s.block_shift < 8 ? 1 << (s.block_shift - 3) : kWarpSize;
  const int groups = kWarpSize / lanes;
  add_lanes(sums, lanes);
  __syncthreads();
  if (lane % lanes == 0) slots[threadIdx.x / kWarpSize][lane / lanes] = sums;
  __syncthreads();
  const int block = static_cast<int>(threadIdx.x);
  const int64_t of_line = (strip.first >> s.block_shift) + block;
  if (block >= s.blocks || of_line >= s.length_blocks) return;
  const int first_warp = block / groups * s.warps_of_block;
  Sums sum = slots[first_warp][block % groups];
  for (int warp = 1; warp < s.warps_of_block; ++warp) add_sums(sum, slots[first_warp + warp][block % groups]);
  write_sums(sum, p.statistics + (strip.band * s.length_blocks + of_line) * kStatistics);
}

// A CUDA block has a strip at a time: the largest magnitudes of its blocks, their scales, then the elements.
// Grid: (any, tensors). Bytes: reads x once, and where blocks have scales once more, from cache but for blocks of more
// than a hundred thousand elements; writes y (or codes and scales) once.
template <class T, class F, bool kSummed>
__global__ void __launch_bounds__(kThreads, kSummed || sizeof(F) == 8 ? 1 : 3)
    strip_kernel(QuantizeParams p, Strips s, int64_t first_tensor) {
  __shared__ uint32_t amax[kMostBlocks];
  __shared__ float multiplier[kMostBlocks];
  __shared__ float factor[kMostBlocks];
  __shared__ Sums slots[kSummed ? kWarps : 1][16];
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor();
  T* const y = static_cast<T*>(p.y) + (p.y == nullptr ? 0 : tensor * p.per_tensor());
  const float largest = tensor_amax(p, tensor);
  const TensorScale shared_scale = tensor_scale_of(p, largest);
  const int lanes = s.block_shift < 8 ? 1 << (s.block_shift - 3) : kWarpSize;  // neighbours in one block
  Sums sums = zero_sums();
  const int64_t strips = s.bands() * s.of_line;
  for (int64_t id = blockIdx.x; id < strips; id += gridDim.x) {
    const Strip strip(s, id);
    __syncthreads();  // the scales of the strip before are no longer read
    if (threadIdx.x < kMostBlocks) amax[threadIdx.x] = s.blocked ? 0u : bit_cast<uint32_t>(largest);
    __syncthreads();
    for (int round = 0; s.blocked && round < strip.rounds; ++round) {
      const Unit unit = strip.unit(s, round);
      F values[kUnit];
      load_unit(p, s, x, unit, values);
      const uint32_t bits = largest_of_lanes(largest_of(values), lanes);
      if (threadIdx.x % lanes == 0) atomicMax(&amax[unit.block], bits);
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < s.blocks) {
      const BlockScale block = scale_of<Family::kAny>(p.scheme, amax[threadIdx.x], shared_scale);
      multiplier[threadIdx.x] = block.multiplier;
      factor[threadIdx.x] = block.factor;
      const int64_t of_line = (strip.first >> s.block_shift) + threadIdx.x;
      if (p.scales != nullptr && of_line < s.length_blocks && (s.blocked || id == 0)) {
        store_scale(p, strip.band * s.length_blocks + of_line, block);
      }
    }
    __syncthreads();
    for (int round = 0; round < strip.rounds; ++round) {
      const Unit unit = strip.unit(s, round);
      F values[kUnit];
      load_unit(p, s, x, unit, values);
      quantize_values<T, kSummed>(values, p, multiplier[unit.block], factor[unit.block], words_of(p, s, unit),
                                  unit.count, sums);
      if (p.codes != nullptr) {
        if (unit.count > 0) store_unit_codes(p, s, unit, values);
      } else {
        store_line(values, unit.count, s.aligned, y + unit.line * s.length + unit.position);
      }
      if (kSummed && p.granularity == Granularity::kRow) {
        add_lanes(sums, kWarpSize);
        const int64_t piece = unit.line * s.pieces + unit.position / kLinePiece;
        if (threadIdx.x % kWarpSize == 0 && unit.count > 0) write_sums(sums, p.partial + piece * kStatistics);
        sums = zero_sums();
      }
    }
    if (kSummed && p.granularity == Granularity::kBlock) {
      write_strip_blocks(p, s, strip, sums, slots);
      sums = zero_sums();
    }
  }
  if (kSummed && p.granularity == Granularity::kTensor) {
    write_block_sums(sums, &slots[0][0], p.partial + static_cast<int64_t>(blockIdx.x) * kStatistics);
  }
}

template <class T, class F>
const char* launch_typed(const QuantizeParams& p, unsigned* blocks, Stream stream) {
  const Strips s = make_strips(p);
  const bool summed = p.granularity != Granularity::kNone;
  const bool of_tensor = p.granularity == Granularity::kTensor;
  *blocks = grid_size(s.bands() * s.of_line, 1, of_tensor ? kPartialBlocks : 1 << 16);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    const dim3 grid(*blocks, count);
    if (summed) return LSFAST_LAUNCH((strip_kernel<T, F, true>), grid, dim3(kThreads), 0, stream, p, s, first);
    return LSFAST_LAUNCH((strip_kernel<T, F, false>), grid, dim3(kThreads), 0, stream, p, s, first);
  });
}

}  // namespace

const char* launch_strips(const QuantizeParams& p, unsigned* blocks, Stream stream) {
  if (p.kind == ScalarKind::kFloat64 && p.scheme.rule == ScaleRule::kNone) {
    return launch_typed<double, double>(p, blocks, stream);
  }
  LSFAST_DISPATCH(p.kind, return (launch_typed<scalar_t, float>(p, blocks, stream)));
  return "quantize: unknown element type";
}

}  // namespace lsfast::quantization
