// y = x W^T + b for a few rows x against a weight that is read once from memory.
//
// The weight is packed by output column: panel j holds columns [j * kPanel, (j + 1) * kPanel), as steps along the
// inputs: of one input each in f32, of two in bf16 and i8, which a step has side by side. A thread owns whole panels and runs
// all rows against one while it is in the cache.
//
//     f32      [num_panels][in_features][kPanel]
//     bf16     [num_panels][in_features / 2, rounded up][kPanel][2], the last input beside 0 where they are odd
//     i8       likewise, and each column has a scale, which its sum is multiplied by; inputs are bf16
//
// Rows go in tiles, whose inputs are packed by step too: [steps][rows of the tile][inputs of a step].
//
// An output is one chain of sums over the inputs in their order, however many rows there are and wherever the row
// stands among them. So a row's result has the same bits in every batch: what `exact` mode stands on.
#include <ATen/core/Tensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#include "simd.h"

namespace outrider {
namespace {

constexpr int kPanel = 2 * kLanes;
constexpr int64_t kManyRows = 16;
constexpr int kMaxRows = kLanes == 16 ? 12 : 6;  // of a tile: their sums fill the registers

// One step: a row's inputs and a panel's weights, for the sums of the panel's first and second kLanes columns.
struct FloatStep {
  using Weight = float;
  using Input = float;  // of one row
  static constexpr int kInputs = 1;
  static constexpr int kWeights = kPanel;

  Vec low, high;

  explicit FloatStep(const float* weights) : low(load(weights)), high(load(weights + kLanes)) {}

  void add(const Input& x, Vec& low_sum, Vec& high_sum) const {
    const Vec value = splat(x);
    low_sum = multiply_add(value, low, low_sum);
    high_sum = multiply_add(value, high, high_sum);
  }
};

// kLanes columns of two inputs, in bf16 or in bytes; either dtype is exact in f32, and so are products of two in bf16.
#if defined(__AVX512BF16__)

using PairOfInputs = uint32_t;  // the first in the low half
using Pairs = __m512bh;

inline PairOfInputs pair(uint16_t first, uint16_t second) { return first | uint32_t(second) << 16; }

inline Pairs load_pairs(const uint16_t* weights) { return load_as<__m512bh>(weights); }

inline __m512 load_bytes(const int8_t* weights) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(weights)));
}

inline Pairs load_pairs(const int8_t* weights) {
  return _mm512_cvtne2ps_pbh(load_bytes(weights + kLanes), load_bytes(weights));
}

inline Vec add_product(PairOfInputs x, Pairs weights, Vec sum) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int32_t(x)), weights);
}

#else

struct PairOfInputs {
  float first, second;
};

struct Pairs {
  Vec first, second;
};

inline PairOfInputs pair(uint16_t first, uint16_t second) { return {to_float(first), to_float(second)}; }

inline Pairs load_pairs(const uint16_t* weights) {
  const UintVec words = load_as<UintVec>(weights);
  return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
}

inline Pairs load_pairs(const int8_t* weights) {
  const IntVec words = (IntVec)__builtin_convertvector(load_as<HalfVec>(weights), UintVec);
  return {__builtin_convertvector(words << 24 >> 24, Vec), __builtin_convertvector(words << 16 >> 24, Vec)};
}

inline Vec add_product(PairOfInputs x, Pairs weights, Vec sum) {
  return multiply_add(splat(x.second), weights.second, multiply_add(splat(x.first), weights.first, sum));
}

#endif

template <typename W>
struct PairStep {
  using Weight = W;
  using Input = PairOfInputs;
  static constexpr int kInputs = 2;
  static constexpr int kWeights = 2 * kPanel;

  Pairs low, high;

  explicit PairStep(const Weight* weights) : low(load_pairs(weights)), high(load_pairs(weights + kPanel)) {}

  void add(const Input& x, Vec& low_sum, Vec& high_sum) const {
    low_sum = add_product(x, low, low_sum);
    high_sum = add_product(x, high, high_sum);
  }
};

using HalfStep = PairStep<uint16_t>;
using ByteStep = PairStep<int8_t>;

// The inputs of all rows, tile by tile.
template <typename Step>
struct Rows {
  const typename Step::Input* packed;  // [num_rows * num_steps], see above
  int64_t num_rows, num_steps;
};

// kRows rows against one panel: sums[row][column].
template <int kRows, typename Step>
void multiply(const typename Step::Input* x, const typename Step::Weight* panel, int64_t num_steps, float* sums) {
  Vec low[kRows] = {}, high[kRows] = {};
  for (int64_t k = 0; k < num_steps; ++k) {
    const Step step(panel + k * Step::kWeights);
#pragma GCC unroll 12
    for (int row = 0; row < kRows; ++row) step.add(x[k * kRows + row], low[row], high[row]);
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row) {
    store(sums + row * kPanel, low[row]);
    store(sums + row * kPanel + kLanes, high[row]);
  }
}

template <typename T>
struct Output {
  T* data;  // [num_rows, num_outputs]
  int64_t num_outputs;
  const float* scale;  // [num_outputs] or null
  const float* bias;   // [num_outputs] or null

  void write(int64_t row, int64_t first, int64_t count, const float* sums) const {
    T* target = data + row * num_outputs + first;
    for (int64_t i = 0; i < count; ++i) {
      float value = sums[i];
      if (scale) value *= scale[first + i];
      if (bias) value += bias[first + i];
      target[i] = from_float<T>(value);
    }
  }
};

// run(num) with `num` as a constant, for 1 <= num <= kLargest.
template <int kLargest, typename Run>
void with_constant(int64_t num, const Run& run) {
  if constexpr (kLargest > 1)
    if (num < kLargest) return with_constant<kLargest - 1>(num, run);
  run(std::integral_constant<int, kLargest>{});
}

// Calls tile(first row, number of rows) for tiles of even size.
template <typename Tile>
void each_tile(int64_t num_rows, const Tile& tile) {
  for (int64_t row = 0, left = round_up(num_rows, kMaxRows) / kMaxRows; row < num_rows; --left) {
    const int64_t num = (num_rows - row + left - 1) / left;
    tile(row, num);
    row += num;
  }
}

template <typename Step, typename T>
void run(const Rows<Step>& rows, const typename Step::Weight* packed, const Output<T>& output) {
  const int64_t num_panels = round_up(output.num_outputs, kPanel) / kPanel;
  at::parallel_for(0, num_panels, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kMaxRows * kPanel];
    for (int64_t panel = begin; panel < end; ++panel) {
      const auto* weights = packed + panel * rows.num_steps * Step::kWeights;
      const int64_t first = panel * kPanel, count = std::min<int64_t>(kPanel, output.num_outputs - first);
      each_tile(rows.num_rows, [&](int64_t row, int64_t num) {
        with_constant<kMaxRows>(num, [&](auto num_rows) {
          multiply<num_rows, Step>(rows.packed + row * rows.num_steps, weights, rows.num_steps, sums);
        });
        for (int64_t i = 0; i < num; ++i) output.write(row + i, first, count, sums + i * kPanel);
      });
    }
  });
}

// What a step takes of a row: inputs k, k + 1, ... of it, 0 beyond the last.
template <typename Step, typename T>
typename Step::Input input_of(const T* x, int64_t k, int64_t num_inputs) {
  if constexpr (Step::kInputs == 1) {
    return to_float(x[k]);
  } else {
    const T second = k + 1 < num_inputs ? x[k + 1] : T(0);
    return pair(x[k], second);
  }
}

template <typename Step, typename T>
Rows<Step> pack_rows(const T* x, int64_t num_rows, int64_t num_inputs) {
  static thread_local std::vector<typename Step::Input> buffer;
  const int64_t num_steps = round_up(num_inputs, Step::kInputs) / Step::kInputs;
  if (buffer.size() < size_t(num_rows * num_steps)) buffer.resize(num_rows * num_steps);
  each_tile(num_rows, [&](int64_t first, int64_t num) {
    auto* tile = buffer.data() + first * num_steps;
    for (int64_t i = 0; i < num; ++i)
      for (int64_t k = 0; k < num_steps; ++k)
        tile[k * num + i] = input_of<Step>(x + (first + i) * num_inputs, k * Step::kInputs, num_inputs);
  });
  return {buffer.data(), num_rows, num_steps};
}

const float* data_or_null(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

template <typename Step, typename T>
void run_packed(const at::Tensor& x, const at::Tensor& packed, int64_t num_rows, int64_t num_inputs,
                const Output<T>& output) {
  using Weight = typename Step::Weight;
  TORCH_CHECK(packed.dim() == 3 && packed.size(1) == round_up(num_inputs, Step::kInputs) / Step::kInputs &&
                  packed.size(2) == Step::kWeights && packed.element_size() == sizeof(Weight),
              "a weight packed for ", num_inputs, " inputs of ", x.scalar_type(), " is needed, not ", packed.sizes(),
              " of ", packed.scalar_type());
  const auto rows = pack_rows<Step>(static_cast<const T*>(x.const_data_ptr()), num_rows, num_inputs);
  run<Step, T>(rows, static_cast<const Weight*>(packed.const_data_ptr()), output);
}

// x: [..., in_features] f32 or bf16, whose dtype the result has; packed as `pack_weight` made it, of x's dtype or, for
// bf16, of i8 with its scale, [out_features] f32; bias [out_features] f32. Where the plain weight is given too,
// [out_features, in_features], many rows are left to torch: on a CPU with matrix units that is faster, and no longer
// the same bits for every number of rows.
at::Tensor linear(const at::Tensor& input, const at::Tensor& packed, const std::optional<at::Tensor>& scale,
                  const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& weight,
                  int64_t num_outputs) {
  const at::Tensor x = input.contiguous();
  const int64_t num_inputs = x.size(-1), num_rows = x.numel() / num_inputs;
  if (weight && num_rows > kManyRows) {
    at::Tensor y = at::linear(x, *weight);
    return bias ? y.add_(*bias) : y;
  }
  auto sizes = x.sizes().vec();
  sizes.back() = num_outputs;
  at::Tensor y = at::empty(sizes, x.options());
  const auto run_as = [&](auto element, auto step) {
    using T = typename decltype(element)::type;
    run_packed<typename decltype(step)::type, T>(
        x, packed, num_rows, num_inputs,
        {static_cast<T*>(y.mutable_data_ptr()), num_outputs, data_or_null(scale), data_or_null(bias)});
  };
  if (x.scalar_type() == at::kFloat) run_as(std::type_identity<float>{}, std::type_identity<FloatStep>{});
  else if (packed.scalar_type() == at::kChar) run_as(std::type_identity<uint16_t>{}, std::type_identity<ByteStep>{});
  else run_as(std::type_identity<uint16_t>{}, std::type_identity<HalfStep>{});
  return y;
}

template <typename Step>
void pack(const typename Step::Weight* weight, int64_t num_outputs, int64_t num_inputs,
          typename Step::Weight* packed) {
  const int64_t num_steps = round_up(num_inputs, Step::kInputs) / Step::kInputs;
  for (int64_t n = 0; n < num_outputs; ++n) {
    auto* column = packed + n / kPanel * num_steps * Step::kWeights + n % kPanel * Step::kInputs;
    for (int64_t k = 0; k < num_inputs; ++k)
      column[k / Step::kInputs * Step::kWeights + k % Step::kInputs] = weight[n * num_inputs + k];
  }
}

// weight: [out_features, in_features] f32, bf16 or i8 -> [num_panels, steps, numbers of a step] of the same dtype.
at::Tensor pack_weight(const at::Tensor& weight_) {
  const at::Tensor weight = weight_.contiguous();
  const int64_t num_outputs = weight.size(0), num_inputs = weight.size(1);
  const auto pack_as = [&](auto step) {
    using Step = typename decltype(step)::type;
    using Weight = typename Step::Weight;
    const int64_t num_steps = round_up(num_inputs, Step::kInputs) / Step::kInputs;
    const int64_t num_panels = round_up(num_outputs, kPanel) / kPanel;
    at::Tensor packed = at::zeros({num_panels, num_steps, Step::kWeights}, weight.options());
    pack<Step>(static_cast<const Weight*>(weight.const_data_ptr()), num_outputs, num_inputs,
               static_cast<Weight*>(packed.mutable_data_ptr()));
    return packed;
  };
  switch (weight.scalar_type()) {
    case at::kFloat: return pack_as(std::type_identity<FloatStep>{});
    case at::kChar: return pack_as(std::type_identity<ByteStep>{});
    default: return pack_as(std::type_identity<HalfStep>{});
  }
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def(
      "linear(Tensor x, Tensor packed, Tensor? scale, Tensor? bias, Tensor? weight, int num_outputs) -> Tensor");
  library.def("pack_weight(Tensor weight) -> Tensor");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("linear", linear);
  library.impl("pack_weight", pack_weight);
}

}  // namespace outrider
