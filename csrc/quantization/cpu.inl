// CPU kernels of the quantization room, each over a range of work. Compiled once per instruction set
// (platform/dispatch.h). plan.h cuts a tensor into regions, quantizer_cpu.inl does one, tile_cpu.inl has the steps.
#include "quantization/quantizer_cpu.inl"

namespace lsfast::quantization::LSFAST_ISA {

// ---- amax ----------------------------------------------------------------------------------------------------------

template <class T>
void amax_range(const AmaxParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = p.chunks();
  const int32_t limit = p.finite_only ? 0x7f7fffff : 0x7fffffff;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t tensor = unit / chunks;
    const int64_t first = (unit % chunks) * AmaxParams::kChunk;
    const int64_t count = std::min(AmaxParams::kChunk, p.per_tensor - first);
    const T* x = static_cast<const T*>(p.x) + tensor * p.per_tensor + first;
    // Magnitudes of floats order as their bits: an integer maximum is exact, and the same in any order.
    constexpr int kLanes = 64;
    int32_t lane[kLanes] = {};
    const auto include = [&](int l, T value) {
      const int32_t bits = bit_cast<int32_t>(to_float(value)) & 0x7fffffff;
      const int32_t kept = bits <= limit ? bits : 0;
      lane[l] = lane[l] > kept ? lane[l] : kept;
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      prefetch_ahead(x + i, kLanes);
      for (int l = 0; l < kLanes; ++l) include(l, x[i + l]);
    }
    for (; i < count; ++i) include(0, x[i]);
    p.amax_bits[unit] = static_cast<uint32_t>(*std::max_element(lane, lane + kLanes));
  }
}

void amax(const AmaxParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, amax_range<scalar_t>(p, begin, end));
}

// ---- quantize ------------------------------------------------------------------------------------------------------

template <class T, class F>
void quantize_range(const QuantizeParams& p, int64_t tensor, double* partial, int64_t begin, int64_t end) {
  Quantizer<T, F> quantizer(p, tensor);
  const Plan& plan = quantizer.plan();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t last = std::min(plan.regions, (unit + 1) * plan.unit_regions);
    for (int64_t region = unit * plan.unit_regions; region < last; ++region) quantizer.quantize(region);
    if (p.granularity == Granularity::kTensor) quantizer.take_sums().write(partial + unit * kStatistics);
  }
  stream_fence();
}

void quantize(const QuantizeParams& p, int64_t tensor, double* partial, int64_t begin, int64_t end) {
  if (p.kind == ScalarKind::kFloat64 && p.scheme.rule == ScaleRule::kNone) {
    return quantize_range<double, double>(p, tensor, partial, begin, end);
  }
  LSFAST_DISPATCH(p.kind, (quantize_range<scalar_t, float>(p, tensor, partial, begin, end)));
}

int64_t units(const QuantizeParams& p) { return make_plan(p).units(); }

template <class T>
void transformed_amax_range(const QuantizeParams& p, int64_t tensor, uint32_t* amax, int64_t begin, int64_t end) {
  Quantizer<T, float> quantizer(p, tensor);
  const Plan& plan = quantizer.plan();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t last = std::min(plan.regions, (unit + 1) * plan.unit_regions);
    amax[unit] = 0u;
    for (int64_t region = unit * plan.unit_regions; region < last; ++region) {
      amax[unit] = std::max(amax[unit], quantizer.amax(region));
    }
  }
}

void transformed_amax(const QuantizeParams& p, int64_t tensor, uint32_t* amax, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, transformed_amax_range<scalar_t>(p, tensor, amax, begin, end));
}

// ---- points --------------------------------------------------------------------------------------------------------

// Calls function(quantizer, unit, point, regions), a few regions at a time: theta and the directions come from memory
// for the first point, from the cache for the others.
template <class T, class F, class Function>
void for_points(const QuantizeParams& p, int64_t begin, int64_t end, const Function& function) {
  constexpr int64_t kElements = 4096;
  Quantizer<T, F> quantizer(p, 0);
  const Plan& plan = quantizer.plan();
  const int64_t at_once = std::max<int64_t>(1, kElements / (plan.block_height * plan.region_length));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t last = std::min(plan.regions, (unit + 1) * plan.unit_regions);
    for (int64_t first = unit * plan.unit_regions; first < last; first += at_once) {
      for (int64_t point = 0; point < p.tensors; ++point) {
        quantizer.turn_to(point);
        for (int64_t region = first; region < std::min(last, first + at_once); ++region) {
          function(quantizer, unit, point, region);
        }
      }
    }
  }
}

template <class T, class F>
void quantize_points_range(const QuantizeParams& p, int64_t begin, int64_t end) {
  for_points<T, F>(p, begin, end,
                   [](Quantizer<T, F>& quantizer, int64_t, int64_t, int64_t region) { quantizer.quantize(region); });
  stream_fence();
}

void quantize_points(const QuantizeParams& p, int64_t begin, int64_t end) {
  if (p.kind == ScalarKind::kFloat64 && p.scheme.rule == ScaleRule::kNone) {
    return quantize_points_range<double, double>(p, begin, end);
  }
  LSFAST_DISPATCH(p.kind, (quantize_points_range<scalar_t, float>(p, begin, end)));
}

template <class T>
void points_amax_range(const QuantizeParams& p, uint32_t* amax, int64_t begin, int64_t end) {
  std::fill(amax + begin * p.tensors, amax + end * p.tensors, 0u);
  for_points<T, float>(p, begin, end, [&](Quantizer<T, float>& quantizer, int64_t unit, int64_t point, int64_t region) {
    uint32_t& largest = amax[unit * p.tensors + point];
    largest = std::max(largest, quantizer.amax(region));
  });
}

void points_amax(const QuantizeParams& p, uint32_t* amax, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, points_amax_range<scalar_t>(p, amax, begin, end));
}

// ---- Hadamard ------------------------------------------------------------------------------------------------------

template <class T, class F>
void hadamard_range(const HadamardParams& p, int64_t begin, int64_t end) {
  alignas(64) F values[kLargestHadamard * kMostColumns];
  const int size = p.transform.size;
  for (int64_t unit = begin; unit < end; ++unit) {  // `size` positions of all columns
    for (int64_t column = 0; column < p.inner; column += kMostColumns) {
      TilePlace at{};
      at.first = unit * size * p.inner + column;
      at.stride = p.inner;
      at.rows = p.inner == 1 ? 1 : size;
      at.columns = p.inner == 1 ? size : static_cast<int>(std::min<int64_t>(kMostColumns, p.inner - column));
      at.pitch = at.columns;
      load(static_cast<const T*>(p.x) + at.first, at, values);
      transform(values, values, at, p.transform, p.inverse);
      store(values, at, false, static_cast<T*>(p.y));
    }
  }
}

void hadamard(const HadamardParams& p, int64_t begin, int64_t end) {
  if (p.kind == ScalarKind::kFloat64) return hadamard_range<double, double>(p, begin, end);
  LSFAST_DISPATCH(p.kind, (hadamard_range<scalar_t, float>(p, begin, end)));
}

constexpr CpuKernels kKernels = {amax,        units,      quantize, transformed_amax, quantize_points,
                                 points_amax, dequantize, hadamard};

}  // namespace lsfast::quantization::LSFAST_ISA
