// The field on plain lists of positions: density, radiance, and their gradients.
#pragma once
#include "volume.h"

namespace {

// Samples that one thread encodes level by level: so many that a level, once in the cache of the
// core, serves many look-ups, and so few that their features stay there as well.
constexpr int64_t BLOCK = 4096;

struct Block {
  float *x, *y, *z, *features;  // features [n_levels][stride][F]
  int64_t stride;
  const float *sharpness = nullptr;  // of the samples' cones; null: they are points
};

static Block block_buffers(const NerfGrid &grid, int thread, int64_t n) {
  int64_t stride = level_stride(round_up(n, TILE), grid.n_features);
  int64_t in = int64_t(grid.n_levels) * grid.n_features;
  float *p = static_cast<float *>(
      nerf_buffer(thread, SLOT_BLOCK, size_t(stride * (3 + in) + 64) * 4));
  return {p, p + stride, p + 2 * stride, p + 3 * stride, stride};
}

static void encode_block(const NerfGrid &grid, const float *table, const Block &block, int64_t n) {
  for (int level = 0; level < grid.n_levels; level++) {
    float *features = block.features + level * block.stride * grid.n_features;
    encode(grid, table, level, block.x, block.y, block.z, n, features);
    if (block.sharpness) fade(grid, level, block.sharpness, n, features);
  }
}

// One tile of the density network of which only the first output is computed.
struct DensityTile {
  float *x, *h, *sigmas;  // sigmas: exp of that output
};

static DensityTile density_tile(const Weights &w, const float *features, int64_t stride,
                                int64_t first, int64_t live, int thread) {
  float *x = static_cast<float *>(
      nerf_buffer(thread, SLOT_TILE, size_t(TILE * (w.in + w.width + 1)) * 4));
  float *h = x + TILE * w.in, *raw = h + TILE * w.width;
  int rows = int(round_up(live, 16));
  assemble(w.net->grid, features, stride, nullptr, first, live, x);
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
  return {x, h, raw};
}

static void block_density(const Weights &w, const float *features, int64_t stride, int64_t n,
                          int thread, float *sigmas) {
  for (int64_t i = 0; i < n; i += TILE) {
    int64_t live = least(TILE, n - i);
    DensityTile tile = density_tile(w, features, stride, i, live, thread);
    memcpy(sigmas + i, tile.sigmas, size_t(live) * 4);
  }
}

static void density(const NerfNet *net, const NerfParams *params, const NerfSpace *space,
                    const float *positions, int64_t n, float *sigmas) {
  Weights w = prepare(*net, {params->table, params->density, nullptr});
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    Block block = block_buffers(net->grid, thread, size);
    unpack_positions(space, positions + first * 3, size, block.stride, block.x, block.y, block.z);
    encode_block(net->grid, params->table, block, size);
    block_density(w, block.features, block.stride, size, thread, sigmas + first);
    for (int64_t i = first; i < first + size; i++) sigmas[i] /= space->unit_length;
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

// Runs both networks over n samples whose x and ray inputs are in place.
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

// Rows of ray inputs [n][ray_inputs] to where the colour network reads them.
INLINE void take_ray_inputs(const Weights &w, const Activations &a, const float *rows, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    memcpy(a.color_in + i * w.color_in + w.geometry, rows + i * w.ray_inputs,
           size_t(w.ray_inputs) * 4);
}

static void radiance(const NerfNet *net, const NerfParams *params, const NerfSpace *space,
                     const float *positions, const float *ray_inputs, int64_t n, float *sigmas,
                     float *rgbs) {
  Weights w = prepare(*net, *params);
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    Block block = block_buffers(net->grid, thread, size);
    unpack_positions(space, positions + first * 3, size, block.stride, block.x, block.y, block.z);
    encode_block(net->grid, params->table, block, size);
    Activations a = activations(w, thread, TILE);
    for (int64_t i = 0; i < size; i += TILE) {
      int64_t live = least(TILE, size - i);
      assemble(net->grid, block.features, block.stride, nullptr, i, live, a.x);
      clear_padding(w, a, live);
      take_ray_inputs(w, a, ray_inputs + (first + i) * w.ray_inputs, live);
      field_forward(w, a, live);
      densities(w, a, live, a.log_density_grad);
      for (int64_t s = 0; s < live; s++)
        sigmas[first + i + s] = a.log_density_grad[s] / space->unit_length;
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
    if (grads->density)
      for (int64_t i = 0; i < places.n_density; i++) grads->density[i] += from.density[i];
    if (grads->color)
      for (int64_t i = 0; i < places.n_color; i++) grads->color[i] += from.color[i];
  }
}

// d loss / d rgb -> d loss / d (pre-sigmoid), in place of rgb.
INLINE void sigmoid_backward(float *rgb, const float *d_rgb) {
  for (int c = 0; c < 3; c++) rgb[c] = d_rgb[c] * rgb[c] * (1.0f - rgb[c]);
}

// What the backward passes over lists of positions share: unit coordinates of all of them, and
// the gradients of their features [n_levels][stride][F].
struct List {
  float *x, *y, *z, *sharpness, *back;  // `step` alone knows of cones
  int64_t n, stride;
};

static List list_buffers(const NerfGrid &grid, int64_t n) {
  int64_t stride = level_stride(round_up(n, TILE), grid.n_features);
  int64_t in = int64_t(grid.n_levels) * grid.n_features;
  float *x = static_cast<float *>(nerf_buffer(-1, SLOT_POSITIONS, size_t(stride * 4 + 64) * 4));
  float *back = static_cast<float *>(
      nerf_buffer(-1, SLOT_FEATURE_GRADIENTS, size_t(stride * in + 64) * 4));
  return {x, x + stride, x + 2 * stride, x + 3 * stride, back, n, stride};
}

// Unit coordinates and features of a block of the list.
static Block list_block(const NerfGrid &grid, const float *table, const NerfSpace *space,
                        const List &list, const float *positions, int64_t first, int64_t size,
                        int thread) {
  Block block = block_buffers(grid, thread, size);
  block.x = list.x + first, block.y = list.y + first, block.z = list.z + first;
  unpack_positions(space, positions + first * 3, size, round_up(size, TILE), block.x, block.y,
                   block.z);
  encode_block(grid, table, block, size);
  return block;
}

static void list_slopes(const NerfGrid &grid, const float *table, const List &list, int64_t first,
                        int64_t size, int thread, float *d_unit) {
  slopes(grid, table, list.x + first, list.y + first, list.z + first, size,
         list.back + first * grid.n_features, list.stride, thread, d_unit + first * 3);
}

// `d_unit` [n, 3] is the gradient of the unit positions; null as well as d_ray_inputs: not wanted.
static void radiance_backward(const NerfNet *net, const NerfParams *params, const NerfSpace *space,
                              const float *positions, const float *ray_inputs, int64_t n,
                              const float *d_sigmas, const float *d_rgbs, NerfParams *grads,
                              float *d_unit, float *d_ray_inputs) {
  const NerfGrid &grid = net->grid;
  Weights w = prepare(*net, *params);
  int64_t n_blocks = ceil_div(n, BLOCK);
  List list = list_buffers(grid, n);
  Places places = gradient_places(*net, least(n_blocks, MAX_PLACES));
  parallel(places.n, [&](int64_t place, int thread) {
    clear_place(places, place);
    for (int64_t b = place; b < n_blocks; b += places.n) {
      int64_t first = b * BLOCK, size = least(BLOCK, n - first);
      Block block = list_block(grid, params->table, space, list, positions, first, size, thread);
      Activations a = activations(w, thread, TILE);
      float *d_rows = nullptr;
      if (d_ray_inputs)
        d_rows = static_cast<float *>(
            nerf_buffer(thread, SLOT_RAY_GRADIENTS, size_t(TILE * w.ray_inputs) * 4));
      for (int64_t i = 0; i < size; i += TILE) {
        int64_t live = least(TILE, size - i), at = first + i;
        assemble(grid, block.features, block.stride, nullptr, i, live, a.x);
        clear_padding(w, a, live);
        take_ray_inputs(w, a, ray_inputs + at * w.ray_inputs, live);
        field_forward(w, a, live);
        densities(w, a, live, a.log_density_grad);
        for (int64_t s = 0; s < live; s++) {
          a.log_density_grad[s] *= d_sigmas[at + s] / space->unit_length;
          sigmoid_backward(a.out + s * RGB_PADDED, d_rgbs + (at + s) * 3);
        }
        for (int64_t s = live; s < round_up(live, 16); s++) {
          a.log_density_grad[s] = 0.0f;
          memset(a.out + s * RGB_PADDED, 0, RGB_PADDED * 4);
        }
        field_backward(w, a, places.at(place), 0, int(round_up(live, 16)), d_rows);
        disassemble(grid, a.x, live, list.back, list.stride, at);
        if (d_ray_inputs)
          memcpy(d_ray_inputs + at * w.ray_inputs, d_rows, size_t(live * w.ray_inputs) * 4);
      }
      if (d_unit) list_slopes(grid, params->table, list, first, size, thread, d_unit);
    }
  });
  sum_places(places, grads);
  if (grads->table) scatter(grid, list.x, list.y, list.z, n, list.back, list.stride, grads->table);
}

// As radiance_backward, without the colour network.
static void density_backward(const NerfNet *net, const NerfParams *params, const NerfSpace *space,
                             const float *positions, int64_t n, const float *d_sigmas,
                             NerfParams *grads, float *d_unit) {
  const NerfGrid &grid = net->grid;
  Weights w = prepare(*net, {params->table, params->density, nullptr});
  int64_t n_blocks = ceil_div(n, BLOCK);
  List list = list_buffers(grid, n);
  Places places = gradient_places(*net, least(n_blocks, MAX_PLACES));
  parallel(places.n, [&](int64_t place, int thread) {
    clear_place(places, place);
    float *to = places.at(place).density;
    for (int64_t b = place; b < n_blocks; b += places.n) {
      int64_t first = b * BLOCK, size = least(BLOCK, n - first);
      Block block = list_block(grid, params->table, space, list, positions, first, size, thread);
      for (int64_t i = 0; i < size; i += TILE) {
        int64_t live = least(TILE, size - i), at = first + i;
        DensityTile tile = density_tile(w, block.features, block.stride, i, live, thread);
        int rows = int(round_up(live, 16));
        for (int s = 0; s < rows; s++) {
          float d = s < live ? tile.sigmas[s] * d_sigmas[at + s] / space->unit_length : 0.0f;
          for (int k = 0; k < w.width; k += LANES) {
            float *h = tile.h + s * w.width + k, *dw = to + w.in * w.width + k;
            store(dw, load(dw) + d * load(h));
            store(h, load(h) > 0.0f ? d * load(w.d2 + k) : Floats{});
          }
        }
        multiply<ADD>(to, w.in, tile.h, 1, w.width, tile.x, w.in, w.width, w.in, rows);
        multiply<STORE>(tile.x, w.in, tile.h, w.width, 1, w.d1, w.in, rows, w.in, w.width);
        disassemble(grid, tile.x, live, list.back, list.stride, at);
      }
      if (d_unit) list_slopes(grid, params->table, list, first, size, thread, d_unit);
    }
  });
  NerfParams to = {grads->table, grads->density, nullptr};
  sum_places(places, &to);
  if (grads->table) scatter(grid, list.x, list.y, list.z, n, list.back, list.stride, grads->table);
}

static void hash_grid(const NerfGrid *grid, const float *table, const float *positions, int64_t n,
                      float *out) {
  int in = grid->n_levels * grid->n_features;
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    Block block = block_buffers(*grid, thread, size);
    unpack_positions(nullptr, positions + first * 3, size, block.stride, block.x, block.y,
                     block.z);
    encode_block(*grid, table, block, size);
    assemble(*grid, block.features, block.stride, nullptr, 0, size, out + first * in);
  });
}

// `grads` of the table and `d_positions` [n, 3] may be null; the table is read for the latter.
static void hash_grid_backward(const NerfGrid *grid, const float *table, const float *positions,
                               const float *cotangents, int64_t n, float *grads,
                               float *d_positions) {
  int in = grid->n_levels * grid->n_features;
  List list = list_buffers(*grid, n);
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int thread) {
    int64_t first = task * BLOCK, size = least(BLOCK, n - first);
    unpack_positions(nullptr, positions + first * 3, size, round_up(size, TILE), list.x + first,
                     list.y + first, list.z + first);
    disassemble(*grid, cotangents + first * in, size, list.back, list.stride, first);
    if (d_positions) list_slopes(*grid, table, list, first, size, thread, d_positions);
  });
  if (grads) scatter(*grid, list.x, list.y, list.z, n, list.back, list.stride, grads);
}

static void spherical_harmonics(const float *directions, int64_t n, float *out) {
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int) {
    for (int64_t i = task * BLOCK; i < least(n, (task + 1) * BLOCK); i++)
      harmonics(directions + i * 3, out + i * N_HARMONICS);
  });
}

static void spherical_harmonics_backward(const float *directions, const float *cotangents,
                                         int64_t n, float *d_directions) {
  parallel(ceil_div(n, BLOCK), [&](int64_t task, int) {
    for (int64_t i = task * BLOCK; i < least(n, (task + 1) * BLOCK); i++)
      harmonics_backward(directions + i * 3, cotangents + i * N_HARMONICS, d_directions + i * 3);
  });
}

}  // namespace
