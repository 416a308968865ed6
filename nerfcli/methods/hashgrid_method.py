"""Method hashgrid, put together: its settings by scene and device, and which trainer it takes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from nerfcli.backends.base import Backend
from nerfcli.core.config import Config
from nerfcli.core.distributed import world
from nerfcli.methods.base import Method
from nerfcli.methods.hashgrid import HashField
from nerfcli.methods.hashgrid_graph_trainer import GraphTrainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.scenes import Scene
from nerfcli.scenes.views import Views

LOG2_TABLE_SIZE = {"cpu": 17, "cuda": 19}  # of the grid's largest levels
N_SAMPLES = {"cpu": 2**15, "cuda": 2**18}  # of a step
# Peak learning rate at 2^15 samples a step; Adam's best rate goes with the root of the batch
# (Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms").
LR, LR_MOST = 0.01, 0.04
STEP_PIXELS = 1.4  # a marching step's length, in pixels as seen at the box's centre


def resolve(config: Config, scene: Scene, device: str) -> Config:
    """Fill in what the method's own settings leave to the scene and the device."""
    own, train, pixels = config.hashgrid, config.train, detail_pixels(scene)
    n_samples = own.n_samples or N_SAMPLES[device]
    resolution = grid_resolution(pixels) * 2 ** (scene.box.n_cascades - 1)
    lr = min(LR_MOST, LR * math.sqrt(n_samples / 2**15))
    own = replace(
        own,
        n_samples=n_samples,
        log2_table_size=own.log2_table_size or LOG2_TABLE_SIZE[device],
        max_resolution=own.max_resolution or resolution,
        steps_per_box=own.steps_per_box or steps_per_box(pixels),
        occupancy_cells=own.occupancy_cells or 4 * n_samples,
    )
    train = replace(
        train,
        lr=lr if train.lr is None else train.lr,
        lr_final=0.02 if train.lr_final is None else train.lr_final,
        loss=train.loss or "huber",
    )
    return replace(config, hashgrid=own, train=train)


def detail_pixels(scene: Scene) -> float:
    """How many pixels of the training views span the side of the detail cube (median)."""
    cameras = scene.cameras[list(scene.splits["train"])]
    centers = cameras.c2w[:, :, 3]
    distance = (centers - torch.tensor(scene.box.center, dtype=torch.float64)).norm(dim=1)
    distance = distance.clamp(min=scene.box.half_size)  # a camera inside sees at most this much
    return float((cameras.focal[:, 0] / distance).median()) * 2 * scene.box.half_size


def grid_resolution(pixels: float) -> int:
    """The finest level: about two cells a pixel, a power of two between 128 and 2048."""
    level = 128
    while level < 2 * pixels and level < 2048:
        level *= 2
    return level


def steps_per_box(pixels: float) -> int:
    """Marching steps along the diagonal of a detail cube whose side spans that many pixels."""
    return int(min(1024, max(128, pixels * 3**0.5 / STEP_PIXELS)))


def create_trainer(
    scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
) -> HashGridTrainer:
    """The trainer that never waits for the device, where backend and settings can do that."""
    composed = config.hashgrid.anti_aliasing or config.train.exposure or not world().is_alone
    kind = GraphTrainer if ops.is_asynchronous and not composed else HashGridTrainer
    return kind(scene, views, config, ops, generator)


HASHGRID = Method(
    name="hashgrid",
    resolve=resolve,
    create_field=HashField.create,
    create_trainer=create_trainer,
    hold=0.3,
    smaller_step="hashgrid.n_samples=65536",
    exports_on_gpu=True,
    has_exposure=True,
)
