"""Scoring of views: masks, views that cannot be scored, exact views, targets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SIZE
from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine import evaluate
from nerfcli.engine.evaluate import reaches
from nerfcli.engine.runs import Run
from nerfcli.scenes import ImageCache, Scene, load_scene

rng = np.random.default_rng(3)


class FakeRun:
    """What `evaluate` needs of a run; it keeps what is written."""

    step = 7
    config = Config(device="cpu")
    path = Path("runs/fake")

    def write_json(self, name: str, value: dict) -> None:
        self.written = (name, value)


@pytest.fixture
def masked(ball: Path, tmp_path: Path) -> Scene:
    """The ball's scene, whose first test view is masked out and whose second is not."""
    scene = load_scene(ball)
    first = scene.splits["test"][0]
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(mask)
    masks = tuple(mask if i == first else None for i in range(len(scene.names)))
    return replace(scene, mask_paths=masks, masked_where="black")


def score(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, *, exact: bool
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate with renderings that are noise, or the photos themselves."""
    said: list[str] = []
    progress = Progress("quiet", None, "view", "eval")
    monkeypatch.setattr(progress, "note", said.append)
    white = torch.ones(3)

    def render(model: object, cameras: object, index: int) -> Any:
        image = rng.random((SIZE, SIZE, 3))
        if exact:
            views = evaluate.load_views(scene, [index])
            image = evaluate.over_background(views.colors(torch.arange(SIZE * SIZE)), white)
            image = image.reshape(SIZE, SIZE, 3).numpy()
        return SimpleNamespace(rgb=image)

    model = SimpleNamespace(backend="a backend", background=white, scene=scene)
    monkeypatch.setattr(evaluate, "load_model", lambda *_: model)
    monkeypatch.setattr(evaluate, "estimate_seconds", lambda model, cameras: 600.0)
    monkeypatch.setattr(evaluate, "render_image", render)
    monkeypatch.setattr(evaluate, "as_image", lambda rgb, cameras, index: rgb)
    run = cast(Run, FakeRun())
    result = evaluate.evaluate(run, scene, save_images=False, progress=progress)
    n_views = len(scene.splits["test"])
    assert said.pop(1) == f"{n_views} test views of {SIZE}x{SIZE}, about 10 minutes"
    return result, said


def test_a_view_that_is_masked_out_is_named_and_left_out(
    masked: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, said = score(masked, monkeypatch, exact=False)
    first, second = result["views"]
    assert (first["psnr"], first["ssim"]) == (None, None)
    assert result["psnr"] == second["psnr"]
    assert result["ssim"] == pytest.approx(second["ssim"], abs=1e-4)
    assert any(f"{first['name']}: all pixels are masked out" in line for line in said)
    assert "hold no masked pixel" in result["protocol"]["ssim"]


def test_a_fisheyes_circle_is_a_mask_to_ssim(ball: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No window of 11x11 fits into a circle of 7 pixels; PSNR is over its pixels."""
    scene = replace(load_scene(ball), crop_radius=7.0)
    result, said = score(scene, monkeypatch, exact=False)
    assert result["psnr"] is not None and result["ssim"] is None
    names = [view["name"] for view in result["views"]]
    assert said[1:] == [
        f"{name}: no window of 11x11 usable pixels; it has no SSIM" for name in names
    ]


def test_training_on_nothing_but_masked_pixels_is_refused(masked: Scene) -> None:
    with pytest.raises(NerfError, match="No pixel can be used: all of them are masked out"):
        ImageCache(masked, masked.splits["test"][:1]).at(0)


def test_exact_views_are_counted(ball: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, said = score(load_scene(ball), monkeypatch, exact=True)
    assert (result["psnr"], result["ssim"], result["exact_views"]) == (None, 1.0, 2)
    assert all(view["exact"] for view in result["views"])
    assert said == ["a backend"]


def test_a_target_is_not_reached_by_views_that_are_all_masked_out() -> None:
    assert reaches({"psnr": None, "exact_views": 2}, 30.0)
    assert not reaches({"psnr": None, "exact_views": 0}, 30.0)
    assert reaches({"psnr": 30.0, "exact_views": 1}, 30.0)
    assert not reaches({"psnr": 29.0, "exact_views": 1}, math.inf)
