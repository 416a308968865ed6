// Everything that is compiled once per instruction set; NERF_TABLE names the table it fills.
#include "adam.h"
#include "render.h"

extern "C" const NerfKernels *NERF_TABLE();

extern "C" const NerfKernels *NERF_TABLE() {
  static const NerfKernels table = {
      NERF_ISA,
      hash_grid,
      hash_grid_backward,
      spherical_harmonics,
      spherical_harmonics_backward,
      density,
      density_backward,
      radiance,
      radiance_backward,
      composite,
      composite_backward,
      step,
      adam,
      render,
      propose,
      learn,
  };
  return &table;
}
