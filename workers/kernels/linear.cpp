// y = x W^T + b for a few rows x against a weight that is read once from memory.
//
// The weight is packed by output column: panel j holds columns [j * kPanel, (j + 1) * kPanel), as steps along the
// inputs: of one input each in f32, of two in bf16, which a step has side by side. A thread owns whole panels and runs
// all rows against one while it is in the cache.
//
//     f32      [num_panels][in_features][kPanel]
//     bf16     [num_panels][in_features / 2, rounded up][kPanel][2], the last input beside 0 where they are odd
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
constexpr int kPanelsOfOneRow = 4;               // which leaves registers free: so they hide the latency of the sums

template <typename T>
struct Type {
  using type = T;
};

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

#if defined(__AVX512BF16__)

// A product of two bf16 numbers is exact in f32; the CPU adds two of them to a sum at once.
struct HalfStep {
  using Weight = uint16_t;
  using Input = uint32_t;  // two numbers, the first in the low half
  static constexpr int kInputs = 2;
  static constexpr int kWeights = 2 * kPanel;

  __m512bh low, high;

  explicit HalfStep(const uint16_t* weights)
      : low(load_as<__m512bh>(weights)), high(load_as<__m512bh>(weights + kPanel)) {}

  static Input pair(uint16_t first, uint16_t second) { return first | uint32_t(second) << 16; }

  void add(const Input& x, Vec& low_sum, Vec& high_sum) const {
    const __m512bh values = (__m512bh)_mm512_set1_epi32(int32_t(x));
    low_sum = (Vec)_mm512_dpbf16_ps((__m512)low_sum, values, low);
    high_sum = (Vec)_mm512_dpbf16_ps((__m512)high_sum, values, high);
  }
};

#else

struct HalfStep {
  using Weight = uint16_t;
  struct Input {
    float first, second;
  };
  static constexpr int kInputs = 2;
  static constexpr int kWeights = 2 * kPanel;

  Vec low[2], high[2];

  explicit HalfStep(const uint16_t* weights) {
    unpack(load_as<UintVec>(weights), low);
    unpack(load_as<UintVec>(weights + kPanel), high);
  }

  static void unpack(UintVec words, Vec halves[2]) {
    halves[0] = (Vec)(words << 16);
    halves[1] = (Vec)(words & 0xffff0000u);
  }

  static Input pair(uint16_t first, uint16_t second) { return {to_float(first), to_float(second)}; }

  void add(const Input& x, Vec& low_sum, Vec& high_sum) const {
    const Vec first = splat(x.first), second = splat(x.second);
    low_sum = multiply_add(second, low[1], multiply_add(first, low[0], low_sum));
    high_sum = multiply_add(second, high[1], multiply_add(first, high[0], high_sum));
  }
};

#endif

// The inputs of all rows, tile by tile.
template <typename Step>
struct Rows {
  const typename Step::Input* packed;  // [num_rows * num_steps], see above
  int64_t num_rows, num_steps;
};

// kRows rows against kPanels neighbouring panels: sums[row][panel * kPanel + column].
template <int kRows, int kPanels, typename Step>
void multiply(const typename Step::Input* x, const typename Step::Weight* weights, int64_t num_steps, float* sums) {
  Vec low[kRows][kPanels] = {}, high[kRows][kPanels] = {};
  const int64_t panel_size = num_steps * Step::kWeights;
  for (int64_t k = 0; k < num_steps; ++k) {
#pragma GCC unroll 4
    for (int panel = 0; panel < kPanels; ++panel) {
      const Step step(weights + panel * panel_size + k * Step::kWeights);
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) step.add(x[k * kRows + row], low[row][panel], high[row][panel]);
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int panel = 0; panel < kPanels; ++panel) {
      store(sums + (row * kPanels + panel) * kPanel, low[row][panel]);
      store(sums + (row * kPanels + panel) * kPanel + kLanes, high[row][panel]);
    }
}

template <typename T>
struct Output {
  T* data;  // [num_rows, num_outputs]
  int64_t num_outputs;
  const float* bias;    // [num_outputs] or null

  void write(int64_t row, int64_t first, int64_t count, const float* sums) const {
    T* target = data + row * num_outputs + first;
    for (int64_t i = 0; i < count; ++i) {
      float value = sums[i];
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

// All rows against panels [panel, panel + kPanels).
template <int kPanels, typename Step, typename T>
void multiply_rows(const Rows<Step>& rows, const typename Step::Weight* packed, int64_t panel,
                   const Output<T>& output) {
  constexpr int kLargest = kPanels == 1 ? kMaxRows : 1;
  alignas(64) float sums[kLargest * kPanels * kPanel];
  const auto* weights = packed + panel * rows.num_steps * Step::kWeights;
  const int64_t first = panel * kPanel;
  const int64_t count = std::min<int64_t>(kPanels * kPanel, output.num_outputs - first);
  each_tile(rows.num_rows, [&](int64_t row, int64_t num) {
    with_constant<kLargest>(num, [&](auto constant) {
      constexpr int kRows = decltype(constant)::value;
      multiply<kRows, kPanels, Step>(rows.packed + row * rows.num_steps, weights, rows.num_steps, sums);
      for (int i = 0; i < kRows; ++i) output.write(row + i, first, count, sums + i * kPanels * kPanel);
    });
  });
}

template <typename Step, typename T>
void run(const Rows<Step>& rows, const typename Step::Weight* packed, const Output<T>& output) {
  const int64_t num_panels = round_up(output.num_outputs, kPanel) / kPanel;
  const int width = rows.num_rows == 1 ? kPanelsOfOneRow : 1;
  at::parallel_for(0, num_panels, width, [&](int64_t begin, int64_t end) {
    int64_t panel = begin;
    if (width > 1)
      for (; panel + width <= end; panel += width) multiply_rows<kPanelsOfOneRow>(rows, packed, panel, output);
    for (; panel < end; ++panel) multiply_rows<1>(rows, packed, panel, output);
  });
}

// What a step takes of a row: inputs k, k + 1, ... of it, 0 beyond the last.
template <typename Step, typename T>
typename Step::Input input_of(const T* x, int64_t k, int64_t num_inputs) {
  if constexpr (Step::kInputs == 1) {
    return to_float(x[k]);
  } else {
    const T second = k + 1 < num_inputs ? x[k + 1] : T(0);
    return Step::pair(x[k], second);
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

// x: [..., in_features] f32 or bf16, whose dtype the result and the weight have; packed as `pack_weight` made it; bias
// [out_features] f32. Where the plain weight is given too, [out_features, in_features], many rows are left to torch:
// on a CPU with matrix units that is faster, and no longer the same bits for every number of rows.
at::Tensor linear(const at::Tensor& input, const at::Tensor& packed, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& weight, int64_t num_outputs) {
  const at::Tensor x = input.contiguous();
  const int64_t num_inputs = x.size(-1), num_rows = x.numel() / num_inputs;
  if (weight && num_rows > kManyRows) {
    at::Tensor y = at::linear(x, *weight);
    return bias ? y.add_(*bias) : y;
  }
  auto sizes = x.sizes().vec();
  sizes.back() = num_outputs;
  at::Tensor y = at::empty(sizes, x.options());
  const float* bias_data = bias ? bias->const_data_ptr<float>() : nullptr;
  const auto run_steps = [&](auto step, auto element) {
    using Step = typename decltype(step)::type;
    using T = typename decltype(element)::type;
    using Weight = typename Step::Weight;
    TORCH_CHECK(packed.dim() == 3 && packed.size(1) == round_up(num_inputs, Step::kInputs) / Step::kInputs &&
                    packed.size(2) == Step::kWeights && packed.element_size() == sizeof(Weight),
                "a weight packed for ", num_inputs, " inputs is needed, not ", packed.sizes());
    const auto rows = pack_rows<Step>(static_cast<const T*>(x.const_data_ptr()), num_rows, num_inputs);
    run<Step, T>(rows, static_cast<const Weight*>(packed.const_data_ptr()),
                 {static_cast<T*>(y.mutable_data_ptr()), num_outputs, bias_data});
  };
  TORCH_CHECK(x.scalar_type() == packed.scalar_type(), "inputs are ", x.scalar_type(), ", weights ",
              packed.scalar_type());
  if (x.scalar_type() == at::kFloat) run_steps(Type<FloatStep>{}, Type<float>{});
  else run_steps(Type<HalfStep>{}, Type<uint16_t>{});
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

// weight: [out_features, in_features] f32 or bf16 -> [num_panels, steps, numbers of a step] of the same dtype.
at::Tensor pack_weight(const at::Tensor& weight_) {
  const at::Tensor weight = weight_.contiguous();
  const int64_t num_outputs = weight.size(0), num_inputs = weight.size(1);
  const auto pack_steps = [&](auto step) {
    using Step = typename decltype(step)::type;
    const int64_t num_steps = round_up(num_inputs, Step::kInputs) / Step::kInputs;
    at::Tensor packed = at::zeros({round_up(num_outputs, kPanel) / kPanel, num_steps, Step::kWeights},
                                  weight.options());
    using Weight = typename Step::Weight;
    pack<Step>(static_cast<const Weight*>(weight.const_data_ptr()), num_outputs, num_inputs,
               static_cast<Weight*>(packed.mutable_data_ptr()));
    return packed;
  };
  return weight.scalar_type() == at::kFloat ? pack_steps(Type<FloatStep>{}) : pack_steps(Type<HalfStep>{});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def("linear(Tensor x, Tensor packed, Tensor? bias, Tensor? weight, int num_outputs) -> Tensor");
  library.def("pack_weight(Tensor weight) -> Tensor");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("linear", linear);
  library.impl("pack_weight", pack_weight);
}

}  // namespace outrider
