// The field on plain lists of positions: density, radiance, and the gradients of radiance.
#pragma once
#include "volume.h"

namespace {

// Samples that one thread encodes level by level: so many that a level, once in the cache of the
// core, serves many look-ups, and so few that their features stay there as well.
constexpr int64_t BLOCK = 4096;

struct Block {
  float *x, *y, *z, *features;  // features [n_levels][stride][F]
  int64_t stride;
};

static Block block_buffers(const NerfGrid &grid, int thread, int64_t n) {
  int64_t stride = level_stride(round_up(n, TILE), grid.n_features);
  int64_t in = int64_t(grid.n_levels) * grid.n_features;
  float *p = static_cast<float *>(
      nerf_buffer(thread, SLOT_BLOCK, size_t(stride * (3 + in) + 64) * 4));
  return {p, p + stride, p + 2 * stride, p + 3 * stride, stride};
}

static void encode_block(const NerfGrid &grid, const float *table, const Block &block, int64_t n) {
  for (int level = 0; level < grid.n_levels; level++)
    encode(grid, table, level, block.x, block.y, block.z, n,
           block.features + level * block.stride * grid.n_features);
}

// exp of the first output of the density network for the samples of a block; only that output
// is computed.
static void block_density(const Weights &w, const float *features, int64_t stride, int64_t n,
                          int thread, float *sigmas) {
  float *x = static_cast<float *>(
      nerf_buffer(thread, SLOT_TILE, size_t(TILE * (w.in + w.width + 1)) * 4));
  float *h = x + TILE * w.in, *raw = h + TILE * w.width;
  for (int64_t i = 0; i < n; i += TILE) {
    int live = int(least(TILE, n - i)), rows = int(round_up(live, 16));
    assemble(w.net->grid, features, stride, nullptr, i, live, x);
    memset(x + live * w.in, 0, size_t(rows - live) * w.in * 4);
    multiply<RELU>(h, w.width, x, w.in, 1, w.d1_t, w.width, rows, w.width, w.in);
    for (int s = 0; s < rows; s++) {
      Floats total{};
      for (int k = 0; k < w.width; k += LANES)
        total += load(h + s * w.width + k) * load(w.d2 + k);
      raw[s] = sum(total);
    }
    for (int s = 0; s < rows; s += LANES)
      store(raw + s, exponential(lower(splat(MAX_LOG_DENSITY), load(raw + s))));
    memcpy(sigmas + i, raw, size_t(live) * 4);
  }
}

static void density(const NerfNet *net, const NerfParams *params, const float *positions, int64_t n,
                    float *sigmas) {
  Weights w = prepare(*net, {params->table, params->density, nullptr});
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    Block block = block_buffers(net->grid, thread, size);
    unpack_positions(positions + first * 3, size, block.stride, block.x, block.y, block.z);
    encode_block(net->grid, params->table, block, size);
    block_density(w, block.features, block.stride, size, thread, sigmas + first);
  });
}

// Clears what the samples n.. of a stretch padded to 16 would otherwise bring into sums.
INLINE void clear_padding(const Weights &w, const Activations &a, int64_t n) {
  for (int64_t i = n; i < round_up(n, 16); i++) {
    memset(a.x + i * w.in, 0, size_t(w.in) * 4);
    memset(a.color_in + i * w.color_in, 0, size_t(w.color_in) * 4);
    a.log_density_grad[i] = 0.0f;
  }
}

// Runs both networks over n samples whose x and harmonics are in place.
static void field_forward(const Weights &w, const Activations &a, int64_t n) {
  for (int64_t i = 0; i < n; i += TILE) {
    int rows = int(least(TILE, round_up(n - i, 16)));
    density_forward(w, a, i, rows);
    color_forward(w, a, i, rows);
  }
}

// exp(min(log density, 15)) of n samples; `out` is padded to LANES.
static void densities(const Weights &w, const Activations &a, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i++) out[i] = a.color_in[i * w.color_in];
  for (int64_t i = n; i < round_up(n, LANES); i++) out[i] = 0.0f;
  for (int64_t i = 0; i < n; i += LANES)
    store(out + i, exponential(lower(splat(MAX_LOG_DENSITY), load(out + i))));
}

constexpr int64_t STRETCH = 512;  // samples whose activations stay in the cache of a core

static void radiance(const NerfNet *net, const NerfParams *params, const float *positions,
                     const float *directions, int64_t n, float *sigmas, float *rgbs) {
  Weights w = prepare(*net, *params);
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    Block block = block_buffers(net->grid, thread, size);
    unpack_positions(positions + first * 3, size, block.stride, block.x, block.y, block.z);
    encode_block(net->grid, params->table, block, size);
    Activations a = activations(w, thread, TILE);
    for (int64_t i = 0; i < size; i += TILE) {
      int64_t live = least(TILE, size - i);
      assemble(net->grid, block.features, block.stride, nullptr, i, live, a.x);
      clear_padding(w, a, live);
      for (int64_t s = 0; s < live; s++)
        harmonics(directions + (first + i + s) * 3, a.color_in + s * w.color_in + w.geometry);
      field_forward(w, a, live);
      densities(w, a, live, a.log_density_grad);
      memcpy(sigmas + first + i, a.log_density_grad, size_t(live) * 4);
      for (int64_t s = 0; s < live; s++)
        memcpy(rgbs + (first + i + s) * 3, a.out + s * RGB_PADDED, 12);
    }
  });
}

// Gradients of the weights are summed in a fixed number of places, each by one thread in a fixed
// order, and the places in order at the end: the sums do not depend on the number of threads.
constexpr int64_t MAX_PLACES = 32;

struct Places {
  float *grads;
  int64_t n, n_density, n_color;
  WeightGrads at(int64_t place) const {
    float *p = grads + place * (n_density + n_color);
    return {p, p + n_density};
  }
};

static Places gradient_places(const NerfNet &net, int64_t n) {
  Places places{nullptr, n, n_density(net), n_color(net)};
  size_t bytes = size_t(n * (places.n_density + places.n_color)) * 4;
  places.grads = static_cast<float *>(nerf_buffer(-1, SLOT_GRADIENTS, bytes + 64));
  return places;
}

static void clear_place(const Places &places, int64_t place) {
  memset(places.at(place).density, 0, size_t(places.n_density + places.n_color) * 4);
}

static void sum_places(const Places &places, NerfParams *grads) {
  for (int64_t place = 0; place < places.n; place++) {
    WeightGrads from = places.at(place);
    for (int64_t i = 0; i < places.n_density; i++) grads->density[i] += from.density[i];
    for (int64_t i = 0; i < places.n_color; i++) grads->color[i] += from.color[i];
  }
}

// d loss / d rgb -> d loss / d (pre-sigmoid), in place of rgb.
INLINE void sigmoid_backward(float *rgb, const float *d_rgb) {
  for (int c = 0; c < 3; c++) rgb[c] = d_rgb[c] * rgb[c] * (1.0f - rgb[c]);
}

static void radiance_backward(const NerfNet *net, const NerfParams *params, const float *positions,
                              const float *directions, int64_t n, const float *d_sigmas,
                              const float *d_rgbs, NerfParams *grads) {
  const NerfGrid &grid = net->grid;
  Weights w = prepare(*net, *params);
  int64_t n_blocks = ceil_div(n, BLOCK);
  int64_t stride = level_stride(round_up(n, TILE), grid.n_features);
  Places places = gradient_places(*net, least(n_blocks, MAX_PLACES));
  float *x = static_cast<float *>(nerf_buffer(-1, SLOT_POSITIONS, size_t(stride * 3 + 64) * 4));
  float *y = x + stride, *z = y + stride;
  float *back = static_cast<float *>(
      nerf_buffer(-1, SLOT_FEATURE_GRADIENTS, size_t(stride * w.in + 64) * 4));
  parallel(places.n, [&](int64_t place, int thread) {
    clear_place(places, place);
    for (int64_t b = place; b < n_blocks; b += places.n) {
      int64_t first = b * BLOCK, size = least(BLOCK, n - first);
      Block block = block_buffers(grid, thread, size);
      block.x = x + first, block.y = y + first, block.z = z + first;
      unpack_positions(positions + first * 3, size, round_up(size, TILE), block.x, block.y,
                       block.z);
      encode_block(grid, params->table, block, size);
      Activations a = activations(w, thread, TILE);
      for (int64_t i = 0; i < size; i += TILE) {
        int64_t live = least(TILE, size - i), at = first + i;
        assemble(grid, block.features, block.stride, nullptr, i, live, a.x);
        clear_padding(w, a, live);
        for (int64_t s = 0; s < live; s++)
          harmonics(directions + (at + s) * 3, a.color_in + s * w.color_in + w.geometry);
        field_forward(w, a, live);
        densities(w, a, live, a.log_density_grad);
        for (int64_t s = 0; s < live; s++) {
          a.log_density_grad[s] *= d_sigmas[at + s];
          sigmoid_backward(a.out + s * RGB_PADDED, d_rgbs + (at + s) * 3);
        }
        for (int64_t s = live; s < round_up(live, 16); s++) {
          a.log_density_grad[s] = 0.0f;
          memset(a.out + s * RGB_PADDED, 0, RGB_PADDED * 4);
        }
        field_backward(w, a, places.at(place), 0, int(round_up(live, 16)));
        disassemble(grid, a.x, live, back, stride, at);
      }
    }
  });
  sum_places(places, grads);
  scatter(grid, x, y, z, n, back, stride, grads->table);
}

static void hash_grid(const NerfGrid *grid, const float *table, const float *positions, int64_t n,
                      float *out) {
  int in = grid->n_levels * grid->n_features;
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    Block block = block_buffers(*grid, thread, size);
    unpack_positions(positions + first * 3, size, block.stride, block.x, block.y, block.z);
    encode_block(*grid, table, block, size);
    assemble(*grid, block.features, block.stride, nullptr, 0, size, out + first * in);
  });
}

static void hash_grid_backward(const NerfGrid *grid, const float *positions,
                               const float *cotangents, int64_t n, float *grads) {
  int in = grid->n_levels * grid->n_features;
  int64_t stride = level_stride(round_up(n, TILE), grid->n_features);
  float *x = static_cast<float *>(nerf_buffer(-1, SLOT_POSITIONS, size_t(stride * 3 + 64) * 4));
  float *back = static_cast<float *>(
      nerf_buffer(-1, SLOT_FEATURE_GRADIENTS, size_t(stride * in + 64) * 4));
  unpack_positions(positions, n, stride, x, x + stride, x + 2 * stride);
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    disassemble(*grid, cotangents + first * in, size, back, stride, first);
  });
  scatter(*grid, x, x + stride, x + 2 * stride, n, back, stride, grads);
}

static void spherical_harmonics(const float *directions, int64_t n, float *out) {
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int) {
    for (int64_t i = task * BLOCK; i < least(n, (task + 1) * BLOCK); i++)
      harmonics(directions + i * 3, out + i * N_HARMONICS);
  });
}

}  // namespace
