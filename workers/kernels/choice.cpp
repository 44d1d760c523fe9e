// The noise, and the choice of workers/choice/choose.py, in two reads of a node's logits.
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
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

#include "noise.h"

namespace outrider {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kUnusable = -1, kNoToken = -2;
constexpr int64_t kStride = Words::kAtOnce * kLanes;

// A row's registers from `token` on; behind its end there is `filling`.
inline void load_row(const float* row, int64_t token, int64_t vocab, float filling, Vec (&values)[Words::kAtOnce]) {
  if (token + kStride <= vocab) {
    for (int i = 0; i < Words::kAtOnce; ++i) values[i] = load(row + token + i * kLanes);
    return;
  }
  alignas(64) float padded[kStride];
  std::fill_n(padded, kStride, filling);
  std::copy(row + token, row + vocab, padded);
  for (int i = 0; i < Words::kAtOnce; ++i) values[i] = load(padded + i * kLanes);
}

// The largest logit of a row, NaN if there is one. In passing, where `maxima` is asked for: numbers of the row, one at
// least as large as each of some group of kAtOnce, which cover it.
float best_of(const float* row, int64_t vocab, std::vector<float>* maxima) {
  Vec best = splat(-kInfinity), values[Words::kAtOnce];
  IntVec is_nan = {};
  if (maxima) maxima->resize(round_up(vocab, kStride) / Words::kAtOnce);
  for (int64_t token = 0; token < vocab; token += kStride) {
    load_row(row, token, vocab, -kInfinity, values);
    Vec most = values[0];
    is_nan |= values[0] != values[0];
    for (int i = 1; i < Words::kAtOnce; ++i) {
      is_nan |= values[i] != values[i];
      most = maximum(most, values[i]);
    }
    if (maxima) store(maxima->data() + token / Words::kAtOnce, most);
    best = maximum(best, most);
  }
  return any(is_nan) ? std::numeric_limits<float>::quiet_NaN() : largest(best);
}

int64_t first_equal(const float* row, int64_t vocab, float value) {
  int64_t token = 0;
  while (token + kLanes <= vocab && !any(load(row + token) == splat(value))) token += kLanes;
  return std::find(row + token, row + vocab, value) - row;
}

// The k-th largest logit. The k-th of the maxima is no larger: k of the groups have one at least that reaches it.
float kth_largest(const float* row, int64_t vocab, int64_t k, std::vector<float>& maxima, std::vector<float>& reaching) {
  float least = -kInfinity;
  if (k <= int64_t(maxima.size())) {
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
    least = maxima[k - 1];
  }
  reaching.clear();
  for (int64_t token = 0; token < vocab; token += kLanes) {
    const int64_t end = std::min<int64_t>(token + kLanes, vocab);
    if (end - token == kLanes && !any(load(row + token) >= splat(least))) continue;
    for (int64_t i = token; i < end; ++i)
      if (row[i] >= least) reaching.push_back(row[i]);
  }
  std::nth_element(reaching.begin(), reaching.begin() + (k - 1), reaching.end(), std::greater<>());
  return reaching[k - 1];
}

// What of a row may be chosen: scores from `least` on, and of those that are `border` only tokens up to `last`.
struct Limits {
  float least;   // the larger of what min-p and top-k ask for
  float border;  // the score of the k-th best; NaN, which nothing is equal to, where there is no top-k
  int64_t last;
};

class Row {
 public:
  Row(const float* logits, int64_t vocab, float best, float temperature)
      : logits_(logits), vocab_(vocab), best_(best), temperature_(temperature) {}

  Limits limits(float least, int64_t top_k, std::vector<float>& maxima) const {
    if (!top_k) return {least, std::numeric_limits<float>::quiet_NaN(), vocab_};
    static thread_local std::vector<float> reaching;
    const float border = score(kth_largest(logits_, vocab_, top_k, maxima, reaching));
    const auto is_better = [&](float logit) { return score(logit) > border; };
    const int64_t num_left = top_k - std::count_if(reaching.begin(), reaching.end(), is_better);
    return {std::max(least, border), border, nth_equal(border, num_left)};
  }

  int64_t choose(const Words& words, const Limits& limits) const {
    // The block of the best token first: what comes after it has something to lose against.
    const int64_t first = first_equal(logits_, vocab_, best_) / kStride * kStride;
    Winner winner;
    block(first, words, limits, winner);
    for (int64_t token = 0; token < vocab_; token += kStride)
      if (token != first) block(token, words, limits, winner);
    return winner.token;
  }

 private:
  struct Winner {
    float score = -kInfinity;
    int64_t token = std::numeric_limits<int64_t>::max();
  };

  template <typename T>
  T score(T logit) const {
    return (logit - best_) / temperature_;
  }

  int64_t nth_equal(float value, int64_t num) const {
    for (int64_t token = 0; token < vocab_; ++token) {
      if (token + kLanes <= vocab_ && !any(score(load(logits_ + token)) == splat(value))) token += kLanes - 1;
      else if (score(logits_[token]) == value && --num == 0) return token;
    }
    return vocab_;
  }

  void block(int64_t token, const Words& words, const Limits& limits, Winner& winner) const {
    static const float most_noise = gumbel_of_words(UintVec{} - 1u)[0];
    Vec scores[Words::kAtOnce];
    IntVec is_alive[Words::kAtOnce], one_is_alive = {};
    load_row(logits_, token, vocab_, -kInfinity, scores);
    for (int i = 0; i < Words::kAtOnce; ++i) {
      scores[i] = score(scores[i]);
      is_alive[i] = (IntVec)(scores[i] >= limits.least) & (IntVec)(scores[i] + most_noise >= winner.score);
      one_is_alive |= is_alive[i];
    }
    if (!any(one_is_alive)) return;
    UintVec random[Words::kAtOnce];
    words(token, random);
    for (int i = 0; i < Words::kAtOnce; ++i) {
      if (!any(is_alive[i] & (IntVec)(scores[i] + bound_of_words(random[i]) >= winner.score))) continue;
      const Vec noisy = scores[i] + gumbel_of_words(random[i]);
      for (int lane = 0; lane < kLanes; ++lane)
        if (is_alive[i][lane]) offer(token + i * kLanes + lane, scores[i][lane], noisy[lane], limits, winner);
    }
  }

  static void offer(int64_t token, float score, float noisy, const Limits& limits, Winner& winner) {
    if (score == limits.border && token > limits.last) return;
    if (noisy > winner.score || (noisy == winner.score && token < winner.token)) winner = {noisy, token};
  }

  const float* logits_;
  int64_t vocab_;
  float best_, temperature_;
};

// logits [num_nodes, vocab] f32; the others [num_nodes]: temperatures f32, 0 for greedy; least f32, the score from which
// on min-p keeps tokens; top_k i64, 0 for all; seeds and positions i64, whose bits are unsigned. -> [num_nodes] i64
at::Tensor choose(const at::Tensor& logits_, const at::Tensor& temperatures, const at::Tensor& least,
                  const at::Tensor& top_k, const at::Tensor& seeds, const at::Tensor& positions) {
  const at::Tensor logits = logits_.contiguous();
  const int64_t num_nodes = logits.size(0), vocab = logits.size(1);
  at::Tensor chosen = at::empty({num_nodes}, seeds.options());
  const float* rows = logits.const_data_ptr<float>();
  const float *temperature = temperatures.const_data_ptr<float>(), *floors = least.const_data_ptr<float>();
  const int64_t *k = top_k.const_data_ptr<int64_t>(), *seed = seeds.const_data_ptr<int64_t>();
  const int64_t* position = positions.const_data_ptr<int64_t>();
  int64_t* target = chosen.mutable_data_ptr<int64_t>();
  at::parallel_for(0, num_nodes, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> maxima;
    for (int64_t node = begin; node < end; ++node) {
      const float* row = rows + node * vocab;
      const int64_t kept = k[node] < vocab && temperature[node] > 0 ? k[node] : 0;
      const float best = best_of(row, vocab, kept ? &maxima : nullptr);
      if (best != best || best == kInfinity) target[node] = kUnusable;
      else if (best == -kInfinity) target[node] = kNoToken;
      else if (temperature[node] == 0) target[node] = first_equal(row, vocab, best);
      else {
        const Row scored(row, vocab, best, temperature[node]);
        const Words words(seed[node], uint32_t(position[node]), 0, 0);
        target[node] = scored.choose(words, scored.limits(floors[node], kept, maxima));
      }
    }
  });
  return chosen;
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
  library.def(
      "choose(Tensor logits, Tensor temperatures, Tensor least, Tensor top_k, Tensor seeds, Tensor positions) -> Tensor");
  library.def("gumbel_rows(Tensor seeds, Tensor positions, Tensor salts, int stream, int vocab) -> Tensor");
  library.def("gumbel_of_words(Tensor words) -> (Tensor noise, Tensor bound)");
}

TORCH_LIBRARY_IMPL(outrider, CPU, library) {
  library.impl("choose", choose);
  library.impl("gumbel_rows", gumbel_rows);
  library.impl("gumbel_of_words", gumbel_of);
}

}  // namespace outrider
