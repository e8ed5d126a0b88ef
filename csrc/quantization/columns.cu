// CUDA kernel of quantization where blocks run across memory (inner > 1): the lanes of a warp have neighbouring
// columns.
#include "quantization/statistics_cuda.inl"

namespace lsfast::quantization {
namespace {

constexpr int kMostBlocks = kTileLength / 16;
constexpr int kNoShift = 62;  // of what is not divided

// A region: whole blocks of 32 columns in the lines of a band, taken by one CUDA block a tile of 128 positions at a
// time.
struct Columns {
  int64_t height;
  int64_t length;
  int64_t inner;
  int64_t block_height;
  int64_t region_length;  // along `length`: a tile, or a block that is longer
  int64_t line_regions;
  int64_t chunks;  // of 32 columns
  int64_t height_blocks;
  int64_t length_blocks;
  int64_t regions;
  int64_t pieces;          // of a line, for statistics of rows
  int32_t block_shift;     // log2 of block_length; kNoShift where a block is the whole region
  int32_t blocks;          // of a region, along a column
  int32_t warps_of_block;  // that hold its parts
  bool blocked;
};

Columns make_columns(const QuantizeParams& p) {
  Columns c{};
  c.blocked = p.scheme.blocked();
  c.height = p.height;
  c.length = p.length;
  c.inner = p.inner;
  c.block_height = c.blocked ? p.block_height : 1;
  const int shift = c.blocked ? fixed_block_shift(p.block_length) : kNoShift;
  const bool within = shift > 0 && shift <= 7;  // a tile
  c.block_shift = within ? shift : kNoShift;
  const bool longer = c.blocked && !within;
  c.region_length = longer ? p.block_length : kTileLength;
  c.blocks = within ? kTileLength >> shift : 1;
  c.warps_of_block = kWarps / c.blocks;
  c.line_regions = (c.length + c.region_length - 1) / c.region_length;
  c.chunks = (c.inner + kWarpSize - 1) / kWarpSize;
  c.height_blocks = (c.height + c.block_height - 1) / c.block_height;
  c.length_blocks = c.blocked ? p.length_blocks() : 1;
  c.regions = p.outer * c.height_blocks * c.line_regions * c.chunks;
  c.pieces = pieces_of_line(p);
  return c;
}

// Where a thread's 16 positions of a tile lie.
struct Piece {
  int64_t first;     // element
  int64_t position;  // along the line
  int32_t count;     // of its positions that exist
};

struct Region {
  int64_t band;
  int64_t first_line;
  int64_t lines;
  int64_t first;   // position
  int64_t column;  // of this lane
  int64_t tiles;   // of all lines
  int64_t of_line;
  int32_t warp;
  bool inside;  // does the column exist

  __device__ __forceinline__ Region(const Columns& c, int64_t id) {
    const int64_t of_chunk = id / c.chunks;
    column = id % c.chunks * kWarpSize + threadIdx.x % kWarpSize;
    inside = column < c.inner;
    warp = static_cast<int32_t>(threadIdx.x) / kWarpSize;
    band = of_chunk / c.line_regions;
    first = of_chunk % c.line_regions * c.region_length;
    const int64_t block_row = band % c.height_blocks;
    first_line = band / c.height_blocks * c.height + block_row * c.block_height;
    const int64_t left = c.height - block_row * c.block_height;
    lines = left < c.block_height ? left : c.block_height;
    const int64_t positions_left = c.length - first;
    const int64_t positions = c.region_length < positions_left ? c.region_length : positions_left;
    of_line = (positions + kTileLength - 1) / kTileLength;
    tiles = lines * of_line;
  }

  __device__ __forceinline__ Piece piece(const Columns& c, int64_t tile) const {
    Piece piece;
    piece.position = first + tile % of_line * kTileLength + warp * kColumnRows;
    piece.first = ((first_line + tile / of_line) * c.length + piece.position) * c.inner + column;
    const int64_t end = first + c.region_length < c.length ? first + c.region_length : c.length;
    piece.count = column_count(piece.position, end, inside);
    return piece;
  }
};

// Adds the sums of warps_of_block neighbouring warps, column by column; the first of them has the result.
__device__ __forceinline__ bool add_warps(Sums& sums, int warps, Sums (*slots)[kWarpSize]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  __syncthreads();
  slots[warp][lane] = sums;
  __syncthreads();
  if (warp % warps != 0) return false;
  for (int other = 1; other < warps; ++other) add_sums(sums, slots[warp + other][lane]);
  return true;
}

// A CUDA block has a region at a time: the largest magnitudes of its blocks, their scales, then the elements.
// Grid: (any, tensors). Bytes: reads x once, and where blocks have scales once more, from cache but for columns of more
// than a few thousand elements; writes y once.
template <class T, class F, bool kSummed>
__global__ void __launch_bounds__(kThreads, kSummed ? 1 : 2)
    columns_kernel(QuantizeParams p, Columns c, int64_t first_tensor) {
  __shared__ F tile_of_transform[kTileLength * kWarpSize];
  __shared__ uint32_t amax[kMostBlocks][kWarpSize];
  __shared__ float multiplier[kMostBlocks][kWarpSize];
  __shared__ float factor[kMostBlocks][kWarpSize];
  __shared__ Sums slots[kSummed ? kWarps : 1][kWarpSize];
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor();
  T* const y = static_cast<T*>(p.y) + tensor * p.per_tensor();
  const float largest = tensor_amax(p, tensor);
  const TensorScale shared_scale = tensor_scale_of(p, largest);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int own_block = warp * kColumnRows >> (c.block_shift < 31 ? c.block_shift : 31);
  Sums sums = zero_sums();
  const auto load = [&](const Piece& piece, F(&values)[kColumnRows]) {
    load_column(x + piece.first, c.inner, piece.count, values);
    if (p.scheme.hadamard.size > 0) transform_columns(values, p.scheme.hadamard, false, tile_of_transform);
  };
  for (int64_t id = blockIdx.x; id < c.regions; id += gridDim.x) {
    const Region region(c, id);
    __syncthreads();  // the scales of the region before are no longer read
    amax[warp][lane] = c.blocked ? 0u : bit_cast<uint32_t>(largest);
    __syncthreads();
    for (int64_t tile = 0; c.blocked && tile < region.tiles; ++tile) {
      F values[kColumnRows];
      load(region.piece(c, tile), values);
      atomicMax(&amax[own_block][lane], largest_of(values));
    }
    __syncthreads();
    if (warp < c.blocks) {
      const BlockScale block = scale_of<Family::kAny>(p.scheme, amax[warp][lane], shared_scale);
      multiplier[warp][lane] = block.multiplier;
      factor[warp][lane] = block.factor;
    }
    __syncthreads();
    for (int64_t tile = 0; tile < region.tiles; ++tile) {
      const Piece piece = region.piece(c, tile);
      F values[kColumnRows];
      load(piece, values);
      quantize_values<T, kSummed>(values, p, multiplier[own_block][lane], factor[own_block][lane],
                                  {piece.first, c.inner}, piece.count, sums);
      store_column(values, c.inner, piece.count, y + piece.first);
      if (kSummed && p.granularity == Granularity::kRow) {
        if (add_warps(sums, kWarps, slots) && piece.count > 0) {
          const int64_t row = region.first_line + tile / region.of_line;
          const int64_t at = (row * c.pieces + piece.position / kColumnPiece) * c.inner + region.column;
          write_sums(sums, p.partial + at * kStatistics);
        }
        sums = zero_sums();
      }
    }
    if (kSummed && p.granularity == Granularity::kBlock) {
      const int64_t of_line =
          c.block_shift == kNoShift ? region.first / c.region_length : (region.first >> c.block_shift) + own_block;
      if (add_warps(sums, c.warps_of_block, slots) && region.inside && of_line < c.length_blocks) {
        write_sums(sums,
                   p.statistics + ((region.band * c.length_blocks + of_line) * c.inner + region.column) * kStatistics);
      }
      sums = zero_sums();
    }
  }
  if (kSummed && p.granularity == Granularity::kTensor) {
    write_block_sums(sums, &slots[0][0], p.partial + static_cast<int64_t>(blockIdx.x) * kStatistics);
  }
}

template <class T, class F>
const char* launch_typed(const QuantizeParams& p, unsigned* blocks, Stream stream) {
  const Columns c = make_columns(p);
  const bool summed = p.granularity != Granularity::kNone;
  const bool of_tensor = p.granularity == Granularity::kTensor;
  *blocks = grid_size(c.regions, 1, of_tensor ? kPartialBlocks : 1 << 16);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    const dim3 grid(*blocks, count);
    if (summed) return LSFAST_LAUNCH((columns_kernel<T, F, true>), grid, dim3(kThreads), 0, stream, p, c, first);
    return LSFAST_LAUNCH((columns_kernel<T, F, false>), grid, dim3(kThreads), 0, stream, p, c, first);
  });
}

}  // namespace

const char* launch_columns(const QuantizeParams& p, unsigned* blocks, Stream stream) {
  if (p.kind == ScalarKind::kFloat64 && p.scheme.rule == ScaleRule::kNone) {
    return launch_typed<double, double>(p, blocks, stream);
  }
  LSFAST_DISPATCH(p.kind, return (launch_typed<scalar_t, float>(p, blocks, stream)));
  return "quantize: unknown element type";
}

}  // namespace lsfast::quantization
