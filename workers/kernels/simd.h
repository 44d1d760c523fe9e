// One vector type for every CPU: as many float lanes as one register holds, by the compiler's vector extension.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define OUTRIDER_LANES 16
#elif defined(__AVX__)
#define OUTRIDER_LANES 8
#else
#define OUTRIDER_LANES 4
#endif

namespace outrider {

constexpr int kLanes = OUTRIDER_LANES;

typedef float Vec __attribute__((vector_size(4 * OUTRIDER_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * OUTRIDER_LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * OUTRIDER_LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * OUTRIDER_LANES)));

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline Vec splat(float value) { return value - Vec{}; }  // a sum would turn -0 into 0, and cost an addition

template <typename V, typename T>
inline V load_as(const T* source) {
  V vector;
  std::memcpy(&vector, source, sizeof(V));
  return vector;
}

inline Vec load(const float* source) { return load_as<Vec>(source); }

// bfloat16 is the upper half of a float.
inline Vec load(const uint16_t* source) {
  return (Vec)(__builtin_convertvector(load_as<HalfVec>(source), UintVec) << 16);
}

inline void store(float* target, Vec vector) { std::memcpy(target, &vector, sizeof(Vec)); }

inline float to_float(float value) { return value; }

inline float to_float(uint16_t value) {
  const uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T>
inline T from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // a NaN stays one
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);                  // to nearest, ties to even
  }
}

// a * b + c, rounded once. Spelled out: where a compiler decides by itself (-ffp-contract), it may fuse a loop with many
// sums and not the same loop with one (GCC avoids chains of FMAs on some CPUs), and a row's bits depend on its tile.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX__) && defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;  // such a CPU has nothing to fuse them with
#endif
}

inline Vec select(IntVec condition, Vec if_true, Vec if_false) {
  return (Vec)(((IntVec)if_true & condition) | ((IntVec)if_false & ~condition));
}

// Whether a comparison holds in one lane at least.
inline bool any(IntVec condition) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)condition, (__m512i)condition) != 0;
#elif defined(__AVX__)
  return !_mm256_testz_si256((__m256i)condition, (__m256i)condition);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)condition) != 0;
#else
  for (int lane = 0; lane < kLanes; ++lane)
    if (condition[lane]) return true;
  return false;
#endif
}

inline Vec maximum(Vec a, Vec b) { return select(a > b, a, b); }

inline float largest(Vec vector) {
  float result = vector[0];
  for (int lane = 1; lane < kLanes; ++lane) result = vector[lane] > result ? vector[lane] : result;
  return result;
}

inline float sum(Vec vector) {
  float result = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) result += vector[lane];
  return result;
}

// e^x for x <= 0, -inf included; within 2 units in the last place. Cephes' polynomial (expf).
inline Vec exp_nonpositive(Vec x) {
  const IntVec is_zero = x < splat(-87.0f);
  x = select(is_zero, splat(-87.0f), x);
  const Vec rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x * 1.44269504088896341f + rounder;
  const Vec power = shifted - rounder;
  Vec r = x - power * 0.693359375f;
  r = r - power * -2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntVec exponent = ((IntVec)shifted - (IntVec)rounder) << 23;
  return select(is_zero, Vec{}, (Vec)((IntVec)p + exponent));
}

}  // namespace outrider
