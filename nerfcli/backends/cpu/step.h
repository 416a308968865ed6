// One training step's gradients in one call; the reference is step_gradients in
// nerfcli/reference/fused.py.
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
  const NerfSpace *space;
  const NerfRays *rays;
  const NerfSamples *samples;
};

// What phase 1 leaves: where each evaluated sample's features lie, how many samples of each ray
// take part.
struct Evaluated {
  float *x, *y, *z, *sigmas, *features;  // by place; features [n_levels][capacity][F]
  float *sharpness;                      // by place, of the samples' cones; null: points
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
      nerf_buffer(-1, SLOT_EVALUATED, size_t(e.capacity * 5 + n_samples + 64) * 4));
  e.x = p, e.y = p + e.capacity, e.z = p + 2 * e.capacity, e.sigmas = p + 3 * e.capacity;
  e.sharpness = in.rays->radii ? p + 4 * e.capacity : nullptr;
  e.place = reinterpret_cast<int32_t *>(p + 5 * e.capacity);
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
        unit_positions(*in.space, in.rays->origins + r * 3, in.rays->directions + r * 3,
                       samples.t_starts + first, samples.t_ends + first, n, e.x + at, e.y + at,
                       e.z + at);
        if (e.sharpness)
          sharpness(*in.space, in.rays->origins + r * 3, in.rays->directions + r * 3,
                    in.rays->radii[r], samples.t_starts + first, samples.t_ends + first, n,
                    e.sharpness + at);
        at += n;
      }
    });
    int64_t end = filled + total, padded = round_up(end, TILE);
    for (int64_t i = end; i < padded; i++) e.x[i] = e.y[i] = e.z[i] = 0.0f;
    for (int64_t i = end; e.sharpness && i < padded; i++) e.sharpness[i] = 0.0f;
    int64_t begin = filled;
    // a level of the table at a time, for all samples: it then stays in the cache of its core
    int64_t n_blocks = ceil_div(padded - begin, BLOCK);
    parallel(n_blocks * grid.n_levels, [&](int64_t task, int) {
      int level = int(task / n_blocks);
      int64_t first = begin + task % n_blocks * BLOCK, n = least(BLOCK, padded - first);
      float *features = e.features + (level * e.capacity + first) * grid.n_features;
      encode(grid, in.params->table, level, e.x + first, e.y + first, e.z + first, n, features);
      if (e.sharpness) fade(grid, level, e.sharpness + first, n, features);
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
          float d = e.sigmas[e.place[i]] / in.space->unit_length * (samples.t_ends[i] - samples.t_starts[i]);
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
  float *sigma, *depth, *through, *alpha, *starts, *ends;
};

// Sums over rays, before the mean.
struct TermSums {
  double photometric, opacity, depth, distortion, mse;
};

// The terms of a ray that are functions of its weights. Each is another summand of
// q_i = d loss / d w_i: a constant, and what `slope` adds for a sample on the way back.
class WeightTerms {
 public:
  float constant = 0.0f;

  WeightTerms(const NerfObjective &objective, const ChunkBuffers &b, int64_t at, int64_t n,
              const float *known, float opacity, float scale, float weight, TermSums &sums)
      : objective_(objective), b_(b), weight_(weight), sums_(sums) {
    distortion_ = objective.distortion * scale;
    if (objective.opacity) {
      const float clamped = opacity < 1e-6f ? 1e-6f : opacity, log = __builtin_logf(clamped);
      sums.opacity += -clamped * log * weight;
      if (opacity >= 1e-6f) constant -= objective.opacity * scale * (log + 1.0f);
    }
    if (objective.depth && known && *known > 0.0f) {
      depth_ = *known;
      double error = 0;
      for (int64_t i = at; i < at + n; i++) error += double(b.alpha[i]) * (middle(i) - depth_);
      sums.depth += __builtin_fabs(error) * weight;
      d_error_ = objective.depth * scale * (error < 0 ? -1.0f : error > 0 ? 1.0f : 0.0f);
    }
    if (objective.distortion) {
      for (int64_t i = at; i < at + n; i++)
        before_ += b.alpha[i], moment_ += b.alpha[i] * double(place(i));
    }
  }

  // To be called from the last sample to the first.
  float slope(int64_t i) {
    float q = constant;
    if (d_error_ != 0.0f) q += d_error_ * (middle(i) - depth_);
    if (objective_.distortion) {
      const double w = b_.alpha[i], m = place(i);
      const double length = curved(b_.ends[i]) - curved(b_.starts[i]);
      before_ -= w, moment_ -= w * m;
      const double in_front = m * before_ - moment_, behind = moment_after_ - m * after_;
      after_ += w, moment_after_ += w * m;
      sums_.distortion += objective_.scale * (2 * w * in_front + w * w * length / 3) * weight_;
      q += float(distortion_ * objective_.scale * 2 * (in_front + behind + w * length / 3));
    }
    return q;
  }

 private:
  float middle(int64_t i) const { return 0.5f * (b_.starts[i] + b_.ends[i]); }

  // Where the distortion has a distance: by the spacing `Piecewise` of reference/sampling.py.
  float curved(float t) const {
    if (objective_.curve == 0.0f) return t;
    t /= objective_.curve;
    return t < 1.0f ? 0.5f * t : 1.0f - 0.5f / t;
  }
  float place(int64_t i) const { return 0.5f * (curved(b_.starts[i]) + curved(b_.ends[i])); }

  const NerfObjective &objective_;
  const ChunkBuffers &b_;
  float weight_;
  TermSums &sums_;
  float depth_ = 0.0f, d_error_ = 0.0f, distortion_;
  double before_ = 0, moment_ = 0, after_ = 0, moment_after_ = 0;  // of weights and w * middle
};

// Composites the rays of a chunk and goes back: rgb in `a.out` becomes its gradient before the
// sigmoid, `a.log_density_grad` is filled, `b.alpha` becomes the weights. Adds to the sums.
// The gradients of gain and offset go to `out`, where the batch has these.
// PLAIN: there is no term but the photometric one.
template <bool PLAIN>
static void composite_chunk(const StepInput &in, const Activations &a, const Evaluated &e,
                            const ChunkBuffers &b, int64_t from, int64_t to,
                            const NerfBatch &batch, const NerfObjective &objective,
                            const NerfStepOut &out, TermSums &sums) {
  const float *target = batch.target, *background = batch.background;
  const float n_rays = float(in.rays->n_rays), mean = 1.0f / (3.0f * n_rays);
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
    const float of_ray = batch.weight ? batch.weight[r] : 1.0f, scale = mean * of_ray;
    float g[3], constant = 0.0f;
    for (int c = 0; c < 3; c++) {
      float behind = background[r * 3 + c], color = rgb[c] + (1.0f - opacity) * behind;
      float shown = batch.gain ? batch.gain[r * 3 + c] * color + batch.offset[r * 3 + c] : color;
      float error = shown - target[r * 3 + c], slope;
      sums.photometric += channel_loss(objective.photometric, error, slope) * of_ray;
      sums.mse += double(error) * error;
      g[c] = slope * scale;
      if (batch.gain) {
        out.d_gain[r * 3 + c] = g[c] * color, out.d_offset[r * 3 + c] = g[c];
        g[c] *= batch.gain[r * 3 + c];
      }
      constant -= behind * g[c];
    }
    WeightTerms terms(objective, b, at, PLAIN ? 0 : n, batch.depth ? batch.depth + r : nullptr,
                      opacity, of_ray / n_rays, of_ray, sums);
    float after = 0.0f;
    for (int64_t i = at + n - 1; i >= at; i--) {
      float *c = a.out + i * RGB_PADDED;
      float s = constant + c[0] * g[0] + c[1] * g[1] + c[2] * g[2];
      if (!PLAIN) s += terms.slope(i);
      // d loss / d log density = d loss / d depth * depth, unless the depth was clamped
      float d_depth = b.through[i] * s - after;
      after += b.alpha[i] * s;
      a.log_density_grad[i] = b.depth[i] < MAX_OPTICAL_DEPTH ? d_depth * b.depth[i] : 0.0f;
      float d_rgb[3] = {b.alpha[i] * g[0], b.alpha[i] * g[1], b.alpha[i] * g[2]};
      if (objective.full_from > 0.0f) {
        float share = 0.5f * (b.starts[i] + b.ends[i]) / objective.full_from;
        share = share < 1.0f ? share * share : 1.0f;
        a.log_density_grad[i] *= share;
        for (int k = 0; k < 3; k++) d_rgb[k] *= share;
      }
      sigmoid_backward(c, d_rgb);
    }
    at += n;
  }
}

// Whole rays that are worked on together: chunk c holds the rays rays[c] .. rays[c + 1], whose
// kept samples are first[c] .. first[c + 1] of all that are kept.
struct Chunks {
  int64_t *rays, *first;
  int64_t n, n_kept, largest;
};

static Chunks make_chunks(const Evaluated &e, int64_t n_rays) {
  Chunks chunks{};
  chunks.rays = static_cast<int64_t *>(
      nerf_buffer(-1, SLOT_CHUNKS, size_t(2 * n_rays + 4) * 8));
  chunks.first = chunks.rays + n_rays + 2;
  for (int64_t r = 0; r < n_rays;) {
    chunks.rays[chunks.n] = r, chunks.first[chunks.n] = chunks.n_kept;
    int64_t size = 0;
    for (int64_t begin = r; r < n_rays && (r == begin || size + e.n_kept[r] <= STRETCH) &&
                            r - begin < 4 * STRETCH; r++)
      size += e.n_kept[r];
    chunks.n_kept += size, chunks.largest = most(chunks.largest, size), chunks.n++;
  }
  chunks.rays[chunks.n] = n_rays, chunks.first[chunks.n] = chunks.n_kept;
  return chunks;
}

// Gradients of unit positions by kept sample -> by sample of the caller.
static void spread_slopes(const StepInput &in, const Evaluated &e, const List &list,
                          float *d_unit) {
  float *kept = static_cast<float *>(
      nerf_buffer(-1, SLOT_KEPT, size_t(list.n * 3 + 64) * 4));
  parallel(ceil_div(list.n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, list.n - first);
    list_slopes(in.net->grid, in.params->table, list, first, size, thread, kept);
  });
  for (int64_t r = 0, at = 0; r < in.rays->n_rays; at += e.n_kept[r++])
    memcpy(d_unit + in.samples->offsets[r] * 3, kept + at * 3, size_t(e.n_kept[r]) * 12);
}

static void step(const NerfNet *net, const NerfParams *params, NerfParams *grads,
                 const NerfSpace *space, const NerfRays *rays, const NerfSamples *samples,
                 const NerfBatch *batch, const NerfObjective *objective, NerfStepOut *out) {
  StepInput in{net, params, space, rays, samples};
  const NerfGrid &grid = net->grid;
  Weights w = prepare(*net, *params);
  Evaluated e = evaluate(in, w, objective->min_transmittance);
  int64_t n_rays = rays->n_rays;
  Chunks chunks = make_chunks(e, n_rays);
  int64_t capacity = round_up(most(chunks.largest, 1), TILE);
  List list = list_buffers(grid, chunks.n_kept + LANES);  // its padding is cleared
  list.n = chunks.n_kept;
  float *x = list.x, *y = list.y, *z = list.z;
  const bool plain = !(objective->opacity || objective->depth || objective->distortion);
  Places places = gradient_places(*net, least(chunks.n, MAX_PLACES));
  TermSums sums[MAX_PLACES] = {};
  parallel(places.n, [&](int64_t place, int thread) {
    clear_place(places, place);
    WeightGrads to = places.at(place);
    Activations a = activations(w, thread, capacity);
    float *p = static_cast<float *>(
        nerf_buffer(thread, SLOT_TILE, size_t(capacity * 6 + 64) * 4));
    ChunkBuffers b{p, p + capacity, p + 2 * capacity, p + 3 * capacity, p + 4 * capacity,
                   p + 5 * capacity};
    float *d_rows = nullptr;
    if (out->d_ray_inputs)
      d_rows = static_cast<float *>(
          nerf_buffer(thread, SLOT_RAY_GRADIENTS, size_t(TILE * w.ray_inputs) * 4));
    for (int64_t c = place; c < chunks.n; c += places.n) {
      int64_t first = chunks.first[c], n = chunks.first[c + 1] - first, at = 0;
      for (int64_t r = chunks.rays[c]; r < chunks.rays[c + 1]; r++) {
        int64_t kept = e.n_kept[r], from = samples->offsets[r];
        if (kept == 0) continue;
        assemble(grid, e.features, e.capacity, e.place, from, kept, a.x + at * w.in);
        float sh[N_HARMONICS];
        const float *ray_inputs = sh;
        if (rays->ray_inputs) {
          ray_inputs = rays->ray_inputs + r * w.ray_inputs;
        } else {
          harmonics(rays->directions + r * 3, sh);
        }
        for (int64_t i = 0; i < kept; i++) {
          int64_t place_of = e.place[from + i];
          memcpy(a.color_in + (at + i) * w.color_in + w.geometry, ray_inputs,
                 size_t(w.ray_inputs) * 4);
          x[first + at + i] = e.x[place_of], y[first + at + i] = e.y[place_of];
          z[first + at + i] = e.z[place_of];
          if (e.sharpness) list.sharpness[first + at + i] = e.sharpness[place_of];
          b.starts[at + i] = samples->t_starts[from + i];
          b.ends[at + i] = samples->t_ends[from + i];
        }
        at += kept;
      }
      clear_padding(w, a, n);
      field_forward(w, a, n);
      densities(w, a, n, b.sigma);
      for (int64_t i = 0; i < n; i++) b.sigma[i] /= space->unit_length;
      optical(b.sigma, b.starts, b.ends, n, b.depth, b.through, b.alpha);
      auto composite = plain ? composite_chunk<true> : composite_chunk<false>;
      composite(in, a, e, b, chunks.rays[c], chunks.rays[c + 1], *batch, *objective, *out,
                sums[place]);
      for (int64_t i = n; i < round_up(n, 16); i++)
        memset(a.out + i * RGB_PADDED, 0, RGB_PADDED * 4);
      int64_t ray = chunks.rays[c], left = e.n_kept[ray];
      for (int64_t i = 0; i < n; i += TILE) {
        int live = int(least(TILE, n - i));
        field_backward(w, a, to, i, int(round_up(live, 16)), d_rows);
        disassemble(grid, a.x + i * w.in, live, list.back, list.stride, first + i);
        for (int level = 0; e.sharpness && level < grid.n_levels; level++)
          fade(grid, level, list.sharpness + first + i, live,
               list.back + (level * list.stride + first + i) * grid.n_features);
        for (int s = 0; d_rows && s < live; s++, left--) {
          while (left == 0) left = e.n_kept[++ray];
          float *sum = out->d_ray_inputs + ray * w.ray_inputs;
          for (int k = 0; k < w.ray_inputs; k++) sum[k] += d_rows[s * w.ray_inputs + k];
        }
      }
      if (out->weights) {
        at = 0;
        for (int64_t r = chunks.rays[c]; r < chunks.rays[c + 1]; at += e.n_kept[r++])
          memcpy(out->weights + samples->offsets[r], b.alpha + at, size_t(e.n_kept[r]) * 4);
      }
    }
  });
  for (int64_t i = list.n; i < list.stride; i++) x[i] = y[i] = z[i] = 0.0f;
  sum_places(places, grads);
  scatter(grid, x, y, z, list.n, list.back, list.stride, grads->table);
  if (out->d_unit) spread_slopes(in, e, list, out->d_unit);
  TermSums total{};
  for (int64_t place = 0; place < places.n; place++) {
    total.photometric += sums[place].photometric, total.mse += sums[place].mse;
    total.opacity += sums[place].opacity, total.depth += sums[place].depth;
    total.distortion += sums[place].distortion;
  }
  const double n = double(most(n_rays, 1));
  out->photometric = float(total.photometric / (3.0 * n)), out->mse = float(total.mse / (3.0 * n));
  out->opacity = float(total.opacity / n), out->depth = float(total.depth / n);
  out->distortion = float(total.distortion / n);
  out->n_kept = list.n;
}

}  // namespace
