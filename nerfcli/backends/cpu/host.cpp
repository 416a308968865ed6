// The host side: choice of the instruction set, thread pool, buffers, and the C interface that
// library.py calls. Compiled for the plainest processor of the architecture.
#include "host.h"
#include "layout.h"

#include <stdlib.h>
#include <string.h>
#if defined(NERF_X86)
#include <cpuid.h>
#endif

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define NERF_API extern "C" __declspec(dllexport)
#include <process.h>
static int process_id() { return _getpid(); }
#else
#define NERF_API extern "C" __attribute__((visibility("default")))
#include <unistd.h>
static int process_id() { return int(getpid()); }
#endif

namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Own threads: torch brings its own OpenMP runtime, and two of them in one process fight over
// the cores. Workers wait a moment for the next job, then sleep.
class Pool {
 public:
  int n_threads = 1;
  static constexpr int SPINS = 500;  // some 20 microseconds

  void run(int64_t n_tasks, NerfTask task, void *context) {
    if (n_tasks <= 0) return;
    if (n_threads == 1 || n_tasks == 1) {
      for (int64_t i = 0; i < n_tasks; i++) task(context, i, 0);
      return;
    }
    start_workers();
    task_ = task, context_ = context;
    int n = n_threads;
    // no worker is inside: the last call saw them out
    // each thread begins with its own part, in order, and then helps the others with theirs
    for (int t = 0; t < n; t++) {
      ranges_[t].next.store(n_tasks * t / n, std::memory_order_relaxed);
      ranges_[t].end = n_tasks * (t + 1) / n;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      active_ = n, open_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    work(0, n);
    {
      // who has not come by now is not waited for: on a busy machine that can take long
      std::lock_guard<std::mutex> lock(mutex_);
      open_ = false;
    }
    for (int spins = 0; inside_.load() != 0; spins++) {
      if (spins < SPINS) {
        pause_briefly();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void work(int self, int n) {
    for (int k = 0; k < n; k++) {
      Range &range = ranges_[(self + k) % n];
      for (;;) {
        int64_t i = range.next.fetch_add(1);
        if (i >= range.end) break;
        task_(context_, i, self);
      }
    }
  }

  void start_workers() {
    if (int(workers_) >= n_threads - 1) return;
    if (!ranges_) ranges_.reset(new Range[MAX_THREADS]);
    for (; workers_ < n_threads - 1; workers_++) {
      int self = workers_ + 1;
      uint64_t seen = generation_.load();
      std::thread([this, self, seen] { loop(self, seen); }).detach();
    }
  }

  void loop(int self, uint64_t seen) {
    for (;;) {
      for (int spins = 0; spins < SPINS && generation_.load() == seen; spins++) pause_briefly();
      int n = 0;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        if (open_ && self < active_) {
          n = active_;
          inside_.fetch_add(1);
        }
      }
      if (n == 0) continue;
      work(self, n);
      inside_.fetch_sub(1);
    }
  }

 public:
  static constexpr int MAX_THREADS = 256;

 private:
  std::unique_ptr<Range[]> ranges_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> inside_{0};
  NerfTask task_ = nullptr;
  void *context_ = nullptr;
  int active_ = 1, workers_ = 0;
  bool open_ = false;
};

struct Buffer {
  char *data = nullptr;
  size_t size = 0;
};

constexpr int MAX_SLOTS = 40;

struct State {
  Pool pool;
  Buffer buffers[Pool::MAX_THREADS + 1][MAX_SLOTS];
  int process = process_id();
};

State *state = new State;
std::mutex call_mutex;  // one call at a time: the buffers are shared

void enter() {
  // a forked child has no workers; what they held is left behind
  if (state->process != process_id()) {
    int n_threads = state->pool.n_threads;
    state = new State;
    state->pool.n_threads = n_threads;
  }
}

}  // namespace

extern "C" {

void nerf_parallel(int64_t n_tasks, NerfTask task, void *context) {
  state->pool.run(n_tasks, task, context);
}

int nerf_threads() { return state->pool.n_threads; }

void *nerf_buffer(int thread, int slot, size_t bytes) {
  Buffer &buffer = state->buffers[thread + 1][slot];
  if (buffer.size < bytes) {
    size_t size = bytes + bytes / 4 + 4096;
    char *data = static_cast<char *>(::operator new(size, std::align_val_t(64)));
    if (buffer.data) {
      memcpy(data, buffer.data, buffer.size);
      ::operator delete(buffer.data, std::align_val_t(64));
    }
    buffer.data = data, buffer.size = size;
  }
  return buffer.data;
}

const NerfKernels *nerf_kernels_base();
#if defined(NERF_X86)
const NerfKernels *nerf_kernels_avx2();
const NerfKernels *nerf_kernels_avx512();
#endif

void *nerf_march_all(const NerfRays *, const float *, const float *, const float *,
                     const NerfOccupancy *, const NerfSteps *, int64_t *);
void nerf_march_take(void *, const int64_t *, float *, float *);

}

namespace {

#if defined(NERF_X86)
// What the processor has and the system saves, from the processor itself: the run-time library
// behind __builtin_cpu_supports knows of nothing with some compilers (zig).
void instruction_sets(bool &avx2, bool &avx512) {
  avx2 = avx512 = false;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return;
  const unsigned FMA = 1u << 12, OSXSAVE = 1u << 27, AVX = 1u << 28, F16C = 1u << 29;
  const unsigned wanted = FMA | OSXSAVE | AVX | F16C;
  if ((c & wanted) != wanted) return;
  unsigned saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
  const unsigned AVX2 = 1u << 5;
  const unsigned F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;
  const unsigned all512 = F | DQ | BW | VL;
  avx2 = (b & AVX2) && (saved & 0x6) == 0x6;                        // ymm registers
  avx512 = avx2 && (b & all512) == all512 && (saved & 0xe6) == 0xe6;  // zmm and masks
}
#endif

const NerfKernels *by_name(const char *name) {
#if defined(NERF_X86)
  bool avx2, avx512;
  instruction_sets(avx2, avx512);
  if (avx512 && (!name || !strcmp(name, "avx512"))) return nerf_kernels_avx512();
  if (avx2 && (!name || !strcmp(name, "avx2"))) return nerf_kernels_avx2();
#endif
  if (!name || !strcmp(name, "base")) return nerf_kernels_base();
  return nullptr;
}

const NerfKernels *kernels = by_name(nullptr);

struct Call {
  std::lock_guard<std::mutex> lock{call_mutex};
  Call() { enter(); }
};

}  // namespace

// The number of what the functions mean: library.py refuses a library of another one.
NERF_API int nerf_cpu_interface() { return 3; }

NERF_API const char *nerf_cpu_instruction_set() { return kernels->name; }

// Takes the kernels of one instruction set ("base", "avx2", "avx512"; null: the best); 0 if this
// processor has them not.
NERF_API int nerf_cpu_use(const char *name) {
  Call call;
  const NerfKernels *chosen = by_name(name);
  if (chosen) kernels = chosen;
  return chosen != nullptr;
}

NERF_API void nerf_cpu_set_threads(int n) {
  Call call;
  state->pool.n_threads = n < 1 ? 1 : n > Pool::MAX_THREADS ? Pool::MAX_THREADS : n;
}

NERF_API void nerf_cpu_hash_grid(const NerfGrid *grid, const float *table, const float *positions,
                                 int64_t n, float *out) {
  Call call;
  kernels->hash_grid(grid, table, positions, n, out);
}

NERF_API void nerf_cpu_hash_grid_backward(const NerfGrid *grid, const float *table,
                                          const float *positions, const float *cotangents,
                                          int64_t n, float *grads, float *d_positions) {
  Call call;
  kernels->hash_grid_backward(grid, table, positions, cotangents, n, grads, d_positions);
}

NERF_API void nerf_cpu_spherical_harmonics(const float *directions, int64_t n, float *out) {
  Call call;
  kernels->spherical_harmonics(directions, n, out);
}

NERF_API void nerf_cpu_spherical_harmonics_backward(const float *directions,
                                                    const float *cotangents, int64_t n,
                                                    float *d_directions) {
  Call call;
  kernels->spherical_harmonics_backward(directions, cotangents, n, d_directions);
}

NERF_API void nerf_cpu_density(const NerfNet *net, const NerfParams *params,
                               const NerfSpace *space, const float *positions, int64_t n,
                               float *sigmas) {
  Call call;
  kernels->density(net, params, space, positions, n, sigmas);
}

NERF_API void nerf_cpu_density_backward(const NerfNet *net, const NerfParams *params,
                                        const NerfSpace *space, const float *positions, int64_t n,
                                        const float *d_sigmas, NerfParams *grads, float *d_unit) {
  Call call;
  kernels->density_backward(net, params, space, positions, n, d_sigmas, grads, d_unit);
}

NERF_API void nerf_cpu_radiance(const NerfNet *net, const NerfParams *params,
                                const NerfSpace *space, const float *positions,
                                const float *ray_inputs, int64_t n, float *sigmas, float *rgbs) {
  Call call;
  kernels->radiance(net, params, space, positions, ray_inputs, n, sigmas, rgbs);
}

NERF_API void nerf_cpu_radiance_backward(const NerfNet *net, const NerfParams *params,
                                         const NerfSpace *space, const float *positions,
                                         const float *ray_inputs, int64_t n, const float *d_sigmas,
                                         const float *d_rgbs, NerfParams *grads, float *d_unit,
                                         float *d_ray_inputs) {
  Call call;
  kernels->radiance_backward(net, params, space, positions, ray_inputs, n, d_sigmas, d_rgbs, grads,
                             d_unit, d_ray_inputs);
}

NERF_API void nerf_cpu_composite(const float *sigmas, const float *rgbs,
                                 const NerfSamples *samples, int64_t n_rays,
                                 const float *background, int background_stride,
                                 NerfPixels *pixels) {
  Call call;
  kernels->composite(sigmas, rgbs, samples, n_rays, background, background_stride, pixels);
}

NERF_API void nerf_cpu_composite_backward(const float *sigmas, const float *rgbs,
                                          const NerfSamples *samples, int64_t n_rays,
                                          const float *background, int background_stride,
                                          const NerfPixels *pixels, const NerfPixels *grads,
                                          float *d_sigmas, float *d_rgbs) {
  Call call;
  kernels->composite_backward(sigmas, rgbs, samples, n_rays, background, background_stride, pixels,
                              grads, d_sigmas, d_rgbs);
}

NERF_API void nerf_cpu_step(const NerfNet *net, const NerfParams *params, NerfParams *grads,
                            const NerfSpace *space, const NerfRays *rays,
                            const NerfSamples *samples, const NerfBatch *batch,
                            const NerfObjective *objective, NerfStepOut *out) {
  Call call;
  kernels->step(net, params, grads, space, rays, samples, batch, objective, out);
}

NERF_API void nerf_cpu_adam(float *params, float *grads, float *m, float *v, float *ema, int64_t n,
                            const NerfAdam *options) {
  Call call;
  kernels->adam(params, grads, m, v, ema, n, options);
}

NERF_API void nerf_cpu_render(const NerfNet *net, const NerfParams *params,
                              const NerfSpace *space, const NerfRays *rays, const float *t_min, const float *t_max,
                              const float *jitter, const NerfOccupancy *occupancy,
                              const NerfSteps *steps, const NerfProposals *proposals,
                              const float *background, int background_stride,
                              float min_transmittance, NerfPixels *pixels) {
  Call call;
  kernels->render(net, params, space, rays, t_min, t_max, jitter, occupancy, steps, proposals,
                  background, background_stride, min_transmittance, pixels);
}

NERF_API void nerf_cpu_propose(const NerfProposals *grid, const NerfSpace *space,
                               const NerfRays *rays, const float *jitter, float *t_starts,
                               float *t_ends) {
  Call call;
  kernels->propose(grid, space, rays, jitter, t_starts, t_ends);
}

NERF_API void nerf_cpu_learn(const NerfProposals *grid, const NerfSpace *space,
                             const NerfRays *rays, const NerfSamples *samples,
                             const float *weights, float rate) {
  Call call;
  kernels->learn(grid, space, rays, samples, weights, rate);
}

NERF_API void *nerf_cpu_march(const NerfRays *rays, const float *t_min, const float *t_max,
                              const float *jitter, const NerfOccupancy *occupancy,
                              const NerfSteps *steps, int64_t *offsets) {
  Call call;
  return nerf_march_all(rays, t_min, t_max, jitter, occupancy, steps, offsets);
}

NERF_API void nerf_cpu_march_take(void *handle, const int64_t *offsets, float *t_starts,
                                  float *t_ends) {
  nerf_march_take(handle, offsets, t_starts, t_ends);
}

// A line for each struct with its size and the offsets of its fields, and for each function with
// the kinds of its result and arguments; library.py compares them with its own.
NERF_API const char *nerf_cpu_layout() {
  static const std::string text = [] {
    std::string out = describe_structs();
#define SIGNATURE(name) out += #name " " + letters(nerf_cpu_##name) + "\n"
    SIGNATURE(hash_grid);
    SIGNATURE(hash_grid_backward);
    SIGNATURE(spherical_harmonics);
    SIGNATURE(spherical_harmonics_backward);
    SIGNATURE(density);
    SIGNATURE(density_backward);
    SIGNATURE(radiance);
    SIGNATURE(radiance_backward);
    SIGNATURE(composite);
    SIGNATURE(composite_backward);
    SIGNATURE(step);
    SIGNATURE(adam);
    SIGNATURE(render);
    SIGNATURE(propose);
    SIGNATURE(learn);
    SIGNATURE(march);
    SIGNATURE(march_take);
#undef SIGNATURE
    return out;
  }();
  return text.c_str();
}
