"""What the interpreted tests share: poisoned memory, a small field, rays, comparisons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.sampling import MarchingGrid, Steps

torch.set_num_threads(1)

F32, F16 = torch.float32, torch.float16
DTYPES = [F32, F16]

# Relative error, ||got - want|| / ||want||. float32: sums in another order. float16: 11 bits in
# the table, the inputs and the hidden values; gradients also pass ReLUs that flip.
OUTPUTS = {F32: 2e-6, F16: 3e-3}
GRADIENTS = {F32: 2e-5, F16: 2e-2}

# three levels: dense, hashed, hashed; and the layout of 8-byte entries
PAIRS = NetSpec(GridSpec(3, 2, 9, 4, 32), width=16)
QUADS = NetSpec(GridSpec(2, 4, 8, 4, 16), width=32)
EMBEDDED = replace(PAIRS, n_embedding=16)  # a ray has more inputs than its direction
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
STEPS = Steps(0.2, 0.02)
# a frame whose axes are oblique in the scene, behind the box; rows are orthonormal
TURN = (0.36, -0.48, 0.8, 0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
SPACES: dict[str, Space] = {
    "box": BoxSpace(BOX, 0.1, 10.0),
    # a detail cube so small that most samples lie outside
    "contraction": ContractedSpace(Box((0.2, -0.1, 0.3), 0.5), 0.1, 10.0),
    "perspective": PerspectiveSpace(BOX, TURN, (-1.4, -0.1, -0.9), 0.8, (0.7, 0.5), 0.1, 10.0),
}
REFERENCE = Backend()

_empty = torch.empty


def poisoned(*size: Any, **options: Any) -> Tensor:
    """torch.empty whose memory holds NaN, or huge integers: nobody may rely on it."""
    out = _empty(*size, **options)
    return out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max // 2)


torch.empty = poisoned  # this process is the interpreted tests' own

_patch_lang_tensor = interpreter._patch_lang_tensor


def patch_lang_tensor(tensor: type, *scope: Any) -> None:
    """Triton 3.6 makes a loop's bound an int in a way that NumPy 2.4 refuses."""
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: self.handle.data.item()  # pyright: ignore


interpreter._patch_lang_tensor = patch_lang_tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(seed))


def error(got: Tensor, want: Tensor) -> float:
    """Relative error; infinite for what is not finite or of another shape."""
    assert got.shape == want.shape, (got.shape, want.shape)
    if not got.isfinite().all():
        return float("inf")
    size = want.double().norm().item()
    return (got.double() - want.double()).norm().item() / max(size, 1e-30)


def assert_near(got: Tensor, want: Tensor, limit: float) -> None:
    assert error(got, want) <= limit, f"relative error {error(got, want):.2g}, limit {limit:.2g}"


def params_of(net: NetSpec, scale: float = 0.6, seed: int = 0) -> NetParams:
    sizes = (net.grid.n_params, mlp_n_params(net.density_widths), mlp_n_params(net.color_widths))
    return NetParams(*(scale * normal(seed + i, n) for i, n in enumerate(sizes)))


def network_of(
    net: NetSpec, kind: str = "box", scale: float = 0.6, opacity: float = 1.0
) -> Network:
    """A random field, its log densities multiplied by `opacity`: 2 stops many rays. A steeper
    field would make of the last bit of a position, 2e-7 of the box, 1e-3 of a gradient, in any
    precision."""
    params = params_of(net, scale)
    params = NetParams(params.table, params.density * opacity, params.color)
    return Network(net, params, SPACES[kind])


def leaves_of(network: Network) -> Network:
    """The same field, whose parameters take gradients."""
    params = NetParams(*(p.clone().requires_grad_() for p in network.params.tensors()))
    return replace(network, params=params)


def zeros_like(params: NetParams) -> NetParams:
    return NetParams(*(torch.zeros_like(p) for p in params.tensors()))


def positions_of(n: int, seed: int = 10) -> Tensor:
    """[n, 3] in the unit cube; where there is room, two of them are corners of it."""
    x = uniform(seed, n, 3)
    if n > 2:
        x[0], x[1] = 0.0, 1.0
    return x


def directions_of(n: int, seed: int = 11) -> Tensor:
    d = normal(seed, n, 3)
    return d / d.norm(dim=1, keepdim=True)


def rays_of(n: int, box: Box = BOX) -> Rays:
    """Rays from a sphere towards the box; where there is room, two of them look away."""
    origins = 4 * directions_of(n, 12)
    directions = torch.tensor(box.center) + 0.4 * normal(13, n, 3) - origins
    if n > 3:
        directions[[2, -1]] *= -1
    return Rays(origins, directions / directions.norm(dim=1, keepdim=True))


def march_arguments(
    n: int, box: Box = BOX, steps: Steps = STEPS, resolution: int = 8
) -> tuple[Rays, Bounds, Tensor, MarchingGrid]:
    """Arguments of Backend.march for n rays of rays_of through a random grid."""
    rays = rays_of(n, box)
    bounds = BoxSpace(box, 0.1, 10.0).bounds(rays)
    occupied = uniform(14, box.n_cascades, *[resolution] * 3) < 0.4
    return rays, bounds, uniform(15, n), MarchingGrid(occupied, box, steps)
