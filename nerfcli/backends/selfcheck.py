"""The check that `auto` makes before it trusts a GPU backend for the first time.

Every op is compared with the reference on a small random field: outputs, and gradients under
random cotangents. The verdict is remembered per GPU, driver, torch, triton and state of our
sources, in the user's cache folder. The check runs in a process of its own: a broken kernel may
take the CUDA context, or the process, with it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from nerfcli.backends.ops import Ops, reference
from nerfcli.boxes import Box
from nerfcli.encoding import GridSpec
from nerfcli.errors import NerfError
from nerfcli.files import read_json, write_json
from nerfcli.mlp import mlp_n_params
from nerfcli.radiance import NetParams, NetSpec
from nerfcli.rays import Pixels, Rays, Samples
from nerfcli.sampling import Steps, intersect_box

# Relative error, ||got - want|| / ||want||. Half precision is within 1 % of the reference, a
# forgotten corner, sample or layer is not.
LIMIT = 0.05
N_RAYS = 128
N_POINTS = 1000
SECONDS = 300  # after which the check counts as hanging; most of it is for the compiler
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
    checks = (_encodings, _networks, _marching, _compositing, _training, _rendering, _optimising)
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


def verdict(
    name: str, device: str, note: Callable[[str], None] | None = None, path: Path | None = None
) -> str | None:
    """Why backend `name` is not to be trusted on `device`, in words; None if it is.

    Args:
        note: told when the check really runs, which takes a while.
        path: of the remembered verdicts; in the user's cache folder unless given.
    """
    path = path or cache_folder() / "selfcheck.json"
    key = f"{name} | {environment(device)}"
    try:
        known = read_json(path)
    except NerfError:  # not there yet, or broken
        known = {}
    if not isinstance(known, dict):
        known = {}
    if key not in known:
        if note is not None:
            note(f"backend {name}: first use on this machine, compiling and checking its kernels")
        known[key] = examine(name, device)
        try:
            write_json(path, known)
        except NerfError as error:  # a read-only home: the check runs again next time
            if note is not None:
                note(f"the verdict on backend {name} is not remembered: {error}")
    return known[key]


def examine(name: str, device: str, command: Sequence[str] = ()) -> str | None:
    """`fault` of a backend by name, in a process of its own."""
    code = f"from nerfcli.backends import selfcheck; selfcheck.report({name!r}, {device!r})"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    try:
        done = subprocess.run(
            command or [sys.executable, "-c", code],
            env=environ, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its self-check was not done after {SECONDS} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"its self-check failed ({last.strip().rstrip('.')})"


def report(name: str, device: str) -> None:
    """Print the fault of a backend as JSON; what `examine` runs."""
    ops = importlib.import_module(f"nerfcli.backends.ops_{name}").load()
    print(json.dumps(fault(ops, device)))


def environment(device: str) -> str:
    """What a verdict holds for: GPU, driver, libraries, and our own sources."""
    gpu = "cpu"
    if device == "cuda":
        gpu = f"{torch.cuda.get_device_name()} | driver {driver()}"
    triton = next((d.version for d in metadata.distributions(name="triton")), "none")
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return f"{gpu} | torch {torch.__version__} | triton {triton} | {digest.hexdigest()[:16]}"


def driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:  # not Linux, or a driver that keeps no such file
        return "unknown"
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found.group() if found else "unknown"


def cache_folder() -> Path:
    """The user's folder for what can be computed again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nerfcli"
