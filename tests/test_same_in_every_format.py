"""The same pixels and cameras give the same box, method and result in every format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, Nerf
from nerfcli.cameras.boxes import Box
from nerfcli.core.config import Config
from nerfcli.engine import train
from nerfcli.methods import choose_method
from nerfcli.scenes import Source, load_scene, read_source
from nerfcli.scenes.build import box_in_source
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.writers.convert import WriteOptions, write_scene
from nerfcli.scenes.writers.unsupported import TARGETS

BIPLANE = ROOT / "datasets" / "biplane"


def some_of_the_biplane(n: int) -> Source:
    """Views spread over the training split, without a split, since LLFF holds none."""
    source = read_source(BIPLANE)
    frames = [frame for frame in source.frames if frame.split == "train"]
    some = frames[:: len(frames) // n][:n]
    return replace(source, frames=tuple(replace(frame, split=None) for frame in some))


def prepared(folder: Path) -> Scene:
    return train.prepare(load_scene(folder), Config()).scene


def assert_between_near_and_far(scene: Scene) -> None:
    """Nothing of the ball in the box is cut off, from any camera."""
    half = scene.box.outer_half_size
    center = scene.cameras.positions.new_tensor(scene.box.center)
    distance = (scene.cameras.positions - center).norm(dim=-1)
    assert scene.near <= float(distance.min()) - half
    assert scene.far >= float(distance.max()) + half


def test_a_cut_out_object_has_one_box_in_every_format(tmp_path: Path) -> None:
    source = some_of_the_biplane(12)
    boxes: dict[str, Box] = {}
    for target in TARGETS:
        (tmp_path / target).mkdir()
        write_scene(source, tmp_path / target, WriteOptions(target, link=True))
        scene = prepared(tmp_path / target)
        boxes[target] = box_in_source(scene)
        assert scene.box_source == "silhouettes of the training views"
        assert (scene.background, scene.has_alpha, scene.box.n_cascades) == ("white", True, 1)
        assert choose_method(Config(), scene)[0] == "hashgrid"
        assert_between_near_and_far(scene)
    # as it states a box, and is converted again, from one that states none
    (tmp_path / "again").mkdir()
    write_scene(read_source(tmp_path / "colmap"), tmp_path / "again", WriteOptions("transforms"))
    boxes["again"] = box_in_source(prepared(tmp_path / "again"))
    for box in boxes.values():
        assert 0.9 < box.half_size < 1.6  # the biplane reaches to about 0.96
        assert box.half_size == pytest.approx(boxes["blender"].half_size, rel=1e-6)
        np.testing.assert_allclose(box.center, boxes["blender"].center, atol=1e-6)


@pytest.mark.slow
def test_a_cut_out_object_trains_alike_in_every_format(nerf: Nerf, tmp_path: Path) -> None:
    psnr = {}
    for target in TARGETS:
        made = nerf("convert", BIPLANE, "--to", target, "--out", tmp_path / target, "--json")
        if any(lost["what"] == "splits" for lost in json.loads(made.stdout)["lost"]):
            continue  # other views are held out: LLFF, instant-ngp
        run = tmp_path / f"run-{target}"
        nerf("train", tmp_path / target, "--steps", 300, "--out", run)
        psnr[target] = json.loads(nerf("eval", run, "--json").stdout)["psnr"]
    assert set(psnr) == {"blender", "colmap", "transforms"}
    assert max(psnr.values()) - min(psnr.values()) < 0.2, psnr
    assert min(psnr.values()) > 27.0
