// How the CPU kernels cut a tensor: into regions that hold whole blocks, regions into tiles, and regions together into
// the units that threads take. Depends on shapes and the scheme alone, so every thread count gives the same bits.
#pragma once

#include "quantization/quantization.h"

namespace lsfast::quantization {

constexpr int kRowTile = 512;     // elements of a tile of one row
constexpr int kCapacity = 2048;   // elements of a tile of columns
constexpr int kMostColumns = 64;  // columns of a tile
constexpr int kGroup = 16;        // elements that share a scale in every scheme with blocks of fixed size
constexpr int64_t kUnitElements = 16384;

struct Plan {
  bool columns;  // blocks run across memory: a tile has rows of neighbouring columns
  int64_t outer;
  int64_t height;
  int64_t length;
  int64_t inner;
  int64_t block_height;
  int64_t block_length;
  int64_t tile_length;    // along `length`
  int64_t region_length;  // along `length`: a tile, or all of it
  int tile_columns;       // 1 where not `columns`
  int64_t line_regions;
  int64_t column_chunks;
  int64_t regions;
  int64_t unit_regions;

  LSFAST_HD int64_t units() const { return (regions + unit_regions - 1) / unit_regions; }
  LSFAST_HD int64_t height_blocks() const { return (height + block_height - 1) / block_height; }
  LSFAST_HD int64_t length_blocks() const { return (length + block_length - 1) / block_length; }
};

LSFAST_HD int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

LSFAST_HD Plan make_plan(const QuantizeParams& p) {
  Plan plan{};
  const bool blocked = p.scheme.blocked();
  const bool by_row = p.granularity == Granularity::kRow;
  const int64_t transform = p.scheme.hadamard.size;
  plan.outer = p.outer;
  plan.height = p.height;
  plan.length = p.length;
  plan.inner = p.inner;
  plan.block_height = blocked ? p.block_height : 1;
  plan.block_length = blocked ? p.block_length : kGroup;
  const bool by_code = p.codes != nullptr;
  if (!blocked && transform == 0 && !by_row && !by_code) {
    plan.length = p.per_tensor();
    plan.outer = plan.height = plan.inner = 1;
  }
  plan.columns = plan.inner > 1;
  // Blocks that fill a tile without a rest run on through the ends of lines.
  const bool fills = plan.block_length % kGroup == 0 && kRowTile % plan.block_length == 0;
  const bool whole_bytes = !by_code || (plan.length * p.scheme.code_bits() % 8 == 0 && p.word_inner == 1);
  const bool whole_groups = transform == 0 || plan.length % transform == 0;
  if (!plan.columns && plan.block_height == 1 && !by_row && fills && plan.length % plan.block_length == 0 &&
      whole_bytes && whole_groups) {
    plan.length *= plan.outer * plan.height;
    plan.outer = plan.height = 1;
  }
  const bool whole = blocked && (!fills || plan.block_length == plan.length);
  if (plan.columns) {
    plan.tile_length = whole ? 32 : plan.block_length;
    if (plan.tile_length < transform) plan.tile_length = transform;
    const int64_t most = kCapacity / plan.tile_length < kMostColumns ? kCapacity / plan.tile_length : kMostColumns;
    plan.tile_columns = static_cast<int>(plan.inner < most ? plan.inner : most);
  } else {
    plan.tile_length = kRowTile;
    plan.tile_columns = 1;
  }
  plan.region_length = whole ? plan.length : plan.tile_length;
  plan.line_regions = divided_up(plan.length, plan.region_length);
  plan.column_chunks = divided_up(plan.inner, plan.tile_columns);
  const int64_t of_band = plan.line_regions * plan.column_chunks;
  plan.regions = plan.outer * plan.height_blocks() * of_band;
  const int64_t elements = plan.block_height * plan.region_length * plan.tile_columns;
  plan.unit_regions = by_row ? of_band : (elements < kUnitElements ? kUnitElements / elements : 1);
  return plan;
}

// One region: lines `first_line` .. + lines of the [outer * height] lines, positions first .. + length, columns.
struct Region {
  int64_t first_line;
  int64_t lines;
  int64_t band;      // of the [outer, height blocks] bands
  int64_t position;  // first, along the block axis
  int64_t length;
  int64_t column;  // first
  int columns;
};

LSFAST_HD Region region_at(const Plan& plan, int64_t id) {
  Region region;
  const int64_t of_line = id / plan.column_chunks;
  region.band = of_line / plan.line_regions;
  const int64_t block_row = region.band % plan.height_blocks();
  region.first_line = region.band / plan.height_blocks() * plan.height + block_row * plan.block_height;
  const int64_t lines_left = plan.height - block_row * plan.block_height;
  region.lines = plan.block_height < lines_left ? plan.block_height : lines_left;
  region.position = of_line % plan.line_regions * plan.region_length;
  const int64_t left = plan.length - region.position;
  region.length = plan.region_length < left ? plan.region_length : left;
  region.column = id % plan.column_chunks * plan.tile_columns;
  const int64_t columns_left = plan.inner - region.column;
  region.columns = static_cast<int>(plan.tile_columns < columns_left ? plan.tile_columns : columns_left);
  return region;
}

}  // namespace lsfast::quantization
