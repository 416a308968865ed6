"""Name the cameras none of whose pixels can be used, and why."""

from __future__ import annotations

from collections.abc import Sequence

from nerfcli.core.text import quantity
from nerfcli.scenes.scene import Scene


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
    lens = cameras.lenses[first]
    width, height = cameras.size[first].tolist()
    (fx, fy), (cx, cy) = cameras.focal[first].tolist(), cameras.principal[first].tolist()
    terms = ", ".join(f"{name} = {value:g}" for name, value in lens.named.items() if value)
    more = f"; so it is with {quantity(len(blind) - 1, 'other image')}" if len(blind) > 1 else ""
    return (
        f"the lens of {scene.names[first]} has a ray for none of its {width}x{height} pixels "
        f"({lens.model}{', ' if terms else ''}{terms}; focal length {fx:.5g}, {fy:.5g}; principal "
        f"point {cx:.5g}, {cy:.5g}){more}. Correct them in the scene's file: lens terms are for "
        "distances from the axis in focal lengths, not in pixels"
    )


def explain_unusable(scene: Scene, indices: Sequence[int]) -> str:
    """Say why no pixel of these cameras can be used, and what to do."""
    blind = find_blind_lenses(scene, indices)
    if blind:
        return describe_blind_lenses(scene, blind)
    if scene.crop_radius > 0 and not scene.alpha_ignored and not any(scene.mask_paths):
        return f"the fisheye circle of {scene.crop_radius:g} pixels holds none; correct its radius"
    return "all of them are masked out; are the masks the other way round?"
