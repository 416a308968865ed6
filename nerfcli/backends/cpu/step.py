"""The fused training step: one call for the gradients of the network, more on request."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from nerfcli.backends.cpu import library
from nerfcli.backends.cpu.views import (
    checked,
    net_view,
    params_view,
    pointer,
    rays_view,
    samples_view,
    space_view,
)
from nerfcli.cameras.rays import Batch, ColorMap, Rays
from nerfcli.reference.fused import Objective, RayGrads, StepOut
from nerfcli.reference.radiance import N_HARMONICS, NetParams, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.volume import sum_per_ray

_PHOTOMETRIC = {"mse": 0, "huber": 1}


def fused_step(
    network: Network,
    grads: NetParams,
    batch: Batch,
    samples: Samples,
    objective: Objective,
    ray_inputs: Tensor | None,
    with_weights: bool,
    with_ray_grads: bool,
) -> StepOut:
    """Do what fused.step_gradients does, in the kernels."""
    net, n_rays = network.spec, len(batch.rays)
    target = checked("rgb", batch.rgb, (n_rays, 3))
    background = checked("background", batch.background, (n_rays, 3))
    depth = None if batch.depth is None else checked("depth", batch.depth, (n_rays,))
    weight = None if batch.weight is None else checked("weight", batch.weight, (n_rays,))
    rays_in, keep_rays = rays_view(batch.rays, ray_inputs, net)
    samples_in, keep_samples = samples_view(samples)
    weights = torch.zeros(samples.capacity) if with_weights else None
    d_unit = torch.zeros(samples.capacity, 3) if with_ray_grads else None
    d_inputs = torch.zeros(n_rays, net.n_ray_inputs) if with_ray_grads else None
    color = color_grads = None
    if batch.color is not None:
        color = ColorMap(*(checked("color", c, (n_rays, 3)) for c in batch.color))
        color_grads = ColorMap(torch.zeros(n_rays, 3), torch.zeros(n_rays, 3))
    out = library.StepResult(
        weights=pointer(weights),
        d_unit=pointer(d_unit),
        d_ray_inputs=pointer(d_inputs),
        d_gain=pointer(color_grads and color_grads.gain),
        d_offset=pointer(color_grads and color_grads.offset),
    )
    library.kernels().nerf_cpu_step(
        net_view(net),
        params_view(network.params, net),
        params_view(grads, net, written=True),
        space_view(network.space),
        rays_in,
        samples_in,
        library.BatchView(
            *map(pointer, (target, background, depth, weight, *(color or (None, None))))
        ),
        library.ObjectiveView(
            _PHOTOMETRIC[objective.photometric],
            objective.opacity,
            objective.depth,
            objective.distortion,
            1.0 if objective.curve else 1.0 / network.space.unit_length,
            objective.curve,
            objective.min_transmittance,
            objective.full_from,
        ),
        ctypes.byref(out),
    )
    del keep_rays, keep_samples
    names = [n for n in objective.weights() if n != "depth" or depth is not None]
    ray_grads = None
    if d_unit is not None and d_inputs is not None:
        ray_grads = _ray_grads(network, batch.rays, samples, d_unit, d_inputs, ray_inputs is None)
    return StepOut(
        {name: torch.tensor(getattr(out, name)) for name in names},
        torch.tensor(out.mse),
        torch.tensor(out.n_kept),
        weights,
        ray_grads,
        color_grads,
    )


def _ray_grads(
    network: Network, rays: Rays, samples: Samples, d_unit: Tensor, d_inputs: Tensor, own: bool
) -> RayGrads:
    """From the gradients of unit positions; own: the ray inputs are harmonics of the directions."""
    d_positions = network.space.pull_back(samples.positions(rays), d_unit)
    d_origins = sum_per_ray(d_positions, samples)
    d_directions = sum_per_ray(samples.t_mids[:, None] * d_positions, samples)
    if own:
        directions = checked("directions", rays.directions, (len(rays), 3))
        share = torch.empty_like(d_directions)
        cotangents = d_inputs[:, :N_HARMONICS].contiguous()
        library.kernels().nerf_cpu_spherical_harmonics_backward(
            directions.data_ptr(), cotangents.data_ptr(), len(rays), share.data_ptr()
        )
        d_directions += share
    return RayGrads(d_origins, d_directions, d_inputs)
