"""Measure the viewer: pictures a second while its camera moves, and how soon it is sharp."""

from __future__ import annotations

import math
import queue
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.bench.view_page import Arrival, PageClient, Vector
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note
from nerfcli.engine.render import load_model
from nerfcli.engine.runs import Run
from nerfcli.scenes import Scene
from nerfcli.view.scenery import field_of_view, first_camera, quaternion_of
from nerfcli.view.sources import RunSource
from nerfcli.view.turns import Turns
from nerfcli.view.viewer import open_viewer

CANVAS = (900, 700)
HERTZ = 30.0  # cameras that the page sends a second while it moves
TURN = math.radians(40.0)  # a second, about the middle of the scene
SETTLED = 1.0  # seconds without a picture after which the last one was the sharp one
PATIENCE = 120.0  # seconds without any picture


def view_bench(
    path: Path, *, backend: str = "auto", device: str = "auto", quick: bool = False, note: Note
) -> dict[str, Any]:
    """Look at a run as a page does that moves about and then rests, several times.

    Returns:
        canvas: width and height of the page. frames_per_second and pixels: while the camera moves.
        first_picture_ms: from a camera at rest that moves to its first picture. sharp_seconds: from
        the last camera to the last picture, which has sharp_size. Medians over the rounds.

    Raises:
        NerfError: no readable run, or no picture came.
    """
    run = Run.open(path)
    model = load_model(run, backend, device, note)
    source = RunSource(path.name, model, Scene.from_json(run.scene_json), Turns())
    viewer = open_viewer([source])
    n_rounds, seconds = (2, 1.0) if quick else (5, 4.0)
    try:
        with PageClient(viewer.url, CANVAS) as page:
            _settle(page, model.scene, 0.0)  # compiles, and learns the rate
            rounds = [_measure(page, model.scene, i, seconds) for i in range(n_rounds)]
    finally:
        viewer.close()
    return {
        "run": str(path),
        "backend": model.backend,
        "canvas": list(CANVAS),
        "rounds": n_rounds,
        "frames_per_second": _median(rounds, "fps"),
        "pixels": round(_median(rounds, "pixels")),
        "first_picture_ms": _median(rounds, "first"),
        "sharp_seconds": _median(rounds, "sharp"),
        "sharp_size": rounds[-1]["size"],
    }


def _measure(page: PageClient, scene: Scene, i: int, seconds: float) -> dict[str, Any]:
    """Move for so many seconds from rest, then rest."""
    _drain(page)
    begin = time.perf_counter()
    angle = 0.7 * i
    while (now := time.perf_counter()) - begin < seconds:
        _look(page, scene, angle + TURN * (now - begin))
        time.sleep(1.0 / HERTZ)
    end = time.perf_counter()
    _look(page, scene, angle + TURN * seconds)
    moving = _drain(page)
    if not moving:
        raise NerfError("the viewer showed no picture while its camera moved.")
    last = _settle(page, scene, None)
    late = moving[len(moving) // 2 :]
    return {
        "fps": len(moving) / (moving[-1].seconds - begin),
        "pixels": statistics.median(w * h for w, h in (one.size for one in late)),
        "first": 1e3 * (moving[0].seconds - begin),
        "sharp": last.seconds - end,
        "size": list(last.size),
    }


def _settle(page: PageClient, scene: Scene, angle: float | None) -> Arrival:
    """The last picture, after which no other comes; of a new camera if an angle is given."""
    if angle is not None:
        _look(page, scene, angle)
    try:
        last = page.pictures.get(timeout=PATIENCE)
    except queue.Empty:
        raise NerfError(f"the viewer showed no picture in {PATIENCE:g} s.") from None
    while True:
        try:
            last = page.pictures.get(timeout=SETTLED)
        except queue.Empty:
            return last


def _drain(page: PageClient) -> list[Arrival]:
    found = []
    while not page.pictures.empty():
        found.append(page.pictures.get())
    return found


def _look(page: PageClient, scene: Scene, angle: float) -> None:
    """The first camera, turned about the middle of the scene."""
    index = first_camera(scene)
    pose = scene.cameras.c2w[index].numpy()
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    center = np.array(scene.box.center)
    x, y, z = (turn @ (pose[:, 3] - center) + center).tolist()
    position: Vector = (x, y, z)
    page.look(position, quaternion_of(turn @ pose[:, :3]), field_of_view(scene, index))


def _median(rounds: list[dict[str, Any]], name: str) -> float:
    return float(f"{statistics.median(one[name] for one in rounds):.3g}")
