// The noise, and the choice of workers/choice/choose.py: where nothing limits it, in two reads of a node's logits.
//
//     score = (logit - best) / temperature        chosen: the lowest token with the most of score + noise
//
// Operations and their order are those of torch's path, so both choose the same to the bit. Most of the noise is never
// computed: a token that would lose with the largest noise there is needs no words, and one that would lose with a
// little more than its words can give (`bound_of_words`) needs no logarithms.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "limits.h"
#include "noise.h"

namespace outrider {
namespace {

constexpr int64_t kUnusable = -1, kNoToken = -2;
constexpr int64_t kStride = Words::kAtOnce * kLanes;

// A row's registers from `token` on; behind its end there is -inf.
inline void load_row(const float* row, int64_t token, int64_t vocab, Vec (&values)[Words::kAtOnce]) {
  if (token + kStride <= vocab) {
    for (int i = 0; i < Words::kAtOnce; ++i) values[i] = load(row + token + i * kLanes);
    return;
  }
  alignas(64) float padded[kStride];
  std::fill_n(padded, kStride, -kInfinity);
  std::copy(row + token, row + vocab, padded);
  for (int i = 0; i < Words::kAtOnce; ++i) values[i] = load(padded + i * kLanes);
}

// The largest logit of a row; NaN if there is one.
float best_of(const float* row, int64_t vocab) {
  Vec best = splat(-kInfinity), values[Words::kAtOnce];
  IntVec is_nan = {};
  for (int64_t token = 0; token < vocab; token += kStride) {
    load_row(row, token, vocab, values);
    for (int i = 0; i < Words::kAtOnce; ++i) {
      is_nan |= (IntVec)(values[i] != values[i]);
      best = maximum(best, values[i]);
    }
  }
  return any(is_nan) ? std::numeric_limits<float>::quiet_NaN() : largest(best);
}

int64_t first_equal(const float* row, int64_t vocab, float value) {
  int64_t token = 0;
  while (token + kLanes <= vocab && !any(load(row + token) == value)) token += kLanes;
  return std::find(row + token, row + vocab, value) - row;
}

// One node, whose best logit is finite.
class Node {
 public:
  Node(const float* logits, int64_t vocab, float best, float temperature)
      : logits_(logits), vocab_(vocab), best_(best), temperature_(temperature) {}

  int64_t choose(const Words& words) const {
    // The block of the best token first, if no limit has excluded it: what comes after has something to lose against.
    const int64_t first = first_equal(logits_, vocab_, best_) / kStride * kStride;
    Winner winner;
    block(first, words, winner);
    for (int64_t token = 0; token < vocab_; token += kStride)
      if (token != first) block(token, words, winner);
    return winner.token;
  }

 private:
  struct Winner {
    float score = -kInfinity;
    int64_t token = std::numeric_limits<int64_t>::max();
  };

  void block(int64_t token, const Words& words, Winner& winner) const {
    static const float most_noise = gumbel_of_words(UintVec{} - 1u)[0];
    Vec scores[Words::kAtOnce];
    IntVec is_one_alive = {};
    load_row(logits_, token, vocab_, scores);
    for (int i = 0; i < Words::kAtOnce; ++i) {
      scores[i] = (scores[i] - best_) / temperature_;
      is_one_alive |= (IntVec)(scores[i] + most_noise >= winner.score);
    }
    if (!any(is_one_alive)) return;
    UintVec random[Words::kAtOnce];
    words(token, random);
    for (int i = 0; i < Words::kAtOnce; ++i) {
      if (!any(scores[i] + bound_of_words(random[i]) >= winner.score)) continue;
      const Vec noisy = scores[i] + gumbel_of_words(random[i]);
      for (int lane = 0; lane < kLanes; ++lane) {
        const float score = noisy[lane];
        const int64_t id = token + i * kLanes + lane;
        if (score > winner.score || (score == winner.score && id < winner.token)) winner = {score, id};
      }
    }
  }

  const float* logits_;
  int64_t vocab_;
  float best_, temperature_;
};

// params: [num_nodes, 5] f64, a node's temperature (0: greedy), top_k (0: none), top_p (1: none), the logarithm of
// min_p (-inf: none) and typical_p (1: none).
struct Params {
  float temperature;
  Limits limits;

  static constexpr int64_t kNumber = 5;

  Params(const double* values)
      : temperature(float(values[0])), limits{int64_t(values[1]), values[2], float(values[3]), values[4]} {
    if (!temperature) limits = {};
  }
};

void check_params(const at::Tensor& logits, const at::Tensor& params) {
  TORCH_CHECK(params.is_contiguous() && params.dim() == 2 && params.size(1) == Params::kNumber &&
                  params.size(0) == logits.size(0),
              "params are [num_nodes, ", Params::kNumber, "], not ", params.sizes());
}

// logits [num_nodes, vocab] f32, seeds and positions [num_nodes] i64, whose bits are unsigned -> [num_nodes] i64
at::Tensor choose(const at::Tensor& logits_, const at::Tensor& params, const at::Tensor& seeds,
                  const at::Tensor& positions) {
  check_params(logits_, params);
  const at::Tensor logits = logits_.contiguous();
  const int64_t num_nodes = logits.size(0), vocab = logits.size(1);
  at::Tensor chosen = at::empty({num_nodes}, seeds.options());
  const float* rows = logits.const_data_ptr<float>();
  const double* values = params.const_data_ptr<double>();
  const int64_t *seed = seeds.const_data_ptr<int64_t>(), *position = positions.const_data_ptr<int64_t>();
  int64_t* target = chosen.mutable_data_ptr<int64_t>();
  at::parallel_for(0, num_nodes, 1, [&](int64_t begin, int64_t end) {
    LimitedScores limited;
    for (int64_t node = begin; node < end; ++node) {
      const float* row = rows + node * vocab;
      const Params its(values + node * Params::kNumber);
      const Words words(seed[node], uint32_t(position[node]), 0, 0);
      const float best = best_of(row, vocab);
      if (best != best || best == kInfinity) target[node] = kUnusable;
      else if (best == -kInfinity) target[node] = kNoToken;
      else if (its.temperature == 0) target[node] = first_equal(row, vocab, best);
      else if (!its.limits.are_any()) target[node] = Node(row, vocab, best, its.temperature).choose(words);
      else {
        limited.compute(row, vocab, best, its.temperature, its.limits);
        target[node] = Node(limited.data(), vocab, 0.0f, 1.0f).choose(words);
      }
    }
  });
  return chosen;
}

// The scores that `choose` adds noise to, [num_nodes, vocab] f32. At temperature 0 they are those at temperature 1.
at::Tensor limited_scores(const at::Tensor& logits_, const at::Tensor& params) {
  check_params(logits_, params);
  const at::Tensor logits = logits_.contiguous();
  const int64_t vocab = logits.size(1);
  at::Tensor scores = at::empty_like(logits);
  const float* rows = logits.const_data_ptr<float>();
  const double* values = params.const_data_ptr<double>();
  float* target = scores.mutable_data_ptr<float>();
  at::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    LimitedScores limited;
    for (int64_t node = begin; node < end; ++node) {
      const float* row = rows + node * vocab;
      const Params its(values + node * Params::kNumber);
      limited.compute(row, vocab, best_of(row, vocab), its.temperature ? its.temperature : 1.0f, its.limits);
      std::copy_n(limited.data(), vocab, target + node * vocab);
    }
  });
  return scores;
}

// seeds, positions, salts: [num_rows] i64, whose bits are unsigned -> [num_rows, vocab] f32.
at::Tensor gumbel_rows(const at::Tensor& seeds, const at::Tensor& positions, const at::Tensor& salts, int64_t stream,
                       int64_t vocab) {
  const int64_t num_rows = seeds.size(0);
  at::Tensor noise = at::empty({num_rows, vocab}, seeds.options().dtype(at::kFloat));
  const int64_t *seed = seeds.const_data_ptr<int64_t>(), *position = positions.const_data_ptr<int64_t>();
  const int64_t* salt = salts.const_data_ptr<int64_t>();
  float* rows = noise.mutable_data_ptr<float>();
  at::parallel_for(0, num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Words words(seed[row], uint32_t(position[row]), uint32_t(stream), uint32_t(salt[row]));
      UintVec random[Words::kAtOnce];
      alignas(64) float behind[kStride];  // the last block, of which a part is behind the end
      for (int64_t token = 0; token < vocab; token += kStride) {
        float* target = rows + row * vocab + token;
        float* made = token + kStride <= vocab ? target : behind;
        words(token, random);
#pragma GCC unroll 4
        for (int i = 0; i < Words::kAtOnce; ++i) store(made + i * kLanes, gumbel_of_words(random[i]));
        if (made == behind) std::copy_n(behind, vocab - token, target);
      }
    }
  });
  return noise;
}

// words [num_words] i64, below 2^32 -> the noise of each, and the bound that stands for it, [num_words] f32 each.
std::tuple<at::Tensor, at::Tensor> gumbel_of(const at::Tensor& words_) {
  const at::Tensor words = words_.contiguous();
  at::Tensor noise = at::empty(words.sizes(), words.options().dtype(at::kFloat)), bound = at::empty_like(noise);
  const int64_t* source = words.const_data_ptr<int64_t>();
  float *noises = noise.mutable_data_ptr<float>(), *bounds = bound.mutable_data_ptr<float>();
  for (int64_t i = 0; i < words.numel(); i += kLanes) {
    UintVec vector = {};
    const int64_t count = std::min<int64_t>(kLanes, words.numel() - i);
    for (int64_t lane = 0; lane < count; ++lane) vector[lane] = uint32_t(source[i + lane]);
    const Vec exact = gumbel_of_words(vector), above = bound_of_words(vector);
    for (int64_t lane = 0; lane < count; ++lane) noises[i + lane] = exact[lane], bounds[i + lane] = above[lane];
  }
  return {noise, bound};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(outrider, library) {
  library.def("choose(Tensor logits, Tensor params, Tensor seeds, Tensor positions) -> Tensor");
  library.def("limited_scores(Tensor logits, Tensor params) -> Tensor");
  library.def("gumbel_rows(Tensor seeds, Tensor positions, Tensor salts, int stream, int vocab) -> Tensor");
  library.def("gumbel_of_words(Tensor words) -> (Tensor noise, Tensor bound)");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("choose", choose);
  library.impl("limited_scores", limited_scores);
  library.impl("gumbel_rows", gumbel_rows);
  library.impl("gumbel_of_words", gumbel_of);
}

}  // namespace outrider
