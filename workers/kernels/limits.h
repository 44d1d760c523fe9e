// The limits of workers/choice/limits.py on one node's scores, in place: what they exclude gets -inf.
//
// Nothing is sorted but what lies about a limit's border. Top-k: the k-th largest of the maxima of small groups is no
// larger than the k-th largest score, and few scores reach it. Top-p and typical-p: masses are counted in buckets of
// the key by which tokens join; only the bucket in which the mass is reached is put in order.
//
// Masses are multiples of 2^-34, as in limits.py: sums of them are exact in float64, in any order. Compiled with
// -ffp-contract=off, like noise.h.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "simd.h"

namespace outrider {

typedef double DoubleVec __attribute__((vector_size(8 * OUTRIDER_LANES)));
typedef int64_t SignVec __attribute__((vector_size(8 * OUTRIDER_LANES)));

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Limits {
  int64_t top_k = 0;         // 0: none
  double top_p = 1.0;        // 1: none
  float least = -kInfinity;  // the score from which on min-p keeps tokens
  double typical_p = 1.0;    // 1: none

  bool are_any() const { return top_k || top_p < 1 || least > -kInfinity || typical_p < 1; }
};

// `_masses` in limits.py.
inline DoubleVec masses_of(Vec score) {
  const Vec x = maximum(score, splat(-80.0f));
  const Vec power = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  Vec r = x - power * 0.693359375f;
  r = r - power * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Vec scaled = (Vec)((IntVec)p + (__builtin_convertvector(power, IntVec) << 23));
  return (__builtin_convertvector(scaled, DoubleVec) + 393216.0) - 393216.0;
}

// One node's scores in a buffer whose last register is filled up with -inf.
class LimitedScores {
 public:
  // Becomes (logits - best) / temperature, limited.
  void compute(const float* logits, int64_t vocab, float best, float temperature, const Limits& limits) {
    const int64_t num_whole = vocab / kLanes * kLanes;
    vocab_ = vocab;
    scores_.resize(round_up(vocab, kLanes));
    for (int64_t token = 0; token < num_whole; token += kLanes)
      store(scores_.data() + token, (load(logits + token) - best) / temperature);
    for (int64_t token = num_whole; token < int64_t(scores_.size()); ++token)
      scores_[token] = token < vocab ? (logits[token] - best) / temperature : -kInfinity;
    if (!(best > -kInfinity && best < kInfinity)) return;
    if (limits.top_k && limits.top_k < vocab) keep_top_k(limits.top_k);
    if (limits.top_p < 1) keep_top_p(limits.top_p);
    if (limits.least > -kInfinity) keep_from(limits.least);
    if (limits.typical_p < 1) keep_typical(limits.typical_p);
  }

  const float* data() const { return scores_.data(); }

 private:
  static constexpr int kBuckets = 1024;
  static constexpr float kBucketsAUnit = 32.0f;  // keys above 32 have no mass
  static constexpr int kGroup = 16;              // scores of which top-k looks at the largest first

  // A bucket's mass in parts: an addition would wait for the one before to the same number, and neighbours often share
  // a bucket.
  static constexpr int kCounts = 4;
  typedef std::array<double, kCounts> Counts;

  template <typename Numbers>
  static double sum_of(const Numbers& numbers) {
    double total = 0.0;
    for (size_t i = 0; i < sizeof(Numbers) / sizeof(double); ++i) total += numbers[i];
    return total;
  }

  // By what tokens join: the smallest key first, of equals the lowest token. A register's keys are the same, rounded.
  struct ByScore {
    double operator()(float score) const { return -double(score); }
    Vec operator()(Vec scores) const { return -scores; }
  };
  struct ByDistance {
    double mean;
    double operator()(float score) const { return std::abs(score - mean); }
    Vec operator()(Vec scores) const {
      const DoubleVec distances = __builtin_convertvector(scores, DoubleVec) - mean;
      const SignVec without_sign = (SignVec)distances & std::numeric_limits<int64_t>::max();
      return __builtin_convertvector((DoubleVec)without_sign, Vec);
    }
  };

  // The last token that a limit keeps.
  struct Last {
    double key;
    int64_t token;
  };
  struct Candidate {
    double key, mass;
    int64_t token;
  };

  template <typename Work>
  void for_registers(const Work& work) {
    for (int64_t token = 0; token < int64_t(scores_.size()); token += kLanes) work(scores_.data() + token, token);
  }

  void keep_from(float least) {
    for_registers([&](float* scores, int64_t) {
      const Vec values = load(scores);
      store(scores, select(values >= least, values, splat(-kInfinity)));
    });
  }

  void keep_top_k(int64_t k) {
    maxima_.clear();
    for (size_t token = 0; token < scores_.size(); token += kGroup * kLanes) {
      Vec most = load(scores_.data() + token);
      for (size_t next = token + kLanes; next < std::min(scores_.size(), token + kGroup * kLanes); next += kLanes)
        most = maximum(most, load(scores_.data() + next));
      maxima_.resize(maxima_.size() + kLanes);
      store(maxima_.data() + maxima_.size() - kLanes, most);
    }
    float least = -kInfinity;
    if (k <= int64_t(maxima_.size())) least = kth_largest(maxima_, k);
    reaching_.clear();
    for_registers([&](const float* scores, int64_t) {
      if (!any(load(scores) >= least)) return;
      std::copy_if(scores, scores + kLanes, std::back_inserter(reaching_), [&](float score) { return score >= least; });
    });
    const float border = kth_largest(reaching_, k);
    int64_t num_left = k - std::count_if(reaching_.begin(), reaching_.end(), [&](float s) { return s > border; });
    for_registers([&](float* scores, int64_t) {
      const Vec values = load(scores);
      store(scores, select(values >= border, values, splat(-kInfinity)));
      if (!any(values == border)) return;
      for (int lane = 0; lane < kLanes; ++lane)
        if (scores[lane] == border && num_left-- <= 0) scores[lane] = -kInfinity;
    });
  }

  static float kth_largest(std::vector<float>& values, int64_t k) {
    std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<>());
    return values[k - 1];
  }

  void keep_top_p(double top_p) { keep_first(top_p, ByScore{}); }

  // The nearest to the mean score: a surprise is the score's distance from the logarithm of the mass, and the entropy
  // that of the mean score.
  void keep_typical(double typical_p) {
    DoubleVec total = {}, sum = {};
    for_registers([&](const float* scores, int64_t) {
      const Vec values = load(scores);
      if (!any(values > kNoMass)) return;
      const DoubleVec mass = masses_of(values);
      const DoubleVec products = mass * __builtin_convertvector(maximum(values, splat(-80.0f)), DoubleVec);
      total += mass;
      sum += (products + 393216.0) - 393216.0;
    });
    keep_first(typical_p, ByDistance{sum_of(sum) / sum_of(total)});
  }

  // Keep the first tokens until they have this share of the mass.
  template <typename Key>
  void keep_first(double share, const Key& key) {
    masses_.assign(kBuckets, {});
    for_registers([&](const float* scores, int64_t) {
      const Vec values = load(scores);
      if (!any(values > kNoMass)) return;
      const DoubleVec mass = masses_of(values);
      const IntVec buckets = buckets_of(key, values);
      for (int lane = 0; lane < kLanes; ++lane) masses_[buckets[lane]][lane % kCounts] += mass[lane];
    });
    double total = 0.0, before = 0.0;
    for (const Counts& counts : masses_) total += sum_of(counts);
    const double needed = share * total;
    int bucket = 0;
    while (bucket < kBuckets - 1 && before + sum_of(masses_[bucket]) < needed) before += sum_of(masses_[bucket++]);
    const Last last = last_in(bucket, before, needed, key);
    for_registers([&](float* scores, int64_t token) {
      const Vec values = load(scores);
      const IntVec buckets = buckets_of(key, values);
      store(scores, select(buckets <= bucket, values, splat(-kInfinity)));
      if (!any(buckets == bucket)) return;
      for (int lane = 0; lane < kLanes; ++lane) {
        const double its = key(scores[lane]);
        if (its > last.key || (its == last.key && token + lane > last.token)) scores[lane] = -kInfinity;
      }
    });
  }

  // The token of a bucket with which the mass from the first bucket on is what is needed.
  template <typename Key>
  Last last_in(int bucket, double mass, double needed, const Key& key) {
    candidates_.clear();
    for_registers([&](const float* scores, int64_t token) {
      const Vec values = load(scores);
      if (!any(values > kNoMass)) return;
      const IntVec is_there = buckets_of(key, values) == bucket;
      if (!any(is_there)) return;
      const DoubleVec masses = masses_of(values);
      for (int lane = 0; lane < kLanes; ++lane)
        if (is_there[lane]) candidates_.push_back({key(scores[lane]), masses[lane], token + lane});
    });
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      return a.key < b.key || (a.key == b.key && a.token < b.token);
    });
    for (const Candidate& candidate : candidates_)
      if ((mass += candidate.mass) >= needed) return {candidate.key, candidate.token};
    return {kInfinity, vocab_};
  }

  template <typename Key>
  static IntVec buckets_of(const Key& key, Vec scores) {
    const Vec keys = key(scores) * kBucketsAUnit;
    const Vec last = splat(kBuckets - 1.0f);
    return __builtin_convertvector(select(keys < last, keys, last), IntVec);
  }

  static constexpr float kNoMass = -25.0f;  // below 2^-35, that is

  int64_t vocab_ = 0;
  std::vector<float> scores_, maxima_, reaching_;
  std::vector<Counts> masses_;
  std::vector<Candidate> candidates_;
};

}  // namespace outrider
