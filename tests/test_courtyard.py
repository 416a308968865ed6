"""The courtyard: what its program writes is what its geometry and its docs say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nerfcli.scenes import load_scene, read_source

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
VIEWS, WIDTH = 5, 16


@pytest.fixture(scope="module")
def own() -> SimpleNamespace:
    """The modules of datasets/, which are no package."""
    sys.path.insert(0, str(DATASETS))
    try:
        names = {"court": "courtyard", "trace": "court_trace", "parts": "court_parts"}
        return SimpleNamespace(**{k: importlib.import_module(v) for k, v in names.items()})
    finally:
        sys.path.remove(str(DATASETS))


@pytest.fixture(scope="module")
def tiny(own: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five views of 16 x 12 pixels."""
    out = tmp_path_factory.mktemp("courtyard")
    own.court.make(out, VIEWS, WIDTH)
    return out


def content(folder: Path) -> dict:
    return json.loads((folder / "transforms.json").read_text())


def test_the_reader_takes_it_without_a_remark(tiny: Path) -> None:
    """Splits, depth along the ray arrive, and no key is unknown."""
    source = read_source(tiny)
    # so few and small views share no points
    assert [note for note in source.notes if "sparse_pc.ply" not in note] == []
    assert [frame.split for frame in source.frames] == ["train"] * 4 + ["test"]
    depth = source.frames[4].depth
    assert depth is not None and depth.is_euclidean and depth.scale == 0.004
    assert not source.frames[0].has_alpha
    assert load_scene(tiny).splits["test"] == (4,)


def test_depth_and_pose_lead_to_the_surface(own: SimpleNamespace, tiny: Path) -> None:
    """Distance along the ray through a pixel's centre ends on some part; the sky has none."""
    stored = np.asarray(Image.open(tiny / "depth" / "frame_004.png"))
    rows, columns = np.nonzero(stored)
    assert 0.4 < rows.size / stored.size < 1
    table = content(tiny)
    pose = np.array(table["frames"][4]["transform_matrix"])
    local = np.stack(
        [
            (columns + 0.5 - table["cx"]) / table["fl_x"],
            -(rows + 0.5 - table["cy"]) / table["fl_y"],
            -np.ones(rows.size),
        ]
    )
    ways = pose[:3, :3] @ (local / np.linalg.norm(local, axis=0))
    unit = table["depth_unit_scale_factor"]
    points = pose[:3, 3:] + stored[rows, columns] * unit * ways
    gap = np.min([np.abs(part.distance(points)) for part in own.parts.PARTS], axis=0)
    assert (gap < unit / 2 + 1e-4 * np.maximum(stored[rows, columns] * unit, 1.0)).all()


def test_photos_are_exposed_as_stated(own: SimpleNamespace, tiny: Path) -> None:
    """A photo divided by 2^EV is the scene's light, and a stop lies between the extremes."""
    table = content(tiny)
    stops = [frame["exposure_ev"] for frame in table["frames"]]
    assert min(stops) == -0.5 and max(stops) == 0.5
    light = own.trace.render(own.court.cameras(VIEWS, WIDTH)[2])
    photo = np.asarray(Image.open(tiny / "images" / "frame_002.jpg")).astype(np.float64) / 255
    linear = np.where(photo <= 0.04045, photo / 12.92, ((photo + 0.055) / 1.055) ** 2.4)
    inside = (photo > 0.2).all(axis=2) & (photo < 0.95).all(axis=2)
    found = np.log2((linear[inside] / light[inside]).mean())
    assert found == pytest.approx(stops[2], abs=0.05)


def test_points_lie_on_surfaces_that_others_see(own: SimpleNamespace, tiny: Path) -> None:
    """Corners of a photo become exact surface points; one that no other view sees is left out."""
    camera = own.court.cameras(80, WIDTH)[30]
    photo = np.random.default_rng(0).integers(0, 255, (12, WIDTH, 3), dtype=np.uint8)
    job = own.court.Job(tiny, 0, 0.0, False, [camera] * 8, 9)
    points, colours = own.court.sparse_points(job, photo, size=3)
    assert points.shape[1] == len(colours) > 3
    gap = np.min([np.abs(part.distance(points)) for part in own.parts.PARTS], axis=0)
    assert gap.max() < 4e-3
    alone = own.court.Job(tiny, 0, 0.0, False, [camera], 9)
    assert own.court.sparse_points(alone, photo, size=3)[0].shape[1] == 0


def test_the_walk_is_free_and_level(own: SimpleNamespace) -> None:
    """Eighty cameras at eye height, half a metre from everything, less than a metre apart."""
    walk = own.court.cameras()
    poses = np.array([view.pose for view in walk])
    assert len(walk) == 80
    assert np.abs(poses[:, 2, 3] - 1.62).max() < 0.05
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.9
    assert np.einsum("nij,nij->n", poses[1:, :3, :3], poses[:-1, :3, :3]).min() > 2.8  # 26 degrees
    assert min(own.court.clearance(view) for view in walk) > 0.5
