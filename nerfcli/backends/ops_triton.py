"""The Triton backend: kernels compiled at first use by what torch's CUDA wheel brings.

Table, network inputs and hidden values are read in half precision with float32 sums; master
weights, gradients and moments stay float32, in the layout of every other backend.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from functools import partial

import torch

from nerfcli.backends import triton_host
from nerfcli.backends.ops import Ops, reference
from nerfcli.core.devices import cuda_missing

LEAST_CAPABILITY = (8, 0)  # what Triton supports; Turing and older are not
RAYS_PER_CHUNK = 2**20  # an 800 x 800 image at once


def unavailable(device: str) -> str | None:
    """Why the kernels cannot run on `device`, in words; None if they can.

    TRITON_INTERPRET=1 runs them on any device under Triton's interpreter: for tests, very slow.
    """
    if not installed("triton"):
        return "triton is not installed (it comes with torch's CUDA builds; pip install triton)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return triton_host.interpreter_unavailable()
    if device != "cuda":
        return f"it does not run on {device}, except in tests (TRITON_INTERPRET=1)"
    return cuda_missing() or _too_old() or triton_host.unavailable()


def installed(name: str) -> bool:
    """Whether the package is there; a mere folder of that name in the way does not count."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _too_old() -> str | None:
    have = torch.cuda.get_device_capability()
    if have >= LEAST_CAPABILITY:
        return None
    need = ".".join(map(str, LEAST_CAPABILITY))
    return f"the GPU has compute capability {have[0]}.{have[1]}, Triton needs {need} or newer"


def load() -> Ops:
    return build(torch.float16)


def build(dtype: torch.dtype) -> Ops:
    """The backend with table copy and network values in `dtype` (float32, float16, bfloat16)."""
    # Triton 3.9 warns that 3.10 will multiply and add in two instructions unless this says no
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from nerfcli.backends.triton import (
        triton_adam,
        triton_batch,
        triton_encoding,
        triton_harmonics,
        triton_mlp,
        triton_radiance,
        triton_render,
        triton_sampling,
        triton_step,
        triton_volume,
    )

    return replace(
        reference(),
        name="triton",
        spherical_harmonics=triton_harmonics.spherical_harmonics,
        hash_grid=partial(triton_encoding.hash_grid, dtype=dtype),
        mlp=partial(triton_mlp.mlp, dtype=dtype),
        density=partial(triton_radiance.density, dtype=dtype),
        radiance=partial(triton_radiance.radiance, dtype=dtype),
        march=triton_sampling.march,
        march_within=triton_sampling.march_within,
        draw=triton_batch.draw,
        adapt=triton_batch.adapt,
        composite=triton_volume.composite,
        photometric_gradients=partial(triton_step.photometric_gradients, dtype=dtype),
        render_rays=partial(triton_render.render_rays, dtype=dtype),
        adam_step=triton_adam.adam_step,
        rays_per_chunk=RAYS_PER_CHUNK,
    )
