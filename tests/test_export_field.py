"""A field becomes a surface: against fields whose surface is known by formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from analytic_field import LEVEL, STEP, analytic_model, ball, density_of, sphere_cameras

from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.engine.render import Model, as_image, render_image
from nerfcli.extraction import solid as extract
from nerfcli.extraction import visibility
from nerfcli.extraction.bake import color_mesh, surface_colors
from nerfcli.extraction.marching_cubes import marching_cubes
from nerfcli.extraction.mesh_cleanup import drop_unseen_components, label_components, refine_mesh
from nerfcli.extraction.mpi import PlaneImages, plane_images
from nerfcli.extraction.plausible import list_doubts
from nerfcli.extraction.point_cloud import field_points
from nerfcli.extraction.solid import Solid, _rows_of, solid_of
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.visibility import ParallelView, Visibility, compute_visibility
from nerfcli.extraction.voxels import field_voxels
from nerfcli.methods.hashgrid import HashField
from nerfcli.methods.proposals import ProposalSampler, edges_by, fresh_grid
from nerfcli.methods.unbounded import UnboundedField
from nerfcli.reference.contraction import ContractedSpace
from nerfcli.reference.sampling import Piecewise
from nerfcli.scenes.scene import Similarity
from nerfcli.shapes.inside import closedness
from nerfcli.shapes.types import Mesh, RegularGrid, all_indices

QUIET = Progress("quiet", None, "step", "test")
BALL = 4.0 / 3.0 * math.pi * 0.5**3


def surface(
    model: Model, resolution: int = 40, threshold: float | None = None, fill: bool = True
) -> tuple[Mesh, Solid, Visibility]:
    source = SourceField.of(model)
    seen = compute_visibility(source, QUIET)
    solid = solid_of(source, seen, resolution, threshold, fill)
    mesh = refine_mesh(marching_cubes(solid, QUIET), solid)
    return drop_unseen_components(mesh, solid, seen)[0], solid, seen


@pytest.fixture(scope="module", autouse=True)
def few_views_from_outside() -> Iterator[None]:
    """Enough for a ball, and quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visibility, "N_OUTSIDE", 10)
        patch.setattr(visibility, "OUTSIDE_SIDE", 48)
        yield


@pytest.fixture(scope="module")
def whole() -> tuple[Mesh, Solid, Visibility]:
    return surface(analytic_model(lambda points: density_of(ball(points))))


def shell(points: torch.Tensor) -> torch.Tensor:
    """The ball's density, but nothing deeper than 0.15: as photos leave it."""
    distance = ball(points)
    return torch.where(distance > -0.15, density_of(distance), 0.0)


def test_no_cell_is_lost_between_two_points_of_the_lattice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Walls of one cell, and a lattice that is wider than a cell."""
    monkeypatch.setattr(extract, "LATTICE_SIDE", 20)
    model = analytic_model(lambda points: density_of(ball(points)))
    box, n = model.scene.box, 16
    for axis in (1, 2, 3):
        for place in range(n):
            cells = torch.zeros(1, n, n, n, dtype=torch.bool)
            cells.select(axis, place)[:] = True
            seen = torch.ones_like(cells)
            source = SourceField(model, model.field.steps, cells, seen, box)
            corner = np.full(3, box.half_size)
            whole = source.to_source(torch.from_numpy(np.stack([-corner, corner])))
            grid = RegularGrid.over(whole, 27)
            solid = Solid(source, grid, 1.0, None, grid)
            active, step = solid._active_lattice()
            assert step == 2
            rows = _rows_of(active, step, 0, grid.shape, grid.shape[0])
            inside = source.occupied(source.to_scene(grid.points(all_indices(grid.shape))))
            assert rows.reshape(-1)[inside.numpy()].all()


def test_the_threshold_is_where_a_sample_stops_half_of_its_light(whole) -> None:
    assert whole[1].threshold == pytest.approx(LEVEL, rel=1e-5)  # float32 of the steps


def test_a_ball_is_closed_outward_and_where_it_should_be(whole) -> None:
    mesh, solid, _ = whole
    found = closedness(mesh)
    assert found.closed
    assert found.oriented
    off = np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5)
    # bisection ends with an interval of 2 * 0.75 / 2**6 cells, taken at its middle
    assert off.max() < 0.013 * solid.grid.spacing
    # a polyhedron in a sphere lacks a share of order (cell / radius)**2 = 0.002
    assert mesh.volume == pytest.approx(BALL, rel=0.004)


def test_bisection_is_what_places_the_vertices(whole) -> None:
    _, solid, _ = whole
    raw = marching_cubes(solid, QUIET)
    error = [np.abs(np.linalg.norm(m.vertices, axis=1) - 0.5).max()
             for m in (raw, refine_mesh(raw, solid))]  # fmt: skip
    assert error[1] < 0.5 * error[0]


def test_colours_are_what_a_camera_above_the_surface_sees(whole) -> None:
    mesh, solid, _ = whole
    colors = color_mesh(mesh, solid.source).vertex_colors
    assert colors is not None
    # the field is coloured by direction, constant along each normal
    assert np.abs(colors - (0.5 + 0.5 * mesh.vertices / 0.5)).max() < 0.02


def test_the_result_is_in_the_frame_and_unit_of_the_source() -> None:
    turn = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    similarity = Similarity(2.0, turn, (0.1, -0.2, 0.3))
    model = analytic_model(
        lambda p: density_of(ball(p - torch.tensor([0.2, 0.0, 0.0]), 0.4)), similarity=similarity
    )
    mesh, solid, _ = surface(model, 32)
    center = similarity.inverse().apply(torch.tensor([[0.2, 0.0, 0.0]]).double()).numpy()
    off = np.linalg.norm(mesh.vertices - center, axis=1) - 0.2
    assert np.abs(off).max() < 0.05 * solid.grid.spacing
    assert solid.threshold == pytest.approx(2.0 * LEVEL, rel=1e-5)  # per unit of the source
    assert mesh.volume > 0
    outward = mesh.vertices[:1] - center
    seen = surface_colors(solid.source, mesh.vertices[:1], outward / np.linalg.norm(outward))
    place = similarity.apply(torch.from_numpy(mesh.vertices[:1])).numpy()
    assert np.abs(seen - (0.5 + 0.5 * place / np.linalg.norm(place))).max() < 0.03


def test_a_hollow_interior_is_filled_unless_it_should_not_be() -> None:
    model = analytic_model(shell)
    # before cavities are removed, which would hide that nothing was filled
    filled = marching_cubes(surface(model, 32)[1], QUIET)
    hollow = marching_cubes(surface(model, 32, fill=False)[1], QUIET)
    assert filled.volume == pytest.approx(BALL, rel=0.01)
    inner = 4.0 / 3.0 * math.pi * 0.35**3
    assert hollow.volume == pytest.approx(BALL - inner, rel=0.03)  # cells of 0.03 blur the inner


@pytest.mark.parametrize("angle", [90.0, 50.0])
def test_an_open_hollow_is_filled_only_where_fewer_than_two_views_look(angle: float) -> None:
    """A hollow ball with a hole, `angle` wide from its axis: a bowl, and a pot with a neck."""

    def vessel(points: torch.Tensor) -> torch.Tensor:
        wall = (points.norm(dim=-1) - 0.62).abs() - 0.06
        polar = torch.atan2(points[:, :2].norm(dim=-1), points[:, 2])
        return torch.maximum(wall, 0.6 * (math.radians(angle) - polar))

    _, solid, seen = surface(analytic_model(lambda points: density_of(vessel(points))), 40)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 3)))
    points = points[points.norm(dim=-1) < 0.48]
    eyes = solid.source.model.scene.cameras.positions
    ways = [eye - points for eye in eyes]
    outside = [found.view for found in seen.outside if isinstance(found.view, ParallelView)]
    ways += [-view.axes[2].double().expand_as(points) for view in outside]
    # by brute force: how near to the wall the straight line to each view comes
    units = [way / way.norm(dim=-1, keepdim=True) for way in ways]
    steps = np.arange(0.0, 1.3, 0.01)
    room = [torch.stack([vessel(points + s * unit) for s in steps]).amin(0) for unit in units]
    second = torch.stack(room).sort(dim=0, descending=True).values[1].numpy()
    filled = solid.behind(points.numpy()) > 0
    # a view's pixel is 0.06 wide here, and tells one thing of all that it covers
    assert (second > 0.05).mean() > 0.2
    assert not filled[second > 0.05].any()
    assert filled[second < -0.05].all()
    assert (second < -0.05).any() == (angle < 90.0)


def test_space_behind_a_wall_that_reaches_the_border_is_not_filled() -> None:
    """Seen from one side, a wall hides what is behind it; nothing says that it is solid."""

    def wall(points: torch.Tensor) -> torch.Tensor:
        front = density_of((points[:, 2] - 0.1).abs() - 0.1)
        fog = torch.where(points[:, 2].abs() > 0.9, LEVEL * 0.2, 0.0)  # behind, nobody trained it
        side = torch.where(points[:, :2].abs().amax(dim=-1) > 0.9, LEVEL * 0.2, 0.0)
        return torch.where(points[:, 2] > 0.3, front, front + fog + side)

    above = sphere_cameras(40)
    chosen = [i for i in range(40) if above.positions[i, 2] > 1.0]
    model = analytic_model(wall, cameras=above[chosen])
    mesh, _, _ = surface(model, 32, threshold=LEVEL)
    assert mesh.vertices[:, 2].min() > -0.1


def test_only_components_that_a_training_camera_sees_stay() -> None:
    def two(points: torch.Tensor) -> torch.Tensor:
        other = ball(points - torch.tensor([0.0, 0.0, 0.66]), 0.06)
        return density_of(torch.minimum(ball(points), other))

    everywhere = surface(analytic_model(two), 32)[0]
    below = sphere_cameras(40)
    chosen = [i for i in range(40) if below.positions[i, 2] < -2.9]
    hidden = surface(analytic_model(two, cameras=below[chosen]), 32)[0]
    assert everywhere.vertices[:, 2].max() == pytest.approx(0.72, abs=0.01)
    assert hidden.vertices[:, 2].max() == pytest.approx(0.5, abs=0.01)
    assert closedness(hidden).closed


def test_crumbs_that_the_grid_cannot_resolve_go() -> None:
    """Five balls, all seen: a large one, and four smaller or larger than two cells."""

    def shapes(points: torch.Tensor, small: float) -> torch.Tensor:
        distance = ball(points)
        for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            place = torch.tensor([0.5 * x, 0.5 * y, 0.1])
            distance = torch.minimum(distance, ball(points - place, small))
        return density_of(distance)

    for small, expected in ((0.025, 1), (0.06, 5)):
        model = analytic_model(lambda points, small=small: shapes(points, small))
        mesh, solid, _ = surface(model, 32)
        raw = refine_mesh(marching_cubes(solid, QUIET), solid)
        assert label_components(raw)[0] == 5
        assert label_components(mesh)[0] == expected
        assert (2.0 * small < 2.0 * solid.grid.spacing) == (expected == 1)


def test_slabs_meet_without_a_seam(whole, monkeypatch: pytest.MonkeyPatch) -> None:
    _, solid, _ = whole
    once = marching_cubes(solid, QUIET)
    nx, ny, nz = solid.grid.shape
    monkeypatch.setattr(extract, "SLAB", 5 * ny * nz)
    pieces = marching_cubes(solid, QUIET)
    assert len(pieces.faces) == len(once.faces)
    assert len(pieces.vertices) == len(once.vertices)
    found = closedness(pieces)
    assert found.closed and found.oriented
    assert pieces.volume == pytest.approx(once.volume, rel=1e-6)


def test_an_empty_field_and_a_threshold_out_of_range_say_so() -> None:
    with pytest.raises(NerfError, match="empty"):
        surface(analytic_model(lambda points: torch.zeros(len(points))))
    thin = analytic_model(lambda points: torch.where(ball(points) < 0, 0.1 * LEVEL, 0.0))
    with pytest.raises(NerfError, match="--threshold 1e"):
        surface(thin, 16, threshold=1e6, fill=False)


def test_points_lie_on_the_surface_with_outward_normals(whole) -> None:
    _, solid, seen = whole
    cloud = field_points(solid.source, seen, 5000, 0, QUIET, lambda text: None)
    assert len(cloud.points) == 5000
    assert cloud.normals is not None and cloud.colors is not None
    radius = np.linalg.norm(cloud.points, axis=1)
    # half of the light stops within two samples of where the density passes the level
    assert np.abs(radius - 0.5).max() < 2.0 * STEP
    assert np.einsum("ij,ij->i", cloud.normals, cloud.points / radius[:, None]).min() > 0.8
    assert np.abs(cloud.colors - (0.5 + 0.5 * cloud.points / radius[:, None])).max() < 0.1


def test_a_threshold_that_gives_a_block_or_specks_is_doubted() -> None:
    """A ball in thin fog, with a few dense grains in it."""

    def foggy(points: torch.Tensor) -> torch.Tensor:
        grain = (points - torch.tensor([0.45, 0.0, 0.0])).norm(dim=-1) < 0.1
        fog = torch.where(points.norm(dim=-1) < 0.65, 0.0145 * LEVEL, 0.0)
        return torch.maximum(density_of(ball(points)), fog) + 200.0 * LEVEL * grain

    source = SourceField.of(analytic_model(foggy, n_views=3))
    seen = compute_visibility(source, QUIET, 0.1)
    usual = solid_of(source, seen, 24, None, False)
    for threshold, said in (
        (usual.threshold, ""),
        (0.005 * LEVEL, "a block around it: only 0% of"),
        (150.0 * LEVEL, "specks of it: only "),
    ):
        solid = replace(usual, threshold=threshold)
        doubts = list_doubts(marching_cubes(solid, QUIET), solid, seen, True)
        assert len(doubts) == bool(said)
        advice = f"without --threshold it would be {usual.threshold:.4g}"
        assert not said or (said in doubts[0] and doubts[0].endswith(advice))


def test_as_many_points_as_were_asked_for() -> None:
    """Eight views of 48 pixels each way: 4000 are more than the pixels that show the ball."""
    model = analytic_model(lambda p: density_of(ball(p)), cameras=sphere_cameras(8))
    field, counts = model.field, []
    assert isinstance(field, HashField)

    class Counting(HashField):
        def render_rays(self, rays: Rays, *rest: Any, **more: Any) -> Any:
            counts.append(len(rays))
            return super().render_rays(rays, *rest, **more)

    parts = (field.space, field.net, field.params, field.sampler, field.ops)
    source = SourceField.of(replace(model, field=Counting(*parts)))
    seen = compute_visibility(source, QUIET)
    for n in (1, 300, 4000):
        counts.clear()
        cloud = field_points(source, seen, n, 0, QUIET, lambda text: None)
        assert len(np.unique(cloud.points, axis=0)) == len(cloud.points) == n
        assert np.abs(np.linalg.norm(cloud.points, axis=1) - 0.5).max() < 2.0 * STEP
        assert n > 300 or sum(counts) < 0.5 * 8 * 48 * 48  # not all pixels for so few


def test_voxels_hold_the_density_and_the_filled_inside() -> None:
    _, solid, _ = surface(analytic_model(shell), 24)
    mesh = color_mesh(marching_cubes(solid, QUIET), solid.source)
    grid = field_voxels(solid, mesh, QUIET)
    index = np.moveaxis(np.indices(grid.values.shape), 0, -1)
    radius = np.linalg.norm(grid.origin + grid.spacing * index, axis=-1)
    inside = grid.values >= grid.threshold
    # on the surface itself either answer is right
    clear = np.abs(radius - 0.5) > 1e-4
    assert np.array_equal(inside[clear], (radius < 0.5)[clear])
    assert grid.colors is not None and grid.colors[inside].max() > 0.5


def test_planes_over_each_other_are_the_rendered_picture(whole) -> None:
    _, solid, _ = whole
    model = solid.source.model
    planes = plane_images(solid.source, model.scene.cameras, 0, 8, QUIET)
    assert np.all(np.diff(planes.depths) > 0)
    # 8 bits a plane, and rays that end at 1e-4 of their light
    assert np.abs(put_together(planes) - rendered(model)).max() < 0.03
    assert sum(bool(image[..., 3].any()) for image in planes.images) > 3


def test_planes_reach_as_far_as_the_field() -> None:
    """A ball, and a wall all round it, far out of the box."""

    def in_a_room(points: torch.Tensor) -> torch.Tensor:
        wall = (points.norm(dim=-1) - 8.0).abs() < 1.0
        return torch.where(wall, LEVEL, density_of(ball(points)))

    model = analytic_model(in_a_room)
    old, scene = model.field, model.scene
    assert isinstance(old, HashField)
    space = ContractedSpace(scene.box, 1.0, 20.0)
    edges = edges_by(Piecewise(1.0), 1.0, 20.0, 64)
    grid = fresh_grid(space, edges, resolution=16, n_samples=64, prior=0.5, padding=0.2)
    sampler = ProposalSampler(grid, old.ops, rate=0.1)
    field = UnboundedField(space, old.net, old.params, sampler, old.ops, n_rendered=64)
    model = replace(model, field=field)
    planes = plane_images(SourceField.of(model), scene.cameras, 0, 8, QUIET)
    assert planes.depths[-1] > 8.0
    picture = rendered(model)
    assert picture[0, 0].max() > 0.5  # the wall
    assert np.abs(put_together(planes) - picture).max() < 0.03


def put_together(planes: PlaneImages) -> np.ndarray:
    """All planes over each other, and over black, the background of these models."""
    picture = np.zeros((48, 48, 3))
    for image in planes.images[::-1] / 255.0:
        alpha = image[..., 3:]
        picture = picture * (1.0 - alpha) + image[..., :3] * alpha
    return picture


def rendered(model: Model) -> np.ndarray:
    return as_image(render_image(model, model.scene.cameras, 0).rgb, model.scene.cameras, 0)


class Gridless(HashField):
    """A field without an occupancy grid, as classic has it."""

    occupancy = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [HashField, Gridless])
def test_density_that_no_training_camera_sees_is_in_no_shape(kind: type[HashField]) -> None:
    """A second ball, out of the frame of the camera that looks at the first one."""
    away = torch.tensor([0.0, 0.88, -0.88])

    def two_balls(points: torch.Tensor) -> torch.Tensor:
        distance = torch.minimum(ball(points, 0.3), (points - away).norm(dim=-1) - 0.1)
        return density_of(distance)

    every = sphere_cameras(60)
    axis = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    nearest = (every.positions @ axis).argsort(descending=True)[:1].tolist()
    cameras = replace(every[nearest], focal=every.focal[:1] * 2.0)
    model = analytic_model(two_balls, cameras=cameras)
    old = model.field
    assert isinstance(old, HashField)
    parts = (old.space, old.net, old.params, old.sampler, old.ops)
    source = SourceField.of(replace(model, field=kind(*parts)))
    assert source.density(away.numpy()[None].astype(float)) == 0.0
    assert source.density(np.array([[0.29, 0.0, 0.0]])) > 0.0
    low, high = extract.content_box(source)
    assert (np.abs([low, high]) < 0.5).all()
    with torch.no_grad():  # and no ray from anywhere meets it
        hit = old.between(0.0, 2.0).render_rays(
            Rays(away[None] - 0.5 * axis.float(), axis.float()[None]), torch.zeros(3)
        )
    assert (float(hit.opacity) == 0.0) == (kind is HashField)
