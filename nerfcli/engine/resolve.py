"""The values of a config that are left to the scene and the device."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from nerfcli.core.config import Config, ModelConfig, SamplingConfig, SceneConfig, TrainConfig
from nerfcli.core.devices import pick
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Scene

METHODS = ("hashgrid", "classic")
DEFAULT_MINUTES = 2.0
LOG2_TABLE_SIZE = {"cpu": 17, "cuda": 19}  # of the grid's largest levels
N_SAMPLES = {"cpu": 2**15, "cuda": 2**18}  # of a step
# Peak learning rate of hashgrid at 2^15 samples a step; Adam's best rate goes with the root of the
# batch (Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms").
LR, LR_MOST = 0.01, 0.04
CLASSIC_RAYS = {"cpu": 1024, "cuda": 4096}  # of a step; the paper's batch on a GPU
STEP_PIXELS = 1.4  # a marching step's length, in pixels as seen at the box's centre


def resolve(config: Config, scene: Scene) -> Config:
    """Fill in every auto value from the scene and the device.

    Raises:
        NerfError: an unknown method, loss or device, or cuda where there is none.
    """
    device = pick(config.device)
    method = _method(config.model.method)
    finest = detail_pixels(scene)
    train = _train(config.train, method, device)
    cells = config.occupancy.cells or 4 * train.n_samples
    return replace(
        config,
        device=device,
        model=_model(config.model, method, device, scene, finest),
        sampling=_sampling(config.sampling, finest),
        train=train,
        occupancy=replace(config.occupancy, cells=cells),
        scene=_scene(config.scene, scene),
    )


def _method(name: str) -> str:
    if name == "auto":
        return "hashgrid"
    if name not in METHODS:
        raise NerfError(
            f"model.method: unknown method {name!r}; known: auto, {', '.join(METHODS)}."
        )
    return name


def _model(
    model: ModelConfig, method: str, device: str, scene: Scene, finest: float
) -> ModelConfig:
    resolution = grid_resolution(finest) * 2 ** (scene.box.n_cascades - 1)
    return replace(
        model,
        method=method,
        log2_table_size=model.log2_table_size or LOG2_TABLE_SIZE[device],
        max_resolution=model.max_resolution or resolution,
        width=model.width or (256 if method == "classic" else 64),
    )


def _sampling(sampling: SamplingConfig, finest: float) -> SamplingConfig:
    steps = int(min(1024, max(128, finest * 3**0.5 / STEP_PIXELS)))
    return replace(sampling, steps_per_box=sampling.steps_per_box or steps)


def _train(train: TrainConfig, method: str, device: str) -> TrainConfig:
    classic = method == "classic"
    n_samples = train.n_samples or N_SAMPLES[device]
    lr = 5e-4 if classic else min(LR_MOST, LR * math.sqrt(n_samples / 2**15))
    return replace(
        train,
        minutes=train.minutes or (0.0 if train.steps else DEFAULT_MINUTES),
        n_rays=train.n_rays or CLASSIC_RAYS[device],
        n_samples=n_samples,
        lr=train.lr or lr,
        lr_final=train.lr_final or (0.1 if classic else 0.02),
        loss=("mse" if classic else "huber") if train.loss == "auto" else train.loss,
    )


def _scene(wanted: SceneConfig, scene: Scene) -> SceneConfig:
    background = wanted.background
    if background == "auto":
        background = "black" if scene.background == "none" else scene.background
    if background not in ("white", "black"):
        raise NerfError(
            f"scene.background: unknown background {background!r}; use auto, white or black."
        )
    return replace(
        wanted,
        downscale=scene.downscale,
        background=background,
        near=scene.near,
        far=scene.far,
        cascades=scene.box.n_cascades,
    )


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
