// Maps from scene space into the unit cube of the grid; the reference is
// nerfcli/reference/contraction.py.
#pragma once
#include "simd.h"

namespace {

INLINE Floats magnitude(Floats v) { return v < 0.0f ? -v : v; }

// LANES positions, in place: scene -> [0, 1]. A box and a contraction are rounded as the reference
// rounds them; NaN becomes 0, so no look-up leaves the table.
template <int KIND>
INLINE void to_unit(const NerfSpace &space, Floats p[3]) {
  if (KIND == NERF_PERSPECTIVE) {
    Floats d[3], c[3];
    for (int a = 0; a < 3; a++) d[a] = p[a] - space.origin[a];
    for (int a = 0; a < 3; a++)
      c[a] = d[0] * space.rotation[a] + d[1] * space.rotation[3 + a] + d[2] * space.rotation[6 + a];
    Floats z = higher(c[2], splat(space.size));
    for (int a = 0; a < 2; a++) p[a] = c[a] / (2.0f * space.tan[a] * z) + 0.5f;
    p[2] = 1.0f - space.size / z;
  } else {
    for (int a = 0; a < 3; a++) p[a] = (p[a] - space.origin[a]) / space.size;
  }
  if (KIND == NERF_CONTRACTION) {
    Floats m = splat(1.0f);
    for (int a = 0; a < 3; a++) m = higher(magnitude(p[a]), m);
    Floats factor = (2.0f - 1.0f / m) / m;
    for (int a = 0; a < 3; a++) p[a] = (rounded(factor * p[a]) + 2.0f) * 0.25f;
  }
  for (int a = 0; a < 3; a++) p[a] = lower(higher(p[a], Floats{}), splat(1.0f));
}

// Unit positions of n consecutive samples of a ray.
template <int KIND>
INLINE void unit_along(const NerfSpace &space, const float *origin, const float *direction,
                       const float *t_starts, const float *t_ends, int64_t n, float *x, float *y,
                       float *z) {
  float *to[3] = {x, y, z};
  for (int64_t i = 0; i < n; i += LANES) {
    int64_t live = least(LANES, n - i);
    Floats start{}, end{}, p[3];
    if (live == LANES) {
      start = load(t_starts + i), end = load(t_ends + i);
    } else {
      memcpy(&start, t_starts + i, size_t(live) * 4), memcpy(&end, t_ends + i, size_t(live) * 4);
    }
    Floats t_mid = 0.5f * (start + end);
    for (int a = 0; a < 3; a++) p[a] = origin[a] + rounded(t_mid * direction[a]);
    to_unit<KIND>(space, p);
    for (int a = 0; a < 3; a++) {
      if (live == LANES) {
        store(to[a] + i, p[a]);
      } else {
        memcpy(to[a] + i, &p[a], size_t(live) * 4);
      }
    }
  }
}

INLINE void unit_positions(const NerfSpace &space, const float *origin, const float *direction,
                           const float *t_starts, const float *t_ends, int64_t n, float *x,
                           float *y, float *z) {
  switch (space.kind) {
    case NERF_CONTRACTION:
      return unit_along<NERF_CONTRACTION>(space, origin, direction, t_starts, t_ends, n, x, y, z);
    case NERF_PERSPECTIVE:
      return unit_along<NERF_PERSPECTIVE>(space, origin, direction, t_starts, t_ends, n, x, y, z);
    default: return unit_along<NERF_BOX>(space, origin, direction, t_starts, t_ends, n, x, y, z);
  }
}

// The cube root of x > 0, relative error below 1e-6: Halley's method from a guess by the exponent.
INLINE Floats cube_root(Floats x) {
  Floats bits = __builtin_convertvector((Ints)x, Floats);
  Floats y = (Floats)__builtin_convertvector(bits * (1.0f / 3.0f) + 709921077.0f, Ints);
  for (int i = 0; i < 2; i++) {
    Floats cube = y * y * y;
    y *= (cube + 2.0f * x) / (2.0f * cube + x);
  }
  return y;
}

// 1 / (2 pi s^2) of n consecutive samples of a ray, s: scale of the pixel's cone in the unit cube,
// as cone_scales in nerfcli/reference/fused.py has it. `fade` makes weights of it.
template <int KIND>
INLINE void sharpness_along(const NerfSpace &space, const float *origin, const float *direction,
                            float radius, const float *t_starts, const float *t_ends, int64_t n,
                            float *out) {
  float shrink = 1.0f;  // the constant part of 1 / stretch
  if (KIND == NERF_BOX) shrink = space.size;
  if (KIND == NERF_CONTRACTION) shrink = 4.0f * space.size;
  if (KIND == NERF_PERSPECTIVE)
    shrink = __builtin_cbrtf(4.0f * space.tan[0] * space.tan[1] / space.size);
  const float to_one = shrink / (0.5f * radius);
  for (int64_t i = 0; i < n; i += LANES) {
    int64_t live = least(LANES, n - i);
    Floats start = splat(1.0f), end = start;
    memcpy(&start, t_starts + i, size_t(live) * 4), memcpy(&end, t_ends + i, size_t(live) * 4);
    Floats t_mid = 0.5f * (start + end), ratio = to_one / t_mid;  // 1 / s
    if (KIND == NERF_CONTRACTION) {
      Floats m = splat(1.0f);
      for (int a = 0; a < 3; a++)
        m = higher(magnitude((origin[a] + t_mid * direction[a] - space.origin[a]) / space.size), m);
      Floats root = cube_root(2.0f * m - 1.0f);
      ratio *= m * m / (root * root);
    }
    if (KIND == NERF_PERSPECTIVE) {
      Floats z{};
      for (int a = 0; a < 3; a++)
        z += (origin[a] + t_mid * direction[a] - space.origin[a]) * space.rotation[3 * a + 2];
      z = higher(z, splat(space.size));
      ratio *= z * cube_root(z);
    }
    Floats sharp = ratio * ratio * 0.15915494309189535f;
    memcpy(out + i, &sharp, size_t(live) * 4);
  }
}

static void sharpness(const NerfSpace &space, const float *origin, const float *direction,
                      float radius, const float *t_starts, const float *t_ends, int64_t n,
                      float *out) {
  switch (space.kind) {
    case NERF_CONTRACTION:
      return sharpness_along<NERF_CONTRACTION>(space, origin, direction, radius, t_starts, t_ends,
                                               n, out);
    case NERF_PERSPECTIVE:
      return sharpness_along<NERF_PERSPECTIVE>(space, origin, direction, radius, t_starts, t_ends,
                                               n, out);
    default:
      return sharpness_along<NERF_BOX>(space, origin, direction, radius, t_starts, t_ends, n, out);
  }
}

template <int KIND>
static void unit_rows(const NerfSpace &space, const float *positions, int64_t n, float *x, float *y,
                      float *z) {
  float *to[3] = {x, y, z};
  for (int64_t i = 0; i < n; i += LANES) {
    int64_t live = least(LANES, n - i);
    float rows[3][LANES] = {};
    for (int64_t lane = 0; lane < live; lane++)
      for (int a = 0; a < 3; a++) rows[a][lane] = positions[(i + lane) * 3 + a];
    Floats p[3] = {load(rows[0]), load(rows[1]), load(rows[2])};
    to_unit<KIND>(space, p);
    for (int a = 0; a < 3; a++) memcpy(to[a] + i, &p[a], size_t(live) * 4);
  }
}

// Separate unit coordinates of positions [n, 3], padded with zeros to `padded`; space null: they
// are in the unit cube.
static void unpack_positions(const NerfSpace *space, const float *positions, int64_t n,
                             int64_t padded, float *x, float *y, float *z) {
  static const NerfSpace unit = {NERF_BOX, 1.0f, {0, 0, 0}, 1.0f, {}, {}};
  const NerfSpace &from = space ? *space : unit;
  switch (from.kind) {
    case NERF_CONTRACTION: unit_rows<NERF_CONTRACTION>(from, positions, n, x, y, z); break;
    case NERF_PERSPECTIVE: unit_rows<NERF_PERSPECTIVE>(from, positions, n, x, y, z); break;
    default: unit_rows<NERF_BOX>(from, positions, n, x, y, z);
  }
  for (int64_t i = n; i < padded; i++) x[i] = y[i] = z[i] = 0.0f;
}

}  // namespace
