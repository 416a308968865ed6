"""What the tests of the compiled kernels share: fields, spaces, rays, and comparing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu import library
from nerfcli.backends.cpu.backend import CpuBackend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.rays import Batch, Rays
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import init_mlp
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps, intersect_box

# Largest difference over largest value. float32 on both sides, sums in another order: the error
# of a sum of 64 products is about sqrt(64) * 6e-8; gradients sum over a thousand samples.
OUTPUTS, GRADIENTS = 2e-6, 1e-5
SIZES = [0, 1, 17, 1000]
PAIRS = NetSpec(GridSpec(16, 2, 12, 8, 256))
QUADS = NetSpec(GridSpec(8, 4, 12, 8, 256), width=32, n_color_hidden=1, n_embedding=16)
SINGLES = NetSpec(GridSpec(16, 1, 10, 4, 64), width=16, n_color_hidden=3)
EIGHTS = NetSpec(GridSpec(2, 8, 10, 4, 2000), width=128, n_embedding=32)
NETS = [PAIRS, QUADS, SINGLES, EIGHTS]
NAMES = ["16x2", "8x4+16", "16x1", "2x8+32"]
CPU, TORCH = CpuBackend(), Backend()

BOX = Box((0.1, 0.0, -0.05), 1.0)
UNIT = BoxSpace(Box((0.5, 0.5, 0.5), 0.5))  # in which positions are those of the grid
# a turn by right angles: products with 0 and 1 are exact, so that both sides round alike
_TURN = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SPACES: list[Space] = [
    BoxSpace(Box((0.1, 0.0, -0.05), 1.0, 2)),
    ContractedSpace(BOX),
    PerspectiveSpace(BOX, _TURN, (-2.0, 0.1, 0.2), 0.5, (0.6, 0.4)),
]
_C, _S = math.cos(0.3), math.sin(0.3)
TURNED = PerspectiveSpace(
    BOX, (_C, 0.0, _S, 0.0, 1.0, 0.0, -_S, 0.0, _C), (0.0, 0.1, -2.0), 0.5, (0.6, 0.4)
)
SPACE_NAMES = [space.kind for space in SPACES]


@pytest.fixture(autouse=True, params=["avx512", "avx2", "base"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set that this processor has, uninitialised memory full of NaN."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    if not library.kernels().nerf_cpu_use(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(*size: int, **options: torch.dtype) -> Tensor:
        out = empty(*size, **options)  # pyright: ignore
        return out.fill_(float("nan") if out.is_floating_point() else 2**40)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda t: empty_like(t).fill_(float("nan")))
    yield request.param
    library.kernels().nerf_cpu_use(None)
    torch.set_num_threads(threads)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def field(spec: NetSpec, space: Space, scale: float = 0.5) -> Network:
    g = generator(0)
    table = torch.randn(spec.grid.n_params, generator=g) * scale
    params = NetParams(table, init_mlp(spec.density_widths, g), init_mlp(spec.color_widths, g))
    return Network(spec, params, space)


def zeros_like(network: Network) -> NetParams:
    return NetParams(*(torch.zeros_like(p) for p in network.params.tensors()))


def is_clear(u: Tensor, spec: GridSpec) -> Tensor:
    """Which unit positions [n, 3] keep away from where the slope of a level jumps, [n] bool.

    A rounding of a position would otherwise decide which slope is the right one.
    """
    scales = torch.tensor([level.scale for level in spec.levels])
    fraction = (u[:, :, None] * scales + 0.5) % 1.0
    return ((fraction - 0.5).abs() < 0.499).all(-1).all(-1)


def unit_points(n: int, spec: GridSpec) -> Tensor:
    u = torch.rand(4 * n, 3, generator=generator(1))
    u[:1], u[1:2] = 1.0, 0.0  # corners of the cube
    return u[is_clear(u, spec)][:n]


def points(n: int, spec: NetSpec, space: Space = UNIT) -> tuple[Tensor, Tensor]:
    """Positions, some of them beyond the cube, and inputs of their rays."""
    g = generator(2)
    positions = space.from_unit(0.002 + 0.996 * torch.rand(4 * n, 3, generator=g))
    positions[::8] *= 3
    positions = positions[is_clear(space.to_unit(positions), spec.grid)][:n]
    directions = normalize(torch.randn(n, 3, generator=g), dim=1)
    embedding = torch.randn(n, spec.n_embedding, generator=g)
    return positions, torch.cat([TORCH.spherical_harmonics(directions), embedding], 1)


def assert_near(got: Tensor | None, want: Tensor | None, limit: float) -> None:
    assert got is not None and want is not None
    got, want = got.detach(), want.detach()
    assert got.shape == want.shape
    assert got.isfinite().all()
    if want.numel():
        error = ((got - want).abs().max() / want.abs().max().clamp(min=1e-20)).item()
        assert error <= limit, f"differs by {error:.2g} of the largest value, limit {limit:.2g}"


class Bundle:
    """Rays through an occupancy grid."""

    def __init__(self, n_rays: int, n_cascades: int = 1, cone: float = 0.0, size: int = 32) -> None:
        g = generator(2)
        self.box = Box((0.1, 0.0, -0.05), 1.0, n_cascades)
        self.space = BoxSpace(self.box)
        origins = 4 * normalize(torch.randn(n_rays, 3, generator=g), dim=1)
        directions = 0.15 * torch.randn(n_rays, 3, generator=g) - origins / 4
        directions[: n_rays // 8, 2] = 0.0  # along a plane of the grid
        self.rays = Rays(origins, normalize(directions, dim=1))
        self.bounds = intersect_box(self.rays, self.box, 0.05, 20.0)
        self.jitter = torch.rand(n_rays, generator=g)
        shape = (n_cascades, size, size, size)
        occupied = torch.rand(shape, generator=g) < 0.2
        occupied[:, : size // 2] = False  # so that there is something to skip
        self.grid = MarchingGrid(occupied, self.box, Steps(2 * 3**0.5 / 256, cone))
        target, background = torch.rand(2, n_rays, 3, generator=g)
        self.batch = Batch(self.rays, target, background)

    def march(self, backend: Backend) -> Samples:
        return backend.march(self.rays, self.bounds, self.jitter, self.grid)

    def widen(self, most: float = 0.05) -> None:
        """Make cones of the rays, of random width; some have none."""
        radii = most * torch.rand(len(self.rays), generator=generator(9))
        radii[::8] = 0.0
        self.rays = replace(self.rays, radii=radii)
        self.batch = replace(self.batch, rays=self.rays)
