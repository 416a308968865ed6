// The layout of all that crosses into the library, as text.
#pragma once
#include <stddef.h>

#include <string>

#include "host.h"

namespace {

// A letter for a type among the arguments of a function.
template <class T>
struct Letter;
template <>
struct Letter<void> { static constexpr char value = 'v'; };
template <>
struct Letter<int> { static constexpr char value = 'i'; };
template <>
struct Letter<int64_t> { static constexpr char value = 'l'; };
template <>
struct Letter<float> { static constexpr char value = 'f'; };
template <class T>
struct Letter<T *> { static constexpr char value = 'p'; };

template <class R, class... A>
std::string letters(R (*)(A...)) {
  return {Letter<R>::value, Letter<A>::value...};
}

// Every struct as a line: "name size field:offset ...".
std::string describe_structs() {
  std::string out;
#define BEGIN(type) { using T = type; out += #type " " + std::to_string(sizeof(T))
#define FIELD(name) + " " #name ":" + std::to_string(offsetof(T, name))
#define END + "\n"; }
  BEGIN(NerfGrid) FIELD(n_levels) FIELD(n_features) FIELD(scale) FIELD(resolution)
      FIELD(n_entries) FIELD(hashed) FIELD(offset) END
  BEGIN(NerfNet) FIELD(grid) FIELD(width) FIELD(n_geometry) FIELD(n_color_hidden)
      FIELD(n_ray_inputs) END
  BEGIN(NerfParams) FIELD(table) FIELD(density) FIELD(color) END
  BEGIN(NerfSpace) FIELD(kind) FIELD(unit_length) FIELD(origin) FIELD(size) FIELD(rotation)
      FIELD(tan) END
  BEGIN(NerfRays) FIELD(origins) FIELD(directions) FIELD(ray_inputs) FIELD(radii) FIELD(n_rays) END
  BEGIN(NerfSamples) FIELD(t_starts) FIELD(t_ends) FIELD(offsets) END
  BEGIN(NerfSteps) FIELD(size) FIELD(cone) END
  BEGIN(NerfOccupancy) FIELD(cells) FIELD(n_cascades) FIELD(resolution) FIELD(center)
      FIELD(half_size) END
  BEGIN(NerfProposals) FIELD(fine) FIELD(coarse) FIELD(edges) FIELD(resolution)
      FIELD(coarse_resolution) FIELD(n_bins) FIELD(n_samples) FIELD(prior) FIELD(padding)
      FIELD(annealing) END
  BEGIN(NerfBatch) FIELD(target) FIELD(background) FIELD(depth) FIELD(weight) FIELD(gain)
      FIELD(offset) END
  BEGIN(NerfObjective) FIELD(photometric) FIELD(opacity) FIELD(depth) FIELD(distortion)
      FIELD(scale) FIELD(curve) FIELD(min_transmittance)
      FIELD(full_from) END
  BEGIN(NerfStepOut) FIELD(photometric) FIELD(opacity) FIELD(depth) FIELD(distortion) FIELD(mse)
      FIELD(n_kept) FIELD(weights) FIELD(d_unit) FIELD(d_ray_inputs) FIELD(d_gain)
      FIELD(d_offset) END
  BEGIN(NerfPixels) FIELD(rgb) FIELD(opacity) FIELD(depth) FIELD(median_depth) END
  BEGIN(NerfAdam) FIELD(lr) FIELD(beta1) FIELD(beta2) FIELD(eps) FIELD(weight_decay)
      FIELD(ema_decay) FIELD(correction1) FIELD(correction2) END
#undef BEGIN
#undef FIELD
#undef END
  return out;
}

}  // namespace
