"""Name the cameras none of whose pixels can be used, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.core.text import quantity
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Frame

CORRECT = (
    "Correct them in the scene's file: lens terms are for distances from the axis in focal "
    "lengths, not in pixels"
)


def find_blind_lenses(scene: Scene, indices: Sequence[int]) -> list[int]:
    """Find the cameras whose lens has a ray for no pixel. Equal cameras are looked at once."""
    cameras, known = scene.cameras, {}
    blind = []
    for i in indices:
        key = cameras.kind(i)
        if key not in known:
            known[key] = not cameras.has_rays(i)
        if known[key]:
            blind.append(i)
    return blind


def describe_blind_lenses(scene: Scene, blind: Sequence[int]) -> str:
    """Say which lenses have a ray for no pixel, by the first of them, and what to do."""
    cameras, first = scene.cameras, blind[0]
    width, height = cameras.size[first].tolist()
    (fx, fy), (cx, cy) = cameras.focal[first].tolist(), cameras.principal[first].tolist()
    camera = Intrinsics((width, height), (fx, fy), (cx, cy), cameras.lenses[first])
    return _describe(scene.names[first], camera, len(blind) - 1)


def describe_blind_frames(frames: Sequence[Frame]) -> str:
    """Say which of these frames have a lens with a ray for no pixel; empty if none has."""
    known: dict[Intrinsics, bool] = {}
    blind = []
    for frame in frames:
        camera = Intrinsics(frame.size, frame.focal, frame.principal, frame.lens)
        if camera not in known:
            known[camera] = not _cameras_of(frame, camera).has_rays(0)
        if known[camera]:
            blind.append((frame.name, camera))
    if not blind:
        return ""
    (name, camera), *others = blind
    return _describe(name, camera, len(others))


def _cameras_of(frame: Frame, camera: Intrinsics) -> Cameras:
    focal, principal = (
        torch.tensor([pair], dtype=torch.float64) for pair in (camera.focal, camera.principal)
    )
    return Cameras(
        torch.from_numpy(frame.c2w)[None], focal, principal, torch.tensor([camera.size]),
        (camera.lens,),
    )  # fmt: skip


def _describe(name: str, camera: Intrinsics, others: int) -> str:
    width, height = camera.size
    more = f"; so it is with {quantity(others, 'other image')}" if others else ""
    return (
        f"the lens of {name} has a ray for none of its {width}x{height} pixels "
        f"({describe_camera(camera)}){more}. {CORRECT}"
    )


def describe_camera(camera: Intrinsics) -> str:
    """State a camera's lens, focal lengths and principal point in one line."""
    lens, (fx, fy), (cx, cy) = camera.lens, camera.focal, camera.principal
    terms = ", ".join(f"{name} = {value:g}" for name, value in lens.named.items() if value)
    return (
        f"{lens.model}{', ' if terms else ''}{terms}; focal length {fx:.5g}, {fy:.5g}; principal "
        f"point {cx:.5g}, {cy:.5g}"
    )


def explain_unusable(scene: Scene, indices: Sequence[int]) -> str:
    """Say why no pixel of these cameras can be used, and what to do."""
    blind = find_blind_lenses(scene, indices)
    if blind:
        return describe_blind_lenses(scene, blind)
    if scene.crop_radius > 0 and not scene.alpha_ignored and not any(scene.mask_paths):
        return f"the fisheye circle of {scene.crop_radius:g} pixels holds none; correct its radius"
    return "all of them are masked out; are the masks the other way round?"
