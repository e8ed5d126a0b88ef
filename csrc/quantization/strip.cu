// CUDA kernel of quantization where blocks run along memory (inner == 1), in every case that flat.cu leaves: blocks of
// two dimensions, whole rows, last blocks that are not full, memory that is not aligned, codes of any width,
// statistics.
#include "quantization/statistics_cuda.inl"

namespace lsfast::quantization {
namespace {

constexpr int kUnit = 8;           // elements of a thread: their codes fill whole bytes
constexpr int kStripWidth = 2048;  // of strips of one line: a unit for each thread
constexpr int kMostBlocks = kStripWidth / 16;
constexpr int kNoShift = 62;  // of what is not divided

// A strip: `width` positions of the lines of a band, taken by one CUDA block. It holds whole blocks.
struct Strips {
  int64_t lines;  // [bands of `height` lines], each line of `length`
  int64_t height;
  int64_t length;
  int64_t block_height;
  int64_t width;  // a multiple of 256: a warp takes 256 neighbours of one line
  int64_t of_line;
  int64_t height_blocks;
  int64_t length_blocks;
  int64_t pieces;          // of a line, for statistics of rows
  int32_t unit_shift;      // log2 of the units of a line of the strip; kNoShift where it has one line
  int32_t block_shift;     // log2 of block_length; kNoShift where a block is the whole width
  int32_t blocks;          // of a strip
  int32_t warps_of_block;  // whose sums make a block's
  bool blocked;
  bool aligned;

  LSFAST_HD int64_t bands() const { return lines / height * height_blocks; }
};

Strips make_strips(const QuantizeParams& p) {
  Strips s{};
  s.blocked = p.scheme.blocked();
  const int shift = s.blocked ? fixed_block_shift(p.block_length) : kNoShift;
  const int bits = p.scheme.code_bits() <= 8 ? p.scheme.code_bits() : 8;
  // Blocks that fill lines without a rest run on through their ends.
  const bool runs_on = p.block_height == 1 && p.granularity != Granularity::kRow && p.word_inner == 1 &&
                       (!s.blocked || (shift > 0 && p.length % p.block_length == 0)) &&
                       (p.codes == nullptr || p.length * bits % 8 == 0);
  s.lines = runs_on ? 1 : p.lines();
  s.height = runs_on ? 1 : p.height;
  s.length = runs_on ? p.per_tensor() : p.length;
  s.block_height = s.blocked ? p.block_height : 1;
  s.block_shift = shift > 0 ? shift : kNoShift;
  const int64_t side = s.block_shift == kNoShift ? 0 : int64_t{1} << s.block_shift;
  if (s.block_height > 1) {
    s.width = side < 256 ? 256 : side;
    s.unit_shift = s.width == 256 ? 5 : 6;
    s.warps_of_block = kWarps;
  } else {
    const bool row = s.blocked && side == 0;
    s.width = row ? (s.length + 255) / 256 * 256 : kStripWidth;
    s.unit_shift = kNoShift;
    s.warps_of_block = row ? kWarps : (side > 256 ? 2 : 1);
  }
  s.blocks = side == 0 ? 1 : static_cast<int32_t>(s.width / side);
  s.of_line = (s.length + s.width - 1) / s.width;
  s.height_blocks = (s.height + s.block_height - 1) / s.block_height;
  s.length_blocks = side == 0 ? 1 : (s.length + side - 1) / side;
  s.pieces = pieces_of_line(p);
  const int64_t bytes = p.kind == ScalarKind::kFloat64 ? 8 : (p.kind == ScalarKind::kFloat32 ? 4 : 2);
  s.aligned = aligned_to_16(p.x) && (p.y == nullptr || aligned_to_16(p.y)) && s.length * bytes % 16 == 0;
  return s;
}

// Where a thread's unit lies.
struct Unit {
  int64_t line;
  int64_t position;
  int32_t block;  // of the strip
  int32_t count;  // of its elements that exist
};

struct Strip {
  int64_t band;
  int64_t first_line;
  int64_t lines;
  int64_t first;  // position
  int rounds;     // until every unit has had its turn

  __device__ __forceinline__ Strip(const Strips& s, int64_t id) {
    band = id / s.of_line;
    first = id % s.of_line * s.width;
    const int64_t block_row = band % s.height_blocks;
    first_line = band / s.height_blocks * s.height + block_row * s.block_height;
    const int64_t left = s.height - block_row * s.block_height;
    lines = left < s.block_height ? left : s.block_height;
    rounds = static_cast<int>((lines * (s.width / kUnit) + kThreads - 1) / kThreads);
  }

  __device__ __forceinline__ Unit unit(const Strips& s, int round) const {
    const int64_t number = static_cast<int64_t>(round) * kThreads + threadIdx.x;
    const int64_t row = number >> s.unit_shift;
    const int64_t offset = (number - (row << s.unit_shift)) * kUnit;
    const int64_t left = (first + s.width < s.length ? s.width : s.length - first) - offset;
    Unit unit;
    unit.line = first_line + row;
    unit.position = first + offset;
    unit.block = static_cast<int32_t>(offset >> s.block_shift);
    unit.count = row >= lines || left < 0 ? 0 : (left < kUnit ? static_cast<int32_t>(left) : kUnit);
    return unit;
  }
};

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
