// The hash grid and the spherical harmonics; the reference is
// nerfcli/reference/encoding.py.
#pragma once
#include "space.h"

namespace {

constexpr uint32_t PRIME_Y = 2654435761u, PRIME_Z = 805459861u;

struct Level {
  const float *entries;  // of this level
  float scale;
  uint32_t resolution, n_entries;
  bool hashed;
};

INLINE Level grid_level(const NerfGrid &grid, const float *table, int level) {
  return {table + grid.offset[level] * grid.n_features, grid.scale[level],
          uint32_t(grid.resolution[level]), uint32_t(grid.n_entries[level]),
          grid.hashed[level] != 0};
}

// Corner and fraction of LANES positions along one axis.
INLINE void split(const float *positions, float scale, Words &low, Floats &fraction) {
  Floats scaled = rounded(load(positions) * scale) + 0.5f;
  Ints floor = __builtin_convertvector(scaled, Ints);  // truncates; positions are not negative
  fraction = scaled - __builtin_convertvector(floor, Floats);
  low = (Words)floor;
}

// The entries of the 8 corners (bit 0: x, bit 1: y, bit 2: z) and their trilinear weights.
INLINE void corners(const Level &level, const float *x, const float *y, const float *z,
                    Words index[8], Floats weight[8]) {
  Words ix, iy, iz;
  Floats fx, fy, fz;
  split(x, level.scale, ix, fx);
  split(y, level.scale, iy, fy);
  split(z, level.scale, iz, fz);
  Words y0, y1, z0, z1;
  if (level.hashed) {
    y0 = iy * PRIME_Y, y1 = y0 + PRIME_Y, z0 = iz * PRIME_Z, z1 = z0 + PRIME_Z;
  } else {
    uint32_t row = level.resolution, slab = row * row;
    y0 = iy * row, y1 = y0 + row, z0 = iz * slab, z1 = z0 + slab;
  }
  uint32_t n = level.n_entries;
  for (int c = 0; c < 8; c++) {
    Words cx = c & 1 ? ix + 1u : ix, cy = c & 2 ? y1 : y0, cz = c & 4 ? z1 : z0;
    if (level.hashed) {
      index[c] = (cx ^ cy ^ cz) & (n - 1);  // a hashed level has a power of two entries
    } else {
      Words i = cx + cy + cz;  // below 2 n: only the corners at x = 1 wrap
      index[c] = i < n ? i : i - n;
    }
  }
  Floats gx = 1.0f - fx, gy = 1.0f - fy, gz = 1.0f - fz;
  Floats yz[4] = {gy * gz, fy * gz, gy * fz, fy * fz};
  for (int c = 0; c < 8; c++) weight[c] = (c & 1 ? fx : gx) * yz[c >> 1];
}

// The features of one entry as a vector.
template <int F>
struct Entry {
  typedef float type __attribute__((vector_size(F * 4)));
  static type read(const float *p) {
    type v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void write(float *p, type v) { memcpy(p, &v, sizeof v); }
};
template <>
struct Entry<1> {
  typedef float type;
  static type read(const float *p) { return *p; }
  static void write(float *p, type v) { *p = v; }
};
#if defined(__x86_64__)
template <>
struct Entry<2> {  // x86 has no registers of 8 bytes: the lower half of one of 16
  typedef __m128 type;
  static type read(const float *p) {
    return _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double *>(p)));
  }
  static void write(float *p, type v) {
    _mm_store_sd(reinterpret_cast<double *>(p), _mm_castps_pd(v));
  }
};
#endif

// Features of n positions (padded to LANES) at one level: out [n, F].
template <int F>
static void encode_level(const Level &level, const float *x, const float *y, const float *z,
                         int64_t n, float *out) {
  for (int64_t i = 0; i < n; i += LANES) {
    Words index[8];
    Floats weight[8];
    corners(level, x + i, y + i, z + i, index, weight);
#if defined(__AVX512F__)
    if (F == 2) {
      const __m512i twice_low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
      const __m512i twice_high = _mm512_add_epi32(twice_low, _mm512_set1_epi32(8));
      __m512 low = _mm512_setzero_ps(), high = low;
      for (int c = 0; c < 8; c++) {
        __m512i at = (__m512i)index[c];
        __m512 w = (__m512)weight[c];
        __m512 a = _mm512_castpd_ps(
            _mm512_i32gather_pd(_mm512_castsi512_si256(at), level.entries, 8));
        __m512 b = _mm512_castpd_ps(
            _mm512_i32gather_pd(_mm512_extracti64x4_epi64(at, 1), level.entries, 8));
        low = _mm512_fmadd_ps(_mm512_permutexvar_ps(twice_low, w), a, low);
        high = _mm512_fmadd_ps(_mm512_permutexvar_ps(twice_high, w), b, high);
      }
      if (i + LANES <= n) {
        _mm512_storeu_ps(out + i * 2, low);
        _mm512_storeu_ps(out + i * 2 + 16, high);
      } else {
        float tail[32];
        _mm512_storeu_ps(tail, low);
        _mm512_storeu_ps(tail + 16, high);
        memcpy(out + i * 2, tail, size_t(n - i) * 8);
      }
      continue;
    }
#endif
    uint32_t at[8][LANES];
    float w[8][LANES];
    memcpy(at, index, sizeof at);
    memcpy(w, weight, sizeof w);
    int lanes = int(least(LANES, n - i));
    for (int lane = 0; lane < lanes; lane++) {
      typename Entry<F>::type total{};
      for (int c = 0; c < 8; c++)
        total += Entry<F>::read(level.entries + size_t(at[c][lane]) * F) * w[c][lane];
      Entry<F>::write(out + (i + lane) * F, total);
    }
  }
}

// Adds weight * cotangent to the 8 corners of n samples, in their order. Neighbours on a ray
// often share their cell, so a cell's sums stay in registers until the next one begins.
// Only entries in [first, last) are written: who owns a range owns its sums, whatever the number
// of threads, and the order of additions is that of the samples.
template <int F>
static void scatter_level(const Level &level, float *grads, const float *x, const float *y,
                          const float *z, int64_t n, const float *cotangents, uint32_t first,
                          uint32_t last) {
  typedef float Cell __attribute__((vector_size(32)));
  typedef uint32_t Corner __attribute__((vector_size(32)));
  const Corner bit_x = {0, 1, 0, 1, 0, 1, 0, 1}, bit_y = {0, 0, 1, 1, 0, 0, 1, 1},
               bit_z = {0, 0, 0, 0, 1, 1, 1, 1};
  const Cell one_x = __builtin_convertvector(1u - bit_x, Cell), sign_x = 1.0f - 2.0f * one_x,
             one_y = __builtin_convertvector(1u - bit_y, Cell), sign_y = 1.0f - 2.0f * one_y,
             one_z = __builtin_convertvector(1u - bit_z, Cell), sign_z = 1.0f - 2.0f * one_z;
  const bool whole = first == 0 && last >= level.n_entries;
  uint32_t row = level.hashed ? PRIME_Y : level.resolution;
  uint32_t slab = level.hashed ? PRIME_Z : level.resolution * level.resolution;
  const Corner step_y = bit_y * row, step_z = bit_z * slab;
  // Finished cells wait a little in a ring, while the cache fetches their entries.
  struct Waiting {
    uint32_t index[8];
    float part[8][F];
  };
  constexpr int RING = 16;
  alignas(64) Waiting ring[RING];
  int n_waiting = 0, oldest = 0;
  auto write = [&](const Waiting &done) {
    for (int c = 0; c < 8; c++) {
      if (!whole && (done.index[c] < first || done.index[c] >= last)) continue;
      float *entry = grads + size_t(done.index[c]) * F;
      Entry<F>::write(entry, Entry<F>::read(entry) + Entry<F>::read(done.part[c]));
    }
  };
  Cell sums[F] = {};  // [feature][corner]
  uint64_t cell = ~uint64_t(0);
  uint32_t cx = 0, cy = 0, cz = 0;
  auto flush = [&]() {
    if (n_waiting == RING) {
      write(ring[oldest]);
    } else {
      n_waiting++;
    }
    Waiting &done = ring[oldest];  // the place just freed, or the next unused one
    oldest = (oldest + 1) % RING;
    Corner at;
    if (level.hashed) {
      at = ((cx + bit_x) ^ (cy * row + step_y) ^ (cz * slab + step_z)) & (level.n_entries - 1);
    } else {
      at = cx + bit_x + (cy * row + step_y) + (cz * slab + step_z);
      at = at < level.n_entries ? at : at - level.n_entries;
    }
    memcpy(done.index, &at, sizeof done.index);
    // the two corners along x mostly share a cache line
    for (int c = 0; c < 8; c += 2) __builtin_prefetch(grads + size_t(done.index[c]) * F, 1);
    if (F == 2) {
      const Cell low = __builtin_shufflevector(sums[0], sums[F - 1], 0, 8, 1, 9, 2, 10, 3, 11);
      const Cell high = __builtin_shufflevector(sums[0], sums[F - 1], 4, 12, 5, 13, 6, 14, 7, 15);
      memcpy(done.part[0], &low, sizeof low);
      memcpy(done.part[4], &high, sizeof high);
    } else {
      for (int c = 0; c < 8; c++)
        for (int f = 0; f < F; f++) done.part[c][f] = sums[f][c];
    }
  };
  for (int64_t i = 0; i < n; i += LANES) {
    Words ix, iy, iz;
    Floats fx, fy, fz;
    split(x + i, level.scale, ix, fx);
    split(y + i, level.scale, iy, fy);
    split(z + i, level.scale, iz, fz);
    uint32_t lx[LANES], ly[LANES], lz[LANES];
    float rx[LANES], ry[LANES], rz[LANES];
    memcpy(lx, &ix, sizeof lx), memcpy(ly, &iy, sizeof ly), memcpy(lz, &iz, sizeof lz);
    store(rx, fx), store(ry, fy), store(rz, fz);
    int lanes = int(least(LANES, n - i));
    for (int lane = 0; lane < lanes; lane++) {
      uint64_t here = uint64_t(lx[lane]) | uint64_t(ly[lane]) << 20 | uint64_t(lz[lane]) << 40;
      Cell weights = (one_x + sign_x * rx[lane]) * (one_y + sign_y * ry[lane]) *
                     (one_z + sign_z * rz[lane]);
      const float *g = cotangents + (i + lane) * F;
      if (here != cell) {
        if (cell != ~uint64_t(0)) flush();
        cell = here, cx = lx[lane], cy = ly[lane], cz = lz[lane];
        for (int f = 0; f < F; f++) sums[f] = weights * g[f];
      } else {
        for (int f = 0; f < F; f++) sums[f] += weights * g[f];
      }
    }
  }
  if (cell != ~uint64_t(0)) flush();
  for (int k = 0; k < n_waiting; k++) write(ring[(oldest + RING - n_waiting + k) % RING]);
}

static void encode(const NerfGrid &grid, const float *table, int level, const float *x,
                   const float *y, const float *z, int64_t n, float *out) {
  Level at = grid_level(grid, table, level);
  switch (grid.n_features) {
    case 1: return encode_level<1>(at, x, y, z, n, out);
    case 2: return encode_level<2>(at, x, y, z, n, out);
    case 4: return encode_level<4>(at, x, y, z, n, out);
    default: return encode_level<8>(at, x, y, z, n, out);
  }
}

// Multiplies the features (or their gradients) of n samples at one level by what is left of it
// under their cones: level_weights in nerfcli/reference/encoding.py, 1 / (2 pi s^2) given. Room
// for LANES more numbers of `sharpness` is read.
static void fade(const NerfGrid &grid, int level, const float *sharpness, int64_t n,
                 float *features) {
  const int F = grid.n_features;
  const float share = 1.0f / (grid.scale[level] * grid.scale[level]);
  for (int64_t i = 0; i < n; i += LANES) {
    Floats x = load(sharpness + i) * share;
    Floats small = x * (1.0f - x * (0.5f - x * (1.0f / 6.0f)));  // 1 - exp(-x) without its rounding
    Floats left = x < 0.01f ? small : 1.0f - exponential(-x);
    float weight[LANES];
    store(weight, left);
    for (int lane = 0; lane < LANES; lane++) weight[lane] = __builtin_sqrtf(weight[lane]);
    float *f = features + i * F;
    const int lanes = int(least(LANES, n - i));
    if (F == 2) {
      for (int lane = 0; lane < lanes; lane++)
        f[2 * lane] *= weight[lane], f[2 * lane + 1] *= weight[lane];
    } else {
      for (int lane = 0; lane < lanes; lane++)
        for (int k = 0; k < F; k++) f[lane * F + k] *= weight[lane];
    }
  }
}

// The gradient of the whole table; cotangents [n_levels][stride][F], a level to a thread.
static void scatter(const NerfGrid &grid, const float *x, const float *y, const float *z,
                    int64_t n, const float *cotangents, int64_t stride, float *grads) {
  if (n == 0) return;
  // with more threads than levels a level is shared out by ranges of entries
  int parts = nerf_threads() > grid.n_levels ? int(ceil_div(2 * nerf_threads(), grid.n_levels)) : 1;
  parallel(int64_t(grid.n_levels) * parts, [&](int64_t task, int) {
    int level = int(task / parts), part = int(task % parts);
    Level at = grid_level(grid, grads, level);
    float *entries = grads + grid.offset[level] * grid.n_features;
    const float *g = cotangents + level * stride * grid.n_features;
    uint32_t first = uint32_t(uint64_t(at.n_entries) * part / parts);
    uint32_t last = uint32_t(uint64_t(at.n_entries) * (part + 1) / parts);
    switch (grid.n_features) {
      case 1: return scatter_level<1>(at, entries, x, y, z, n, g, first, last);
      case 2: return scatter_level<2>(at, entries, x, y, z, n, g, first, last);
      case 4: return scatter_level<4>(at, entries, x, y, z, n, g, first, last);
      default: return scatter_level<8>(at, entries, x, y, z, n, g, first, last);
    }
  });
}

// Adds d loss / d position of n samples at one level, within their cells, to dx, dy, dz.
template <int F>
static void slope_level(const Level &level, const float *x, const float *y, const float *z,
                        int64_t n, const float *cotangents, float *dx, float *dy, float *dz) {
  for (int64_t i = 0; i < n; i += LANES) {
    Words index[8];
    Floats weight[8];
    corners(level, x + i, y + i, z + i, index, weight);
    uint32_t at[8][LANES];
    memcpy(at, index, sizeof at);
    float along[8][LANES] = {};  // d loss / d weight of a corner
    int lanes = int(least(LANES, n - i));
    for (int lane = 0; lane < lanes; lane++) {
      const float *g = cotangents + (i + lane) * F;
      for (int c = 0; c < 8; c++) {
        const float *entry = level.entries + size_t(at[c][lane]) * F;
        float total = g[0] * entry[0];
        for (int f = 1; f < F; f++) total += g[f] * entry[f];
        along[c][lane] = total;
      }
    }
    Floats s[8];
    memcpy(s, along, sizeof s);
    Words low;
    Floats fx, fy, fz;
    split(x + i, level.scale, low, fx);
    split(y + i, level.scale, low, fy);
    split(z + i, level.scale, low, fz);
    Floats gx = 1.0f - fx, gy = 1.0f - fy, gz = 1.0f - fz;
    Floats sx = ((s[1] - s[0]) * gy + (s[3] - s[2]) * fy) * gz +
                ((s[5] - s[4]) * gy + (s[7] - s[6]) * fy) * fz;
    Floats sy = ((s[2] - s[0]) * gx + (s[3] - s[1]) * fx) * gz +
                ((s[6] - s[4]) * gx + (s[7] - s[5]) * fx) * fz;
    Floats sz = ((s[4] - s[0]) * gx + (s[5] - s[1]) * fx) * gy +
                ((s[6] - s[2]) * gx + (s[7] - s[3]) * fx) * fy;
    store(dx + i, load(dx + i) + level.scale * sx);
    store(dy + i, load(dy + i) + level.scale * sy);
    store(dz + i, load(dz + i) + level.scale * sz);
  }
}

// The gradient of n unit positions [n, 3], all levels in order; cotangents [n_levels][stride][F].
// A sample's sum is its own, so it does not depend on how samples are shared out to threads.
static void slopes(const NerfGrid &grid, const float *table, const float *x, const float *y,
                   const float *z, int64_t n, const float *cotangents, int64_t stride, int thread,
                   float *d_positions) {
  int64_t padded = round_up(n, LANES);
  float *dx = static_cast<float *>(
      nerf_buffer(thread, SLOT_SLOPES, size_t(padded * 3 + 16) * 4));
  float *dy = dx + padded, *dz = dy + padded;
  memset(dx, 0, size_t(padded) * 12);
  for (int level = 0; level < grid.n_levels; level++) {
    Level at = grid_level(grid, table, level);
    const float *g = cotangents + level * stride * grid.n_features;
    switch (grid.n_features) {
      case 1: slope_level<1>(at, x, y, z, n, g, dx, dy, dz); break;
      case 2: slope_level<2>(at, x, y, z, n, g, dx, dy, dz); break;
      case 4: slope_level<4>(at, x, y, z, n, g, dx, dy, dz); break;
      default: slope_level<8>(at, x, y, z, n, g, dx, dy, dz);
    }
  }
  for (int64_t i = 0; i < n; i++) {
    d_positions[i * 3] = dx[i], d_positions[i * 3 + 1] = dy[i], d_positions[i * 3 + 2] = dz[i];
  }
}

INLINE void harmonics(const float *direction, float *out) {
  float x = direction[0], y = direction[1], z = direction[2];
  float xy = x * y, xz = x * z, yz = y * z, x2 = x * x, y2 = y * y, z2 = z * z;
  out[0] = 0.28209479177387814f;
  out[1] = -0.48860251190291987f * y;
  out[2] = 0.48860251190291987f * z;
  out[3] = -0.48860251190291987f * x;
  out[4] = 1.0925484305920792f * xy;
  out[5] = -1.0925484305920792f * yz;
  out[6] = 0.94617469575755997f * z2 - 0.31539156525251999f;
  out[7] = -1.0925484305920792f * xz;
  out[8] = 0.54627421529603959f * (x2 - y2);
  out[9] = 0.59004358992664352f * y * (-3.0f * x2 + y2);
  out[10] = 2.8906114426405538f * xy * z;
  out[11] = 0.45704579946446572f * y * (1.0f - 5.0f * z2);
  out[12] = 0.3731763325901154f * z * (5.0f * z2 - 3.0f);
  out[13] = 0.45704579946446572f * x * (1.0f - 5.0f * z2);
  out[14] = 1.4453057213202769f * z * (x2 - y2);
  out[15] = 0.59004358992664352f * x * (-x2 + 3.0f * y2);
}

// d loss / d direction from that of the 16 harmonics.
INLINE void harmonics_backward(const float *direction, const float *g, float *out) {
  float x = direction[0], y = direction[1], z = direction[2];
  float xy = x * y, xz = x * z, yz = y * z, x2 = x * x, y2 = y * y, z2 = z * z;
  out[0] = -0.48860251190291987f * g[3] + 1.0925484305920792f * (y * g[4] - z * g[7] + x * g[8]) +
           1.7701307697799304f * (y2 - x2) * g[15] - 3.5402615395598609f * xy * g[9] +
           2.8906114426405538f * (yz * g[10] + xz * g[14]) +
           0.45704579946446572f * (1.0f - 5.0f * z2) * g[13];
  out[1] = -0.48860251190291987f * g[1] + 1.0925484305920792f * (x * g[4] - z * g[5] - y * g[8]) +
           1.7701307697799304f * (y2 - x2) * g[9] + 3.5402615395598609f * xy * g[15] +
           2.8906114426405538f * (xz * g[10] - yz * g[14]) +
           0.45704579946446572f * (1.0f - 5.0f * z2) * g[11];
  out[2] = 0.48860251190291987f * g[2] - 1.0925484305920792f * (y * g[5] + x * g[7]) +
           1.8923493915151199f * z * g[6] + 2.8906114426405538f * xy * g[10] -
           4.5704579946446572f * (yz * g[11] + xz * g[13]) +
           0.3731763325901154f * (15.0f * z2 - 3.0f) * g[12] +
           1.4453057213202769f * (x2 - y2) * g[14];
}

}  // namespace
