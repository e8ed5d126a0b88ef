// How the CUDA kernels cut a tensor whose blocks run along memory (inner == 1): into strips of lines that hold whole
// blocks, and those into units of 8 neighbours, one for each thread.
#pragma once

#include "quantization/statistics_cuda.inl"

namespace lsfast::quantization {

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

inline Strips make_strips(const QuantizeParams& p) {
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

}  // namespace lsfast::quantization
