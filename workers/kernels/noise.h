// The noise of workers/choice/noise.py, a register of tokens at a time: the same operations in the same order, and so
// the same bits. Sources that include this are compiled with -ffp-contract=off: a fused multiply-add rounds once where
// torch rounds twice. So they leave alone what simd.h has of products and sums: the linker keeps one copy of an inline
// function, and it may be the other sources'.
//
// Philox lies in a register as it is: counters of four words side by side, four words for four tokens.
//
//     lanes        0              1     2              3
//     words        c0             c1    c2             c3
//     products     low(c0 M0)     high  low(c2 M1)     high          multiply_even
//     next         high(c2 M1)    low   high(c0 M0)    low           reverse_fours, then ^ c1 k0, 0, c3 k1, 0
#pragma once

#include "simd.h"

namespace outrider {

typedef uint64_t WideVec __attribute__((vector_size(4 * OUTRIDER_LANES)));

// The 64-bit products of the lanes 0, 2, 4, ... of both, in place.
inline UintVec multiply_even(UintVec a, UintVec b) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (UintVec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__ARM_NEON)
  return (UintVec)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#else
  return (UintVec)(((WideVec)a & 0xffffffffu) * ((WideVec)b & 0xffffffffu));
#endif
}

// Lanes 3, 2, 1, 0 of each four.
inline UintVec reverse_fours(UintVec a) {
#if defined(__AVX512F__)
  return (UintVec)_mm512_shuffle_epi32((__m512i)a, _MM_PERM_ABCD);
#elif defined(__AVX2__)
  return (UintVec)_mm256_shuffle_epi32((__m256i)a, 0x1b);
#else
  UintVec result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = a[lane ^ 3];
  return result;
#endif
}

// Lane i of each four has words[i].
inline UintVec repeat_four(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  UintVec result;
  for (int lane = 0; lane < kLanes; lane += 4) {
    result[lane] = c0;
    result[lane + 1] = c1;
    result[lane + 2] = c2;
    result[lane + 3] = c3;
  }
  return result;
}

// The random words of one (seed, position, stream, salt), for every token.
class Words {
 public:
  static constexpr int kAtOnce = 4;  // registers in flight: a round of one waits for its product

  Words(uint64_t seed, uint32_t position, uint32_t stream, uint32_t salt)
      : first_(repeat_four(0, position, stream, salt)),
        key_(repeat_four(uint32_t(seed), 0, uint32_t(seed >> 32), 0)) {
    for (int lane = 0; lane < kLanes; lane += 4) first_[lane] = lane / 4;
  }

  // Of the tokens [token, token + kAtOnce * kLanes); token is a multiple of 4.
  void operator()(int64_t token, UintVec (&words)[kAtOnce]) const {
    const UintVec multipliers = repeat_four(0xd2511f53u, 0, 0xcd9e8d57u, 0);
    const UintVec steps = repeat_four(0x9e3779b9u, 0, 0xbb67ae85u, 0);
    const UintVec next = repeat_four(kLanes / 4, 0, 0, 0);
    words[0] = first_ + repeat_four(uint32_t(token / 4), 0, 0, 0);
    for (int i = 1; i < kAtOnce; ++i) words[i] = words[i - 1] + next;
    UintVec key = key_;
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
      for (int i = 0; i < kAtOnce; ++i) {
        const UintVec others = (UintVec)((WideVec)words[i] >> 32) ^ key;
        words[i] = reverse_fours(multiply_even(words[i], multipliers)) ^ others;
      }
      key += steps;
    }
  }

 private:
  UintVec first_, key_;
};

// power * ln 2 + 2 atanh(s), as `_log_sum` in workers/choice/gumbel.py.
inline Vec log_sum(IntVec power, Vec s) {
  const Vec square = s * s;
  Vec series = (square * 0.2987173f + 0.39977542f) * square + 0.66666776f;
  series = s * (series * square + 2.0f);
  const Vec number = __builtin_convertvector(power, Vec);
  return number * 0.693359375f + (number * -2.12194440e-4f + series);
}

// x = mantissa * 2^exponent, the mantissa in [√½, √2).
inline void split(Vec x, Vec& mantissa, IntVec& exponent) {
  const IntVec bits = (IntVec)x + (0x3f800000 - 0x3f3504f3);
  exponent = (bits >> 23) - 127;
  mantissa = (Vec)((bits & 0x7fffff) + 0x3f3504f3);
}

inline Vec gumbel_of_words(UintVec words) {
  const IntVec is_near_one = (IntVec)(words >= 0xb504f334u);
  const IntVec counted = (IntVec)words ^ is_near_one;  // the complement of those
  const Vec high = __builtin_convertvector((IntVec)((UintVec)counted >> 16), Vec);
  const Vec low = __builtin_convertvector(counted & 0xffff, Vec);
  const Vec scaled = high * 65536.0f + (low + 0.5f);
  Vec mantissa;
  IntVec exponent;
  split(scaled, mantissa, exponent);
  const Vec numerator = select(is_near_one, scaled, 1.0f - mantissa);
  const Vec denominator = select(is_near_one, 8589934592.0f - scaled, 1.0f + mantissa);
  split(log_sum((32 - exponent) & ~is_near_one, numerator / denominator), mantissa, exponent);
  return log_sum(-exponent, (1.0f - mantissa) / (1.0f + mantissa));
}

// A little more than the noise, for much less: -log(-log(u)) < -log(1 - u), and a float's own bits, read as an integer,
// are a logarithm that errs on the safe side by 0.06 at most.
inline Vec bound_of_words(UintVec words) {
  const Vec complement = __builtin_convertvector((IntVec)(~words >> 1), Vec);  // of 2^31
  const Vec bits = __builtin_convertvector((IntVec)complement, Vec);
  constexpr float kLn2 = 0.6931472f;
  return kLn2 * (31 + 127) + 0.001f - bits * (kLn2 / 8388608.0f);
}

}  // namespace outrider
