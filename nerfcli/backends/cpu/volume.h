// Volume rendering, forward and backward; the reference is nerfcli/reference/volume.py.
#pragma once
#include "mlp.h"

namespace {

constexpr float MAX_OPTICAL_DEPTH = 80.0f;
constexpr float MAX_LOG_DENSITY = 15.0f;

// Of n samples: depth = sigma delta (clamped), through = exp(-depth), alpha = 1 - through.
// Buffers are padded to LANES.
static void optical(const float *sigmas, const float *t_starts, const float *t_ends, int64_t n,
                    float *depth, float *through, float *alpha) {
  for (int64_t i = 0; i < n; i++) {
    float d = sigmas[i] * (t_ends[i] - t_starts[i]);
    depth[i] = d > MAX_OPTICAL_DEPTH ? MAX_OPTICAL_DEPTH : d;
  }
  for (int64_t i = n; i < round_up(n, LANES); i++) depth[i] = 0.0f;
  for (int64_t i = 0; i < n; i += LANES) {
    Floats d = load(depth + i), e = exponential(-d);
    store(through + i, e);
    // 1 - e cancels for thin samples
    Floats thin = d * (1.0f - d * (0.5f - d * (1.0f / 6.0f)));
    store(alpha + i, d < 0.01f ? thin : 1.0f - e);
  }
}

// The colour of a ray under construction.
struct RaySums {
  float rgb[3], opacity, distance;
};

INLINE void add_sample(RaySums &ray, float weight, const float *rgb, float t_mid) {
  for (int c = 0; c < 3; c++) ray.rgb[c] += weight * rgb[c];
  ray.opacity += weight;
  ray.distance += weight * t_mid;
}

INLINE float expected_depth(const RaySums &ray) {
  return ray.opacity > 1e-10f ? ray.distance / ray.opacity : 0.0f;
}

constexpr int64_t RAYS_PER_TASK = 256;

static void composite(const float *sigmas, const float *rgbs, const NerfSamples *samples,
                      int64_t n_rays, const float *background, int background_stride,
                      NerfPixels *pixels) {
  parallel(ceil_div(n_rays, RAYS_PER_TASK), [&](int64_t task, int thread) {
    int64_t from = task * RAYS_PER_TASK, to = least(from + RAYS_PER_TASK, n_rays);
    int64_t first = samples->offsets[from], n = samples->offsets[to] - first;
    int64_t padded = round_up(n, LANES);
    float *depth = static_cast<float *>(nerf_buffer(thread, SLOT_TILE, size_t(padded * 3 + 16) * 4));
    float *through = depth + padded, *alpha = through + padded;
    const float *starts = samples->t_starts + first, *ends = samples->t_ends + first;
    optical(sigmas + first, starts, ends, n, depth, through, alpha);
    for (int64_t r = from; r < to; r++) {
      int64_t a = samples->offsets[r] - first, b = samples->offsets[r + 1] - first;
      RaySums ray{};
      float light = 1.0f;
      for (int64_t i = a; i < b; i++) {
        float weight = light * alpha[i];
        light *= through[i];
        depth[i] = weight;
        add_sample(ray, weight, rgbs + (first + i) * 3, 0.5f * (starts[i] + ends[i]));
      }
      float median = 0.0f, reached = 0.0f;
      if (ray.opacity > 1e-10f) {
        int64_t i = a;
        for (; i < b - 1; i++) {
          reached += depth[i];
          if (reached >= 0.5f * ray.opacity) break;
        }
        median = 0.5f * (starts[i] + ends[i]);
      }
      const float *behind = background + r * background_stride;
      for (int c = 0; c < 3; c++)
        pixels->rgb[r * 3 + c] = ray.rgb[c] + (1.0f - ray.opacity) * behind[c];
      pixels->opacity[r] = ray.opacity;
      pixels->depth[r] = expected_depth(ray);
      pixels->median_depth[r] = median;
    }
  });
}

// With s_i = d loss / d w_i: d loss / d depth_i = T_{i+1} s_i - sum_{j>i} w_j s_j.
static void composite_backward(const float *sigmas, const float *rgbs, const NerfSamples *samples,
                               int64_t n_rays, const float *background, int background_stride,
                               const NerfPixels *pixels, const NerfPixels *grads, float *d_sigmas,
                               float *d_rgbs) {
  parallel(ceil_div(n_rays, RAYS_PER_TASK), [&](int64_t task, int thread) {
    int64_t from = task * RAYS_PER_TASK, to = least(from + RAYS_PER_TASK, n_rays);
    int64_t first = samples->offsets[from], n = samples->offsets[to] - first;
    int64_t padded = round_up(n, LANES);
    float *depth = static_cast<float *>(nerf_buffer(thread, SLOT_TILE, size_t(padded * 3 + 16) * 4));
    float *through = depth + padded, *alpha = through + padded;
    const float *starts = samples->t_starts + first, *ends = samples->t_ends + first;
    optical(sigmas + first, starts, ends, n, depth, through, alpha);
    for (int64_t r = from; r < to; r++) {
      int64_t a = samples->offsets[r] - first, b = samples->offsets[r + 1] - first;
      const float *g = grads->rgb + r * 3, *behind = background + r * background_stride;
      float opacity = pixels->opacity[r], distance = pixels->depth[r];
      float g_depth = opacity > 1e-10f ? grads->depth[r] / opacity : 0.0f;
      float constant = grads->opacity[r];
      for (int c = 0; c < 3; c++) constant -= behind[c] * g[c];
      float light = 1.0f, after = 0.0f;
      auto slope = [&](int64_t i) {  // d loss / d w_i
        const float *rgb = rgbs + (first + i) * 3;
        float t_mid = 0.5f * (starts[i] + ends[i]);
        return constant + rgb[0] * g[0] + rgb[1] * g[1] + rgb[2] * g[2] +
               g_depth * (t_mid - distance);
      };
      for (int64_t i = a; i < b; i++) {
        float weight = light * alpha[i];
        light *= through[i];
        for (int c = 0; c < 3; c++) d_rgbs[(first + i) * 3 + c] = weight * g[c];
        alpha[i] = weight, through[i] = light;
      }
      for (int64_t i = b - 1; i >= a; i--) {
        float s = slope(i), delta = ends[i] - starts[i];
        float d_depth = through[i] * s - after;
        after += alpha[i] * s;
        bool clamped = sigmas[first + i] * delta > MAX_OPTICAL_DEPTH;
        d_sigmas[first + i] = clamped ? 0.0f : d_depth * delta;
      }
    }
  });
}

}  // namespace
