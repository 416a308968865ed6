// One training step's gradients in one call; the reference is nerfcli/step.py.
//
// 1. Density along the rays, in rounds of a few samples per ray, until little light comes
//    through: what lies behind surfaces is never evaluated.
// 2. The samples that light reaches, in chunks of whole rays whose activations stay in a core's
//    cache: both networks, compositing, loss, and back.
// 3. The gradients of the features are added to the table, a level to a thread.
#pragma once
#include "field.h"

namespace {

constexpr int64_t ROUND_RAYS = 256;    // rays of a task of the first phase
constexpr float HUBER_DELTA = 0.1f;
enum Loss { LOSS_MSE, LOSS_HUBER };

struct StepInput {
  const NerfNet *net;
  const NerfParams *params;
  const NerfBox *box;
  const NerfRays *rays;
  const NerfSamples *samples;
};

// Unit positions of n consecutive samples of a ray, rounded as the reference rounds them.
INLINE void unit_positions(const NerfBox &box, const float *origin, const float *direction,
                           const float *t_starts, const float *t_ends, int64_t n, float *x,
                           float *y, float *z) {
  float *to[3] = {x, y, z};
  for (int64_t i = 0; i < n; i += LANES) {
    int64_t live = least(LANES, n - i);
    Floats start{}, end{};
    if (live == LANES) {
      start = load(t_starts + i), end = load(t_ends + i);
    } else {
      memcpy(&start, t_starts + i, size_t(live) * 4), memcpy(&end, t_ends + i, size_t(live) * 4);
    }
    Floats t_mid = 0.5f * (start + end);
    for (int a = 0; a < 3; a++) {
      Floats p = (origin[a] + rounded(t_mid * direction[a]) - box.low[a]) / box.side;
      p = lower(higher(p, Floats{}), splat(1.0f));
      if (live == LANES) {
        store(to[a] + i, p);
      } else {
        memcpy(to[a] + i, &p, size_t(live) * 4);
      }
    }
  }
}

// What phase 1 leaves: where each evaluated sample's features lie, how many samples of each ray
// take part.
struct Evaluated {
  float *x, *y, *z, *sigmas, *features;  // by place; features [n_levels][capacity][F]
  int32_t *place;                        // [n_samples]
  int32_t *n_seen, *n_kept;              // [n_rays]
  float *depth;                          // [n_rays] optical depth so far
  int64_t capacity;
};

// A round looks at this many further samples of each ray that still sees light.
INLINE int round_length(int round) {
  int length = 8 << (round / 2);
  return length < 256 ? length : 256;
}

static Evaluated evaluate(const StepInput &in, const Weights &w, float min_transmittance) {
  const NerfSamples &samples = *in.samples;
  const NerfGrid &grid = in.net->grid;
  int64_t n_rays = in.rays->n_rays, n_samples = samples.offsets[n_rays];
  int64_t n_tasks = ceil_div(n_rays, ROUND_RAYS);
  Evaluated e;
  // every round is padded to a tile; rounds grow, so there are few of them
  int64_t longest = 0;
  for (int64_t r = 0; r < n_rays; r++)
    longest = most(longest, samples.offsets[r + 1] - samples.offsets[r]);
  int64_t n_rounds = 0;
  for (int64_t seen = 0; seen < longest; n_rounds++)
    seen += round_length(int(n_rounds));
  e.capacity = level_stride(round_up(n_samples + n_rounds * TILE, TILE), grid.n_features);
  float *p = static_cast<float *>(
      nerf_buffer(-1, SLOT_EVALUATED, size_t(e.capacity * 4 + n_samples + 64) * 4));
  e.x = p, e.y = p + e.capacity, e.z = p + 2 * e.capacity, e.sigmas = p + 3 * e.capacity;
  e.place = reinterpret_cast<int32_t *>(p + 4 * e.capacity);
  e.features = static_cast<float *>(
      nerf_buffer(-1, SLOT_FEATURES, size_t(e.capacity * w.in + 64) * 4));
  int32_t *q = static_cast<int32_t *>(
      nerf_buffer(-1, SLOT_RAYS, size_t(n_rays * 4 + n_tasks + 64) * 4));
  e.n_seen = q, e.n_kept = q + n_rays;
  e.depth = reinterpret_cast<float *>(q + 2 * n_rays);
  int32_t *alive = q + 3 * n_rays, *counts = q + 4 * n_rays;
  for (int64_t r = 0; r < n_rays; r++) e.n_seen[r] = e.n_kept[r] = 0, e.depth[r] = 0, alive[r] = 1;
  const float max_depth =
      min_transmittance > 0.0f ? -__builtin_logf(min_transmittance) : __builtin_inff();

  int64_t filled = 0;
  for (int round = 0; round < n_rounds; round++) {
    int length = round_length(round);
    auto take = [&](int64_t r) {
      int64_t left = samples.offsets[r + 1] - samples.offsets[r] - e.n_seen[r];
      return alive[r] ? int(least(length, left)) : 0;
    };
    int64_t total = 0;
    for (int64_t task = 0; task < n_tasks; task++) {
      counts[task] = int32_t(filled + total);
      for (int64_t r = task * ROUND_RAYS; r < least(n_rays, (task + 1) * ROUND_RAYS); r++)
        total += take(r);
    }
    if (total == 0) break;
    parallel(n_tasks, [&](int64_t task, int) {
      int64_t at = counts[task];
      for (int64_t r = task * ROUND_RAYS; r < least(n_rays, (task + 1) * ROUND_RAYS); r++) {
        int n = take(r);
        int64_t first = samples.offsets[r] + e.n_seen[r];
        for (int i = 0; i < n; i++) e.place[first + i] = int32_t(at + i);
        unit_positions(*in.box, in.rays->origins + r * 3, in.rays->directions + r * 3,
                       samples.t_starts + first, samples.t_ends + first, n, e.x + at, e.y + at,
                       e.z + at);
        at += n;
      }
    });
    int64_t end = filled + total, padded = round_up(end, TILE);
    for (int64_t i = end; i < padded; i++) e.x[i] = e.y[i] = e.z[i] = 0.0f;
    int64_t begin = filled;
    // a level of the table at a time, for all samples: it then stays in the cache of its core
    int64_t n_blocks = ceil_div(padded - begin, BLOCK);
    parallel(n_blocks * grid.n_levels, [&](int64_t task, int) {
      int level = int(task / n_blocks);
      int64_t first = begin + task % n_blocks * BLOCK, n = least(BLOCK, padded - first);
      encode(grid, in.params->table, level, e.x + first, e.y + first, e.z + first, n,
             e.features + (level * e.capacity + first) * grid.n_features);
    });
    parallel(ceil_div(padded - begin, STRETCH), [&](int64_t task, int thread) {
      int64_t first = begin + task * STRETCH, n = least(STRETCH, padded - first);
      block_density(w, e.features + first * grid.n_features, e.capacity, n, thread,
                    e.sigmas + first);
    });
    parallel(n_tasks, [&](int64_t task, int) {
      for (int64_t r = task * ROUND_RAYS; r < least(n_rays, (task + 1) * ROUND_RAYS); r++) {
        int n = take(r);
        int64_t first = samples.offsets[r] + e.n_seen[r];
        float depth = e.depth[r];
        int kept = 0;
        while (kept < n && depth <= max_depth) {
          int64_t i = first + kept++;
          float d = e.sigmas[e.place[i]] / in.box->side * (samples.t_ends[i] - samples.t_starts[i]);
          depth += d > MAX_OPTICAL_DEPTH ? MAX_OPTICAL_DEPTH : d;
        }
        e.depth[r] = depth, e.n_seen[r] += n, e.n_kept[r] += kept;
        if (depth > max_depth) alive[r] = 0;
      }
    });
    filled = padded;
  }
  return e;
}

// Loss of a channel and its derivative, both before the mean.
INLINE float channel_loss(int loss, float error, float &slope) {
  float size = error < 0 ? -error : error;
  if (loss == LOSS_HUBER && size > HUBER_DELTA) {
    slope = error < 0 ? -2 * HUBER_DELTA : 2 * HUBER_DELTA;
    return HUBER_DELTA * (2 * size - HUBER_DELTA);
  }
  slope = 2 * error;
  return error * error;
}

struct ChunkBuffers {
  float *sigma, *depth, *through, *alpha;
};

// Composites the rays of a chunk and goes back: rgb in `a.out` becomes its gradient before the
// sigmoid, `a.log_density_grad` is filled. Returns the chunk's sums of loss and squared error.
static void composite_chunk(const StepInput &in, const Activations &a, const Evaluated &e,
                            const ChunkBuffers &b, int64_t from, int64_t to, const float *target,
                            const float *background, int loss, double *sums) {
  float scale = 1.0f / (3.0f * float(in.rays->n_rays));
  int64_t at = 0;
  for (int64_t r = from; r < to; r++) {
    int64_t n = e.n_kept[r];
    float rgb[3] = {0, 0, 0}, light = 1.0f, opacity = 0.0f;
    for (int64_t i = at; i < at + n; i++) {
      float weight = light * b.alpha[i];
      light *= b.through[i];
      for (int c = 0; c < 3; c++) rgb[c] += weight * a.out[i * RGB_PADDED + c];
      opacity += weight;
      b.alpha[i] = weight, b.through[i] = light;
    }
    float g[3], constant = 0.0f;
    for (int c = 0; c < 3; c++) {
      float behind = background[r * 3 + c];
      float error = rgb[c] + (1.0f - opacity) * behind - target[r * 3 + c], slope;
      sums[0] += channel_loss(loss, error, slope);
      sums[1] += double(error) * error;
      g[c] = slope * scale;
      constant -= behind * g[c];
    }
    float after = 0.0f;
    for (int64_t i = at + n - 1; i >= at; i--) {
      float *c = a.out + i * RGB_PADDED;
      float s = constant + c[0] * g[0] + c[1] * g[1] + c[2] * g[2];
      // d loss / d log density = d loss / d depth * depth, unless the depth was clamped
      float d_depth = b.through[i] * s - after;
      after += b.alpha[i] * s;
      a.log_density_grad[i] = b.depth[i] < MAX_OPTICAL_DEPTH ? d_depth * b.depth[i] : 0.0f;
      float d_rgb[3] = {b.alpha[i] * g[0], b.alpha[i] * g[1], b.alpha[i] * g[2]};
      sigmoid_backward(c, d_rgb);
    }
    at += n;
  }
}

static void photometric(const NerfNet *net, const NerfParams *params, NerfParams *grads,
                        const NerfBox *box, const NerfRays *rays, const NerfSamples *samples,
                        const float *target, const float *background, int loss,
                        float min_transmittance, NerfTerms *terms) {
  StepInput in{net, params, box, rays, samples};
  const NerfGrid &grid = net->grid;
  Weights w = prepare(*net, *params);
  Evaluated e = evaluate(in, w, min_transmittance);
  int64_t n_rays = rays->n_rays;

  // chunks of whole rays: chunk c holds rays chunk_rays[c] .. chunk_rays[c + 1]
  int64_t *chunk_rays = static_cast<int64_t *>(
      nerf_buffer(-1, SLOT_CHUNKS, size_t(2 * n_rays + 4) * 8));
  int64_t *chunk_first = chunk_rays + n_rays + 2;
  int64_t n_chunks = 0, n_kept = 0, largest = 0;
  for (int64_t r = 0; r < n_rays;) {
    chunk_rays[n_chunks] = r, chunk_first[n_chunks] = n_kept;
    int64_t size = 0;
    for (int64_t begin = r; r < n_rays && (r == begin || size + e.n_kept[r] <= STRETCH) &&
                            r - begin < 4 * STRETCH; r++)
      size += e.n_kept[r];
    n_kept += size, largest = most(largest, size), n_chunks++;
  }
  chunk_rays[n_chunks] = n_rays, chunk_first[n_chunks] = n_kept;

  int64_t stride = level_stride(round_up(n_kept + LANES, TILE), grid.n_features);
  int64_t capacity = round_up(most(largest, 1), TILE);
  float *x = static_cast<float *>(nerf_buffer(-1, SLOT_POSITIONS, size_t(stride * 3 + 64) * 4));
  float *y = x + stride, *z = y + stride;
  float *back = static_cast<float *>(
      nerf_buffer(-1, SLOT_FEATURE_GRADIENTS, size_t(stride * w.in + 64) * 4));
  Places places = gradient_places(*net, least(n_chunks, MAX_PLACES));
  double sums[MAX_PLACES][2] = {};
  parallel(places.n, [&](int64_t place, int thread) {
    clear_place(places, place);
    WeightGrads to = places.at(place);
    Activations a = activations(w, thread, capacity);
    float *p = static_cast<float *>(
        nerf_buffer(thread, SLOT_TILE, size_t(capacity * 6 + 64) * 4));
    ChunkBuffers b{p, p + capacity, p + 2 * capacity, p + 3 * capacity};
    float *starts = p + 4 * capacity, *ends = p + 5 * capacity;
    for (int64_t c = place; c < n_chunks; c += places.n) {
      int64_t first = chunk_first[c], n = chunk_first[c + 1] - first, at = 0;
      for (int64_t r = chunk_rays[c]; r < chunk_rays[c + 1]; r++) {
        int64_t kept = e.n_kept[r], from = samples->offsets[r];
        if (kept == 0) continue;
        assemble(grid, e.features, e.capacity, e.place, from, kept, a.x + at * w.in);
        float sh[N_HARMONICS];
        harmonics(rays->directions + r * 3, sh);
        for (int64_t i = 0; i < kept; i++) {
          int64_t place_of = e.place[from + i];
          memcpy(a.color_in + (at + i) * w.color_in + w.geometry, sh, sizeof sh);
          x[first + at + i] = e.x[place_of], y[first + at + i] = e.y[place_of];
          z[first + at + i] = e.z[place_of];
          starts[at + i] = samples->t_starts[from + i], ends[at + i] = samples->t_ends[from + i];
        }
        at += kept;
      }
      clear_padding(w, a, n);
      field_forward(w, a, n);
      densities(w, a, n, b.sigma);
      for (int64_t i = 0; i < n; i++) b.sigma[i] /= box->side;
      optical(b.sigma, starts, ends, n, b.depth, b.through, b.alpha);
      composite_chunk(in, a, e, b, chunk_rays[c], chunk_rays[c + 1], target, background, loss,
                      sums[place]);
      for (int64_t i = n; i < round_up(n, 16); i++)
        memset(a.out + i * RGB_PADDED, 0, RGB_PADDED * 4);
      for (int64_t i = 0; i < n; i += TILE) {
        field_backward(w, a, to, i, int(least(TILE, round_up(n - i, 16))));
        disassemble(grid, a.x + i * w.in, least(TILE, n - i), back, stride, first + i);
      }
    }
  });
  for (int64_t i = n_kept; i < stride; i++) x[i] = y[i] = z[i] = 0.0f;
  sum_places(places, grads);
  scatter(grid, x, y, z, n_kept, back, stride, grads->table);
  double total = 0, squared = 0;
  for (int64_t place = 0; place < places.n; place++)
    total += sums[place][0], squared += sums[place][1];
  terms->loss = float(total / (3.0 * double(most(n_rays, 1))));
  terms->mse = float(squared / (3.0 * double(most(n_rays, 1))));
  terms->n_kept = n_kept;
}

}  // namespace
