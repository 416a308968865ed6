// The two small networks over tiles of samples; the reference is
// nerfcli/reference/mlp.py and radiance.py.
//
// Activations lie sample-major, [sample][feature]: then the forward product, the gradient of the
// input and the gradient of the weights are one and the same kernel without any transposition,
// and a ray's inputs are one copy per sample.
#pragma once
#include "encoding.h"

namespace {

constexpr int TILE = 64;
constexpr int N_HARMONICS = 16;
constexpr int RGB_PADDED = 16;  // the 3 outputs of the colour network, padded to a vector

enum Epilogue { STORE, RELU, MASK, ADD };

// C[m][v] (rows x NV vectors) = sum_p A(m, p) B[p][v], all of it in registers.
template <int MB, int NV, int E>
INLINE void multiply_block(float *C, int ldc, const float *A, int row, int inner, const float *B,
                           int ldb, int K, const float *mask) {
  Floats total[MB][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MB; m++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) total[m][v] = Floats{};
  for (int p = 0; p < K; p++) {
    Floats b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) b[v] = load(B + p * ldb + v * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < MB; m++) {
      Floats a = splat(A[m * row + p * inner]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) total[m][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MB; m++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      float *c = C + m * ldc + v * LANES;
      Floats value = total[m][v];
      if (E == RELU) value = higher(Floats{}, value);  // in this order NaN stays NaN
      if (E == ADD) value += load(c);
      if (E == MASK) value = load(mask + m * ldc + v * LANES) > 0.0f ? value : Floats{};
      store(c, value);
    }
}

template <int MB, int NV, int E>
INLINE void multiply_rows(float *C, int ldc, const float *A, int row, int inner, const float *B,
                          int ldb, int M, int K, const float *mask) {
  int m = 0;
  for (; m + MB <= M; m += MB)
    multiply_block<MB, NV, E>(C + m * ldc, ldc, A + m * row, row, inner, B, ldb, K,
                              E == MASK ? mask + m * ldc : nullptr);
  for (; m < M; m++)
    multiply_block<1, NV, E>(C + m * ldc, ldc, A + m * row, row, inner, B, ldb, K,
                             E == MASK ? mask + m * ldc : nullptr);
}

// C [M, N] = A B, where A(m, p) = A[m * row + p * inner] and B [K, N] is row-major; N is a
// multiple of 16. MASK: C is kept where `mask` (laid out as C) is positive.
template <int E>
static void multiply(float *C, int ldc, const float *A, int row, int inner, const float *B, int ldb,
                     int M, int N, int K, const float *mask = nullptr) {
  int n = 0;
  auto at = [&](int column) { return E == MASK ? mask + column : nullptr; };
#if defined(__AVX512F__)  // 16 of 32 registers hold sums
  for (; n + 64 <= N; n += 64)
    multiply_rows<4, 4, E>(C + n, ldc, A, row, inner, B + n, ldb, M, K, at(n));
  for (; n + 32 <= N; n += 32)
    multiply_rows<8, 2, E>(C + n, ldc, A, row, inner, B + n, ldb, M, K, at(n));
  for (; n + 16 <= N; n += 16)
    multiply_rows<16, 1, E>(C + n, ldc, A, row, inner, B + n, ldb, M, K, at(n));
#elif defined(__AVX2__)
  for (; n + 16 <= N; n += 16)
    multiply_rows<4, 2, E>(C + n, ldc, A, row, inner, B + n, ldb, M, K, at(n));
#else
  for (; n + 16 <= N; n += 16)
    multiply_rows<2, 4, E>(C + n, ldc, A, row, inner, B + n, ldb, M, K, at(n));
#endif
}

// The weights of a field, as the products want them: forward [in][out], backward [out][in].
struct Weights {
  const NerfNet *net;
  int in, width, geometry, ray_inputs, color_in, n_hidden;
  const float *d1, *d2, *c[5];  // [out][in], as the file holds them
  float *d1_t, *d2_t, *c_t[5];  // [in][out], the last padded to RGB_PADDED
};

INLINE int n_inputs(const NerfNet &net) { return net.grid.n_levels * net.grid.n_features; }

INLINE int64_t n_density(const NerfNet &net) {
  return int64_t(n_inputs(net)) * net.width + int64_t(net.width) * net.n_geometry;
}

INLINE int64_t n_color(const NerfNet &net) {
  int64_t hidden = int64_t(net.n_color_hidden - 1) * net.width * net.width;
  return int64_t(net.n_geometry + net.n_ray_inputs) * net.width + hidden + 3 * int64_t(net.width);
}

static float *transposed(const float *w, int out, int in, int ld, float *to) {
  for (int i = 0; i < in; i++)
    for (int o = 0; o < ld; o++) to[i * ld + o] = o < out ? w[o * in + i] : 0.0f;
  return to + in * ld;
}

static Weights prepare(const NerfNet &net, const NerfParams &params) {
  Weights w;
  w.net = &net;
  w.in = n_inputs(net), w.width = net.width, w.geometry = net.n_geometry;
  w.ray_inputs = net.n_ray_inputs, w.color_in = w.geometry + w.ray_inputs;
  w.n_hidden = net.n_color_hidden;
  size_t floats = size_t(n_density(net) + n_color(net) + RGB_PADDED * net.width);
  float *to = static_cast<float *>(nerf_buffer(-1, SLOT_WEIGHTS, floats * 4));
  w.d1 = params.density, w.d2 = params.density + w.in * w.width;
  w.d1_t = to, to = transposed(w.d1, w.width, w.in, w.width, to);
  w.d2_t = to, to = transposed(w.d2, w.geometry, w.width, w.geometry, to);
  const float *from = params.color;
  int in = w.color_in;
  for (int layer = 0; layer <= w.n_hidden && from; layer++) {
    bool last = layer == w.n_hidden;
    int out = last ? 3 : w.width;
    w.c[layer] = from, w.c_t[layer] = to;
    to = transposed(from, out, in, last ? RGB_PADDED : out, to);
    from += in * out, in = out;
  }
  return w;
}

// What a stretch of samples leaves behind for its backward pass: rows of `capacity` samples.
struct Activations {
  float *x, *h, *color_in, *c[4], *out;  // out [.][RGB_PADDED]: after the sigmoid
  float *log_density_grad, *grad_a, *grad_b;  // grads: one tile
};

static Activations activations(const Weights &w, int thread, int64_t capacity) {
  int64_t rows = capacity * (w.in + w.width * (1 + w.n_hidden) + w.color_in + RGB_PADDED + 1);
  int64_t wide = w.width > 64 ? w.width : 64;
  int64_t tile = 2 * TILE * wide;
  float *p = static_cast<float *>(
      nerf_buffer(thread, SLOT_ACTIVATIONS, size_t(rows + tile + 16) * 4));
  Activations a{};
  auto take = [&](int64_t n) { float *q = p; p += n; return q; };
  a.grad_a = take(TILE * wide), a.grad_b = take(TILE * wide);
  a.x = take(capacity * w.in), a.h = take(capacity * w.width);
  a.color_in = take(capacity * w.color_in);
  for (int layer = 0; layer < w.n_hidden; layer++) a.c[layer] = take(capacity * w.width);
  a.out = take(capacity * RGB_PADDED), a.log_density_grad = take(capacity);
  return a;
}

// x -> h -> geometry, for the `rows` samples from `first` on.
static void density_forward(const Weights &w, const Activations &a, int64_t first, int rows) {
  float *h = a.h + first * w.width;
  multiply<RELU>(h, w.width, a.x + first * w.in, w.in, 1, w.d1_t, w.width, rows, w.width, w.in);
  multiply<STORE>(a.color_in + first * w.color_in, w.color_in, h, w.width, 1, w.d2_t, w.geometry,
                  rows, w.geometry, w.width);
}

// color_in -> rgb.
static void color_forward(const Weights &w, const Activations &a, int64_t first, int rows) {
  const float *in = a.color_in + first * w.color_in;
  int n_in = w.color_in;
  for (int layer = 0; layer < w.n_hidden; layer++) {
    float *c = a.c[layer] + first * w.width;
    multiply<RELU>(c, w.width, in, n_in, 1, w.c_t[layer], w.width, rows, w.width, n_in);
    in = c, n_in = w.width;
  }
  float *out = a.out + first * RGB_PADDED;
  multiply<STORE>(out, RGB_PADDED, in, n_in, 1, w.c_t[w.n_hidden], RGB_PADDED, rows, RGB_PADDED,
                  n_in);
  for (int i = 0; i < rows; i++) {  // only the first vector of a row holds anything
    float *row = out + i * RGB_PADDED;
    store(row, 1.0f / (1.0f + exponential(-load(row))));
  }
}

struct WeightGrads {  // laid out as the parameters
  float *density, *color;
};

// From d loss / d (pre-sigmoid rgb) in `out` and d loss / d log density: adds the gradients of the
// weights to `grads` and leaves that of x in `x`; those of the ray inputs go to `d_ray_inputs`
// [rows][ray_inputs] unless it is null.
static void field_backward(const Weights &w, const Activations &a, const WeightGrads &grads,
                           int64_t first, int rows, float *d_ray_inputs = nullptr) {
  const float *dy = a.out + first * RGB_PADDED;
  int ld = RGB_PADDED, n_out = 3;
  float *next = a.grad_a, *other = a.grad_b;
  const float *base = w.c[0];
  for (int layer = w.n_hidden; layer >= 1; layer--) {
    const float *c = a.c[layer - 1] + first * w.width;
    multiply<ADD>(grads.color + (w.c[layer] - base), w.width, dy, 1, ld, c, w.width, n_out, w.width,
                  rows);
    multiply<MASK>(next, w.width, dy, ld, 1, w.c[layer], w.width, rows, w.width, n_out, c);
    dy = next, ld = n_out = w.width;
    float *swap = next;
    next = other, other = swap;
  }
  const float *in = a.color_in + first * w.color_in, *h = a.h + first * w.width;
  multiply<ADD>(grads.color, w.color_in, dy, 1, ld, in, w.color_in, w.width, w.color_in, rows);
  multiply<STORE>(next, w.geometry, dy, ld, 1, w.c[0], w.color_in, rows, w.geometry, w.width);
  if (d_ray_inputs)
    multiply<STORE>(d_ray_inputs, w.ray_inputs, dy, ld, 1, w.c[0] + w.geometry, w.color_in, rows,
                    w.ray_inputs, w.width);
  for (int i = 0; i < rows; i++) next[i * w.geometry] += a.log_density_grad[first + i];
  float *dg = next, *dh = other;
  multiply<ADD>(grads.density + w.in * w.width, w.width, dg, 1, w.geometry, h, w.width, w.geometry,
                w.width, rows);
  multiply<MASK>(dh, w.width, dg, w.geometry, 1, w.d2, w.width, rows, w.width, w.geometry, h);
  float *x = a.x + first * w.in;
  multiply<ADD>(grads.density, w.in, dh, 1, w.width, x, w.in, w.width, w.in, rows);
  multiply<STORE>(x, w.in, dh, w.width, 1, w.d1, w.in, rows, w.in, w.width);
}

// Features [n_levels][stride][F] of samples `first`.. -> rows of x; index null: as they lie.
// Level by level, since a level's features of neighbouring samples lie together.
template <int F>
INLINE void assemble_rows(const NerfGrid &grid, const float *features, int64_t stride,
                          const int32_t *index, int64_t first, int64_t n, float *x) {
  int in = grid.n_levels * F;
  for (int level = 0; level < grid.n_levels; level++) {
    const float *from = features + level * stride * F;
    float *to = x + level * F;
    for (int64_t i = 0; i < n; i++) {
      int64_t at = index ? index[first + i] : first + i;
      memcpy(to + i * in, from + at * F, F * 4);
    }
  }
}

static void assemble(const NerfGrid &grid, const float *features, int64_t stride,
                     const int32_t *index, int64_t first, int64_t n, float *x) {
  switch (grid.n_features) {
    case 1: return assemble_rows<1>(grid, features, stride, index, first, n, x);
    case 2: return assemble_rows<2>(grid, features, stride, index, first, n, x);
    case 4: return assemble_rows<4>(grid, features, stride, index, first, n, x);
    default: return assemble_rows<8>(grid, features, stride, index, first, n, x);
  }
}

// Rows of gradients -> [n_levels][stride][F].
template <int F>
INLINE void disassemble_rows(const NerfGrid &grid, const float *x, int64_t n, float *features,
                             int64_t stride, int64_t first) {
  int in = grid.n_levels * F;
  for (int level = 0; level < grid.n_levels; level++) {
    float *to = features + (level * stride + first) * F;
    for (int64_t i = 0; i < n; i++) memcpy(to + i * F, x + i * in + level * F, F * 4);
  }
}

static void disassemble(const NerfGrid &grid, const float *x, int64_t n, float *features,
                        int64_t stride, int64_t first) {
  switch (grid.n_features) {
    case 1: return disassemble_rows<1>(grid, x, n, features, stride, first);
    case 2: return disassemble_rows<2>(grid, x, n, features, stride, first);
    case 4: return disassemble_rows<4>(grid, x, n, features, stride, first);
    default: return disassemble_rows<8>(grid, x, n, features, stride, first);
  }
}

}  // namespace
