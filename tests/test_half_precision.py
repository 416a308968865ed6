"""Whether the roundings of the GPU kernels cost quality: lego, learned with them and without.

NERF_DATA=... pytest -m slow -s tests/test_half_precision.py
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from half_precision import HalfBackend

from nerfcli.backends.base import Backend
from nerfcli.backends.cpu.backend import CpuBackend
from nerfcli.core.config import Config
from nerfcli.engine import train
from nerfcli.engine.image_metrics import psnr
from nerfcli.engine.render import to_uint8
from nerfcli.engine.schedule import learning_rate
from nerfcli.methods import METHODS
from nerfcli.methods.hashgrid_method import create_trainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.reference.radiance import NetParams
from nerfcli.scenes import load_scene
from nerfcli.scenes.image_cache import load_views
from nerfcli.scenes.views import over_background

STEPS = int(os.environ.get("NERF_STEPS", "500"))
SAMPLES = 2**14  # of a step
EVERY = 25  # n-th of the test views


def learned(ready: train.Prepared, ops: Backend) -> HashGridTrainer:
    generator = torch.Generator().manual_seed(0)
    views = ready.residents.at(0)
    made = create_trainer(ready.scene, views, ready.config, ops, generator)
    made.begin(views)
    for step in range(STEPS):
        made.step(learning_rate(step, step / STEPS, ready.config.train, METHODS["hashgrid"].hold))
    return made


def score(ready: train.Prepared, trainer: HashGridTrainer, rounds: bool) -> float:
    """Mean over some held-out views, rendered with the weights as they are trained with."""
    field, scores = trainer.field, []
    if rounds:
        field.params = NetParams(*(p.half().float() for p in field.params.tensors()))
    field.ops = CpuBackend() if CpuBackend.why_unavailable("cpu") is None else Backend()
    white = torch.ones(3)
    for index in ready.scene.splits["test"][::EVERY]:
        views = load_views(ready.scene, [index])
        truth = over_background(views.image(0).float().reshape(-1, 4) / 255, white)
        rays = ready.scene.cameras.image_rays(index)
        parts = [
            field.render_rays(rays[i : i + 8192], white).rgb for i in range(0, len(rays), 8192)
        ]
        image = to_uint8(torch.cat(parts).numpy()) / 255
        scores.append(psnr(image[None], truth.numpy()[None]))
    return sum(scores) / len(scores)


@pytest.mark.slow
def test_half_precision_reaches_the_quality_of_single() -> None:
    scenes = os.environ.get("NERF_DATA")
    if not scenes:
        pytest.skip("NERF_DATA does not name a folder with the scene lego")
    config = Config(device="cpu", backend="torch")
    config = replace(
        config,
        train=replace(config.train, steps=STEPS),
        hashgrid=replace(config.hashgrid, n_samples=SAMPLES),
    )
    ready = train.prepare(load_scene(Path(scenes) / "lego"), config)
    single, half = (learned(ready, ops) for ops in (Backend(), HalfBackend()))
    found = [score(ready, trainer, rounds) for trainer, rounds in ((single, False), (half, True))]
    print(f"{STEPS} steps of {SAMPLES} samples: float32 {found[0]:.2f} dB, half {found[1]:.2f} dB")
    assert found[0] > 20  # it does learn
    assert found[1] > found[0] - 0.2  # less than anybody sees
