"""Training and rendering through the Triton backend, from a scene to a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import DTYPES, F16, F32, GRADIENTS, OUTPUTS, PAIRS, assert_near

from conftest import write_blender_scene
from nerfcli import backends, train
from nerfcli.backends import ops_triton, selfcheck
from nerfcli.backends.ops import Ops, reference
from nerfcli.config import Config
from nerfcli.progress import Progress, StopSignal
from nerfcli.render import load_model
from nerfcli.runs import Run
from nerfcli.scenes import load_scene
from nerfcli.trainers import HashGridTrainer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> train.Prepared:
    folder = write_blender_scene(tmp_path_factory.mktemp("scene") / "ball", n_train=4, n_test=1)
    config = Config()
    return train.prepare(
        load_scene(folder),
        replace(
            config,
            device="cpu",
            model=replace(
                config.model,
                method="hashgrid",
                n_levels=2,
                n_features=4,
                log2_table_size=8,
                max_resolution=32,
                width=16,
            ),
            sampling=replace(config.sampling, steps_per_box=12),
            occupancy=replace(config.occupancy, resolution=8, every=2, cells=64),
            train=replace(config.train, steps=2, n_samples=128),
        ),
    )


def trainer_with(ops: Ops, prepared: train.Prepared) -> HashGridTrainer:
    generator = torch.Generator().manual_seed(0)
    return HashGridTrainer(prepared.scene, prepared.views, prepared.config, ops, generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_tracks_the_reference(prepared: train.Prepared, dtype: torch.dtype) -> None:
    """The same rays, jitter and cells; the first steps must lead to the same field."""
    mine, right = (trainer_with(ops, prepared) for ops in (ops_triton.build(dtype), reference()))
    for _ in range(2):
        a, b = mine.step(1e-2), right.step(1e-2)
        assert_near(a.loss, b.loss, 1e-4 if dtype == F32 else 5e-3)
        assert a.n_rays == b.n_rays
    # Adam's first steps have the size lr whatever the gradient, so tiny ones that differ in
    # sign differ in full: networks are compared, whose gradients are sums over all samples
    limit = 1e-3 if dtype == F32 else 2 * GRADIENTS[dtype]
    assert_near(mine.field.params.color, right.field.params.color, limit)
    assert_near(mine.field.params.density, right.field.params.density, limit)


def test_the_training_loop_runs(
    prepared: train.Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scene to run folder to pixels, with nothing but the backend's name changed."""
    monkeypatch.setattr(backends, "ORDER", {"cpu": ("triton", "torch"), "cuda": ()})
    config = replace(prepared.config, backend="triton")
    run = Run.create(tmp_path / "run", config, prepared.scene.to_json())
    progress = Progress("quiet", None, "step", "train")
    summary = train.train(
        replace(prepared, config=config), run, progress=progress, stop=StopSignal()
    )
    assert summary["steps"] == 2
    model = load_model(Run.open(run.path), "triton")
    assert model.backend == "backend triton on cpu, as asked"
    rays = model.scene.cameras.image_rays(0)[100:120]
    mine = model.field.render_rays(rays, model.background)
    right = load_model(Run.open(run.path), "torch").field.render_rays(rays, model.background)
    assert mine.rgb.shape == (20, 3) and mine.opacity.max() > 0
    assert_near(mine.rgb, right.rgb, OUTPUTS[F16])


def test_the_self_check_finds_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a smaller case than a GPU is given."""
    monkeypatch.setattr(selfcheck, "N_RAYS", 12)
    monkeypatch.setattr(selfcheck, "N_POINTS", 63)
    monkeypatch.setattr(selfcheck, "NET", PAIRS)
    assert selfcheck.fault(ops_triton.load(), "cpu") is None
