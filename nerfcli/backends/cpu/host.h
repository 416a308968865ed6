// What the kernels share with the host side: plain structs and the thread pool.
//
// The kernel files are compiled once per instruction set, this header with each of them, so it
// holds no inline function of external linkage: the linker would keep one copy, perhaps the
// AVX-512 one, for everybody.
#pragma once
#include <stddef.h>
#include <stdint.h>

constexpr int NERF_MAX_LEVELS = 32;

struct NerfGrid {
  int32_t n_levels, n_features;
  float scale[NERF_MAX_LEVELS];
  int32_t resolution[NERF_MAX_LEVELS];
  int32_t n_entries[NERF_MAX_LEVELS];
  int32_t hashed[NERF_MAX_LEVELS];
  int64_t offset[NERF_MAX_LEVELS];
};

struct NerfNet {
  NerfGrid grid;
  int32_t width, n_geometry, n_color_hidden;
  int32_t n_ray_inputs;  // of the colour network beside the geometry: harmonics and embedding
};

struct NerfParams {  // of one field; the gradients have the same shape, null: not wanted
  float *table, *density, *color;
};

struct NerfRays {
  const float *origins, *directions;  // [n_rays, 3]
  const float *ray_inputs;            // [n_rays, n_ray_inputs]; null: harmonics of the directions
  const float *radii;                 // [n_rays] of the pixels' cones per distance, or null
  int64_t n_rays;
};

struct NerfSamples {
  const float *t_starts, *t_ends;
  const int64_t *offsets;  // [n_rays + 1]
};

enum NerfSpaceKind { NERF_BOX, NERF_CONTRACTION, NERF_PERSPECTIVE };

// The map from the scene to the grid's unit cube; the reference is reference/contraction.py.
struct NerfSpace {
  int32_t kind;
  float unit_length;           // the raw density is per this length
  float origin[3];             // low corner of a box, centre of a contraction, the mean camera
  float size;                  // side of a box, half size of a contraction, z_near of a camera
  float rotation[9], tan[2];   // of the mean camera, by rows
};

struct NerfSteps {
  float size, cone;
};

struct NerfOccupancy {
  const uint8_t *cells;  // [n_cascades, R, R, R], indexed [cascade, z, y, x]
  int32_t n_cascades, resolution;
  float center[3], half_size;
};

// Densities met before, bfloat16 and negative where none was; the reference is
// reference/proposals.py.
struct NerfProposals {
  uint16_t *fine, *coarse;  // [R**3] each, in bricks: cell_at
  const float *edges;       // [n_bins + 1]
  int32_t resolution, coarse_resolution, n_bins, n_samples;
  float prior, padding, annealing;
};

struct NerfBatch {
  const float *target, *background;  // [n_rays, 3]
  const float *depth, *weight;       // [n_rays] or null
  const float *gain, *offset;        // [n_rays, 3] or null, both: of what is rendered
};

struct NerfObjective {
  int32_t photometric;               // 0: mse, 1: huber
  float opacity, depth, distortion;  // weights of terms; 0: not wanted
  float scale;                       // of lengths in the distortion
  float curve;                       // 0, or the `size` of the spacing that it is taken in
  float min_transmittance;
  float full_from;  // gradients of nearer samples fall with the square of the distance
};

struct NerfStepOut {
  float photometric, opacity, depth, distortion;  // terms before their weights
  float mse;
  int64_t n_kept;
  // null: not wanted; what belongs to a sample that was dropped is left alone
  float *weights, *d_unit;  // [n_samples], [n_samples, 3]: of the unit positions
  float *d_ray_inputs;      // [n_rays, n_ray_inputs], added to
  float *d_gain, *d_offset;  // [n_rays, 3], where the batch has gain and offset
};

struct NerfPixels {
  float *rgb, *opacity, *depth, *median_depth;
};

struct NerfAdam {
  float lr, beta1, beta2, eps, weight_decay, ema_decay;
  float correction1, correction2;  // 1 - beta^step
};

// The state of one ray while it marches.
struct NerfMarcher {
  float origin[4], direction[4], inverse[4];  // the last of each is padding
  float t_min, t_max, s_start;
  float t_start;  // of step 0, were all steps growing ones
  int32_t step;   // the next step to look at; -1: the ray is done
};

typedef void (*NerfTask)(void *context, int64_t task, int thread);

extern "C" {
// Runs tasks 0..n_tasks-1 on the pool; which thread runs which task is left to chance.
void nerf_parallel(int64_t n_tasks, NerfTask task, void *context);
int nerf_threads();
// Memory that lives from call to call, at least `bytes`, aligned to 64; `thread` -1: shared.
void *nerf_buffer(int thread, int slot, size_t bytes);

struct NerfBricks;
void nerf_march_start(NerfMarcher *ray, const float *origin, const float *direction, float t_min,
                      float t_max, float jitter, NerfSteps steps);
// Writes up to `limit` steps in occupied cells; returns how many.
int nerf_march_some(NerfMarcher *ray, const NerfBricks *bricks, NerfSteps steps, int limit,
                    float *t_starts, float *t_ends);
const NerfBricks *nerf_bricks(const NerfOccupancy *occupancy, NerfSteps steps);
}

// One instruction set's kernels.
struct NerfKernels {
  const char *name;
  void (*hash_grid)(const NerfGrid *, const float *, const float *, int64_t, float *);
  void (*hash_grid_backward)(const NerfGrid *, const float *, const float *, const float *,
                             int64_t, float *, float *);
  void (*spherical_harmonics)(const float *, int64_t, float *);
  void (*spherical_harmonics_backward)(const float *, const float *, int64_t, float *);
  void (*density)(const NerfNet *, const NerfParams *, const NerfSpace *, const float *, int64_t,
                  float *);
  void (*density_backward)(const NerfNet *, const NerfParams *, const NerfSpace *, const float *,
                           int64_t, const float *, NerfParams *, float *);
  void (*radiance)(const NerfNet *, const NerfParams *, const NerfSpace *, const float *,
                   const float *, int64_t, float *, float *);
  void (*radiance_backward)(const NerfNet *, const NerfParams *, const NerfSpace *, const float *,
                            const float *, int64_t, const float *, const float *, NerfParams *,
                            float *, float *);
  void (*composite)(const float *, const float *, const NerfSamples *, int64_t, const float *,
                    int, NerfPixels *);
  void (*composite_backward)(const float *, const float *, const NerfSamples *, int64_t,
                             const float *, int, const NerfPixels *, const NerfPixels *, float *,
                             float *);
  void (*step)(const NerfNet *, const NerfParams *, NerfParams *, const NerfSpace *,
               const NerfRays *, const NerfSamples *, const NerfBatch *, const NerfObjective *,
               NerfStepOut *);
  void (*adam)(float *, float *, float *, float *, float *, int64_t, const NerfAdam *);
  void (*render)(const NerfNet *, const NerfParams *, const NerfSpace *, const NerfRays *,
                 const float *, const float *, const float *, const NerfOccupancy *,
                 const NerfSteps *, const NerfProposals *, const float *, int, float, NerfPixels *);
  void (*propose)(const NerfProposals *, const NerfSpace *, const NerfRays *, const float *,
                  float *, float *);
  void (*learn)(const NerfProposals *, const NerfSpace *, const NerfRays *, const NerfSamples *,
                const float *, float);
};
