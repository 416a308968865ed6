"""A capture that is cut into blocks, and the blocks rendered as one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Call, sphere_c2w
from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.engine.blocks import BlendedField, Part, chain, open_blocks
from nerfcli.reference.samples import Pixels
from nerfcli.scenes import read_source
from nerfcli.scenes.blocks import Block, cut_by_cameras, source_of_block
from nerfcli.scenes.scene import Similarity


def street(n: int = 60) -> np.ndarray:
    """Cameras along a street, a little off its axis."""
    noise = np.random.default_rng(0).normal(0, 0.1, (n, 3))
    return np.stack([np.linspace(0, 30, n), np.zeros(n), np.zeros(n)], axis=1) + noise


@pytest.mark.parametrize("n_blocks", [2, 3, 4, 5])
def test_every_camera_is_in_one_core(n_blocks: int) -> None:
    centers = street()
    cut = cut_by_cameras(centers, n_blocks, 0.2)
    assert sorted(i for block in cut for i in block.core) == list(range(len(centers)))
    sizes = [len(block.core) for block in cut]
    assert max(sizes) - min(sizes) <= 1
    for block in cut:
        assert set(block.core) <= set(block.frames)
        extra = set(block.frames) - set(block.core)
        assert extra, "no overlap"
        core = centers[list(block.core), 0]
        for i in extra:  # the overlap lies beside the core, not anywhere
            assert min(abs(core - centers[i, 0])) < 4


def test_an_overlap_is_a_share_of_the_other_side() -> None:
    low, high = cut_by_cameras(street(), 2, 0.2)
    assert len(low.frames) - 30 in (5, 6, 7) and len(high.frames) - 30 in (5, 6, 7)
    assert cut_by_cameras(street(), 2, 0.0)[0].frames == cut_by_cameras(street(), 2, 0.0)[0].core


def test_what_cannot_be_cut_is_told() -> None:
    with pytest.raises(NerfError, match="at most --blocks 2"):
        cut_by_cameras(street(11), 3)
    with pytest.raises(NerfError, match="--blocks must be at least 2"):
        cut_by_cameras(street(), 1)
    with pytest.raises(NerfError, match="--overlap"):
        cut_by_cameras(street(), 2, 1.5)


@dataclass
class Plain:
    """A field of one colour, whose depth is the distance to a point in its own space."""

    rgb: tuple[float, float, float]
    point: Tensor
    needs_radii = False
    rays_per_chunk = 100
    box = None
    ops = SimpleNamespace(name="torch")

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        n = len(rays)
        depth = (rays.origins - self.point).norm(dim=1)
        along = ((self.point - rays.origins) / depth[:, None] * rays.directions).sum(1)
        assert torch.allclose(along, torch.ones(n), atol=1e-5)  # rays were turned with the space
        return Pixels(torch.tensor(self.rgb).expand(n, 3), torch.ones(n), depth, depth)

    def state(self) -> dict[str, Tensor]:
        return {"point": self.point}


def two_blocks() -> BlendedField:
    """A red block around x = 0 and a green one around x = 10, in another space."""
    target = torch.tensor([5.0, 3.0, 0.0])
    turned = Similarity(0.5, ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (1.0, 2.0, 3.0))
    cores = [torch.tensor([[x - 2.0, 0, 0], [x, 0, 0], [x + 2.0, 0, 0]]).double() for x in (0, 10)]
    red: Any = Plain((1.0, 0.0, 0.0), target)
    green: Any = Plain((0.0, 1.0, 0.0), turned.apply(target))
    return BlendedField((Part(red, Similarity(), cores[0]), Part(green, turned, cores[1])), 1.0)


def test_blocks_are_blended_by_distance() -> None:
    """Each alone in its own region, half and half in the middle, without a jump between."""
    x = torch.linspace(0, 10, 201)
    origins = torch.stack([x, torch.zeros(201), torch.zeros(201)], 1)
    aim = torch.tensor([5.0, 3.0, 0.0]) - origins
    rays = Rays(origins, aim / aim.norm(dim=1, keepdim=True))
    pixels = two_blocks().render_rays(rays, torch.ones(3))
    red = pixels.rgb[:, 0]
    assert red[0] == 1 and red[-1] == 0 and red[100] == pytest.approx(0.5, abs=1e-3)
    assert (red.diff() <= 1e-6).all() and red.diff().abs().max() < 0.05
    torch.testing.assert_close(pixels.rgb[:, :2].sum(1), torch.ones(201))
    torch.testing.assert_close(pixels.depth, aim.norm(dim=1))  # in the whole's units
    torch.testing.assert_close(pixels.median_depth, aim.norm(dim=1))


def test_similarities_are_chained() -> None:
    first = Similarity(2.0, ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (1.0, 0.0, 0.0))
    second = Similarity(0.5, ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)), (0.0, 3.0, 0.0))
    points = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = chain(first, second).apply(points)
    torch.testing.assert_close(both, second.apply(first.apply(points)))


def test_a_held_out_view_is_held_out_by_all(ball: Path) -> None:
    source = read_source(ball)
    n = len(source.frames)
    frames = tuple(replace(f, split="test" if i % 4 == 0 else "train") for i, f in
                   enumerate(source.frames))  # fmt: skip
    source = replace(source, frames=frames)
    blocks = [
        Block(tuple(range(5)), tuple(range(8))),
        Block(tuple(range(5, n)), tuple(range(3, n))),
    ]
    parts = [source_of_block(source, block, "b") for block in blocks]
    held = [{f.name for f in part.frames if f.split == "test"} for part in parts]
    trained = [{f.name for f in part.frames if f.split == "train"} for part in parts]
    assert not held[0] & held[1] and held[0] | held[1] == {f.name for f in frames[::4]}
    assert not (trained[0] | trained[1]) & (held[0] | held[1])


def test_many_blocks_far_away_still_share_a_ray() -> None:
    """60 blocks on a circle, seen from its centre: each has 1/60."""
    angles = torch.arange(60) * (2 * torch.pi / 60)
    cores = torch.stack([10 * angles.cos(), 10 * angles.sin(), 0 * angles], 1).double()
    red: Any = Plain((1.0, 0.0, 0.0), torch.zeros(3))
    field = BlendedField(tuple(Part(red, Similarity(), core[None]) for core in cores), 0.1)
    weights = field.weights(torch.zeros(1, 3))
    torch.testing.assert_close(weights, torch.full((1, 60), 1 / 60), atol=1e-6, rtol=0)


def test_a_block_without_a_held_out_view_of_its_own_borrows_one(ball: Path) -> None:
    """Else its reader would hold out others, which other blocks train on."""
    source = read_source(ball)
    frames = tuple(replace(f, split="test" if i == 0 else "train") for i, f in
                   enumerate(source.frames))  # fmt: skip
    block = Block(tuple(range(5, 9)), tuple(range(4, 10)))
    part = source_of_block(replace(source, frames=frames), block, "b")
    assert [f.name for f in part.frames if f.split == "test"] == [frames[0].name]


def row_of_cameras(folder: Path, n: int = 18) -> Path:
    """n cameras about a ball, in a transforms.json."""
    from imageio.v3 import imwrite

    (folder / "images").mkdir(parents=True)
    frames = []
    for i in range(n):
        imwrite(folder / f"images/{i:03d}.png", np.full((8, 8, 3), 10 * i, np.uint8))
        c2w = np.eye(4)
        c2w[:3] = sphere_c2w(i, n)[:3]
        frames.append({"file_path": f"images/{i:03d}.png", "transform_matrix": c2w.tolist()})
    meta = {"fl_x": 10.0, "fl_y": 10.0, "cx": 4.0, "cy": 4.0, "w": 8, "h": 8, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def test_a_scene_is_split_trained_and_shown_as_one(call: Call, tmp_path: Path) -> None:
    scene = row_of_cameras(tmp_path / "scene")
    done = call("split", scene, "--blocks", 2, "--out", "blocks", "--json")
    assert done.code == 0, done.err
    assert [row["name"] for row in done.value["blocks"]] == ["block-1", "block-2"]
    early = call("render", "--blocks", "blocks")
    assert early.code == 2
    assert "nerf train blocks/block-1 --out blocks/runs/block-1" in early.err
    for name in ("block-1", "block-2"):
        words = ("--steps", 2, "--backend", "torch", "--method", "hashgrid", "-q")
        small = ("--set", "hashgrid.n_samples=512", "--set", "hashgrid.log2_table_size=8")
        made = call("train", f"blocks/{name}", "--out", f"blocks/runs/{name}", *words, *small)
        assert made.code == 0, made.err
    whole, runs = open_blocks(tmp_path / "blocks")
    assert len(runs) == 2
    splits = whole.scene_json["splits"]
    assert sorted(splits["train"] + splits["test"]) == list(range(18))  # each view once
    shown = call("render", "--blocks", "blocks", "--frames", 2, "--out", "out", "--json")
    assert shown.code == 0, shown.err
    assert shown.value["n_frames"] == 2 and len(list((tmp_path / "out").glob("rgb_*.png"))) == 2
    again = call("split", scene, "--blocks", 2, "--out", "blocks")
    assert again.code == 2 and "--overwrite" in again.err
    again = call("split", scene, "--blocks", 2, "--out", "blocks", "--overwrite")
    assert again.code == 2 and "blocks/runs holds runs" in again.err
    assert (tmp_path / "blocks/runs/block-1/state.json").is_file()
