"""What the interpreted tests share: poisoned memory, a small field, rays, comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Rays
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.sampling import Steps, intersect_box

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
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
STEPS = Steps(0.2, 0.02)

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


def opaque(params: NetParams) -> NetParams:
    """A field that stops many rays: log densities twice as large. Steeper ones would make the
    last bit of a position, 2e-7 of the box, 1e-3 of a gradient, in any precision."""
    return NetParams(params.table, params.density * 2, params.color)


def leaves_of(params: NetParams) -> NetParams:
    return NetParams(*(p.clone().requires_grad_() for p in params.tensors()))


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


def march_arguments(n: int, box: Box = BOX, steps: Steps = STEPS, resolution: int = 8) -> tuple:
    """Arguments of ops.march for n rays of rays_of through a random grid."""
    rays = rays_of(n, box)
    bounds = intersect_box(rays.origins, rays.directions, box, 0.1, 10.0)
    occupied = uniform(14, box.n_cascades, *[resolution] * 3) < 0.4
    return (rays.origins, rays.directions, *bounds, uniform(15, n), occupied, box, steps)
