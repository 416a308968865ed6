"""Whether a backend gives what the reference gives, on a small random field.

Outputs, and gradients under random cotangents. `auto` asks before it trusts a GPU backend for the
first time (selfcheck_cache.py), the benchmark before it times one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import MarchingGrid, Steps
from nerfcli.scenes.views import Views

# Relative error, ||got - want|| / ||want||. Half precision is within 1 % of the reference, a
# forgotten corner, sample or layer is not.
LIMIT = 0.05
N_RAYS = 128
N_POINTS = 1000
NET = NetSpec(GridSpec(16, 2, 12, 16, 256))
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
STEPS = Steps(0.15, 0.02)
FOG_STEP = 0.004  # of samples that nobody could see one by one
SPACES: tuple[Space, ...] = (
    BoxSpace(BOX, 0.1, 10.0),
    ContractedSpace(BOX, 0.1, 10.0),
    PerspectiveSpace(
        BOX, (0.8, 0.0, 0.6, 0.0, 1.0, 0.0, -0.6, 0.0, 0.8), (-3.0, 0.0, -3.5), 1.0, (0.6, 0.5),
        0.1, 10.0,
    ),
)  # fmt: skip

Pairs = Iterator[tuple[str, Tensor, Tensor]]  # op, what the backend gave, what the reference gives


class Case:
    """A cloudy random field, rays through it, and numbers to go with them."""

    def __init__(self, device: str, net: NetSpec | None = None) -> None:
        self.device, self.generator = device, torch.Generator().manual_seed(0)
        self.net = net = net or NET
        sizes = (net.grid.n_params, *map(mlp_n_params, (net.density_widths, net.color_widths)))
        self.params = NetParams(*(0.3 * self.normal(n) for n in sizes))
        self.network = Network(net, self.params, SPACES[0])
        away = self.normal(N_RAYS, 3)
        origins = 4 * away / away.norm(dim=1, keepdim=True)
        directions = 0.4 * self.normal(N_RAYS, 3) - origins
        self.rays = Rays(origins, directions / directions.norm(dim=1, keepdim=True))
        self.bounds = SPACES[0].bounds(self.rays)
        self.jitter = self.uniform(N_RAYS)
        self.grid = MarchingGrid(self.uniform(2, 16, 16, 16) < 0.5, BOX, STEPS)
        self.batch = Batch(self.rays, self.uniform(N_RAYS, 3), self.uniform(N_RAYS, 3))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator).to(self.device)

    def positions(self, space: Space) -> Tensor:
        """Scene positions that spread over the unit cube of a space, [N_POINTS, 3].

        None lies near a face of a grid cell, where the gradient jumps and rounding decides.
        """
        unit = 0.02 + 0.96 * self.uniform(2 * N_POINTS, 3)
        scales = torch.tensor([level.scale for level in self.net.grid.levels], device=unit.device)
        fractions = (unit[..., None] * scales + 0.5).frac()
        inside = ((fractions - 0.5).abs() < 0.498).flatten(1).all(1)
        return space.from_unit(unit[inside][:N_POINTS])

    def march(self, backend: Backend) -> Samples:
        return backend.march(self.rays, self.bounds, self.jitter, self.grid)

    def leaves(self) -> NetParams:
        return NetParams(*(p.clone().requires_grad_() for p in self.params.tensors()))

    def zeros(self) -> NetParams:
        return NetParams(*(torch.zeros_like(p) for p in self.params.tensors()))


def find_fault(backend: Backend, device: str) -> str | None:
    """The first mismatch of `backend` with the reference on `device`, or None."""
    for name, error in differences(backend, device):
        if not error <= LIMIT:
            percent = f"{error:.0%}" if error >= 0.01 else f"{error:.2%}"
            return f"{name} differs from the reference by {percent}"
    return None


def differences(
    backend: Backend, device: str, net: NetSpec | None = None
) -> Iterator[tuple[str, float]]:
    """(operation, relative error) of everything that is compared, as it is computed.

    Args:
        net: the shape of the field; NET unless given.
    """
    reference, case = Backend(), Case(device, net)
    checks = (
        _encodings, _networks, _spaces, _ray_inputs, _marching, _compositing, _training,
        _fog, _ray_gradients, _rendering, _rendering_fog, _optimising, _drawing, _marching_within,
        _training_some, _optimising_by_rates, _adapting, _cones,
    )  # fmt: skip
    for check in checks:
        for name, got, want in check(backend, reference, case):
            got, want = got.detach().double(), want.detach().double()
            yield name, float((got - want).norm() / want.norm().clamp(min=1e-30))


def _gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor], case: Case) -> list[Tensor]:
    """d leaves for cotangents that depend on the shapes alone."""
    case.generator.manual_seed(1)
    cotangents = [case.normal(*o.shape) for o in outputs]
    return list(torch.autograd.grad(list(outputs), list(leaves), cotangents))


def _encodings(backend: Backend, reference: Backend, case: Case) -> Pairs:
    directions = case.rays.directions
    positions = SPACES[0].to_unit(case.positions(SPACES[0]))
    table = case.params.table.clone()
    leaves = [t.requires_grad_() for t in (directions.clone(), positions, table)]
    results = []
    for b in (backend, reference):
        harmonics = b.spherical_harmonics(leaves[0])
        features = b.hash_grid(leaves[1], leaves[2], case.net.grid)
        grads = _gradients([harmonics, features], leaves, case)
        results.append((harmonics, features, *grads))
    names = ("spherical_harmonics", "hash_grid")
    gradients = ("spherical_harmonics", "hash_grid in positions", "hash_grid")
    names += tuple(f"the gradient of {n}" for n in gradients)
    yield from zip(names, *results, strict=True)


def _networks(backend: Backend, reference: Backend, case: Case) -> Pairs:
    positions = case.positions(SPACES[0])
    ray_inputs = case.normal(N_POINTS, case.net.n_ray_inputs)
    inputs, weights = case.normal(N_POINTS, case.net.color_widths[0]), case.params.color
    got, want = (b.mlp(inputs, weights, case.net.color_widths) for b in (backend, reference))
    yield "mlp", got, want
    got, want = (b.density(case.network, positions) for b in (backend, reference))
    yield "density", got, want
    leaves = case.leaves()
    network = replace(case.network, params=leaves)
    got, want = (b.radiance(network, positions, ray_inputs) for b in (backend, reference))
    for a, b in zip(got, want, strict=True):
        yield "radiance", a, b
    got, want = (_gradients(o, leaves.tensors(), case) for o in (got, want))
    for a, b in zip(got, want, strict=True):
        yield "the gradient of radiance", a, b


def _spaces(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Density, colour and their gradients in positions, under each map into the unit cube."""
    ray_inputs = case.normal(N_POINTS, case.net.n_ray_inputs)
    for space in SPACES:
        positions = case.positions(space).requires_grad_()
        network = replace(case.network, space=space)
        results: list = []
        for b in (backend, reference):
            outputs = b.radiance(network, positions, ray_inputs)
            results.append((*outputs, *_gradients(outputs, [positions], case)))
        results[0], results[1] = map(list, results)
        results[0][2], results[1][2] = _leave_out_jumps(results[0][2], results[1][2])
        for part, got, want in zip(("density", "colour", "gradient"), *results, strict=True):
            yield f"radiance in {space.kind} ({part} of positions)", got, want


def _leave_out_jumps(got: Tensor, want: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the hundredth of the rows that differs most.

    The gradient jumps where a neuron begins to fire and between cells of the grid. Which side
    such a point falls to is a matter of rounding.
    """
    rows = (got - want).norm(dim=1).argsort()[: len(got) - len(got) // 100]
    return got[rows], want[rows]


def _ray_inputs(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """An embedding beside the harmonics, and the gradient in both."""
    net = replace(case.net, n_embedding=16)
    color = 0.3 * case.normal(mlp_n_params(net.color_widths))
    network = Network(net, replace(case.params, color=color), SPACES[0])
    positions = case.positions(SPACES[0])
    ray_inputs = case.normal(N_POINTS, net.n_ray_inputs).requires_grad_()
    results = []
    for b in (backend, reference):
        sigmas, rgbs = b.radiance(network, positions, ray_inputs)
        results.append((rgbs, *_gradients([sigmas + rgbs.sum(1)], [ray_inputs], case)))
    yield from zip(("radiance of ray inputs", "its gradient"), *results, strict=True)


def _marching(backend: Backend, reference: Backend, case: Case) -> Pairs:
    got, want = case.march(backend), case.march(reference)
    yield "march", got.ray_offsets, want.ray_offsets
    # a step on the edge of a cell may fall to either side, so sums are compared, not entries
    a, b = (torch.stack([s.t_starts.sum(), s.t_ends.sum()]) for s in (got, want))
    yield "march", a, b


def _pixel_pairs(name: str, got: Pixels, want: Pixels) -> Pairs:
    for field in ("rgb", "opacity", "depth", "median_depth"):
        yield f"{name} ({field})", getattr(got, field), getattr(want, field)


def _compositing(backend: Backend, reference: Backend, case: Case) -> Pairs:
    samples, background = case.march(reference), case.batch.background
    sigmas = (3 * case.uniform(samples.capacity)).requires_grad_()
    rgbs = case.uniform(samples.capacity, 3).requires_grad_()
    got, want = (b.composite(sigmas, rgbs, samples, background) for b in (backend, reference))
    yield from _pixel_pairs("composite", got, want)
    grads = (_gradients([p.rgb, p.opacity, p.depth], [sigmas, rgbs], case) for p in (got, want))
    for a, b in zip(*grads, strict=True):
        yield "the gradient of composite", a, b


def _training(backend: Backend, reference: Backend, case: Case) -> Pairs:
    yield from _steps("step_gradients", backend, reference, case, case.network)


def _fog(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Density so thin that every sample counts."""
    density = case.params.density.clone()
    density[-case.net.n_geometry * case.net.width :] *= 0.05
    fog = replace(case.network, params=replace(case.params, density=density))
    yield from _steps("step_gradients in fog", backend, reference, case, fog)


def _steps(name: str, backend: Backend, reference: Backend, case: Case, network: Network) -> Pairs:
    samples, results = case.march(reference), []
    for b in (backend, reference):
        grads = case.zeros()
        out = b.step_gradients(
            network, grads, case.batch, samples, Objective(min_transmittance=0.05)
        )
        results.append((out.terms["photometric"], out.mse, out.n_kept, *grads.tensors()))
    for a, b in zip(*results, strict=True):
        yield name, a, b


def _ray_gradients(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Weights, gradients of the rays, and every loss term."""
    samples, results = case.march(reference), []
    batch = replace(case.batch, depth=4 * case.uniform(N_RAYS), weight=case.uniform(N_RAYS))
    objective = Objective("huber", 0.1, 0.2, 0.3)
    for b in (backend, reference):
        grads = case.zeros()
        out = b.step_gradients(
            case.network, grads, batch, samples, objective, with_weights=True, with_ray_grads=True
        )
        assert out.weights is not None and out.ray_grads is not None
        of_rays = (out.ray_grads.origins, out.ray_grads.directions, out.ray_grads.ray_inputs)
        terms = (out.terms[k] for k in ("photometric", "opacity", "depth", "distortion"))
        results.append((*terms, out.weights, *of_rays, *grads.tensors()))
    for a, b in zip(*results, strict=True):
        yield "step_gradients with gradients of rays", a, b


def _rendering(backend: Backend, reference: Backend, case: Case) -> Pairs:
    args = (case.network, case.rays, case.bounds, case.jitter, case.grid, case.batch.background)
    yield from _pixel_pairs("render_rays", *(b.render_rays(*args) for b in (backend, reference)))


def _rendering_fog(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """No sample alone can be seen, all together can; on black, where nothing else can."""
    density = case.params.density.clone()
    head = density[-case.net.n_geometry * case.net.width :][: case.net.width]  # of log density
    head.copy_(-head.abs())
    fog = replace(case.network, params=replace(case.params, density=density))
    logs = reference.density(fog, case.positions(SPACES[0])).mul(BOX.side).log()
    head.mul_(math.log(60) / -logs.mean())
    grid, some = replace(case.grid, steps=Steps(FOG_STEP)), slice(0, N_RAYS // 4)
    where = (case.rays[some], Bounds(*(t[some] for t in case.bounds)), case.jitter[some], grid)
    black = torch.zeros(3, device=case.device)
    got, want = (b.render_rays(fog, *where, black) for b in (backend, reference))
    yield from _pixel_pairs("render_rays in fog", got, want)


def _cones(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Levels of the grid fade where the cones of pixels are wide."""
    rays = replace(case.rays, radii=0.03 * case.uniform(N_RAYS))
    batch, samples, results = replace(case.batch, rays=rays), case.march(reference), []
    where = (case.bounds, case.jitter, case.grid, case.batch.background)
    for b in (backend, reference):
        grads = case.zeros()
        out = b.step_gradients(case.network, grads, batch, samples, Objective())
        pixels = b.render_rays(case.network, rays, *where)
        results.append((out.mse, pixels.rgb, *grads.tensors()))
    for a, b in zip(*results, strict=True):
        yield "step_gradients and render_rays of cones", a, b


def _drawing(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Rays of a step through two views of half-transparent noise; half of them count."""
    device, size = torch.device(case.device), torch.tensor([[20, 12]]).expand(2, 2)
    eye = torch.eye(3).double()
    c2w = torch.stack([torch.cat([turn, -3 * turn[:, 2:]], 1) for turn in (eye, eye.roll(1, 0))])
    focal = torch.full((2, 2), 25.0, dtype=torch.float64)
    cameras = Cameras(c2w, focal, size / 2.0, size, (Lens(), Lens()))
    areas = torch.tensor([0, 240, 480])
    pixels = (256 * case.uniform(480, 4)).to(torch.uint8)
    views = Views(pixels, areas, torch.arange(2), size[:, 0].contiguous()).to(case.device)
    u, counted = case.uniform(N_RAYS).double(), torch.tensor(N_RAYS // 2, device=device)
    results = []
    for b in (backend, reference):
        batch, bounds = b.draw(views, cameras, u, case.batch.background, SPACES[0], counted)
        assert batch.rays.cameras is not None
        rays = (batch.rays.origins, batch.rays.directions, batch.rays.cameras)
        results.append((*rays, batch.rgb, *bounds))
    for a, b in zip(*results, strict=True):
        yield "draw", a, b


def _adapting(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """A running mean of 10 samples a ray sees 20, and a budget of 1200 samples."""
    results = []
    for b in (backend, reference):
        rate = torch.full((), 10.0, device=case.device)
        wanted, n_rays, n_kept = (torch.tensor(n, device=case.device) for n in (0, 50, 1000))
        b.adapt(rate, wanted, n_rays, n_kept, n_samples=1200, memory=0.8, limits=(1, 999))
        results.append(torch.stack([rate, wanted.float()]))
    yield "adapt", *results


def _marching_within(backend: Backend, reference: Backend, case: Case) -> Pairs:
    capacity = case.march(reference).capacity * 3 // 4
    results = []
    for b in (backend, reference):
        samples, n_fit = b.march_within(case.rays, case.bounds, case.jitter, case.grid, capacity)
        live = int(samples.ray_offsets[-1])
        sums = [t[:live].sum() for t in (samples.t_starts, samples.t_ends)]
        results.append((n_fit.reshape(1), samples.ray_offsets, torch.stack(sums)))
    for a, b in zip(*results, strict=True):
        yield "march_within", a, b


def _training_some(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Only the first rays count, and only the device knows how many."""
    capacity = case.march(reference).capacity * 3 // 4
    samples, n_live = reference.march_within(
        case.rays, case.bounds, case.jitter, case.grid, capacity
    )
    live, results = int(samples.ray_offsets[-1]), []
    for padding in (samples.t_starts[live:], samples.t_ends[live:]):
        padding.fill_(torch.nan)  # nobody may read it
    for b in (backend, reference):
        grads, objective = case.zeros(), Objective(min_transmittance=0.05)
        out = b.step_gradients(case.network, grads, case.batch, samples, objective, n_live=n_live)
        results.append((out.terms["photometric"], out.mse, out.n_kept, *grads.tensors()))
    for a, b in zip(*results, strict=True):
        yield "step_gradients of some rays", a, b


def _optimising(backend: Backend, reference: Backend, case: Case) -> Pairs:
    grads = case.normal(3000) * (case.uniform(3000) < 0.3)
    config = AdamConfig(weight_decay=0.01, ema_decay=0.5)
    start, results = case.normal(3000), []
    for b in (backend, reference):
        params, own, ema = start.clone(), grads.clone(), start.clone()
        m, v = torch.zeros(2, 3000, device=case.device)
        b.adam_step(params, own, m, v, config, step=1, lr=0.1, ema=ema)
        results.append((params - start, own, m, v, ema - start))
    for a, b in zip(*results, strict=True):
        yield "adam_step", a, b
    # a backend may read a copy of the table, which has to follow
    positions, table = case.uniform(N_POINTS, 3), case.params.table.clone()
    backend.hash_grid(positions, table, case.net.grid)
    grads, m, v = case.normal(table.numel()), *torch.zeros(2, table.numel(), device=case.device)
    backend.adam_step(table, grads, m, v, AdamConfig(), step=1, lr=0.1)
    got, want = (b.hash_grid(positions, table, case.net.grid) for b in (backend, reference))
    yield "hash_grid after adam_step", got, want


def _optimising_by_rates(backend: Backend, reference: Backend, case: Case) -> Pairs:
    """Learning rate and step are numbers on the device."""
    step, lr, config = 7, 0.1, AdamConfig()
    rates = torch.tensor([lr, *config.bias_corrections(step)], device=case.device)
    grads, start, results = case.normal(1000), case.normal(1000), []
    for b in (backend, reference):
        params, own = start.clone(), grads.clone()
        m, v = torch.zeros(2, 1000, device=case.device)
        b.adam_step(params, own, m, v, config, rates=rates)
        results.append((params - start, own, m, v))
    for a, b in zip(*results, strict=True):
        yield "adam_step by rates", a, b
