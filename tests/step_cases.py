"""A small field, rays and samples that the tests of a training step share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space
from nerfcli.reference.encoding import GridSpec, spherical_harmonics
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec, Network, radiance
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps, intersect_box, march

F64 = torch.float64
OPS = Backend()
GRID = GridSpec(3, 2, 9, 4, 32)
SPEC = NetSpec(GRID, width=16)
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
UNIT = BoxSpace(Box((0.5, 0.5, 0.5), 0.5))  # positions are their own unit positions
N_RAYS = 12


def rotation(angle: float, tilt: float) -> tuple[float, ...]:
    """Rows of a rotation about y and then x."""
    c, s, a, b = math.cos(angle), math.sin(angle), math.cos(tilt), math.sin(tilt)
    return (c, s * b, s * a, 0.0, a, -b, -s, c * b, c * a)


def behind(point: tuple[float, ...], rows: tuple[float, ...], distance: float):
    """Where a camera with that rotation stands to see the point on its axis."""
    x, y, z = (p - distance * forward for p, forward in zip(point, rows[2::3], strict=True))
    return x, y, z


TURNED = rotation(0.4, -0.3)
SPACES: dict[str, Space] = {
    "box": BoxSpace(BOX, 0.1, 10.0),
    "contraction": ContractedSpace(BOX, 0.1, 10.0),
    "perspective": PerspectiveSpace(
        BOX, TURNED, behind(BOX.center, TURNED, 6.0), 3.9, (0.33, 0.28), 0.1, 10.0
    ),
}


def unit_by_hand(space: Space, x: list[float]) -> list[float]:
    """One position in the unit cube, from the formulas of the papers."""
    half = space.box.half_size * 2 ** (space.box.n_cascades - 1)
    offset = [a - b for a, b in zip(x, space.box.center, strict=True)]
    if isinstance(space, PerspectiveSpace):
        r = space.rotation
        away = [a - b for a, b in zip(x, space.origin, strict=True)]
        right, down, forward = (sum(r[3 * i + k] * away[i] for i in range(3)) for k in range(3))
        z = -max(forward, space.z_near)  # OpenGL looks along -z, with y upwards
        # NeRF (2020), appendix C, with far = infinity; 1 / tan is f / (W / 2)
        ndc = [-right / space.tan[0] / z, down / space.tan[1] / z, 1 + 2 * space.z_near / z]
        unit = [ndc[0] / 2 + 0.5, 0.5 - ndc[1] / 2, ndc[2] / 2 + 0.5]
    elif isinstance(space, ContractedSpace):
        y = [v / space.box.half_size for v in offset]
        m = max(abs(v) for v in y)
        if m > 1:
            y = [(2 - 1 / m) * (v / m) for v in y]
        unit = [v / 4 + 0.5 for v in y]
    else:
        unit = [v / (2 * half) + 0.5 for v in offset]
    return [min(max(v, 0.0), 1.0) for v in unit]


def length_by_hand(space: Space) -> float:
    """The scene length that raw densities are per: the side of what the detail fills."""
    return 2.8 if isinstance(space, BoxSpace) else 1.4


def some_network(
    space: Space = SPACES["box"], spec: NetSpec = SPEC, opaque: bool = False, seed: int = 0
) -> Network:
    """A cloudy field, or one that stops most rays."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (
        spec.grid.n_params,
        mlp_n_params(spec.density_widths),
        mlp_n_params(spec.color_widths),
    )
    parts = (torch.randn(n, generator=generator, dtype=F64) * 0.6 for n in sizes)
    table, density_weights, color_weights = parts
    params = NetParams(table, density_weights * (8 if opaque else 1), color_weights)
    return Network(spec, params, space)


def zeros_like(params: NetParams) -> NetParams:
    return NetParams(*(torch.zeros_like(p) for p in params.tensors()))


def some_rays(seed: int = 1) -> Rays:
    """Rays towards the box; the third and the last look away from it."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.randn(N_RAYS, 3, generator=generator, dtype=F64)
    origins = 4 * origins / origins.norm(dim=1, keepdim=True)
    goals = torch.randn(N_RAYS, 3, generator=generator, dtype=F64) * 0.4
    directions = goals - origins
    directions[[2, -1]] *= -1
    return Rays(origins, directions / directions.norm(dim=1, keepdim=True))


def marched(rays: Rays) -> tuple[Samples, tuple[Bounds, Tensor, MarchingGrid]]:
    """Samples of the rays in a random grid, and the arguments that gave them."""
    occupied = torch.rand(2, 8, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.6
    bounds = intersect_box(rays, BOX, 0.1, 10.0)
    jitter = torch.rand(N_RAYS, generator=torch.Generator().manual_seed(3), dtype=F64)
    args = (bounds, jitter, MarchingGrid(occupied, BOX, Steps(0.12, 0.02)))
    return march(rays, *args), args


def some_batch(seed: int = 4) -> Batch:
    """The rays with random colours in front of random backgrounds."""
    generator = torch.Generator().manual_seed(seed)
    target, background = torch.rand(2, N_RAYS, 3, generator=generator, dtype=F64)
    return Batch(some_rays(), target, background)


def plain_pass(
    network: Network,
    rays: Rays,
    samples: Samples,
    background: Tensor,
    inputs: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Each ray on its own: field at the middles, cumulated product of (1 - alpha).

    The network is evaluated in the unit cube, at positions and with densities made by hand.

    Returns:
        rgb [n_rays, 3], and the weights of each ray.
    """
    unit_network = Network(network.spec, network.params, UNIT)
    length = length_by_hand(network.space)
    pixels, all_weights = [], []
    for i in range(len(rays)):
        part = slice(*samples.ray_offsets[i : i + 2].tolist())
        t = samples.t_mids[part]
        points = rays.origins[i] + t[:, None] * rays.directions[i]
        unit = torch.tensor([unit_by_hand(network.space, p) for p in points.tolist()], dtype=F64)
        own = spherical_harmonics(rays.directions[i : i + 1])[0] if inputs is None else inputs[i]
        sigmas, rgbs = radiance(unit_network, unit.reshape(-1, 3), own.expand(len(t), -1))
        through = torch.exp(-sigmas / length * (samples.t_ends[part] - samples.t_starts[part]))
        light = torch.cat([torch.ones(1, dtype=F64), through.cumprod(0)])
        weights = light[:-1] * (1 - through)
        pixels.append((weights[:, None] * rgbs).sum(0) + light[-1] * background[i])
        all_weights.append(weights)
    return torch.stack(pixels), all_weights


def plain_photometric(name: str, rgb: Tensor, target: Tensor) -> Tensor:
    if name == "mse":
        return torch.nn.functional.mse_loss(rgb, target)
    return 2 * torch.nn.functional.huber_loss(rgb, target, delta=0.1)
