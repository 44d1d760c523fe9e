// y = x W^T + b for a few rows x against a weight that is read once from memory.
//
// The weight is packed by output column: panel j holds columns [j * kPanel, (j + 1) * kPanel), for each input k
// one line of kPanel numbers. A thread owns whole panels and runs all rows against one while it is in the cache.
//
//     packed   [num_panels][in_features][kPanel]
//     bf16     a line is kLanes words of 32 bits: column i in the low half, column kLanes + i in the high half,
//              so that a shift and a mask unpack it
//
// An output is one chain of fused multiply-adds over k = 0, 1, 2, ..., however many rows there are and wherever
// the row stands among them. So a row's result has the same bits in every batch: what `exact` mode stands on.
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
constexpr int kMaxRows = kLanes == 16 ? 12 : 6;  // rows of one tile: their sums fill the registers

inline void load_line(const float* line, Vec& low, Vec& high) {
  low = load(line);
  high = load(line + kLanes);
}

inline void load_line(const uint16_t* line, Vec& low, Vec& high) {
  const UintVec words = load_as<UintVec>(line);
  low = (Vec)(words << 16);
  high = (Vec)(words & 0xffff0000u);
}

// kRows rows against kPanels neighbouring panels: sums[row][panel * kPanel + column].
template <int kRows, int kPanels, typename W>
void multiply(const float* x, int64_t x_stride, const W* packed, int64_t num_inputs, float* sums) {
  Vec low[kRows][kPanels] = {}, high[kRows][kPanels] = {};
  const int64_t panel_size = num_inputs * kPanel;
  for (int64_t k = 0; k < num_inputs; ++k) {
#pragma GCC unroll 4
    for (int panel = 0; panel < kPanels; ++panel) {
      Vec w_low, w_high;
      load_line(packed + panel * panel_size + k * kPanel, w_low, w_high);
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        const Vec value = splat(x[row * x_stride + k]);
        low[row][panel] = multiply_add(value, w_low, low[row][panel]);
        high[row][panel] = multiply_add(value, w_high, high[row][panel]);
      }
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

// tile(rows, row) with `num` as a constant, for 1 <= num <= kLargest.
template <int kLargest, typename Tile>
void tile_of(int64_t num, int64_t row, const Tile& tile) {
  if constexpr (kLargest > 1)
    if (num < kLargest) return tile_of<kLargest - 1>(num, row, tile);
  tile(std::integral_constant<int, kLargest>{}, row);
}

// All rows against panels [panel, panel + kPanels).
template <int kPanels, typename W, typename T>
void multiply_rows(const float* x, int64_t num_rows, int64_t num_inputs, const W* packed, int64_t panel,
                   const Output<T>& output) {
  alignas(64) float sums[kMaxRows * kPanels * kPanel];
  const W* first_panel = packed + panel * num_inputs * kPanel;
  const int64_t first = panel * kPanel;
  const int64_t count = std::min<int64_t>(kPanels * kPanel, output.num_outputs - first);
  const auto tile = [&](auto rows, int64_t row) {
    constexpr int kRows = decltype(rows)::value;
    multiply<kRows, kPanels>(x + row * num_inputs, num_inputs, first_panel, num_inputs, sums);
    for (int i = 0; i < kRows; ++i) output.write(row + i, first, count, sums + i * kPanels * kPanel);
  };
  constexpr int kLargest = kPanels == 1 ? kMaxRows : kPanels == 2 ? 3 : 1;
  for (int64_t row = 0, tiles_left = (num_rows + kLargest - 1) / kLargest; row < num_rows; --tiles_left) {
    const int64_t num = (num_rows - row + tiles_left - 1) / tiles_left;  // tiles of even size
    tile_of<kLargest>(num, row, tile);
    row += num;
  }
}

template <typename W, typename T>
void run(const float* x, int64_t num_rows, int64_t num_inputs, const W* packed, const Output<T>& output) {
  const int64_t num_panels = round_up(output.num_outputs, kPanel) / kPanel;
  // Few rows leave registers free: more panels at once then hide the latency of the additions.
  const int width = num_rows == 1 ? 4 : num_rows <= 3 ? 2 : 1;
  at::parallel_for(0, num_panels, width, [&](int64_t begin, int64_t end) {
    int64_t panel = begin;
    if (width == 4)
      for (; panel + 4 <= end; panel += 4) multiply_rows<4>(x, num_rows, num_inputs, packed, panel, output);
    if (width >= 2)
      for (; panel + 2 <= end; panel += 2) multiply_rows<2>(x, num_rows, num_inputs, packed, panel, output);
    for (; panel < end; ++panel) multiply_rows<1>(x, num_rows, num_inputs, packed, panel, output);
  });
}

const float* as_float(const at::Tensor& x, std::vector<float>& buffer) {
  if (x.scalar_type() == at::kFloat) return x.const_data_ptr<float>();
  const auto* source = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  buffer.resize(x.numel());
  for (int64_t i = 0; i < x.numel(); ++i) buffer[i] = to_float(source[i]);
  return buffer.data();
}

template <typename T>
void dispatch_weight(const float* x, int64_t num_rows, int64_t num_inputs, const at::Tensor& packed,
                     const Output<T>& output) {
  const void* data = packed.const_data_ptr();
  if (packed.scalar_type() == at::kFloat) run(x, num_rows, num_inputs, static_cast<const float*>(data), output);
  else run(x, num_rows, num_inputs, static_cast<const uint16_t*>(data), output);
}

// x: [..., in_features] f32 or bf16, whose dtype the result has; packed as `pack_weight` made it; bias
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
  TORCH_CHECK(packed.dim() == 3 && packed.size(1) == num_inputs && packed.size(2) == kPanel,
              "a weight packed for ", num_inputs, " inputs is needed, not ", packed.sizes());
  auto sizes = x.sizes().vec();
  sizes.back() = num_outputs;
  at::Tensor y = at::empty(sizes, x.options());
  static thread_local std::vector<float> buffer;
  const float* x_data = as_float(x, buffer);
  const float* bias_data = bias ? bias->const_data_ptr<float>() : nullptr;
  if (x.scalar_type() == at::kFloat)
    dispatch_weight<float>(x_data, num_rows, num_inputs, packed,
                           {y.mutable_data_ptr<float>(), num_outputs, bias_data});
  else
    dispatch_weight<uint16_t>(
        x_data, num_rows, num_inputs, packed,
        {reinterpret_cast<uint16_t*>(y.mutable_data_ptr<at::BFloat16>()), num_outputs, bias_data});
  return y;
}

template <typename T>
void pack(const T* weight, int64_t num_outputs, int64_t num_inputs, T* packed) {
  for (int64_t n = 0; n < num_outputs; ++n) {
    int64_t lane = n % kPanel;
    if constexpr (sizeof(T) < sizeof(float)) lane = lane < kLanes ? 2 * lane : 2 * (lane - kLanes) + 1;
    T* column = packed + n / kPanel * num_inputs * kPanel + lane;
    for (int64_t k = 0; k < num_inputs; ++k) column[k * kPanel] = weight[n * num_inputs + k];
  }
}

// weight: [out_features, in_features] f32 or bf16 -> [num_panels, in_features, kPanel] of the same dtype.
at::Tensor pack_weight(const at::Tensor& weight_) {
  const at::Tensor weight = weight_.contiguous();
  const int64_t num_outputs = weight.size(0), num_inputs = weight.size(1);
  at::Tensor packed = at::zeros({round_up(num_outputs, kPanel) / kPanel, num_inputs, kPanel}, weight.options());
  if (weight.scalar_type() == at::kFloat)
    pack(weight.const_data_ptr<float>(), num_outputs, num_inputs, packed.mutable_data_ptr<float>());
  else
    pack(reinterpret_cast<const uint16_t*>(weight.const_data_ptr<at::BFloat16>()), num_outputs, num_inputs,
         reinterpret_cast<uint16_t*>(packed.mutable_data_ptr<at::BFloat16>()));
  return packed;
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
