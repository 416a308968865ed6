"""Choose the cameras that `render` shows a run by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.key_frames import b_spline_through, fly_through
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.orbit import Orbit
from nerfcli.cameras.path_cameras import (
    IPD,
    as_panoramas,
    pinholes,
    resample,
    stand_upright,
    with_fov,
    with_size,
)
from nerfcli.cameras.paths import PATHS, choose_path
from nerfcli.cameras.upright import Upright, find_upright, restrict, up_along, up_of_images
from nerfcli.core.errors import NerfError
from nerfcli.engine.path_request import N_FRAMES, PLACED, VIEWS, PathRequest, parse_point
from nerfcli.engine.render import Model
from nerfcli.engine.runs import Run
from nerfcli.engine.source_record import ImageSource
from nerfcli.engine.subject import find_subject
from nerfcli.scenes import Scene, Similarity
from nerfcli.scenes.path_files import PathFile
from nerfcli.scenes.path_frames import known_frames, move_cameras
from nerfcli.scenes.read_path import read_path

SUBJECT = ("orbit", "turntable")  # go round the subject where they would cut it
OPEN = ("interpolate", *VIEWS)  # paths that do not end where they begin


@dataclass(frozen=True)
class Plan:
    """A path through a run's scene.

    Attributes:
        name: of the path. cameras: along it.
        remark: a line for people, or "". facts: the same for --json.
        fps: frames a second of its film. is_loop: the first frame follows the last.
        source_from_scene: from the frame of the cameras to that of the scene's files.
    """

    name: str
    cameras: Cameras
    remark: str
    facts: dict[str, Any]
    fps: float = 30.0
    is_loop: bool = False
    source_from_scene: Similarity = Similarity()


def plan_path(run: Run, request: PathRequest, model: Model | None = None) -> Plan:
    """Choose the cameras of a path through the run's scene.

    Args:
        model: of the run; with it an orbit keeps what the photos show in the frame.

    Raises:
        NerfError: the scene has no views for it, a request that cannot be met, or a fault in the
            path's file.
    """
    scene = Scene.from_json(run.scene_json)
    if request.is_file:
        plan = _plan_file(run, scene, request)
    elif request.path in VIEWS:
        plan = _plan_views(scene, request)
    else:
        plan = _plan_named(scene, request, model)
    return replace(
        plan,
        cameras=_only(plan.cameras, request.frame).scaled(request.scale),
        source_from_scene=scene.scene_from_source.inverse(),
    )


def _plan_views(scene: Scene, request: PathRequest) -> Plan:
    """The views of a split, as they are."""
    views = list(scene.splits.get(request.path, ()))
    if not views:
        raise NerfError(
            f"--path {request.path}: scene {scene.name} has no {VIEWS[request.path]}s; try orbit."
        )
    cameras, remark = _as_asked(scene, scene.cameras[views], request, None)
    return Plan(request.path, cameras, remark, {}, request.choose_fps())


def _plan_file(run: Run, scene: Scene, request: PathRequest) -> Plan:
    """The path of a file, at the length that is asked for."""
    path = Path(request.path)
    source = ImageSource.recorded(run.scene_json)
    folder = next(
        (Path(p) for p in (source.resolved, source.given) if p and Path(p).exists()), None
    )
    known = known_frames(run.scene_json, scene, folder, request.path_transform)
    cameras = scene.cameras[list(scene.splits["train"])]
    upright = _which_is_up(scene, cameras, request.up)
    usual = pinholes(stand_upright(cameras, upright)[0], cameras.c2w[:1].numpy())
    width, height = request.size or usual.size[0].tolist()
    found = read_path(path, known, (width, height))
    made = _fly(found, request)
    made = move_cameras(made, scene.scene_from_source)
    made, remark = _as_asked(scene, made, request, upright)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    facts = {"path_file": str(path), "path_kind": found.kind, "path_notes": list(found.notes)}
    # a film of another length plays at the usual speed unless it is asked for
    fps = request.choose_fps(found.fps)
    return Plan(
        name, made, "; ".join(filter(None, (*found.notes, remark))), facts, fps, found.is_loop
    )


def _fly(found: PathFile, request: PathRequest) -> Cameras:
    """Make the frames of a file's film."""
    n, cameras = len(found.cameras), found.cameras
    lengths = ("frames", "seconds", "speed")
    asked = [f"--{name}" for name in lengths if getattr(request, name) is not None]
    if found.are == "views":
        if asked:
            raise NerfError(
                f"{asked[0]}: --path {request.path} is {found.kind}, a list of {n} views, and one "
                "frame shows each; leave it out."
            )
        return cameras
    if found.are == "frames":
        n_frames = request.count_frames(n, found.fps)
        return cameras if n_frames == n else resample(cameras, n_frames, is_loop=found.is_loop)
    usual = found.n_frames or N_FRAMES
    if found.seconds is not None:
        usual = found.seconds * request.choose_fps(found.fps)
    n_frames = request.count_frames(usual, found.fps)
    if found.spline_order is None:
        return fly_through(cameras, n_frames, is_loop=found.is_loop)
    return b_spline_through(cameras, n_frames, is_loop=found.is_loop, order=found.spline_order)


def _plan_named(scene: Scene, request: PathRequest, model: Model | None) -> Plan:
    """A path that is fitted to the training views."""
    path, up = request.path, request.up
    cameras = scene.cameras[list(scene.splits["train"])]
    upright = _which_is_up(scene, cameras, up)
    name, reason = (path, "as asked") if path != "auto" else choose_path(cameras, upright)
    if path == "auto" and request.placing_flags:
        name, reason = "orbit", f"{request.placing_flags[0]} asks for it"
    n_frames = request.count_frames(N_FRAMES)
    asked = [_orbit(scene, cameras, name, request, model)] if name in PLACED else []
    made = PATHS[name](cameras, scene.box, n_frames, upright, *asked)
    made, remark = _as_asked(scene, made, request, upright)
    words = [f"{name}: {reason}"] if path == "auto" else []
    if not upright.is_certain:
        words.append(f"up is a guess ({upright.reason}): --up +z, -y, ... or image sets it")
    elif up is None and upright.turns.any():
        words.append(f"{upright.reason}, the video stands upright")
    words += [remark] if remark else []
    rotation = np.array(scene.scene_from_source.rotation)
    facts = {
        "path_reason": reason,
        "up": (upright.up @ rotation).tolist(),
        "up_reason": upright.reason,
        "up_is_certain": upright.is_certain,
    }
    turns = request.turns
    is_loop = name not in OPEN and (turns is None or turns == round(turns))
    return Plan(name, made, "; ".join(words), facts, request.choose_fps(), is_loop)


def _as_asked(
    scene: Scene, cameras: Cameras, request: PathRequest, upright: Upright | None
) -> tuple[Cameras, str]:
    """Give cameras the lens, the size and the field of view that are asked for; and a remark."""
    kind, size, remark = request.camera, request.size, ""
    units = scene.scene_from_source.scale
    if kind not in (None, "perspective"):
        up = (upright or _which_is_up(scene, cameras, request.up)).up
        ipd = IPD if request.ipd is None else request.ipd
        cameras = as_panoramas(cameras, kind, up, units * ipd, size)
        if cameras.lenses[0].is_stereo and request.ipd is None:
            remark = f"the eyes are {IPD:g} of the scene's units apart, as in metres; --ipd D"
    elif kind == "perspective" and any(not lens.is_pinhole for lens in cameras.lenses):
        cameras = pinholes(cameras, cameras.c2w.numpy())
    elif request.ipd is not None:
        if not any(lens.is_stereo for lens in cameras.lenses):
            raise NerfError("--ipd is between two eyes: give --camera ods or vr180 with it.")
        lenses = tuple(
            Lens(lens.model, (units * request.ipd,)) if lens.is_stereo else lens
            for lens in cameras.lenses
        )
        cameras = replace(cameras, lenses=lenses)
    if size is not None and kind in (None, "perspective"):
        cameras = with_size(cameras, size)
    if request.fov is not None:
        bent = next((lens for lens in cameras.lenses if not lens.is_pinhole), None)
        if bent is not None:
            raise NerfError(
                f"--fov: --path {request.path} has a {bent.model} lens, and keeps it; leave it "
                "out, or give --camera perspective."
            )
        cameras = with_fov(cameras, request.fov)
    return cameras, remark


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


def _orbit(
    scene: Scene, cameras: Cameras, name: str, request: PathRequest, model: Model | None
) -> Orbit:
    """What is asked of a path that goes round a target, in scene units."""
    units = scene.scene_from_source.scale
    subject = None
    wants_subject = request.target == "subject" or (request.target is None and name in SUBJECT)
    if wants_subject and model is not None:
        subject = find_subject(model, cameras)
    target = _target(scene, cameras, request.target, subject)
    if target is None and request.placing_flags and common_focus(cameras) is None:
        target = np.array(scene.box.center) if subject is None else np.median(subject, axis=0)
    lengths = {
        key: None if (value := getattr(request, key)) is None else units * value
        for key in ("distance", "height", "radius")
    }
    return Orbit(
        target=target,
        subject=subject,
        elevation=None if request.elevation is None else math.radians(request.elevation),
        turns=request.turns,
        start=math.radians(request.start or 0.0),
        **lengths,
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
