// Rays to pixels in one call; the reference is render_rays in nerfcli/reference/fused.py.
//
// A thread takes a tile of rays and advances them all by a few samples at a time, so that there
// are always enough samples to fill the vectors and no ray goes on behind a surface.
#pragma once
#include "proposals.h"
#include "step.h"

namespace {

constexpr int64_t RENDER_RAYS = 1024;  // rays of a task
constexpr int64_t RENDER_BATCH = 8192; // samples of a round, roughly
// Samples without a colour of their own weigh at most this much together, along a ray. They take
// the mean colour of the others, which moves a pixel by no more than their weight. One sample may
// take a share of what is left, so that some is left for the faint ones behind.
constexpr float SKIPPED_WEIGHT = 2e-3f, SKIPPED_SHARE = 0.1f;

// The samples of a ray that is rendered: of a march through occupied cells, or proposed.
struct RenderRay {
  NerfMarcher march;         // its step is -1 where there are no more samples
  const float *edges;        // of the next proposed samples; null: it marches
  int32_t left;              // proposed samples
  RaySums sums;
  float light, colored;  // transmittance so far; weight that has a colour
  float spare;           // weight that may still go without one
  float radius;          // of its pixel's cone, where there are cones
  const float *inputs;          // of the colour network
  float harmonics[N_HARMONICS];
};

INLINE int next_samples(RenderRay &ray, const NerfBricks *bricks, NerfSteps steps, int limit,
                        float *starts, float *ends) {
  if (!ray.edges) return nerf_march_some(&ray.march, bricks, steps, limit, starts, ends);
  int n = ray.left < limit ? ray.left : limit;
  memcpy(starts, ray.edges, size_t(n) * 4), memcpy(ends, ray.edges + 1, size_t(n) * 4);
  ray.edges += n, ray.left -= n;
  if (ray.left == 0) ray.march.step = -1;
  return n;
}

struct RenderHistory {  // for the median depth, which wants the final opacity
  float weight, t_mid;
  int32_t ray;
};

static void render_tile(const NerfNet &net, const Weights &w, const NerfParams &params,
                        const NerfSpace &space, const NerfSteps &steps, const NerfBricks *bricks,
                        RenderRay *rays, int32_t *alive, int64_t n_alive, float min_transmittance,
                        bool with_cones, int thread, RenderHistory **history, int64_t *n_history) {
  while (n_alive > 0) {
    int limit = int(least(64, most(4, RENDER_BATCH / n_alive)));
    int64_t capacity = round_up(n_alive * limit, TILE);
    float *p = static_cast<float *>(
        nerf_buffer(thread, SLOT_MARCH, size_t(capacity * 4 + n_alive + 64) * 4));
    float *starts = p, *ends = p + capacity, *sigmas = p + 2 * capacity;
    float *sharp = p + 3 * capacity;
    int32_t *counts = reinterpret_cast<int32_t *>(p + 4 * capacity);
    Block block = block_buffers(net.grid, thread, capacity);
    block.sharpness = with_cones ? sharp : nullptr;
    int64_t n = 0;
    for (int64_t k = 0; k < n_alive; k++) {
      RenderRay &ray = rays[alive[k]];
      const NerfMarcher &march = ray.march;
      counts[k] = next_samples(ray, bricks, steps, limit, starts + n, ends + n);
      unit_positions(space, march.origin, march.direction, starts + n, ends + n, counts[k],
                     block.x + n, block.y + n, block.z + n);
      if (with_cones)
        sharpness(space, march.origin, march.direction, ray.radius, starts + n, ends + n,
                  counts[k], sharp + n);
      n += counts[k];
    }
    for (int64_t i = n; i < round_up(n, LANES); i++) block.x[i] = block.y[i] = block.z[i] = 0.0f;
    encode_block(net.grid, params.table, block, n);
    *history = static_cast<RenderHistory *>(nerf_buffer(
        thread, SLOT_KEPT, size_t(*n_history + n) * sizeof(RenderHistory)));
    // geometry of all samples, then colour of those that count
    Activations a = activations(w, thread, TILE);
    struct Colored { float weight; int32_t ray; } colored[TILE];
    float *rows = static_cast<float *>(
        nerf_buffer(thread, SLOT_TILE, size_t(TILE * w.color_in * 2) * 4));
    float *geometry = rows + TILE * w.color_in;
    int n_colored = 0;
    auto color = [&]() {
      if (n_colored == 0) return;
      int padded = int(round_up(n_colored, 16));
      memcpy(a.color_in, rows, size_t(n_colored) * w.color_in * 4);
      memset(a.color_in + n_colored * w.color_in, 0, size_t(padded - n_colored) * w.color_in * 4);
      color_forward(w, a, 0, padded);
      for (int i = 0; i < n_colored; i++)
        for (int c = 0; c < 3; c++)
          rays[colored[i].ray].sums.rgb[c] += colored[i].weight * a.out[i * RGB_PADDED + c];
      n_colored = 0;
    };
    int64_t ray_at = 0, ray_left = n_alive ? counts[0] : 0;
    for (int64_t i = 0; i < n; i += TILE) {
      int64_t live = least(TILE, n - i);
      assemble(net.grid, block.features, block.stride, nullptr, i, live, a.x);
      clear_padding(w, a, live);
      density_forward(w, a, 0, int(round_up(live, 16)));
      densities(w, a, live, a.log_density_grad);
      for (int64_t s = 0; s < live; s++) sigmas[i + s] = a.log_density_grad[s] / space.unit_length;
      float depth[TILE], through[TILE], alpha[TILE];
      optical(sigmas + i, starts + i, ends + i, live, depth, through, alpha);
      memcpy(geometry, a.color_in, size_t(live) * w.color_in * 4);
      for (int64_t s = 0; s < live; s++) {
        while (ray_left == 0) ray_left = counts[++ray_at];
        ray_left--;
        int32_t id = alive[ray_at];
        RenderRay &ray = rays[id];
        if (ray.light < min_transmittance) continue;
        float weight = ray.light * alpha[s], t_mid = 0.5f * (starts[i + s] + ends[i + s]);
        ray.light *= through[s];
        ray.sums.opacity += weight, ray.sums.distance += weight * t_mid;
        (*history)[(*n_history)++] = {weight, t_mid, id};
        if (weight <= SKIPPED_SHARE * ray.spare) {
          ray.spare -= weight;
          continue;
        }
        ray.colored += weight;
        colored[n_colored] = {weight, id};
        float *row = rows + n_colored++ * w.color_in;
        memcpy(row, geometry + s * w.color_in, size_t(w.geometry) * 4);
        memcpy(row + w.geometry, ray.inputs, size_t(w.ray_inputs) * 4);
        if (n_colored == TILE) color();
      }
    }
    color();
    int64_t left = 0;
    for (int64_t k = 0; k < n_alive; k++) {
      const RenderRay &ray = rays[alive[k]];
      if (ray.march.step >= 0 && ray.light >= min_transmittance) alive[left++] = alive[k];
    }
    n_alive = left;
  }
}

static void render(const NerfNet *net, const NerfParams *params, const NerfSpace *space,
                   const NerfRays *in, const float *t_min, const float *t_max, const float *jitter,
                   const NerfOccupancy *occupancy, const NerfSteps *steps,
                   const NerfProposals *proposals, const float *background, int background_stride,
                   float min_transmittance, NerfPixels *pixels) {
  Weights w = prepare(*net, *params);
  const NerfBricks *bricks = proposals ? nullptr : nerf_bricks(occupancy, *steps);
  const NerfSteps lengths = steps ? *steps : NerfSteps{1.0f, 0.0f};
  const int64_t n_edges = proposals ? proposals->n_samples + 1 : 0;
  parallel(ceil_div(in->n_rays, RENDER_RAYS), [&](int64_t task, int thread) {
    int64_t first = task * RENDER_RAYS, n = least(RENDER_RAYS, in->n_rays - first);
    RenderRay *rays = static_cast<RenderRay *>(
        nerf_buffer(thread, SLOT_CHUNKS, size_t(n) * (sizeof(RenderRay) + 4) + 64));
    int32_t *alive = reinterpret_cast<int32_t *>(rays + n);
    int64_t n_alive = 0;
    float *edges = nullptr, *scratch = nullptr;
    if (proposals) {
      const int64_t room = 8 * (proposals->n_bins + 2 + LANES);
      scratch = static_cast<float *>(
          nerf_buffer(thread, SLOT_PROPOSE, size_t(room + n * n_edges) * 4));
      edges = scratch + room;
    }
    for (int64_t k = 0; k < n; k++) {
      int64_t r = first + k;
      RenderRay &ray = rays[k];
      ray.sums = RaySums{};
      ray.light = 1.0f, ray.colored = 0.0f, ray.spare = SKIPPED_WEIGHT;
      ray.radius = in->radii ? in->radii[r] : 0.0f;
      const float *origin = in->origins + r * 3, *direction = in->directions + r * 3;
      ray.edges = nullptr;
      if (proposals) {
        for (int a = 0; a < 3; a++)
          ray.march.origin[a] = origin[a], ray.march.direction[a] = direction[a];
        ray.march.step = 0, ray.left = proposals->n_samples;
        cut_ray(*proposals, *space, origin, direction, jitter[r], true, scratch, edges + k * n_edges);
        ray.edges = edges + k * n_edges;
      } else {
        nerf_march_start(&ray.march, origin, direction, t_min[r], t_max[r], jitter[r], lengths);
      }
      ray.inputs = ray.harmonics;
      if (in->ray_inputs) {
        ray.inputs = in->ray_inputs + r * w.ray_inputs;
      } else {
        harmonics(in->directions + r * 3, ray.harmonics);
      }
      if (ray.march.step >= 0) alive[n_alive++] = int32_t(k);
    }
    RenderHistory *history = nullptr;
    int64_t n_history = 0;
    render_tile(*net, w, *params, *space, lengths, bricks, rays, alive, n_alive, min_transmittance,
                in->radii != nullptr, thread, &history, &n_history);
    for (int64_t k = 0; k < n; k++) {
      RenderRay &ray = rays[k];
      int64_t r = first + k;
      float fill = ray.colored > 0.0f ? ray.sums.opacity / ray.colored : 0.0f;
      for (int c = 0; c < 3; c++) {
        float behind = background[r * background_stride + c];
        // a ray of only light-weight samples has no colour of its own: leave the background
        float own = ray.colored > 0.0f ? ray.sums.rgb[c] * fill : ray.sums.opacity * behind;
        pixels->rgb[r * 3 + c] = own + (1.0f - ray.sums.opacity) * behind;
      }
      pixels->opacity[r] = ray.sums.opacity;
      pixels->depth[r] = expected_depth(ray.sums);
      pixels->median_depth[r] = 0.0f;
      ray.colored = 0.0f;  // from here on: weight passed
    }
    for (int64_t i = 0; i < n_history; i++) {
      RenderRay &ray = rays[history[i].ray];
      int64_t r = first + history[i].ray;
      if (ray.colored < 0.5f * ray.sums.opacity && ray.sums.opacity > 1e-10f)
        pixels->median_depth[r] = history[i].t_mid;
      ray.colored += history[i].weight;
    }
  });
}

}  // namespace
