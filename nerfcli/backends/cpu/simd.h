// Vectors of floats as wide as the instruction set, by the compiler's own vector types, so that
// one text serves AVX-512, AVX2, SSE2 and NEON.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "host.h"

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

INLINE Floats load(const float *p) {
  Floats v;
  memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float *p, Floats v) { memcpy(p, &v, sizeof v); }
INLINE Floats splat(float x) { return x - Floats{}; }
// If one of the two is NaN, the result is b.
INLINE Floats lower(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats higher(Floats a, Floats b) { return a > b ? a : b; }

INLINE float sum(Floats v) {
  float out = 0;  // the compiler turns this into shuffles only where it may reorder; keep a tree
  float part[LANES];
  store(part, v);
  for (int width = LANES / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; i++) part[i] += part[i + width];
  out = part[0];
  return out;
}

// Whether any lane of a comparison holds.
INLINE bool any(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= mask[i];
  return found != 0;
#endif
}

// Keeps a product from being contracted with the addition that follows: where a position is
// split into cell and fraction the reference's rounding is followed to the bit, because a step
// of one cell is large.
INLINE Floats rounded(Floats v) {
#if defined(__x86_64__) && defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}

// e^x, relative error below 2e-7 on [-87, 88]; outside it is clamped, so never infinite or zero.
// NaN stays NaN.
// Cody & Waite's reduction x = n ln 2 + r, then a polynomial in r (Cephes' expf).
INLINE Floats exponential(Floats x) {
  x = lower(splat(88.0f), higher(splat(-87.0f), x));
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Floats shifted = x * 1.44269504088896341f + magic;
  Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints exponent = (Ints)shifted << 23;  // the low bits of n + magic are n
  return (Floats)((Ints)p + exponent);
}

template <class F>
static void parallel(int64_t n_tasks, F &&body) {
  nerf_parallel(
      n_tasks,
      [](void *context, int64_t task, int thread) {
        (*static_cast<__typeof__(&body)>(context))(task, thread);
      },
      const_cast<void *>(static_cast<const void *>(&body)));
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Samples from one level's features to the next's, for n samples of F features: an odd number of
// cache lines, or the levels of a sample would fight for the same few places of the cache.
INLINE int64_t level_stride(int64_t n, int F) {
  int64_t per_line = 16 / F;
  return (ceil_div(n, per_line) | 1) * per_line;
}

// Slots of nerf_buffer.
enum Slot {
  SLOT_WEIGHTS, SLOT_RAYS, SLOT_EVALUATED, SLOT_FEATURES, SLOT_KEPT, SLOT_GRADIENTS,
  SLOT_FEATURE_GRADIENTS, SLOT_CHUNKS, SLOT_POSITIONS, SLOT_ACTIVATIONS, SLOT_TILE, SLOT_BLOCK,
  SLOT_MARCH, SLOT_SLOPES, SLOT_RAY_GRADIENTS, SLOT_PROPOSE, SLOT_COUNT
};

}  // namespace
