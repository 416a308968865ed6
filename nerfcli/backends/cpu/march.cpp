// Marching through the occupancy grid; the reference is nerfcli/reference/sampling.py.
//
// Compiled without contraction of products and sums, for the plainest processor: then the steps
// are the reference's to the bit (with cone > 0 up to the last digits of exp and log).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "host.h"

// The grid as bits, 4 x 4 x 4 cells to a word, and a flag for 4 x 4 x 4 such bricks: most of
// space is empty and is crossed a brick or a block at a time.
struct NerfBricks {
  const uint64_t *words;   // [n_cascades, n, n, n]
  const uint8_t *blocks;   // [n_cascades, m, m, m]
  int n_cascades, resolution, n, m;
  bool skip_bricks, skip_blocks;  // whether they end where the next finer cascade begins
  float center[4], half_size;
  const float *growth;  // [N_GROWTH] (1 + cone)^k
};

enum { SLOT_HOST = 32 };

// So many growing steps reach 8.6 million times as far as the first one, at a cone of 1/256.
constexpr int N_GROWTH = 4096;

// (1 + cone)^k, made anew where the cone is another one; one call at a time comes here.
static const float *growth_table(float cone) {
  static float table[N_GROWTH], made_for = 0.0f;
  if (cone != made_for) {
    for (int k = 0; k < N_GROWTH; k++) table[k] = float(exp(k * log1p(double(cone))));
    made_for = cone;
  }
  return table;
}

extern "C" const NerfBricks *nerf_bricks(const NerfOccupancy *o, NerfSteps steps) {
  int R = o->resolution, n = (R + 3) / 4, m = (n + 3) / 4, C = o->n_cascades;
  size_t n_words = size_t(C) * n * n * n, n_blocks = size_t(C) * m * m * m;
  char *p = static_cast<char *>(
      nerf_buffer(-1, SLOT_HOST, sizeof(NerfBricks) + 64 + n_words * 8 + n_blocks));
  NerfBricks *bricks = reinterpret_cast<NerfBricks *>(p);
  uint64_t *words = reinterpret_cast<uint64_t *>(p + (sizeof(NerfBricks) + 63) / 64 * 64);
  uint8_t *blocks = reinterpret_cast<uint8_t *>(words + n_words);
  struct Context {
    const NerfOccupancy *o;
    uint64_t *words;
    uint8_t *blocks;
    int n, m;
  } context{o, words, blocks, n, m};
  // a task fills one layer of blocks, four layers of bricks
  nerf_parallel(int64_t(C) * m, [](void *ctx, int64_t task, int) {
    Context &c = *static_cast<Context *>(ctx);
    int R = c.o->resolution, n = c.n, m = c.m;
    int cascade = int(task / m), bz = int(task % m);
    uint8_t *layer = c.blocks + task * m * m;
    memset(layer, 0, size_t(m) * m);
    for (int wz = bz * 4; wz < (bz + 1) * 4 && wz < n; wz++)
      for (int wy = 0; wy < n; wy++) {
        uint64_t *row = c.words + ((int64_t(cascade) * n + wz) * n + wy) * n;
        memset(row, 0, size_t(n) * 8);
        for (int z = 0; z < 4 && wz * 4 + z < R; z++)
          for (int y = 0; y < 4 && wy * 4 + y < R; y++) {
            const uint8_t *cells =
                c.o->cells + ((int64_t(cascade) * R + wz * 4 + z) * R + wy * 4 + y) * R;
            int shift = z * 16 + y * 4, wx = 0;
            for (; wx * 4 + 4 <= R; wx++) {
              uint32_t four;
              memcpy(&four, cells + wx * 4, 4);
              if (!four) continue;
              uint64_t bits = (cells[wx * 4] != 0) | (cells[wx * 4 + 1] != 0) << 1 |
                              (cells[wx * 4 + 2] != 0) << 2 | (cells[wx * 4 + 3] != 0) << 3;
              row[wx] |= bits << shift;
            }
            for (int x = wx * 4; x < R; x++)
              row[wx] |= uint64_t(cells[x] != 0) << (shift + x - wx * 4);
          }
        for (int wx = 0; wx < n; wx++)
          if (row[wx]) layer[(wy / 4) * m + wx / 4] = 1;
      }
  }, &context);
  *bricks = NerfBricks{words, blocks, C, R, n, m, C == 1 || R % 16 == 0, C == 1 || R % 64 == 0,
                       {o->center[0], o->center[1], o->center[2], 0.0f}, o->half_size,
                       growth_table(steps.cone)};
  return bricks;
}

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));

static Four vector(const float *p) {
  Four v;
  memcpy(&v, p, sizeof v);
  return v;
}

static float s_from_t(float t, NerfSteps steps) {
  if (steps.cone == 0.0f) return t / steps.size;
  float t_c = steps.size / steps.cone;
  if (t <= t_c) return t / steps.size;
  return 1.0f / steps.cone + logf(t / t_c) / log1pf(steps.cone);
}

// t of the k-th edge of a ray's steps.
static float t_of_edge(const NerfMarcher &ray, const float *growth, NerfSteps steps, int k) {
  float s = ray.s_start + float(k);
  if (s < 0.0f) s = 0.0f;
  if (steps.cone == 0.0f || s <= 1.0f / steps.cone) return s * steps.size;
  if (k < N_GROWTH) return ray.t_start * growth[k];
  float s_c = 1.0f / steps.cone;
  return expf((s - s_c) * log1pf(steps.cone)) * (steps.size * s_c);
}

extern "C" void nerf_march_start(NerfMarcher *ray, const float *origin, const float *direction,
                                 float t_min, float t_max, float jitter, NerfSteps steps) {
  for (int a = 0; a < 3; a++) {
    ray->origin[a] = origin[a], ray->direction[a] = direction[a];
    ray->inverse[a] = direction[a] != 0.0f ? 1.0f / direction[a] : INFINITY;
  }
  ray->origin[3] = ray->direction[3] = ray->inverse[3] = 0.0f;
  ray->t_min = t_min, ray->t_max = t_max;
  ray->step = t_max > t_min ? 0 : -1;
  ray->s_start = ray->step < 0 ? 0.0f : s_from_t(t_min, steps) + jitter - 0.5f;
  ray->t_start = 0.0f;
  if (steps.cone != 0.0f) {
    double s_c = 1.0 / steps.cone;
    ray->t_start = float(exp((ray->s_start - s_c) * log1p(double(steps.cone))) * steps.size * s_c);
  }
}

// Where the ray leaves the cells [low, low + width) of one cascade along each axis, as t.
static float exit_distance(const NerfMarcher &ray, const NerfBricks &b, const int low[3], int width,
                           float half) {
  float nearest = INFINITY, cell = 2.0f * half / float(b.resolution);
  for (int a = 0; a < 3; a++) {
    if (ray.direction[a] == 0.0f) continue;
    int edge = ray.direction[a] > 0.0f ? low[a] + width : low[a];
    float t = (b.center[a] - half + float(edge) * cell - ray.origin[a]) * ray.inverse[a];
    if (t < nearest) nearest = t;
  }
  return nearest;
}

// Whether the position is in an occupied cell; if not, *leave is a distance up to which the ray
// surely meets no occupied cell, or 0 where nothing is known.
static bool occupied(const NerfMarcher &ray, const NerfBricks &b, float t_mid, float *leave) {
  Four offset = vector(ray.origin) + t_mid * vector(ray.direction) - vector(b.center);
  Four size = offset < 0.0f ? -offset : offset;
  float reach = size[0] > size[1] ? size[0] : size[1];
  reach = (reach > size[2] ? reach : size[2]) / b.half_size;
  int cascade = 0;
  float half = b.half_size;
  for (float limit = 1.0f; reach > limit && cascade < b.n_cascades; limit *= 2.0f)
    cascade++, half *= 2.0f;
  *leave = 0.0f;
  if (cascade >= b.n_cascades) return false;
  Four place = (offset / half + 1.0f) * (0.5f * float(b.resolution));
  Four low_end = {}, high_end = low_end + (float(b.resolution) - 0.5f);
  place = place > low_end ? place : low_end;  // not a number: the first cell
  place = place < high_end ? place : high_end;
  FourInts cell = __builtin_convertvector(place, FourInts);
  int m = b.m, n = b.n;
  const int block[3] = {cell[0] >> 4, cell[1] >> 4, cell[2] >> 4};
  if (!b.blocks[((int64_t(cascade) * m + block[2]) * m + block[1]) * m + block[0]]) {
    if (b.skip_blocks) {
      const int low[3] = {block[0] << 4, block[1] << 4, block[2] << 4};
      *leave = exit_distance(ray, b, low, 16, half);
    }
    return false;
  }
  const int brick[3] = {cell[0] >> 2, cell[1] >> 2, cell[2] >> 2};
  uint64_t word = b.words[((int64_t(cascade) * n + brick[2]) * n + brick[1]) * n + brick[0]];
  if (!word) {
    if (b.skip_bricks) {
      const int low[3] = {brick[0] << 2, brick[1] << 2, brick[2] << 2};
      *leave = exit_distance(ray, b, low, 4, half);
    }
    return false;
  }
  return word >> ((cell[2] & 3) * 16 + (cell[1] & 3) * 4 + (cell[0] & 3)) & 1;
}

extern "C" int nerf_march_some(NerfMarcher *ray, const NerfBricks *bricks, NerfSteps steps,
                               int limit, float *t_starts, float *t_ends) {
  if (ray->step < 0) return 0;
  int found = 0, k = ray->step;
  auto edge = [&](int step) {
    float t = t_of_edge(*ray, bricks->growth, steps, step);
    return t > ray->t_min ? t : ray->t_min;
  };
  float start = edge(k);
  while (found < limit) {
    float end = edge(k + 1), mid = 0.5f * (start + end);
    if (!(mid < ray->t_max)) {
      ray->step = -1;
      return found;
    }
    float leave = 0.0f;
    int next = k + 1;
    if (end > start) {
      if (occupied(*ray, *bricks, mid, &leave)) {
        t_starts[found] = start, t_ends[found] = end;
        found++;
      } else if (leave > end) {
        // steps that end before `leave` are empty; the margin covers rounding
        float s = s_from_t(leave < ray->t_max ? leave : ray->t_max, steps);
        int jump = int(s - ray->s_start - 0.02f);
        if (jump > next) next = jump;
      }
    } else if (k >= (1 << 24)) {  // steps too small for float32: t no longer moves
      ray->step = -1;
      return found;
    }
    start = next == k + 1 ? end : edge(next);
    k = next;
  }
  ray->step = k;
  return found;
}

// The samples of all rays; kept until nerf_cpu_march_take fetches them.
struct Marched {
  std::vector<std::vector<float>> parts;  // per task: t_starts then t_ends, interleaved in pairs
  int64_t n_rays;
};

constexpr int64_t MARCH_RAYS = 128;

extern "C" {

// Marches all rays, fills offsets [n_rays + 1]; returns a handle for nerf_cpu_march_take.
void *nerf_march_all(const NerfRays *rays, const float *t_min, const float *t_max,
                     const float *jitter, const NerfOccupancy *occupancy, const NerfSteps *steps,
                     int64_t *offsets) {
  int64_t n_tasks = (rays->n_rays + MARCH_RAYS - 1) / MARCH_RAYS;
  Marched *marched = new Marched{std::vector<std::vector<float>>(size_t(n_tasks)), rays->n_rays};
  struct Context {
    const NerfRays *rays;
    const float *t_min, *t_max, *jitter;
    const NerfBricks *bricks;
    NerfSteps steps;
    int64_t *offsets;
    Marched *marched;
  } context{rays, t_min, t_max, jitter, nerf_bricks(occupancy, *steps), *steps, offsets, marched};
  nerf_parallel(n_tasks, [](void *ctx, int64_t task, int) {
    Context &c = *static_cast<Context *>(ctx);
    std::vector<float> &out = c.marched->parts[size_t(task)];
    constexpr int LIMIT = 128;
    float starts[LIMIT], ends[LIMIT];
    int64_t last = (task + 1) * MARCH_RAYS;
    if (last > c.rays->n_rays) last = c.rays->n_rays;
    for (int64_t r = task * MARCH_RAYS; r < last; r++) {
      NerfMarcher ray;
      nerf_march_start(&ray, c.rays->origins + r * 3, c.rays->directions + r * 3, c.t_min[r],
                       c.t_max[r], c.jitter[r], c.steps);
      int64_t count = 0;
      while (ray.step >= 0) {
        int n = nerf_march_some(&ray, c.bricks, c.steps, LIMIT, starts, ends);
        for (int i = 0; i < n; i++) out.push_back(starts[i]), out.push_back(ends[i]);
        count += n;
      }
      c.offsets[r + 1] = count;
    }
  }, &context);
  offsets[0] = 0;
  for (int64_t r = 0; r < rays->n_rays; r++) offsets[r + 1] += offsets[r];
  return marched;
}

// Writes the samples of `handle` and frees it.
void nerf_march_take(void *handle, const int64_t *offsets, float *t_starts, float *t_ends) {
  Marched *marched = static_cast<Marched *>(handle);
  for (size_t task = 0; task < marched->parts.size(); task++) {
    const std::vector<float> &part = marched->parts[task];
    int64_t first = offsets[int64_t(task) * MARCH_RAYS];
    for (size_t i = 0; i < part.size() / 2; i++)
      t_starts[first + int64_t(i)] = part[2 * i], t_ends[first + int64_t(i)] = part[2 * i + 1];
  }
  delete marched;
}

}
