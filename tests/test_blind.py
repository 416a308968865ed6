"""Scenes whose lens, or something else, leaves an image no pixel that can be used."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import SIZE
from nerfcli.cameras.lenses import Lens
from nerfcli.core.errors import NerfError
from nerfcli.scenes import ImageCache, Scene, load_scene
from nerfcli.scenes.image_cache import EXCHANGE_STEPS

BLIND = Lens.of("brown", k1=-1e7)
SAID = (
    rf"the lens of train/r_0\S* has a ray for none of its {SIZE}x{SIZE} pixels "
    r"\(brown, k1 = -1e\+07; focal length .*; principal point 8, 8\); "
    r"so it is with {n} other images?\. Correct them in the scene's file"
)


def with_blind_lenses(scene: Scene, n: int) -> Scene:
    """The scene, whose first n training views have a lens that shows not even one pixel."""
    views = scene.splits["train"][:n]
    lenses = [BLIND if i in views else lens for i, lens in enumerate(scene.cameras.lenses)]
    return replace(scene, cameras=replace(scene.cameras, lenses=tuple(lenses)))


def test_training_names_the_lens_that_leaves_no_pixel(ball: Path) -> None:
    scene = load_scene(ball)
    views = scene.splits["train"]
    with pytest.raises(NerfError, match="^No pixel can be used: " + SAID.replace("{n}", "7")):
        ImageCache(with_blind_lenses(scene, len(views)), views).at(0)


def test_training_goes_on_with_the_other_images_and_says_so(ball: Path) -> None:
    scene = with_blind_lenses(load_scene(ball), 2)
    said: list[str] = []
    views = ImageCache(scene, scene.splits["train"], said.append).at(0)
    assert views.n_pixels == 6 * SIZE * SIZE
    assert re.match(SAID.replace("{n}", "1"), said[-1])


def test_blind_lenses_are_looked_for_once_though_images_take_turns(
    ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = with_blind_lenses(load_scene(ball), 2)
    said: list[str] = []
    cache = ImageCache(scene, scene.splits["train"], said.append)
    cache.n_shards = 2
    cache.at(0)
    assert re.match(SAID.partition("; so it is")[0], said[-1])
    monkeypatch.delattr("nerfcli.scenes.image_cache.find_blind_lenses")
    assert cache.exchange(EXCHANGE_STEPS) is not None


def test_a_fisheye_circle_without_a_pixel_is_not_called_a_mask(ball: Path) -> None:
    scene = replace(load_scene(ball), crop_radius=0.1)
    with pytest.raises(NerfError, match=r"the fisheye circle of 0\.1 pixels holds none"):
        ImageCache(scene, scene.splits["train"]).at(0)
