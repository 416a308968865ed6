"""A crop: what lies outside of the box is empty, exactly from its faces on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_field import STEP, analytic_model, ball, density_of

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine.crop import crop_model, read_crop
from nerfcli.engine.render import render_rays
from nerfcli.extraction import export, visibility
from nerfcli.extraction.source_field import SourceField
from nerfcli.methods.cropped import CroppedGrid, crop_proposals
from nerfcli.methods.proposals import edges_by, fresh_grid
from nerfcli.reference.contraction import ContractedSpace
from nerfcli.reference.sampling import Piecewise
from nerfcli.scenes.scene import Similarity
from nerfcli.shapes.convert_shape import ExportOptions

HAZE = 0.7  # density of a field that is the same everywhere


def haze_through(crop: Crop, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Opacity of rays through a cropped field of constant density."""
    model = analytic_model(lambda points: torch.full((len(points),), HAZE))
    assert model.field.occupancy is not None
    model.field.occupancy.occupied[:] = True
    inside = replace(model, field=model.field.between(0.0, 8.0).within(crop))
    return render_rays(inside, Rays(origins, directions)).opacity


def test_light_is_stopped_exactly_between_the_faces() -> None:
    """By the length of the ray in the box, not by whole samples of it."""
    turn = math.radians(30.0)
    rotation = (math.cos(turn), -math.sin(turn), 0.0, math.sin(turn), math.cos(turn), 0.0, 0, 0, 1)
    crop = Crop((0.1, 0.0, -0.05), (0.31, 0.2, 0.117), rotation)
    along = torch.tensor([math.cos(turn), math.sin(turn), 0.0])
    up, center = torch.tensor([0.0, 0.0, 1.0]), torch.tensor(crop.center)
    directions = torch.stack([along, up, -up, up])
    origins = center - 3.0 * directions
    origins[3, 0] += 2.0  # passes the box by
    expected = [1.0 - math.exp(-HAZE * length) for length in (0.62, 0.234, 0.234)] + [0.0]
    found = haze_through(crop, origins, directions)
    assert torch.allclose(found, torch.tensor(expected), atol=2e-5)
    within = haze_through(crop, center[None], up[None])  # from inside: only the way out
    assert float(within) == pytest.approx(1.0 - math.exp(-HAZE * 0.117), abs=2e-5)


def test_proposals_go_to_what_is_inside() -> None:
    """A wall in front of the crop draws none of the samples, though it was met in training."""
    space = ContractedSpace(Box((0.0, 0.0, 0.0), 1.0), 0.05, 50.0)
    edges = edges_by(Piecewise(1.0), 0.05, 50.0, 64)
    grid = fresh_grid(space, edges, resolution=32, n_samples=16, prior=0.01, padding=0.05)
    grid.fine[:] = 30.0  # opaque wherever one looks
    crop = Crop((3.0, 0.0, 0.0), (0.5, 0.5, 0.5))
    rays = Rays(torch.tensor([[-4.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    bounds, jitter = Bounds(torch.tensor([0.05]), torch.tensor([50.0])), torch.tensor([0.5])
    from nerfcli.backends.base import Backend

    whole = CroppedGrid(grid, crop).sample(Backend(), rays, bounds, jitter)
    aimed = CroppedGrid(crop_proposals(grid, crop), crop).sample(Backend(), rays, bounds, jitter)
    assert aimed.capacity >= 4 > whole.capacity
    assert float(aimed.t_starts[0]) == pytest.approx(6.5)
    assert float(aimed.t_ends[-1]) == pytest.approx(7.5)


def test_density_is_zero_outside_and_shapes_end_at_the_faces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(visibility, "N_OUTSIDE", 8)
    monkeypatch.setattr(visibility, "OUTSIDE_SIDE", 32)
    similarity = Similarity(0.5, translation=(0.1, 0.0, 0.0))  # the source's ball has radius 1
    model = analytic_model(
        lambda points: density_of(ball(points)), similarity=similarity, n_views=4
    )
    crop = read_crop("-1.2, -2, -2, 0.3, 2, 2")
    cropped = crop_model(model, crop)
    assert cropped.scene.box.center[0] == pytest.approx(0.1 + 0.5 * -0.45)
    source = SourceField.of(cropped)
    places = np.array([[-0.9, 0.0, 0.0], [0.25, 0.0, 0.0], [0.35, 0.0, 0.0]])
    assert (source.density(places) > 0).tolist() == [True, True, False]
    quiet = Progress("quiet", None, "step", "export")
    options = ExportOptions(resolution=16, crop="-1.2,-2,-2,0.3,2,2")
    mesh = export.extract(source, options, quiet).mesh
    assert mesh.vertices[:, 0].max() == pytest.approx(0.3, abs=1e-9)
    assert mesh.vertices[:, 0].min() == pytest.approx(-1.2, abs=4 * STEP)
    assert abs(mesh.vertices[:, 1]).max() == pytest.approx(1.0, abs=4 * STEP)


def test_a_box_is_read_from_numbers_and_from_files(tmp_path: Path) -> None:
    def crop(value: object) -> Crop:
        path = tmp_path / "box.json"
        path.write_text(json.dumps(value))
        return read_crop(str(path))

    plain = read_crop("0 1 2 2 2 4")
    assert (plain.center, plain.half) == ((1.0, 1.5, 3.0), (1.0, 0.5, 1.0))
    assert crop({"center": [1, 1.5, 3], "size": [2, 1, 2]}) == plain
    assert crop({"min": [0, 1, 2], "max": [2, 2, 4]}) == plain
    turned = crop({"center": [1, 1.5, 3], "size": [2, 1, 2], "rotation": [0, 0, 90]})
    assert torch.allclose(
        turned.axes(torch.zeros(0))[:, 0], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6
    )
    theirs = {"crop_center": [1, 1.5, 3], "crop_scale": [2, 1, 2], "crop_rot": [0, 0, math.pi / 2]}
    path = {"camera_path": [], "crop": theirs | {"crop_bg_color": {"r": 0, "g": 0, "b": 0}}}
    assert crop(path) == turned
    record = {"transform": np.eye(4)[:3].tolist(), "scale": 0.5}
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(record))
    assert crop(path).center == (2.0, 3.0, 6.0)  # theirs are in the frame of their model
    assert crop({"center": [1, 1.5, 3], "size": [2, 1, 2]}) == plain


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1,2,3", "must be 6 numbers"),
        ("0,0,0,1,1,-1", "the box is empty"),
        ("0,0,0,1,1,nan", "must be 6 numbers"),
        ([], "not an object"),
        ({"size": [1, 1, 1]}, "center is missing"),
        ({"center": [0, 0, 0], "size": [1, 0, 1]}, "above 0"),
        ({"center": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 2]}, "must be 9 numbers"),
        ({"center": [0, 0, 0], "size": [1, 1, 1], "rotation": [[2, 0, 0]] * 3}, "no rotation"),
        ({"center": {"x": 1}, "size": [1, 1, 1]}, "center must be 3 numbers"),
    ],
)
def test_what_is_no_box_is_told(value: object, message: str, tmp_path: Path) -> None:
    text = value if isinstance(value, str) else str(tmp_path / "box.json")
    (tmp_path / "box.json").write_text(json.dumps(value))
    with pytest.raises(NerfError, match=message):
        read_crop(text)
