"""Time whole training steps: rays, marching, gradients, Adam, and a share of occupancy updates.

The fastest backend learns a textured ball for a while. Then every backend goes on from that state
with the same rays, so all do the same work.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.bench.clock import Effort, wait
from nerfcli.bench.kernels import network_flop
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.core.config import Config, HashGridConfig, TrainConfig, known
from nerfcli.engine.resolve import resolve
from nerfcli.methods.hashgrid import net_spec
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.scenes import Scene
from nerfcli.scenes.scene import Similarity
from nerfcli.scenes.views import Views

SHAPES = ((16, 2), (8, 4))  # levels and features of an entry
LOG2_TABLE_SIZE = 17
N_SAMPLES = 2**15  # of a step
N_CAMERAS, SIZE, ANGLE = 16, 400, 0.7  # pixels a side; field of view in radians
DISTANCE = 4.0  # of the cameras; the ball's radius is 1
LR = 1e-2
SETTLE_SECONDS = 60.0  # where the fastest backend is slow, the scene settles less
WARM_STEPS = 2


@dataclass(frozen=True)
class TrainingRow:
    """Training steps of one backend with one shape of grid."""

    backend: str
    levels: int
    features: int
    log2_table_size: int
    samples: int  # of a step that light reaches, mean
    rays: int  # of a step, mean
    seconds: float  # of a step, median over blocks with an occupancy update each
    spread: float  # (slowest - fastest) / median
    samples_per_second: float
    gflops: float  # of the networks alone
    peak_share: float
    ratio_to_torch: float | None

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Settled:
    """A training state to go on from."""

    config: Config
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    extra: dict


def training_rows(
    backends: Sequence[tuple[str, Backend]], device: str, effort: Effort, peak: float
) -> Iterator[TrainingRow]:
    """Time these backends, the fastest first, a row each for each shape of grid.

    The rows of a shape come once all backends are timed, because each states its ratio to torch.
    """
    scene, views = ball_scene()
    for shape in SHAPES:
        config = config_of(scene, shape, effort)
        settled = settle(scene, views, config, backends[0][1], effort.settle_steps)
        rows = []
        for name, backend in backends:
            trainer = create(scene, views, settled, backend)
            rows.append(_time_steps(name, trainer, device, effort, peak))
        torch_rate = {row.backend: row.samples_per_second for row in rows}.get("torch")
        for row in rows:
            ratio = row.samples_per_second / torch_rate if torch_rate else None
            yield replace(row, ratio_to_torch=ratio)


def config_of(scene: Scene, shape: tuple[int, int], effort: Effort) -> Config:
    """Return the settings of a run with this shape of grid (levels, features)."""
    levels, features = shape
    own = HashGridConfig(
        n_levels=levels,
        n_features=features,
        log2_table_size=LOG2_TABLE_SIZE,
        n_samples=N_SAMPLES,
    )
    length = effort.settle_steps + effort.blocks * own.occupancy_every
    return resolve(Config("hashgrid", hashgrid=own, train=TrainConfig(steps=length)), scene)


def settle(scene: Scene, views: Views, config: Config, backend: Backend, n_steps: int) -> Settled:
    """Train until the empty space is known, so that steps resemble those of a long run."""
    trainer = HashGridTrainer(scene, views, config, backend, torch.Generator().manual_seed(0))
    trainer.begin(views)
    start = time.perf_counter()
    every = config.hashgrid.occupancy_every
    for _ in range(math.ceil(n_steps / every)):
        for _ in range(every):
            trainer.step(LR)
        if time.perf_counter() - start > SETTLE_SECONDS:
            break
    state = (trainer.model_state(), trainer.optimizer_state())
    model, optimizer = ({k: v.clone() for k, v in tensors.items()} for tensors in state)
    return Settled(config, model, optimizer, trainer.extra_state())


def create(scene: Scene, views: Views, settled: Settled, backend: Backend) -> HashGridTrainer:
    """Create a trainer at the settled state; all have the same random numbers."""
    generator = torch.Generator().manual_seed(1)
    trainer = HashGridTrainer(scene, views, settled.config, backend, generator)
    model, optimizer = (
        {name: tensor.clone() for name, tensor in tensors.items()}
        for tensors in (settled.model, settled.optimizer)
    )
    trainer.load(model, optimizer, dict(settled.extra))
    return trainer


def time_blocks(
    trainer: HashGridTrainer, device: str, every: int, effort: Effort
) -> tuple[list[float], int, int]:
    """Seconds a step in each block of `every` steps; rays and samples of all of them."""
    times: list[float] = []
    n_rays = n_samples = 0
    wait(device)
    begin = time.perf_counter()
    while len(times) < 2 or (
        len(times) < effort.blocks and time.perf_counter() - begin < effort.block_seconds
    ):
        start = time.perf_counter()
        for _ in range(every):
            result = trainer.step(LR)
            # not in place: a graph writes its counts over those of the step before
            n_rays, n_samples = n_rays + result.n_rays, n_samples + result.n_samples
        wait(device)
        times.append((time.perf_counter() - start) / every)
    return times, int(n_rays), int(n_samples)


def _time_steps(
    name: str, trainer: HashGridTrainer, device: str, effort: Effort, peak: float
) -> TrainingRow:
    every = trainer.config.hashgrid.occupancy_every
    for _ in range(WARM_STEPS):
        trainer.step(LR)
    times, n_rays, n_samples = time_blocks(trainer, device, every, effort)
    n_steps, seconds = every * len(times), statistics.median(times)
    samples = n_samples / n_steps
    rate = samples / seconds
    own = trainer.config.hashgrid
    gflops = 3 * rate * network_flop(net_spec(trainer.config.hashgrid))[1] / 1e9
    return TrainingRow(
        backend=name,
        levels=own.n_levels,
        features=own.n_features,
        log2_table_size=known(own.log2_table_size),
        samples=round(samples),
        rays=round(n_rays / n_steps),
        seconds=seconds,
        spread=(max(times) - min(times)) / seconds,
        samples_per_second=rate,
        gflops=gflops,
        peak_share=gflops / peak,
        ratio_to_torch=None,
    )


def ball_scene() -> tuple[Scene, Views]:
    """Make a scene of a textured unit ball, seen from all around, in RGBA like Blender's."""
    cameras = _cameras()
    pixels = torch.cat([_photo(cameras, i) for i in range(N_CAMERAS)])
    nothing = (None,) * N_CAMERAS
    everything = tuple(range(N_CAMERAS))
    scene = Scene(
        name="ball",
        path=None,
        kind="blender",
        names=tuple(f"ball_{i}.png" for i in everything),
        cameras=cameras,
        image_paths=nothing,
        mask_paths=nothing,
        alpha_paths=nothing,
        masked_where="black",
        splits={"train": everything, "val": (), "test": ()},
        box=Box((0.0, 0.0, 0.0), 1.1),
        near=2.0,
        far=6.0,
        background="white",
        has_alpha=True,
        scene_from_source=Similarity(),
        box_source="the ball",
    )
    offsets = torch.arange(N_CAMERAS + 1) * SIZE**2
    widths = torch.full((N_CAMERAS,), SIZE)
    return scene, Views(pixels, offsets, torch.arange(N_CAMERAS), widths)


def _cameras() -> Cameras:
    """Place cameras on a spiral over the sphere, looking at its middle."""
    index = torch.arange(N_CAMERAS, dtype=torch.float64)
    z, azimuth = 1.8 * (index + 0.5) / N_CAMERAS - 0.9, 2.4 * index
    across = (1 - z * z).sqrt()
    away = torch.stack([across * azimuth.cos(), across * azimuth.sin(), z], dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(away)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, away), dim=1)
    down = torch.linalg.cross(right, away)  # OpenCV: x right, y down, z forwards
    c2w = torch.stack([right, down, -away, DISTANCE * away], dim=2)
    focal = torch.full((N_CAMERAS, 2), 0.5 * SIZE / math.tan(0.5 * ANGLE), dtype=torch.float64)
    principal = torch.full((N_CAMERAS, 2), SIZE / 2, dtype=torch.float64)
    size = torch.full((N_CAMERAS, 2), SIZE)
    return Cameras(c2w, focal, principal, size, (Lens(),) * N_CAMERAS)


def _photo(cameras: Cameras, index: int) -> Tensor:
    """Render the ball from its closed form, [SIZE * SIZE, 4] uint8, transparent around it."""
    rays = cameras.image_rays(index)
    middle = -(rays.origins * rays.directions).sum(dim=1)
    inside = 1.0 - (rays.origins.square().sum(dim=1) - middle.square())
    points = rays.at((middle - inside.clamp(min=0.0).sqrt())[:, None])[:, 0]
    texture = 0.5 + 0.25 * torch.sin(40 * points) + 0.25 * points
    rgba = torch.cat([texture, torch.ones_like(texture[:, :1])], dim=1)
    rgba[inside <= 0] = 0.0
    return (rgba.clamp(0, 1) * 255).round().to(torch.uint8)
