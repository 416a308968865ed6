"""Images that do not fit in memory: said before they are read, then scaled, or taking turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SIZE, write_blender_scene
from nerfcli.core import memory
from nerfcli.core.config import Config, HashGridConfig, SceneConfig, TrainConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine.runs import Run
from nerfcli.engine.train import Prepared, prepare, train
from nerfcli.scenes import ImageCache, Scene, load_scene, views_bytes
from nerfcli.scenes import image_cache as views_module
from nerfcli.scenes.views import Views

N_TRAIN = 8
WHOLE = N_TRAIN * SIZE * SIZE * 4  # bytes of all training views of the ball


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretend that so many bytes are free for images."""

    def pretend(n_bytes: int) -> None:
        for module in ("nerfcli.scenes.build", "nerfcli.scenes.image_cache"):
            monkeypatch.setattr(f"{module}.image_budget", lambda: n_bytes)

    return pretend


def test_the_budget_is_a_share_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    assert memory.image_budget() == 500
    monkeypatch.undo()
    assert 10**8 < memory.available_memory() < 10**14  # 100 MB to 100 TB: a machine of today


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, details = (tmp_path / name for name in ("max", "current", "stat"))
    nowhere = ("", "", "")
    monkeypatch.setattr(memory, "CGROUPS", ((str(limit), str(used), str(details)), nowhere))
    unlimited = memory.available_memory()
    limit.write_text("5000\n")
    used.write_text("3000\n")
    assert memory.available_memory() == 2000
    details.write_text("anon 1000\nfile 2000\ninactive_file 900\nactive_file 600\n")
    assert memory.available_memory() == 3500  # the cache of files is given back
    limit.write_text("max\n")
    # other programs take and give back memory meanwhile
    assert memory.available_memory() == pytest.approx(unlimited, rel=0.2)


def test_images_that_do_not_fit_are_scaled_and_that_is_said(
    ball: Path, free: Callable[[int], None]
) -> None:
    free(10**9)
    assert load_scene(ball).downscale == 1
    free(WHOLE)  # ten views are there, eight would fit
    scene = load_scene(ball)
    assert scene.downscale == 2
    assert scene.cameras.size[0].tolist() == [SIZE // 2, SIZE // 2]
    assert "10 images of 16x16 need" in scene.notes[-1]
    assert "they are read at 1/2 of their size" in scene.notes[-1]
    free(10 * SIZE * SIZE * 4 // 9 + 1)
    assert load_scene(ball).downscale == 3  # a ninth of the pixels
    free(1)
    assert load_scene(ball).downscale == 8  # not down to nothing
    assert load_scene(ball, SceneConfig(downscale=1)).downscale == 1  # what the user says counts
    assert load_scene(ball, SceneConfig(downscale=1)).notes == ()


def test_parts_take_turns_by_the_step(ball: Path, free: Callable[[int], None]) -> None:
    free(WHOLE)
    scene = load_scene(ball, SceneConfig(downscale=1))
    free(WHOLE - 1)  # shards of half of that, since two are there while they are exchanged
    said: list[str] = []
    cache = ImageCache(scene, scene.splits["train"], said.append)
    assert cache.n_shards == 3
    first = cache.at(0)
    assert first.cameras.tolist() == [0, 3, 6]
    assert first is cache.at(999)
    assert "8 images need" in said[0] and "3 are in memory at a time" in said[0]
    assert said[1].startswith("reading 3 images")
    assert cache.at(1000).cameras.tolist() == [1, 4, 7]
    assert cache.at(2500).cameras.tolist() == [2, 5]
    assert cache.at(3000).cameras.tolist() == [0, 3, 6]
    assert cache.at(123_456).cameras.tolist() == [0, 3, 6]  # 123 is divisible by 3
    assert len(said) == 2
    parts = [cache.at(1000 * k).cameras.tolist() for k in range(3)]
    assert sorted(sum(parts, [])) == list(range(N_TRAIN))
    for k in range(3):
        assert views_bytes(scene, parts[k]) <= (WHOLE - 1) / 2 + SIZE * SIZE * 4


def quiet() -> Progress:
    return Progress("quiet", None, "step", "train")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.load_model()[0]


class Stop(nullcontext):
    """Asks to stop once it was asked about so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(self)
        self.left = steps

    @property
    def received(self) -> int | None:
        self.left -= 1
        return None if self.left >= 0 else 15


def ten_steps(ball: Path, folder: Path, *, stop_after: int = 100, resume: bool = False) -> Run:
    """A run of ten steps, made or gone on with."""
    config = Config(
        backend="torch",
        scene=SceneConfig(downscale=1),
        train=TrainConfig(steps=10),
        hashgrid=HashGridConfig(n_samples=256),
    )
    scene = load_scene(ball, SceneConfig(downscale=1))
    if resume:
        run = Run.open(folder)
        scene = replace(scene, box=Scene.from_json(run.scene_json).box)
        prepared = prepare(scene, run.config, resumed=True)
    else:
        prepared = prepare(scene, config)
        fresh = ImageCache(prepared.scene, prepared.scene.splits["train"])
        prepared = Prepared(prepared.scene, prepared.config, fresh, 0.0)
        run = Run.create(folder, prepared.config, prepared.scene.to_json())
    stop: Any = Stop(stop_after)
    with Progress("quiet", None, "step", "train") as progress:
        train(prepared, run, progress=progress, stop=stop, resume=resume)
    return run


def test_training_with_parts_is_deterministic_and_goes_on_exactly(
    ball: Path,
    tmp_path: Path,
    free: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs are equal; one that stops in the second part and goes on equals them, though there
    is more memory then."""
    read: list[list[int]] = []
    load = views_module.load_views

    def recorded(scene: Scene, indices: list[int], **kinds: Any) -> Views:
        read.append(indices)
        return load(scene, indices, **kinds)

    monkeypatch.setattr(views_module, "EXCHANGE_STEPS", 4)
    monkeypatch.setattr(views_module, "load_views", recorded)
    free(WHOLE // 2)
    whole, again = (ten_steps(ball, tmp_path / name) for name in "ab")
    # four parts: the first to prepare the run, three in ten steps
    assert read == [[0, 4], [0, 4], [1, 5], [2, 6]] * 2
    part = ten_steps(ball, tmp_path / "c", stop_after=6)
    state = json.loads((part.path / "state.json").read_text())
    assert (state["step"], state["parts"]) == (6, 4)
    free(10**9)
    read.clear()
    part = ten_steps(ball, tmp_path / "c", resume=True)
    assert read == [[1, 5], [2, 6]]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name])
        assert torch.equal(value, weights(part)[name])


def test_more_than_there_is_is_refused_before_it_is_tried(
    ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = load_scene(ball)
    monkeypatch.setattr(views_module, "available_memory", lambda: 1000)
    with pytest.raises(NerfError, match=r"8 images need .* GB of memory are available; use --down"):
        views_module.load_views(scene, scene.splits["train"])


def test_masks_count(ball: Path, tmp_path: Path) -> None:
    scene = load_scene(write_blender_scene(tmp_path / "scene"))
    masked = replace(scene, mask_paths=(Path("mask.png"),) * len(scene.names))
    plain, more = (views_bytes(s, [0, 1]) for s in (scene, masked))
    assert (plain, more) == (2 * SIZE * SIZE * 4, 2 * SIZE * SIZE * 8)  # an index per pixel
