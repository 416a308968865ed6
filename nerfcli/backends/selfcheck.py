"""Whether a backend gives what the reference gives, on a small random field.

Outputs, and gradients under random cotangents. `auto` asks before it trusts a GPU backend for the
first time (verdicts.py), the benchmark before it times one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nerfcli.backends.ops import Ops, reference
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import Rays
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Steps, intersect_box
from nerfcli.scenes.views import Views

# Relative error, ||got - want|| / ||want||. Half precision is within 1 % of the reference, a
# forgotten corner, sample or layer is not.
LIMIT = 0.05
N_RAYS = 128
N_POINTS = 1000
NET = NetSpec(GridSpec(16, 2, 12, 16, 256))
BOX = Box((0.2, -0.1, 0.3), 0.7, 2)
STEPS = Steps(0.15, 0.02)

Pairs = Iterator[tuple[str, Tensor, Tensor]]  # op, what it gave, what the reference gives


class Case:
    """A cloudy random field, rays through it, and numbers to go with them."""

    def __init__(self, device: str, net: NetSpec | None = None) -> None:
        self.device, self.generator = device, torch.Generator().manual_seed(0)
        self.net = net = net or NET
        sizes = (net.grid.n_params, *map(mlp_n_params, (net.density_widths, net.color_widths)))
        self.params = NetParams(*(0.3 * self.normal(n) for n in sizes))
        away = self.normal(N_RAYS, 3)
        origins = 4 * away / away.norm(dim=1, keepdim=True)
        directions = 0.4 * self.normal(N_RAYS, 3) - origins
        self.rays = Rays(origins, directions / directions.norm(dim=1, keepdim=True))
        self.bounds = intersect_box(origins, self.rays.directions, BOX, 0.1, 10.0)
        self.jitter = self.uniform(N_RAYS)
        self.occupied = self.uniform(2, 16, 16, 16) < 0.5
        self.background, self.target = self.uniform(N_RAYS, 3), self.uniform(N_RAYS, 3)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator).to(self.device)

    def march(self, ops: Ops) -> Samples:
        rays = (self.rays.origins, self.rays.directions)
        return ops.march(*rays, *self.bounds, self.jitter, self.occupied, BOX, STEPS)

    def leaves(self) -> NetParams:
        return NetParams(*(p.clone().requires_grad_() for p in self.params.tensors()))


def fault(ops: Ops, device: str) -> str | None:
    """In what `ops` differs from the reference on `device`, in words; None if in nothing."""
    for name, error in differences(ops, device):
        if not error <= LIMIT:
            return f"{name} differs from the reference by {error:.0%}"
    return None


def differences(ops: Ops, device: str, net: NetSpec | None = None) -> Iterator[tuple[str, float]]:
    """(operation, relative error) of everything that is compared, as it is computed.

    Args:
        net: the shape of the field; NET unless given.
    """
    want, case = reference(), Case(device, net)
    checks = [_encodings, _networks, _marching, _compositing, _training, _rendering, _optimising]
    if ops.march_within is not None:
        checks += [_drawing, _marching_within, _training_some, _optimising_by_rates, _adapting]
    for check in checks:
        for name, mine, right in check(ops, want, case):
            mine, right = mine.detach().double(), right.detach().double()
            yield name, float((mine - right).norm() / right.norm().clamp(min=1e-30))


def _gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor], case: Case) -> list[Tensor]:
    """d leaves for cotangents that depend on the shapes alone."""
    case.generator.manual_seed(1)
    cotangents = [case.normal(*o.shape) for o in outputs]
    return list(torch.autograd.grad(list(outputs), list(leaves), cotangents))


def _encodings(ops: Ops, want: Ops, case: Case) -> Pairs:
    directions, positions = case.rays.directions, case.uniform(N_POINTS, 3)
    yield (
        "spherical_harmonics",
        ops.spherical_harmonics(directions),
        want.spherical_harmonics(directions),
    )
    table = case.params.table.clone().requires_grad_()
    mine, right = (o.hash_grid(positions, table, case.net.grid) for o in (ops, want))
    yield "hash_grid", mine, right
    (mine,), (right,) = (_gradients([o], [table], case) for o in (mine, right))
    yield "the gradient of hash_grid", mine, right


def _networks(ops: Ops, want: Ops, case: Case) -> Pairs:
    positions, directions = case.uniform(N_POINTS, 3), case.normal(N_POINTS, 3)
    directions = directions / directions.norm(dim=1, keepdim=True)
    inputs, weights = case.normal(N_POINTS, case.net.color_widths[0]), case.params.color
    mine, right = (o.mlp(inputs, weights, case.net.color_widths) for o in (ops, want))
    yield "mlp", mine, right
    mine, right = (o.density(positions, case.params, case.net) for o in (ops, want))
    yield "density", mine, right
    leaves = case.leaves()
    mine, right = (o.radiance(positions, directions, leaves, case.net) for o in (ops, want))
    for a, b in zip(mine, right, strict=True):
        yield "radiance", a, b
    mine, right = (_gradients(o, leaves.tensors(), case) for o in (mine, right))
    for a, b in zip(mine, right, strict=True):
        yield "the gradient of radiance", a, b


def _marching(ops: Ops, want: Ops, case: Case) -> Pairs:
    mine, right = case.march(ops), case.march(want)
    yield "march", mine.ray_offsets, right.ray_offsets
    # a step on the edge of a cell may fall to either side, so sums are compared, not entries
    a, b = (torch.stack([s.t_starts.sum(), s.t_ends.sum()]) for s in (mine, right))
    yield "march", a, b


def _pixel_pairs(name: str, mine: Pixels, right: Pixels) -> Pairs:
    for field in ("rgb", "opacity", "depth", "median_depth"):
        yield f"{name} ({field})", getattr(mine, field), getattr(right, field)


def _compositing(ops: Ops, want: Ops, case: Case) -> Pairs:
    samples = case.march(want)
    sigmas = (3 * case.uniform(samples.capacity)).requires_grad_()
    rgbs = case.uniform(samples.capacity, 3).requires_grad_()
    mine, right = (o.composite(sigmas, rgbs, samples, case.background) for o in (ops, want))
    yield from _pixel_pairs("composite", mine, right)
    grads = (_gradients([p.rgb, p.opacity, p.depth], [sigmas, rgbs], case) for p in (mine, right))
    for a, b in zip(*grads, strict=True):
        yield "the gradient of composite", a, b


def _training(ops: Ops, want: Ops, case: Case) -> Pairs:
    samples, results = case.march(want), []
    for o in (ops, want):
        grads = NetParams(*(torch.zeros_like(p) for p in case.params.tensors()))
        terms = o.photometric_gradients(
            case.params, grads, case.net, BOX, case.rays, samples, case.target, case.background,
            min_transmittance=0.05,
        )  # fmt: skip
        results.append((terms.loss, terms.mse, terms.n_kept, *grads.tensors()))
    for a, b in zip(*results, strict=True):
        yield "photometric_gradients", a, b


def _rendering(ops: Ops, want: Ops, case: Case) -> Pairs:
    march = (*case.bounds, case.jitter, case.occupied, STEPS, case.background)
    mine, right = (
        o.render_rays(case.params, case.net, BOX, case.rays, *march) for o in (ops, want)
    )
    yield from _pixel_pairs("render_rays", mine, right)


def _drawing(ops: Ops, want: Ops, case: Case) -> Pairs:
    """Rays of a step through two views of half-transparent noise; half of them count."""
    assert ops.draw is not None
    device, size = torch.device(case.device), torch.tensor([[20, 12]]).expand(2, 2)
    eye = torch.eye(3).double()
    c2w = torch.stack([torch.cat([turn, -3 * turn[:, 2:]], 1) for turn in (eye, eye.roll(1, 0))])
    focal = torch.full((2, 2), 25.0, dtype=torch.float64)
    cameras = Cameras(c2w, focal, size / 2.0, size, (Lens(), Lens()))
    areas = torch.tensor([0, 240, 480])
    pixels = (256 * case.uniform(480, 4)).to(torch.uint8)
    views = Views(pixels, areas, torch.arange(2), size[:, 0].contiguous()).to(case.device)
    u, counted = case.uniform(N_RAYS).double(), torch.tensor(N_RAYS // 2, device=device)
    mine = ops.draw(views, cameras, u, case.background, BOX, 0.1, 10.0, counted)
    flat = views.draw(u)
    rays = cameras.rays(views.locate(flat))
    colors = views.colors(flat)
    target = torch.lerp(case.background, colors[:, :3], colors[:, 3:])
    t_min, t_max = intersect_box(rays.origins, rays.directions, BOX, 0.1, 10.0)
    counts = torch.arange(N_RAYS, device=device) < counted
    right = (rays.origins, rays.directions, target, t_min, torch.where(counts, t_max, t_min))
    for a, b in zip((mine[0].origins, mine[0].directions, *mine[1:]), right, strict=True):
        yield "draw", a, b


def _adapting(ops: Ops, want: Ops, case: Case) -> Pairs:
    """A running mean of 10 samples a ray sees 20, and a budget of 1200 samples."""
    assert ops.adapt is not None
    rate = torch.full((), 10.0, device=case.device)
    wanted, n_rays, n_kept = (torch.tensor(n, device=case.device) for n in (0, 50, 1000))
    ops.adapt(rate, wanted, n_rays, n_kept, n_samples=1200, memory=0.8, limits=(1, 999))
    found, right = torch.stack([rate, wanted.float()]), torch.tensor([12.0, 100.0])
    yield "adapt", found, right.to(case.device)


def _marching_within(ops: Ops, want: Ops, case: Case) -> Pairs:
    assert ops.march_within is not None
    whole = case.march(want)
    capacity = whole.capacity * 3 // 4
    right, n_right = _first_rays(whole, capacity)
    march = (*case.bounds, case.jitter, case.occupied, BOX, STEPS, capacity)
    mine, n_mine = ops.march_within(case.rays.origins, case.rays.directions, *march)
    yield "march_within", n_mine.reshape(1), torch.tensor([n_right], device=case.device)
    yield "march_within", mine.ray_offsets, right.ray_offsets
    a, b = (
        torch.stack([t[: int(s.ray_offsets[-1])].sum() for t in (s.t_starts, s.t_ends)])
        for s in (mine, right)
    )
    yield "march_within", a, b


def _first_rays(samples: Samples, capacity: int) -> tuple[Samples, int]:
    """Those whose samples fit into `capacity` places; the rest of these are NaN."""
    offsets = samples.ray_offsets
    n = int((offsets[1:] <= capacity).sum())
    starts, ends = torch.full((2, capacity), torch.nan, device=offsets.device)
    live = int(offsets[n])
    starts[:live], ends[:live] = samples.t_starts[:live], samples.t_ends[:live]
    return Samples(starts, ends, offsets.clamp(max=live)), n


def _training_some(ops: Ops, want: Ops, case: Case) -> Pairs:
    """Only the first rays count, and only the device knows how many."""
    whole = case.march(want)
    padded, n = _first_rays(whole, whole.capacity * 3 // 4)
    live = int(padded.ray_offsets[-1])
    short = Samples(padded.t_starts[:live], padded.t_ends[:live], padded.ray_offsets[: n + 1])
    results = []
    for o, samples, part, options in (
        (ops, padded, slice(None), {"n_live": torch.tensor(n, device=case.device)}),
        (want, short, slice(n), {}),
    ):
        grads = NetParams(*(torch.zeros_like(p) for p in case.params.tensors()))
        terms = o.photometric_gradients(
            case.params, grads, case.net, BOX, case.rays[part], samples, case.target[part],
            case.background[part], min_transmittance=0.05, **options,
        )  # fmt: skip
        results.append((terms.loss, terms.mse, terms.n_kept, *grads.tensors()))
    for a, b in zip(*results, strict=True):
        yield "photometric_gradients of some rays", a, b


def _optimising(ops: Ops, want: Ops, case: Case) -> Pairs:
    grads = case.normal(3000) * (case.uniform(3000) < 0.3)
    start, results = case.normal(3000), []
    for o in (ops, want):
        state = [start.clone(), grads.clone(), *torch.zeros(2, 3000, device=case.device)]
        ema = start.clone()
        o.adam_step(*state, step=1, lr=0.1, weight_decay=0.01, ema=ema, ema_decay=0.5)
        results.append((state[0] - start, *state[1:], ema - start))
    for a, b in zip(*results, strict=True):
        yield "adam_step", a, b
    # a backend may read a copy of the table, which has to follow
    positions, table = case.uniform(N_POINTS, 3), case.params.table.clone()
    ops.hash_grid(positions, table, case.net.grid)
    grads, m, v = case.normal(table.numel()), *torch.zeros(2, table.numel(), device=case.device)
    ops.adam_step(table, grads, m, v, step=1, lr=0.1)
    mine, right = (o.hash_grid(positions, table, case.net.grid) for o in (ops, want))
    yield "hash_grid after adam_step", mine, right


def _optimising_by_rates(ops: Ops, want: Ops, case: Case) -> Pairs:
    """Learning rate and step are numbers on the device."""
    step, lr = 7, 0.1
    rates = torch.tensor([lr, 1 - 0.9**step, 1 - 0.99**step], device=case.device)
    grads, start, results = case.normal(1000), case.normal(1000), []
    for o, options in ((ops, {"rates": rates}), (want, {"step": step, "lr": lr})):
        state = [start.clone(), grads.clone(), *torch.zeros(2, 1000, device=case.device)]
        o.adam_step(*state, **options)
        results.append((state[0] - start, *state[1:]))
    for a, b in zip(*results, strict=True):
        yield "adam_step by rates", a, b
