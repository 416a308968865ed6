"""The tiny-cuda-nn backend: NVIDIA's `tinycudann` modules for the grid and the networks.

Its modules own their parameters; here they are called with ours, which have the same layout up
to the padding of a network's outputs. The rest is left to torch.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from nerfcli.backends.ops import Ops, reference
from nerfcli.cameras.rays import Rays
from nerfcli.core.devices import cuda_missing, is_installed
from nerfcli.core.errors import NerfError
from nerfcli.reference import encoding
from nerfcli.reference import mlp as networks
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import StepTerms
from nerfcli.reference.losses import LOSSES, mse
from nerfcli.reference.radiance import MAX_LOG_DENSITY, NetParams, NetSpec
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Box, Steps, march
from nerfcli.reference.volume import composite, visible

INSTALL = (
    "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch' "
    "--no-build-isolation (needs nvcc and a C++ compiler; it is not on PyPI)"
)
FUSED_WIDTHS = (16, 32, 64, 128)
# Of the loss on the way back. The library rounds gradients of outputs to half precision, multiplies
# them by 128 and adds those of parameters up in it: this much keeps a sample's share in 65,536 rays
# above what it holds, and the sum over all samples, near 1 at the most, below 65504.
SCALE = 256.0
OUTPUT_MULTIPLE = 16  # the fully fused network pads its outputs to it


def unavailable(device: str) -> str | None:
    if device != "cuda":
        return f"it does not run on {device}"
    if not is_installed("tinycudann"):
        return f"tinycudann is not installed: {INSTALL}"
    if missing := cuda_missing():
        return missing
    try:
        import tinycudann  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # built for another torch, CUDA or GPU
        return f"tinycudann cannot be imported ({str(error).strip().rstrip('.')}): build it again"
    return None


def load() -> Ops:
    return replace(
        reference(),
        name="tcnn",
        hash_grid=hash_grid,
        mlp=mlp,
        density=density,
        radiance=radiance,
        photometric_gradients=photometric_gradients,
        render_rays=render_rays,
        rays_per_chunk=2**16,
    )


@functools.cache
def _grid_module(spec: GridSpec) -> Any:
    import tinycudann  # pyright: ignore[reportMissingImports]

    growth = 1.0
    if spec.n_levels > 1:
        growth = (spec.max_resolution / spec.base_resolution) ** (1 / (spec.n_levels - 1))
    config = {
        "otype": "HashGrid",
        "n_levels": spec.n_levels,
        "n_features_per_level": spec.n_features,
        "log2_hashmap_size": spec.log2_table_size,
        "base_resolution": spec.base_resolution,
        "per_level_scale": growth,
    }
    return _ours(tinycudann.Encoding(3, config), spec.n_params, "the grid")


@functools.cache
def _network_module(widths: tuple[int, ...]) -> Any:
    import tinycudann  # pyright: ignore[reportMissingImports]

    config = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": widths[1],
        "n_hidden_layers": len(widths) - 2,
    }
    n_out = -(-widths[-1] // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE
    n_params = networks.mlp_n_params((*widths[:-1], n_out))
    return _ours(tinycudann.Network(widths[0], widths[-1], config), n_params, f"widths {widths}")


def _ours(module: Any, n_params: int, what: str) -> Any:
    """The module, if its parameters are as many as ours; their order no one can ask it."""
    if module.params.numel() != n_params:
        raise NerfError(
            f"backend tcnn: this tinycudann has {module.params.numel()} parameters for {what}, "
            f"not {n_params}. Use another version of it, or another --backend."
        )
    return module


def hash_grid(positions: Tensor, table: Tensor, spec: GridSpec) -> Tensor:
    """encoding.hash_grid in half precision; float32 in, out and in the gradient of the table."""
    if not len(positions):
        return encoding.hash_grid(positions, table, spec)
    return functional_call(_grid_module(spec), {"params": table}, (positions,)).float()


def mlp(x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
    """mlp.mlp in half precision. Shapes that the fused network lacks go to torch."""
    fused = len(set(widths[1:-1])) == 1 and widths[1] in FUSED_WIDTHS and widths[0] % 16 == 0
    if not fused or not len(x):
        return networks.mlp(x, weights, widths)
    # rows of the last matrix [out, in] come last, so padding the outputs is padding the end
    missing = -widths[-1] % OUTPUT_MULTIPLE * widths[-2]
    padded = F.pad(weights, (0, missing))
    return functional_call(_network_module(widths), {"params": padded}, (x,)).float()


def _geometry(positions: Tensor, params: NetParams, net: NetSpec) -> Tensor:
    return mlp(hash_grid(positions, params.table, net.grid), params.density, net.density_widths)


def _sigmas(geometry: Tensor) -> Tensor:
    log_density = geometry[:, 0]
    # the clamp without its gradient: no density gets stuck
    return torch.exp(log_density - (log_density - MAX_LOG_DENSITY).clamp(min=0.0).detach())


def density(positions: Tensor, params: NetParams, net: NetSpec) -> Tensor:
    """radiance.density."""
    return _sigmas(_geometry(positions, params, net))


def radiance(
    positions: Tensor, directions: Tensor, params: NetParams, net: NetSpec
) -> tuple[Tensor, Tensor]:
    """radiance.radiance."""
    geometry = _geometry(positions, params, net)
    inputs = torch.cat([geometry, encoding.spherical_harmonics(directions)], dim=1)
    return _sigmas(geometry), torch.sigmoid(mlp(inputs, params.color, net.color_widths))


def _seen(
    params: NetParams, net: NetSpec, box: Box, rays: Rays, samples: Samples, limit: float
) -> tuple[Tensor, Tensor, Samples]:
    """Positions and directions of the samples that light reaches, and these samples."""
    indices = samples.ray_indices()
    directions = rays.directions[indices]
    positions = box.to_unit(rays.origins[indices] + samples.t_mids[:, None] * directions)
    with torch.no_grad():
        keep = visible(density(positions, params, net) / box.side, samples, limit)
    return positions[keep], directions[keep], samples.select(keep)


def photometric_gradients(
    params: NetParams,
    grads: NetParams,
    net: NetSpec,
    box: Box,
    rays: Rays,
    samples: Samples,
    target: Tensor,
    background: Tensor,
    *,
    loss: str = "huber",
    min_transmittance: float = 1e-4,
) -> StepTerms:
    """step.photometric_gradients, composed of this backend's parts."""
    positions, directions, kept = _seen(params, net, box, rays, samples, min_transmittance)
    leaves = NetParams(*(p.detach().requires_grad_() for p in params.tensors()))
    with torch.enable_grad():
        sigmas, rgbs = radiance(positions, directions, leaves, net)
        pixels = composite(sigmas / box.side, rgbs, kept, background)
        value = LOSSES[loss](pixels.rgb, target)
    if kept.capacity:
        found = torch.autograd.grad(value * SCALE, leaves.tensors())
        for total, grad in zip(grads.tensors(), found, strict=True):
            # what overflowed all the same is left out of this step
            total.add_(grad.nan_to_num(0.0, 0.0, 0.0), alpha=1 / SCALE)
    n_kept = torch.tensor(kept.capacity, device=value.device)
    return StepTerms(value.detach(), mse(pixels.rgb.detach(), target), n_kept)


def render_rays(
    params: NetParams,
    net: NetSpec,
    box: Box,
    rays: Rays,
    t_min: Tensor,
    t_max: Tensor,
    jitter: Tensor,
    occupied: Tensor,
    steps: Steps,
    background: Tensor,
    min_transmittance: float = 1e-4,
) -> Pixels:
    """step.render_rays, composed of this backend's parts."""
    with torch.no_grad():
        samples = march(rays.origins, rays.directions, t_min, t_max, jitter, occupied, box, steps)
        positions, directions, kept = _seen(params, net, box, rays, samples, min_transmittance)
        sigmas, rgbs = radiance(positions, directions, params, net)
        return composite(sigmas / box.side, rgbs, kept, background)
