"""The viewer's server with pages that are no browsers: what comes, and what they do to it."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from analytic_field import analytic_model, ball, density_of, sphere_cameras
from browser import wait_for

from nerfcli.bench.view_page import PageClient
from nerfcli.engine.render import as_image, render_image, to_uint8
from nerfcli.view.look import free_camera
from nerfcli.view.page import Page
from nerfcli.view.scenery import field_of_view, quaternion_of
from nerfcli.view.sources import RunSource
from nerfcli.view.turns import Turns
from nerfcli.view.viewer import Viewer, open_viewer

pytest.importorskip("viser")

WAIT = 60.0  # seconds, after which a picture counts as lost
SIZE = (64, 48)
CAMERAS = sphere_cameras(5, size=48)
MODEL = analytic_model(lambda points: density_of(ball(points)), cameras=CAMERAS)


@contextmanager
def viewing(**how: Any) -> Iterator[tuple[Viewer, RunSource]]:
    source = RunSource("a", MODEL, MODEL.scene, Turns())
    viewer = open_viewer([source], **how)
    try:
        yield viewer, source
    finally:
        viewer.close()


def look(page: PageClient, index: int) -> None:
    pose = CAMERAS.c2w[index].numpy()
    x, y, z = pose[:, 3].tolist()
    page.look((x, y, z), quaternion_of(pose[:, :3]), field_of_view(MODEL.scene, index))


def is_right(page: PageClient, index: int) -> bool:
    """Whether a picture comes that is, JPEG aside, what render makes of this camera."""
    pose = CAMERAS.c2w[index].numpy()
    cameras = free_camera(pose[:, 3], pose[:, :3], field_of_view(MODEL.scene, index), SIZE)
    right = to_uint8(as_image(render_image(MODEL, cameras, 0).rgb, cameras, 0)).astype(float)
    for _ in range(20):
        try:
            found = page.pictures.get(timeout=WAIT)
        except queue.Empty:
            return False
        if found.size == SIZE and np.abs(found.colors - right).mean() < 3.0:
            return True
    return False


def test_a_page_gets_the_picture_of_its_camera() -> None:
    with viewing() as (viewer, _), PageClient(viewer.url, SIZE) as page:
        for index in (0, 3):
            look(page, index)
            assert is_right(page, index)
        kinds = page.kinds
    assert "CameraFrustumMessage" in kinds and "GuiDropdownMessage" in kinds


def test_ten_pages_are_served_and_one_vanishes() -> None:
    with viewing() as (viewer, _), ExitStack() as held:
        pages = [held.enter_context(PageClient(viewer.url, SIZE)) for _ in range(10)]
        for i, page in enumerate(pages):
            look(page, i % 5)
        pages[4].vanish()
        for i, page in enumerate(pages):
            assert i == 4 or is_right(page, i % 5), i


def test_a_token_is_needed_where_one_is_set() -> None:
    from websockets.exceptions import InvalidStatus

    with viewing(token="secret") as (viewer, _):
        with pytest.raises(InvalidStatus, match="403"), PageClient(viewer.url.split("?")[0], SIZE):
            pass
        with PageClient(viewer.url, SIZE) as page:
            look(page, 1)
            assert is_right(page, 1)


def test_a_renderer_that_fails_is_told_in_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with viewing() as (viewer, source), PageClient(viewer.url, SIZE) as page:
        source.loaded = None  # pyright: ignore[reportAttributeAccessIssue]
        look(page, 0)
        with pytest.raises(queue.Empty):
            page.pictures.get(timeout=1.0)
        source.loaded = MODEL
        look(page, 2)
        assert is_right(page, 2)
        assert "NotificationShowMessage" in page.kinds


def test_a_panel_that_fails_does_not_take_the_page_with_it() -> None:
    def bad(page: Page) -> None:
        raise ValueError("no such panel")

    with viewing(panels=[bad]) as (viewer, _), PageClient(viewer.url, SIZE) as page:
        look(page, 0)
        assert is_right(page, 0)
        assert "NotificationShowMessage" in page.kinds


def test_others_than_this_machine_need_a_token() -> None:
    with viewing(host="0.0.0.0") as (viewer, _):
        address, token = viewer.url.split("?token=")
        assert len(token) >= 16
        port = address.rstrip("/").rsplit(":", 1)[1]
        near = replace(viewer, url=f"http://127.0.0.1:{port}/?token={token}")
        with PageClient(near.url, SIZE) as page:
            look(page, 0)
            assert is_right(page, 0)


def test_pages_that_left_are_forgotten() -> None:
    with viewing() as (viewer, _):
        for index in (1, 2):
            with PageClient(viewer.url, SIZE) as page:
                look(page, index)
                assert is_right(page, index)
        wait_for(lambda: not viewer.pages)
