"""Gradients of a step in what belongs to the rays: fused.RayGrads in Triton.

A program is a warp that walks along one ray and sums up what its samples got.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton import triton_harmonics
from nerfcli.backends.triton.launch import power_of_two
from nerfcli.backends.triton.triton_spaces import KINDS, load_point, pull_back, space_numbers
from nerfcli.cameras.rays import Rays
from nerfcli.reference.contraction import Space
from nerfcli.reference.fused import RayGrads
from nerfcli.reference.samples import Samples

AHEAD = 32  # samples that are looked at together, one a thread


@triton.jit
def _ray_gradients(
    origins, directions, t_starts, t_ends, offsets, d_positions, d_inputs, space, factor,
    d_origins, d_directions, d_ray_inputs, KIND: tl.constexpr, N_GEOMETRY: tl.constexpr,
    N_INPUTS: tl.constexpr, COLUMNS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0)
    begin, end = tl.load(offsets + ray), tl.load(offsets + ray + 1)
    ox, oy, oz = load_point(origins, ray, True)
    dx, dy, dz = load_point(directions, ray, True)
    columns = tl.arange(0, COLUMNS)
    wanted = columns < N_INPUTS - N_GEOMETRY
    inputs = tl.zeros((COLUMNS,), tl.float32)
    by = tl.load(factor)
    a, b, c = by * 0.0, by * 0.0, by * 0.0
    ta, tb, tc = a, b, c
    while begin < end:
        i = begin + tl.arange(0, AHEAD)
        live = i < end
        t = 0.5 * (tl.load(t_starts + i, live, 0.0) + tl.load(t_ends + i, live, 0.0))
        x, y, z = load_point(d_positions, i, live)
        x, y, z = pull_back(space, ox + t * dx, oy + t * dy, oz + t * dz, x, y, z, KIND)
        a, b, c = a + tl.sum(x), b + tl.sum(y), c + tl.sum(z)
        ta, tb, tc = ta + tl.sum(t * x), tb + tl.sum(t * y), tc + tl.sum(t * z)
        cells = d_inputs + i[:, None] * N_INPUTS + N_GEOMETRY + columns[None, :]
        share = tl.load(cells, live[:, None] & wanted[None, :], 0.0)
        inputs += tl.sum(share.to(tl.float32), 0)
        begin += AHEAD
    tl.store(d_origins + ray * 3, a * by)
    tl.store(d_origins + ray * 3 + 1, b * by)
    tl.store(d_origins + ray * 3 + 2, c * by)
    tl.store(d_directions + ray * 3, ta * by)
    tl.store(d_directions + ray * 3 + 1, tb * by)
    tl.store(d_directions + ray * 3 + 2, tc * by)
    tl.store(d_ray_inputs + ray * (N_INPUTS - N_GEOMETRY) + columns, inputs * by, wanted)


def ray_gradients(
    rays: Rays, samples: Samples, d_positions: Tensor, d_inputs: Tensor, n_geometry: int,
    space: Space, factor: Tensor, own_harmonics: bool,
) -> RayGrads:  # fmt: skip
    """Pull the gradients of samples back to their rays; those of rays without samples are zero.

    Args:
        d_positions: [capacity, 3] in the unit cube.
        d_inputs: [capacity, n_geometry + n_ray_inputs], of the colour network.
        factor: [1], of all of these.
        own_harmonics: whether the inputs of a ray are the harmonics of its direction.
    """
    n_rays, n_inputs = samples.n_rays, d_inputs.shape[1]
    origins, directions = rays.origins.contiguous(), rays.directions.contiguous()
    d_origins, d_directions = torch.empty_like(origins), torch.empty_like(directions)
    d_ray_inputs = torch.empty(n_rays, n_inputs - n_geometry, device=origins.device)
    if n_rays:
        _ray_gradients[(n_rays,)](
            origins, directions, samples.t_starts, samples.t_ends, samples.ray_offsets,
            d_positions, d_inputs, space_numbers(space, origins.device), factor, d_origins,
            d_directions, d_ray_inputs, KINDS[space.kind], n_geometry, n_inputs,
            power_of_two(n_inputs - n_geometry), AHEAD, num_warps=1,
        )  # fmt: skip
    if own_harmonics:
        triton_harmonics.direction_gradients(directions, d_ray_inputs, d_directions)
    return RayGrads(d_origins, d_directions, d_ray_inputs)
