"""Choose the cameras that `render` shows a run by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.orbit import Orbit
from nerfcli.cameras.paths import PATHS, choose_path, orbit
from nerfcli.cameras.upright import Upright, find_upright, restrict, up_along, up_of_images
from nerfcli.core.errors import NerfError
from nerfcli.engine.cost import N_FRAMES
from nerfcli.engine.path_request import PathRequest, parse_point
from nerfcli.engine.render import Model
from nerfcli.engine.runs import Run
from nerfcli.engine.subject import find_subject
from nerfcli.scenes import Scene


@dataclass(frozen=True)
class Plan:
    """A path through a run's scene.

    Attributes:
        name: of the path. cameras: along it.
        remark: a line for people, or "". facts: the same for --json.
    """

    name: str
    cameras: Cameras
    remark: str
    facts: dict[str, Any]


def plan_path(run: Run, request: PathRequest, model: Model | None = None) -> Plan:
    """Choose the cameras of a path through the run's scene.

    Args:
        model: of the run; with it an orbit keeps what the photos show in the frame.

    Raises:
        NerfError: the scene has no views for it, or a request that cannot be met.
    """
    scene = Scene.from_json(run.scene_json)
    path, up = request.path, request.up
    if path == "test":
        held_out = list(scene.splits.get("test", ()))
        if not held_out:
            raise NerfError(f"--path test: scene {scene.name} has no held-out views; try orbit.")
        chosen = _only(scene.cameras[held_out], request.frame)
        return Plan(path, chosen.scaled(request.scale), "", {})
    cameras = scene.cameras[list(scene.splits["train"])]
    upright = _which_is_up(scene, cameras, up)
    name, reason = (path, "as asked") if path != "auto" else choose_path(cameras, upright)
    if path == "auto" and request.orbit_flags:
        name, reason = "orbit", f"{request.orbit_flags[0]} asks for it"
    n_frames = request.frames or N_FRAMES
    if name == "orbit":
        asked = _orbit(scene, cameras, request, model)
        made = orbit(cameras, scene.box, n_frames, upright, asked)
    else:
        made = PATHS[name](cameras, scene.box, n_frames, upright)
    words = [f"{name}: {reason}"] if path == "auto" else []
    if not upright.is_certain:
        words.append(f"up is a guess ({upright.reason}): --up +z, -y, ... or image sets it")
    elif up is None and upright.turns.any():
        words.append(f"{upright.reason}, the video stands upright")
    rotation = np.array(scene.scene_from_source.rotation)
    facts = {
        "path_reason": reason,
        "up": (upright.up @ rotation).tolist(),
        "up_reason": upright.reason,
        "up_is_certain": upright.is_certain,
    }
    chosen = _only(made, request.frame).scaled(request.scale)
    return Plan(name, chosen, "; ".join(words), facts)


def _only(cameras: Cameras, frame: int | None) -> Cameras:
    """The one camera that is asked for, or all."""
    if frame is None:
        return cameras
    if not 0 <= frame < len(cameras):
        raise NerfError(
            f"--frame {frame}: the path has the frames 0 to {len(cameras) - 1}; --frames N makes "
            "it longer."
        )
    return cameras[frame]


def _which_is_up(scene: Scene, cameras: Cameras, up: str | None) -> Upright:
    c2w = cameras.c2w.numpy()
    if up == "image":
        return up_of_images(c2w)
    if up is not None:
        axis = np.eye(3)["xyz".index(up[1])] * (-1.0 if up[0] == "-" else 1.0)
        return up_along(c2w, np.array(scene.scene_from_source.rotation) @ axis)
    if scene.upright is None:  # a run of before
        return find_upright(c2w)
    return restrict(scene.upright, list(scene.splits["train"]))


def _orbit(scene: Scene, cameras: Cameras, request: PathRequest, model: Model | None) -> Orbit:
    """What is asked of an orbit, in scene units."""
    units = scene.scene_from_source.scale
    subject = None
    if request.target in (None, "subject") and model is not None:
        subject = find_subject(model, cameras)
    target = _target(scene, cameras, request.target, subject)
    if target is None and request.orbit_flags and common_focus(cameras) is None:
        target = np.array(scene.box.center) if subject is None else np.median(subject, axis=0)
    return Orbit(
        target,
        subject,
        None if request.distance is None else units * request.distance,
        None if request.height is None else units * request.height,
        request.turns,
        math.radians(request.start or 0.0),
    )


def _target(
    scene: Scene, cameras: Cameras, target: str | None, subject: np.ndarray | None
) -> np.ndarray | None:
    """The scene point, [3], that --target names; None: the cameras decide."""
    if target is None:
        return None
    if target == "box":
        return np.array(scene.box.center)
    if target == "centre":
        focus = common_focus(cameras)
        if focus is None:
            raise NerfError("--target centre: the cameras look at no common point; try subject.")
        return focus[0].numpy()
    if target == "subject":
        if subject is None:
            raise NerfError(
                "--target subject: the middle of the photos shows nothing solid; try box, or x,y,z."
            )
        return np.median(subject, axis=0)
    point = torch.tensor(parse_point(target), dtype=torch.float64)
    return scene.scene_from_source.apply(point).numpy()
