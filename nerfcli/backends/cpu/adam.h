// Adam that leaves untouched entries alone; the reference is nerfcli/reference/adam.py.
#pragma once
#include "simd.h"

namespace {

// 1 / (sqrt(x) + eps).
INLINE Floats inverse_root(Floats x, Ints needed, float eps) {
#if defined(__AVX512F__)
  // Two estimates of 14 bits, each with one step of Newton's, cost a third of sqrt and division;
  // numbers too small for them are left to the exact way.
  if (!any((x < 1.1754944e-38f) & needed)) {
    __m512 v = (__m512)x, r = _mm512_rsqrt14_ps(v);
    Floats y = (Floats)r, root = x * y;
    root = root + 0.5f * y * (x - root * root);
    Floats sum = root + eps;
    y = (Floats)_mm512_rcp14_ps((__m512)sum);
    return y + y * (1.0f - sum * y);
  }
  return 1.0f / ((Floats)_mm512_sqrt_ps((__m512)x) + eps);
#else
  (void)needed;
  for (int k = 0; k < LANES; k++) x[k] = __builtin_sqrtf(x[k]);
  return 1.0f / (x + eps);
#endif
}

struct AdamPlaces {
  float *params, *grads, *m, *v, *ema;  // ema may be null
};

// One vector of entries, some of which have a gradient.
INLINE void adam_vector(const AdamPlaces &at, const NerfAdam &o) {
  Floats g = load(at.grads), p = load(at.params), old_m = load(at.m), old_v = load(at.v);
  Ints touched = g != Floats{};
  Floats slope = g + o.weight_decay * p;
  Floats new_m = o.beta1 * old_m + (1.0f - o.beta1) * slope;
  Floats new_v = o.beta2 * old_v + (1.0f - o.beta2) * slope * slope;
  Floats inverse = inverse_root(new_v * (1.0f / o.correction2), touched, o.eps);
  Floats new_p = p - (o.lr / o.correction1) * new_m * inverse;
  store(at.params, touched ? new_p : p);
  store(at.m, touched ? new_m : old_m);
  store(at.v, touched ? new_v : old_v);
  if (at.ema) {
    Floats mean = load(at.ema);
    Floats moved = o.ema_decay * mean + (1.0f - o.ema_decay) * new_p;
    store(at.ema, touched ? moved : mean);
  }
  store(at.grads, Floats{});
}

static void adam_range(const AdamPlaces &all, int64_t from, int64_t to, const NerfAdam &o) {
  auto at = [&](int64_t i) {
    float *ema = all.ema ? all.ema + i : nullptr;
    return AdamPlaces{all.params + i, all.grads + i, all.m + i, all.v + i, ema};
  };
  constexpr int64_t LINES = 4 * LANES;  // looked at together: most of them are empty
  int64_t i = from;
  for (; i + LINES <= to; i += LINES) {
    Ints bits[4];
    for (int k = 0; k < 4; k++) bits[k] = load(all.grads + i + k * LANES) != Floats{};
    if (!any(bits[0] | bits[1] | bits[2] | bits[3])) continue;
    for (int k = 0; k < 4; k++)
      if (any(bits[k])) adam_vector(at(i + k * LANES), o);
  }
  for (; i < to; i += LANES) {
    size_t bytes = size_t(least(LANES, to - i)) * 4;
    float part[5][LANES] = {};
    AdamPlaces here = at(i), copy{part[0], part[1], part[2], part[3], here.ema ? part[4] : nullptr};
    float *places[5] = {here.params, here.grads, here.m, here.v, here.ema};
    for (int k = 0; k < 5; k++)
      if (places[k]) memcpy(part[k], places[k], bytes);
    adam_vector(copy, o);
    for (int k = 0; k < 5; k++)
      if (places[k]) memcpy(places[k], part[k], bytes);
  }
}

static void adam(float *params, float *grads, float *m, float *v, float *ema, int64_t n,
                 const NerfAdam *options) {
  constexpr int64_t RANGE = 1 << 15;
  parallel(ceil_div(n, RANGE), [&](int64_t task, int) {
    adam_range({params, grads, m, v, ema}, task * RANGE, least(n, (task + 1) * RANGE), *options);
  });
}

}  // namespace
