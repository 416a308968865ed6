"""Cells that no training camera sees: against the rays of every usable pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_field import scene_of, sphere_cameras
from PIL import Image
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.scenes.coverage import seen_cells
from nerfcli.scenes.image_cache import usable_pixels
from nerfcli.scenes.scene import Scene, Similarity

BOX = Box((0.3, -0.2, 0.1), 1.0, 2)
SIZE = (40, 28)
R = 20  # not a power of two: the coarse cells at the far faces reach out of the cube


def one_camera(lens: Lens, focal: float = 40.0, turn: Tensor | None = None) -> Cameras:
    """A camera near a corner of the detail cube, which looks along +x unless turned."""
    forward_x = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    rotation = (forward_x if turn is None else turn).double()
    place = torch.tensor([-0.9, 0.1, 0.2], dtype=torch.float64)
    size = torch.tensor([SIZE])
    focals, principal = torch.full((1, 2), focal).double(), size.double() / 2
    if lens.model == "equirectangular":
        f, c = panorama(SIZE)
        focals, principal = torch.tensor([f]).double(), torch.tensor([c]).double()
    c2w = torch.cat([rotation, place[:, None]], dim=1)[None]
    return Cameras(c2w, focals, principal, size, (lens,))


def scene_with(cameras: Cameras, near: float = 0.2, far: float = 3.0) -> Scene:
    return replace(scene_of(cameras, BOX, Similarity()), near=near, far=far)


def cells_on_rays(scene: Scene, resolution: int) -> Tensor:
    """The cells that rays of usable training pixels pass, found by small steps along them."""
    hit = torch.zeros(BOX.n_cascades, *(resolution,) * 3, dtype=torch.bool)
    t = torch.linspace(scene.near, scene.far, 150)
    for camera in scene.splits["train"]:
        usable = usable_pixels(scene, camera)
        rays = scene.cameras.image_rays(camera)
        rays = rays if usable is None else rays[usable.nonzero()[:, 0]]
        points = (rays.origins[:, None] + t[:, None] * rays.directions[:, None]).reshape(-1, 3)
        for c in range(BOX.n_cascades):
            half = BOX.half_size * 2**c
            cell = ((points - torch.tensor(BOX.center)) / half + 1) * (resolution / 2)
            cell = cell[((cell >= 0) & (cell < resolution)).all(1)].long()
            hit[c, cell[:, 2], cell[:, 1], cell[:, 0]] = True
    return hit


LENSES = {
    "pinhole": Lens(),
    "brown": Lens.of("brown", k1=-0.1, p1=0.02),
    "fisheye": Lens.of("fisheye", k1=0.01),
    "fov": Lens("fov", (0.9,)),
    "equirectangular": Lens("equirectangular"),
}


@pytest.mark.parametrize("model", LENSES)
def test_every_cell_that_a_ray_passes_is_seen_and_little_else(model: str) -> None:
    focal = 13.0 if model == "fisheye" else 40.0  # 88 degrees off the axis
    scene = scene_with(one_camera(LENSES[model], focal))
    seen, hit = seen_cells(scene, BOX, R), cells_on_rays(scene, R)
    assert not (hit & ~seen).any()
    # the sphere around a cell reaches 0.87 cells to each side: a layer of cells around the frame
    grown = torch.nn.functional.max_pool3d(hit.float()[:, None], 5, 1, 2)[:, 0] > 0
    assert not (seen & ~grown).any()
    assert hit.any() and not seen.all()


def test_what_lies_before_near_or_beyond_far_is_not_seen() -> None:
    scene = scene_with(one_camera(Lens()), near=0.8, far=1.5)
    seen = seen_cells(scene, BOX, R)
    x = ((torch.arange(R) + 0.5) / R * 2 - 1) * BOX.half_size + BOX.center[0]
    occupied = x[seen[0].any(0).any(0)]
    assert -0.9 + 0.6 < occupied.min() < -0.9 + 0.8
    assert occupied.max() > -0.9 + 1.4
    assert not seen[1][..., ((2 * x - BOX.center[0]) > 0.9)].any()


def masked_scene(folder: Path, cameras: Cameras, keep: np.ndarray, masked: int = 1) -> Scene:
    """A scene whose first cameras have a mask."""
    Image.fromarray((keep * 255).astype(np.uint8)).save(folder / "mask.png")
    paths = tuple(folder / "mask.png" if i < masked else None for i in range(len(cameras)))
    return replace(scene_with(cameras), mask_paths=paths)


def test_a_masked_pixel_sees_nothing(tmp_path: Path) -> None:
    left = np.zeros(SIZE[::-1], bool)
    left[:, : SIZE[0] // 2] = True
    for lens in (Lens(), LENSES["brown"], LENSES["equirectangular"]):
        scene = masked_scene(tmp_path, one_camera(lens), left)
        seen, hit = seen_cells(scene, BOX, R), cells_on_rays(scene, R)
        assert not (hit & ~seen).any()
        k = 5 if lens.model != "equirectangular" else 7  # its pixels are 9 degrees wide
        grown = torch.nn.functional.max_pool3d(hit.float()[:, None], k, 1, k // 2)[:, 0] > 0
        assert not (seen & ~grown).any()
    whole = seen_cells(scene, BOX, R, masked=False)
    assert whole.sum() > 1.5 * seen.sum()


def test_a_frame_masked_as_a_whole_sees_nothing_and_the_others_do(tmp_path: Path) -> None:
    one, other = one_camera(Lens()), one_camera(Lens(), turn=torch.eye(3))
    c2w, focal, principal, size = (
        torch.cat([getattr(one, name), getattr(other, name)])
        for name in ("c2w", "focal", "principal", "size")
    )
    both = Cameras(c2w, focal, principal, size, (Lens(), Lens()))
    scene = masked_scene(tmp_path, both, np.zeros(SIZE[::-1], bool))
    assert torch.equal(seen_cells(scene, BOX, R), seen_cells(scene_with(other), BOX, R))


def test_only_training_cameras_count() -> None:
    scene = scene_with(sphere_cameras(6))
    few = replace(scene, splits={"train": (0, 1), "test": (2, 3, 4, 5)})
    alone = scene_with(scene.cameras[[0, 1]])
    assert torch.equal(seen_cells(few, BOX, R), seen_cells(alone, BOX, R))


def test_coarse_to_fine_finds_what_testing_each_cell_finds() -> None:
    from nerfcli.scenes import coverage

    scene = replace(scene_with(sphere_cameras(5, distance=2.0)), far=9.0)
    fine = seen_cells(scene, BOX, 36)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "COARSEST", 36)
        assert torch.equal(fine, seen_cells(scene, BOX, 36))
