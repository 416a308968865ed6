// Samples from a grid of remembered densities; the reference is nerfcli/reference/proposals.py.
#pragma once
#include "space.h"

namespace {

constexpr int64_t PROPOSE_RAYS = 64;  // rays of a task
constexpr uint32_t BRICK = 4;         // cells along a brick, which lie together in memory
constexpr int AT_ONCE = 16;           // bins that are looked up at once
constexpr float LONE = -2.0f;         // a coarse cell that no two training cameras see
constexpr float DENSEST = 1.0f;       // optical depth of a bin: a cell may be half empty
constexpr float OPAQUE = 10.0f;       // optical depth behind which no light is left
constexpr float LIT = 1e-3f;          // light below which a weight says nothing of the density

INLINE float from_bfloat(uint16_t half) {
  uint32_t bits = uint32_t(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

INLINE uint16_t to_bfloat(float value) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE uint32_t cell_along(float unit, int resolution) {
  int cell = int(unit * float(resolution));
  return uint32_t(cell < resolution ? cell : resolution - 1);
}

INLINE uint32_t cell_at(float x, float y, float z, int resolution) {
  const uint32_t i = cell_along(x, resolution), j = cell_along(y, resolution),
                 k = cell_along(z, resolution), n = uint32_t(resolution) / BRICK;
  const uint32_t brick = ((k / BRICK) * n + j / BRICK) * n + i / BRICK;
  return ((brick * BRICK + k % BRICK) * BRICK + j % BRICK) * BRICK + i % BRICK;
}

// What the grid knows of n <= AT_ONCE places: their densities, and whether they are LONE.
INLINE void look_up(const NerfProposals &grid, const float *x, const float *y, const float *z,
                    int n, float *sigmas, bool *lone) {
  uint32_t fine[AT_ONCE], coarse[AT_ONCE];
  for (int k = 0; k < n; k++) fine[k] = cell_at(x[k], y[k], z[k], grid.resolution);
  for (int k = 0; k < n; k++) coarse[k] = cell_at(x[k], y[k], z[k], grid.coarse_resolution);
  for (int k = 0; k < n; k++) {
    const float own = from_bfloat(grid.fine[fine[k]]), around = from_bfloat(grid.coarse[coarse[k]]);
    lone[k] = around == LONE;
    sigmas[k] = own >= 0.0f ? own : around >= 0.0f ? around : grid.prior;
  }
}

// Exponentials of LANES numbers at a time, in place.
static void exponentials(float *values, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) store(values + i, exponential(load(values + i)));
}

// The cuts of one ray: t [n_samples + 1]. skips: whether it begins where two cameras see.
// p: room for 8 * (n_bins + LANES) floats.
static void cut_ray(const NerfProposals &grid, const NerfSpace &space, const float *origin,
                    const float *direction, float jitter, bool skips, float *p, float *t) {
  const int n = grid.n_bins;
  const int64_t stride = round_up(n + 2, LANES);
  float *places = p, *x = p + stride, *y = x + stride, *z = y + stride, *light = z + stride,
        *weights = light + stride, *cdf = weights + stride;
  float depth = 0.0f, sigmas[AT_ONCE];
  bool lone[AT_ONCE];
  int seen = 0, begin = 0;  // bins up to an opaque one; the first that more than one camera sees
  for (int first = 0; first < n && seen == first; first += AT_ONCE) {
    const int last = n < first + AT_ONCE ? n : first + AT_ONCE;
    for (int k = first; k < last; k++)
      places[k] = grid.edges[k] + jitter * (grid.edges[k + 1] - grid.edges[k]);
    unit_positions(space, origin, direction, places + first, places + first, last - first,
                   x + first, y + first, z + first);
    look_up(grid, x + first, y + first, z + first, last - first, sigmas, lone);
    for (seen = first; seen < last && depth < OPAQUE;) {
      const int k = seen++;
      light[k] = 0.0f;
      if (skips && begin == k && lone[k - first]) {
        begin++;
        continue;
      }
      float own = sigmas[k - first] * (grid.edges[k + 1] - grid.edges[k]);
      depth += own < DENSEST ? own : DENSEST;
      light[k] = -depth;
    }
  }
  if (begin == n) return cut_ray(grid, space, origin, direction, jitter, false, p, t);
  for (int64_t k = seen; k < stride; k++) light[k] = 0.0f;
  exponentials(light, round_up(seen, LANES));
  if (depth >= OPAQUE) light[seen - 1] = 0.0f;
  for (int k = seen; k < n; k++) light[k] = light[seen - 1];
  for (int k = 0; k < n; k++) weights[k] = (k ? light[k - 1] : 1.0f) - light[k];
  weights[n - 1] += light[n - 1];
  float before = weights[0], total = 0.0f;
  for (int k = 0; k < n; k++) {
    float here = weights[k], most_of = here > before ? here : before;
    if (k + 1 < n && weights[k + 1] > most_of) most_of = weights[k + 1];
    before = here;
    weights[k] = most_of;
  }
  if (grid.annealing != 1.0f)
    for (int k = 0; k < n; k++)
      weights[k] = grid.annealing == 0.0f ? 1.0f : __builtin_powf(weights[k], grid.annealing);
  for (int k = begin; k < n; k++) total += weights[k];
  const float scale = (1.0f - grid.padding) / total, even = grid.padding / float(n - begin);
  double sum = 0.0;
  cdf[begin] = 0.0f;
  for (int k = begin; k < n; k++) sum += scale * weights[k] + even, cdf[k + 1] = float(sum);
  const int m = grid.n_samples;
  t[0] = grid.edges[begin], t[m] = grid.edges[n];
  int bin = begin;
  for (int i = 0; i + 1 < m; i++) {
    float cut = (float(i) + jitter) / float(m - 1) * cdf[n];
    while (bin + 1 < n && cdf[bin + 1] <= cut) bin++;
    float width = cdf[bin + 1] - cdf[bin], share = (cut - cdf[bin]) / (width > 1e-12f ? width : 1e-12f);
    share = share < 0.0f ? 0.0f : share > 1.0f ? 1.0f : share;
    t[i + 1] = grid.edges[bin] + share * (grid.edges[bin + 1] - grid.edges[bin]);
  }
}

static void propose(const NerfProposals *grid, const NerfSpace *space, const NerfRays *rays,
                    const float *jitter, float *t_starts, float *t_ends) {
  const int m = grid->n_samples;
  parallel(ceil_div(rays->n_rays, PROPOSE_RAYS), [&](int64_t task, int thread) {
    float *p = static_cast<float *>(nerf_buffer(
        thread, SLOT_PROPOSE, size_t(8 * (grid->n_bins + 2 + LANES) + m + 1) * 4));
    float *t = p + 8 * (grid->n_bins + 2 + LANES);
    for (int64_t r = task * PROPOSE_RAYS; r < least(rays->n_rays, (task + 1) * PROPOSE_RAYS); r++) {
      cut_ray(*grid, *space, rays->origins + r * 3, rays->directions + r * 3, jitter[r], true,
              p, t);
      memcpy(t_starts + r * m, t, size_t(m) * 4);
      memcpy(t_ends + r * m, t + 1, size_t(m) * 4);
    }
  });
}

// The densities that samples met in a cell.
struct Met {
  double sum;
  uint32_t cell;
  int32_t count;
};

// Densities met by samples; a thread learns the cells of its part.
static void learn(const NerfProposals *grid, const NerfSpace *space, const NerfRays *rays,
                  const NerfSamples *samples, const float *weights, float rate) {
  const int64_t n_rays = rays->n_rays, n = samples->offsets[n_rays];
  const int64_t stride = n + LANES;
  const int resolutions[2] = {grid->resolution, grid->coarse_resolution};
  float *p = static_cast<float *>(nerf_buffer(-1, SLOT_PROPOSE, size_t(stride) * 6 * 4));
  float *x = p, *y = p + stride, *z = y + stride, *sigmas = z + stride;
  uint32_t *all_cells = reinterpret_cast<uint32_t *>(sigmas + stride);  // [2, stride]
  parallel(ceil_div(n_rays, PROPOSE_RAYS), [&](int64_t task, int) {
    for (int64_t r = task * PROPOSE_RAYS; r < least(n_rays, (task + 1) * PROPOSE_RAYS); r++) {
      const int64_t first = samples->offsets[r], size = samples->offsets[r + 1] - first;
      unit_positions(*space, rays->origins + r * 3, rays->directions + r * 3,
                     samples->t_starts + first, samples->t_ends + first, size, x + first,
                     y + first, z + first);
      float passed = 0.0f;
      for (int which = 0; which < 2; which++)
        for (int64_t i = first; i < first + size; i++)
          all_cells[which * stride + i] = cell_at(x[i], y[i], z[i], resolutions[which]);
      for (int64_t i = first; i < first + size; i++) {
        float light = 1.0f - passed, length = samples->t_ends[i] - samples->t_starts[i];
        float share = weights[i] / (light > 1e-6f ? light : 1e-6f);
        share = share < 0.0f ? 0.0f : share > 1.0f - 1e-6f ? 1.0f - 1e-6f : share;
        passed += weights[i];
        const bool lit = light > LIT && length > 0.0f;
        sigmas[i] = lit ? -__builtin_log1pf(-share) / (length > 1e-12f ? length : 1e-12f) : -1.0f;
      }
    }
  });
  uint16_t *grids[2] = {grid->fine, grid->coarse};
  const int64_t n_parts = nerf_threads();
  parallel(2 * n_parts, [&](int64_t task, int thread) {
    const int64_t which = task / n_parts, part = task % n_parts;
    uint16_t *cells = grids[which];
    const uint32_t *cell_of = all_cells + which * stride;
    auto is_own = [&](int64_t i) {  // bricks go to parts in turn, whole lines of the cache
      return sigmas[i] >= 0.0f && cell_of[i] / 64 % n_parts == part;
    };
    int64_t n_own = 0, n_slots = 64, size = 0;
    for (int64_t i = 0; i < n; i++) n_own += is_own(i);
    while (n_slots < 2 * n_own) n_slots *= 2;
    char *memory = static_cast<char *>(
        nerf_buffer(thread, SLOT_PROPOSE, size_t(n_own + 1) * sizeof(Met) + size_t(n_slots) * 4));
    Met *met = reinterpret_cast<Met *>(memory);  // in the order in which samples met the cells
    int32_t *slots = reinterpret_cast<int32_t *>(met + n_own + 1);  // hashed: 1 + the place in `met`
    memset(slots, 0, size_t(n_slots) * 4);
    for (int64_t i = 0; i < n; i++) {
      if (!is_own(i)) continue;
      const uint32_t cell = cell_of[i];
      uint64_t slot = (uint64_t(cell) * 0x9e3779b97f4a7c15u >> 32) & uint64_t(n_slots - 1);
      while (slots[slot] && met[slots[slot] - 1].cell != cell) slot = (slot + 1) & uint64_t(n_slots - 1);
      if (!slots[slot]) {
        met[size] = {0.0, cell, 0};
        slots[slot] = int32_t(++size);
      }
      met[slots[slot] - 1].sum += sigmas[i];
      met[slots[slot] - 1].count++;
    }
    for (int64_t i = 0; i < size; i++) {
      const uint32_t cell = met[i].cell;
      float mean = float(met[i].sum / double(met[i].count)), old = from_bfloat(cells[cell]);
      if (old == LONE) continue;
      if (old < 0.0f) old = mean;
      cells[cell] = to_bfloat(old + rate * (mean - old));
    }
  });
}

}  // namespace
