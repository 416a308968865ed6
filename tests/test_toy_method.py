"""A method made by the recipe of docs/contributing.md works in the commands as they are."""

from __future__ import annotations

import json
import os
import signal
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toy_method import VOXELGRID, ToyConfig, VoxelTrainer

from nerfcli.cli import main
from nerfcli.core import settings
from nerfcli.core.config import METHOD_TABLES
from nerfcli.methods import METHODS, StepResult

STEPS, STOP = 60, 3
WORDS = (
    *("--method", "voxelgrid", "--steps", STEPS, "--set", "voxelgrid.resolution=16"),
    *("--set", "voxelgrid.n_steps=24", "--set", "voxelgrid.n_rays=128"),
)


@pytest.fixture(autouse=True)
def voxelgrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the method for one test; the package says the same in `METHODS` and `Config`."""
    monkeypatch.setitem(METHODS, "voxelgrid", VOXELGRID)
    monkeypatch.setattr(settings, "Config", ToyConfig)
    monkeypatch.setattr(settings, "METHOD_TABLES", (*METHOD_TABLES, "voxelgrid"))
    monkeypatch.setattr(settings, "field_types", cache(settings.field_types.__wrapped__))


def nerf(*words: object) -> int:
    """The command line in this process; its exit code."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--quiet"])
    assert isinstance(end.value.code, int)
    return end.value.code


def psnr(run: Path) -> float:
    assert nerf("eval", run) == 0
    return json.loads((run / "eval.json").read_text())["psnr"]


def test_a_toy_method_trains_resumes_and_renders(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped and gone on with, or not stopped: the same bytes; and a better picture."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert nerf("train", ball, "--out", whole, *WORDS) == 0
    step = VoxelTrainer.step

    def interrupted(self: VoxelTrainer, lr: float) -> StepResult:
        if self.step_count == STOP - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, lr)

    with monkeypatch.context() as patched:
        patched.setattr(VoxelTrainer, "step", interrupted)
        assert nerf("train", ball, "--out", parts, *WORDS) == 75
    before = psnr(parts)
    assert json.loads((parts / "state.json").read_text())["step"] == STOP
    assert nerf("train", "--resume", parts) == 0
    assert psnr(parts) > before + 5
    for part in ("model", "optimizer"):
        ours, theirs = (load_file(run / f"{part}-{STEPS}.safetensors") for run in (parts, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    frames = tmp_path / "frames"
    assert nerf("render", parts, "--frames", 2, "--out", frames, "--save", "rgb,depth") == 0
    with Image.open(frames / "rgb_0000.png") as image:
        assert image.size == (16, 16) and image.getcolors(1) is None


def test_a_toy_table_is_checked_as_any(ball: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nerf("train", ball, "--method", "voxelgrid", "--set", "voxelgrid.n_rays=0") == 2
    assert nerf("train", ball, "--method", "classic", "--set", "voxelgrid.n_rays=8") == 2
    said = capsys.readouterr().err
    assert "voxelgrid.n_rays must be a whole number, at least 1" in said
    assert "choose --method voxelgrid" in said
