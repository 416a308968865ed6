"""A page's pictures: coarse and sharp, dropped where the camera moves on, whatever fails."""

from __future__ import annotations

import queue
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from analytic_field import analytic_model, ball, density_of, sphere_cameras
from torch import Tensor

from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import ColorMap
from nerfcli.core.errors import NerfError
from nerfcli.engine.render import Model, as_image, render_image, to_uint8
from nerfcli.scenes.scene import Similarity
from nerfcli.view import painter as painting
from nerfcli.view.bands import aim, paint_rows
from nerfcli.view.look import MODES, Look, free_camera
from nerfcli.view.pace import FIRST_PIXELS, LEAST_PIXELS, MOST_GROWTH, Pace
from nerfcli.view.painter import Painter, Picture
from nerfcli.view.scenery import Scenery
from nerfcli.view.sources import RunSource
from nerfcli.view.turns import Turns

WAIT = 60.0  # seconds, after which a picture counts as lost
CAMERAS = sphere_cameras(5, size=24)
TURNED = Similarity(0.5, ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), (0.1, 0.0, 0.2))


def hard(points: Tensor) -> Tensor:
    return density_of(ball(points))


@cache
def model_of(similarity: Similarity = Similarity()) -> Model:  # noqa: B008
    return analytic_model(hard, similarity=similarity)


def whole(look: Look, model: Model) -> Any:
    width, height = look.size
    return paint_rows(model, look, aim(model, look, model.scene), (0, height), (0, width))


def rendered(index: int = 0) -> np.ndarray:
    model = model_of()
    return to_uint8(as_image(render_image(model, CAMERAS, index).rgb, CAMERAS, index))


class Pages:
    """Collects what a painter shows and tells."""

    def __init__(self, *models: Model) -> None:
        self.pictures: queue.Queue[Picture] = queue.Queue()
        self.faults: queue.Queue[str] = queue.Queue()
        turns = Turns()
        self.sources = [RunSource("a", model, model.scene, turns) for model in models]
        self.painter = Painter(self.sources, self.pictures.put, self.faults.put)

    def __enter__(self) -> Pages:
        self.painter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.painter.stop()
        self.painter._thread.join(WAIT)
        assert not self.painter._thread.is_alive()

    def final(self) -> Picture:
        while not (picture := self.pictures.get(timeout=WAIT)).is_final:
            pass
        return picture


def test_bands_make_the_picture_that_render_makes() -> None:
    model, look = model_of(), Look(CAMERAS[[1]])
    aimed = aim(model, look, model.scene)
    parts = [((0, 7), (0, 24)), ((7, 24), (0, 10)), ((7, 24), (10, 24))]
    colors = np.zeros((24, 24, 3), np.uint8)
    for rows, columns in parts:
        band = paint_rows(model, look, aimed, rows, columns)
        colors[slice(*rows), slice(*columns)] = band.colors
    assert (colors == rendered(1)).all()


def test_every_mode_shows_the_ball() -> None:
    model = model_of()
    photo = rendered() // 2
    for mode in MODES:
        look = Look(CAMERAS[[0]], mode, photo=photo, with_depth=True)
        band = whole(look, model)
        assert band.colors.shape == (24, 24, 3) and band.colors.dtype == np.uint8
        middle, corner = band.colors[12, 12].astype(int), band.colors[0, 0].astype(int)
        assert np.abs(middle - corner).sum() > 30, mode
        assert band.depth is not None
        assert band.depth[12, 12] == pytest.approx(3.5, abs=0.05) and band.depth[0, 0] > 100


def test_an_exposure_code_changes_colours() -> None:
    plain = whole(Look(CAMERAS[[0]]), model_of()).colors.astype(float)
    code = ColorMap(torch.full((3,), 0.5), torch.full((3,), 0.25))
    changed = whole(Look(CAMERAS[[0]], color=code), model_of()).colors
    assert np.abs(changed - (plain * 0.5 + 0.25 * 255)).max() <= 1.0


def test_error_is_between_picture_and_photo_of_any_size() -> None:
    exact = rendered().repeat(2, axis=0).repeat(2, axis=1)
    none = whole(Look(CAMERAS[[0]], "error", photo=exact), model_of()).colors
    assert (none == none[0, 0]).all()
    some = whole(Look(CAMERAS[[0]], "error", photo=exact // 8 * 7), model_of()).colors
    assert len(np.unique(some.reshape(-1, 3), axis=0)) > 3


def test_a_picture_becomes_sharp_and_is_what_render_makes() -> None:
    with Pages(model_of()) as pages:
        pages.painter.look_at(Look(CAMERAS[[2]]))
        assert (pages.final().colors == rendered(2)).all()


def test_the_first_picture_is_coarse_and_the_next_is_as_the_rate_allows(monkeypatch: Any) -> None:
    monkeypatch.setattr(painting, "REST", 0.0)
    monkeypatch.setattr(painting, "SHOWN_EVERY", 0.0)
    large = Look(CAMERAS[[2]].scaled(8.0))
    with Pages(model_of()) as pages:
        pages.painter.look_at(large)
        first = pages.pictures.get(timeout=WAIT)
        assert first.colors.shape[0] * first.colors.shape[1] <= FIRST_PIXELS and not first.is_final
        last = pages.final()
        assert last.colors.shape == (192, 192, 3)
        assert pages.painter.resting.rate is not None


def test_a_camera_that_moves_on_drops_the_rest_of_its_picture(monkeypatch: Any) -> None:
    """The look after is painted before the one before is done."""
    monkeypatch.setattr(painting, "REST", 0.0)
    with Pages(model_of()) as pages:
        painter, painted = pages.painter, []
        band = painter._paint_band

        def noted(look: Look, canvas: Any, start: int, stop: int) -> None:
            painted.append((look, start))
            if look.size == (192, 192) and start == 0:
                painter.look_at(Look(CAMERAS[[0]]))  # small: done at once
            band(look, canvas, start, min(stop, start + 1) if look.size[0] > 100 else stop)

        monkeypatch.setattr(painter, "_paint_band", noted)
        painter.look_at(Look(CAMERAS[[2]].scaled(8.0)))
        assert (pages.final().colors == rendered(0)).all()
    assert len([1 for look, _ in painted if look.size == (192, 192)]) == 1


def test_a_slow_field_shows_a_middle_picture_first(monkeypatch: Any) -> None:
    monkeypatch.setattr(painting, "REST", 0.0)
    monkeypatch.setattr(painting, "SHOWN_EVERY", 1e9)
    large, fills = Look(CAMERAS[[2]].scaled(8.0)), []
    with Pages(model_of()) as pages:
        painter = pages.painter
        fill = painter._fill
        rates = {painting.BAND: 4000.0, painting.SLOW: 20_000.0, painting.MIDDLE: 5_000.0}
        monkeypatch.setattr(painter.resting, "pixels_in", rates.__getitem__)

        def noted(look: Look, *args: Any, **how: Any) -> bool:
            fills.append(look.size)
            return fill(look, *args, **how)

        monkeypatch.setattr(painter, "_fill", noted)
        painter.look_at(large)
        last = pages.final()
    assert fills == [(71, 71), (192, 192)] and last.colors.shape == (192, 192, 3)


def test_two_runs_are_parted_by_a_line() -> None:
    colors = np.full((4, 200, 3), 128, np.uint8)
    painting.draw_edge(colors, 0.5)
    assert [int(v) for v in colors[0, 96:104, 0]] == [128, 128, 0, 0, 255, 255, 128, 128]
    painting.draw_edge(colors, 1.0)
    painting.draw_edge(colors, 0.0)
    assert (colors[:, :98] == 128).all() and (colors[:, 102:] == 128).all()


@pytest.mark.parametrize("fault", [NerfError("the memory is full"), ZeroDivisionError("oops")])
def test_a_renderer_that_fails_is_told_and_painting_goes_on(fault: Exception) -> None:
    with Pages(model_of()) as pages:
        source = pages.sources[0]
        good = source.model

        def bad() -> Model:
            raise fault

        source.model = bad  # pyright: ignore[reportAttributeAccessIssue]
        pages.painter.look_at(Look(CAMERAS[[0]]))
        assert str(fault) in pages.faults.get(timeout=WAIT)
        source.model = good
        pages.painter.look_at(Look(CAMERAS[[0]]))
        assert (pages.final().colors == rendered(0)).all()


def test_two_runs_share_a_picture_in_one_space() -> None:
    """The second's own space is turned and scaled; left it is the first's, right the second's."""
    first = model_of()
    second = analytic_model(
        lambda points: density_of(ball(points - points.new_tensor([0.1, 0.0, 0.2]), 0.25)),
        similarity=TURNED,
    )
    look = Look(CAMERAS[[0]], "opacity", split=0.5)
    both = whole(replace(look, split=1.0), first).colors
    other = paint_rows(
        second, look, aim(second, look, first.scene), (0, 24), (0, 24)
    ).colors  # the same ball in another space
    assert np.abs(both.astype(int) - other).mean() < 12
    with Pages(first, second) as pages:
        pages.painter.look_at(look)
        colors = pages.final().colors
    assert (colors[:, :12] == both[:, :12]).all() and (colors[:, 12:] == other[:, 12:]).all()


def test_a_crop_hides_what_lies_outside() -> None:
    crop = Crop((5.0, 5.0, 5.0), (0.1, 0.1, 0.1))
    with Pages(model_of()) as pages:
        pages.painter.look_at(Look(CAMERAS[[0]], "opacity", crop=crop))
        assert not pages.final().colors.any()


def test_a_field_that_changes_is_painted_anew(monkeypatch: Any) -> None:
    monkeypatch.setattr(painting, "FRESH", 0.01)
    with Pages(model_of()) as pages:
        pages.painter.look_at(Look(CAMERAS[[0]]))
        pages.final()
        pages.sources[0].version += 1
        assert (pages.final().colors == rendered(0)).all()


def test_a_pace_does_not_believe_one_measurement() -> None:
    pace = Pace()
    assert pace.pixels_in(0.1) == FIRST_PIXELS
    pace.note(1000, 100.0)  # compiles
    assert pace.pixels_in(0.1) == FIRST_PIXELS
    pace.note(100_000, 0.1)
    assert pace.pixels_in(0.1) == pytest.approx(100_000)
    pace.note(10, 1000.0)
    assert pace.rate is not None and pace.rate >= 1e6 / MOST_GROWTH / 2
    for _ in range(100):
        pace.note(10, 1000.0)
    assert pace.pixels_in(0.1) == LEAST_PIXELS


def test_a_free_camera_is_where_it_was_put() -> None:
    cameras = free_camera(np.array([1.0, 2.0, 3.0]), np.eye(3), 1.0, (40, 20))
    rays = cameras.image_rays(0)
    assert torch.allclose(rays.origins[0].double(), torch.tensor([1.0, 2.0, 3.0]).double())
    top, bottom = rays.directions[20], rays.directions[-20]  # of the middle column
    angle = torch.rad2deg(torch.arccos((top * bottom).sum()))
    assert float(angle) == pytest.approx(np.degrees(1.0), abs=3.0)
    assert Look(cameras).sized(200).size == (20, 10)
    assert Look(cameras).sized(10_000).size == (40, 20)


def test_the_depth_of_a_second_run_is_in_the_space_of_the_first() -> None:
    """A page hides lines by it, which are in the space of the first run."""
    look, base, model = Look(CAMERAS[[0]], with_depth=True), model_of(), model_of(TURNED)
    aimed = aim(model, look, base.scene)
    own = whole(replace(look, cameras=aimed.cameras), model).depth
    shown = paint_rows(model, look, aimed, (0, 24), (0, 24)).depth
    assert shown is not None
    hit = own < 10.0
    assert hit.any()
    np.testing.assert_allclose(shown[hit], own[hit] / TURNED.scale, atol=0.01)


def test_a_photo_does_not_cover_the_field_behind_it() -> None:
    """The camera in which the page stands, where it begins or after a click, is hidden."""
    scene = replace(model_of().scene, cameras=CAMERAS)
    scenery, frusta = Scenery(scene), {i: SimpleNamespace(visible=True) for i in range(3)}
    for index in (1, 2):
        scenery.clear_view(frusta, CAMERAS.positions[index].numpy())
        assert [i for i in frusta if not frusta[i].visible] == [index]
    scenery.clear_view(frusta, np.full(3, 1e3))
    assert all(frustum.visible for frustum in frusta.values())
