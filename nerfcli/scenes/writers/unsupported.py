"""List what a format cannot hold of a scene, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.lens_fits import Fit
from nerfcli.core.text import quantity
from nerfcli.scenes.extent import MAX_CASCADES
from nerfcli.scenes.source import Frame, Source, median_focal
from nerfcli.scenes.writers.depths import is_ngp_depth
from nerfcli.scenes.writers.lenses import state_lenses
from nerfcli.scenes.writers.pictures import TABLES

TARGETS = ("blender", "llff", "colmap", "transforms", "instant-ngp")
SAME_TARGET = {"nerfstudio": "transforms"}


@dataclass(frozen=True)
class Unsupported:
    """One property of a scene that a target cannot hold, and what happens to it."""

    what: str
    detail: str


def list_unsupported(
    source: Source, target: str, lenses: tuple[Sequence[Frame], Sequence[Fit | None]] | None = None
) -> list[Unsupported]:
    """List all of `source` that the format `target` cannot hold, most harmful first.

    lenses: what `state_lenses` has found for its frames, if it was asked already.
    """
    frames, fits = lenses or state_lenses(source.frames, target)
    stated = replace(source, frames=tuple(frames))
    checked = [(what, describe(stated)) for what, held_by, describe in CHECKS
               if target not in held_by]  # fmt: skip
    lost = [Unsupported(what, detail) for what, detail in (*checked, *source.beyond) if detail]
    return _list_fits(source.frames, fits, target) + lost


def list_unsupported_lenses(frames: Sequence[Frame], target: str) -> list[Unsupported]:
    """List the lenses that the target has no model for, and how far off the nearest one is."""
    return _list_fits(frames, state_lenses(frames, target)[1], target)


def _list_fits(
    frames: Sequence[Frame], fits: Sequence[Fit | None], target: str
) -> list[Unsupported]:
    bad = [(frame, fit) for frame, fit in zip(frames, fits, strict=True) if fit is not None]
    if not bad:
        return []
    found = [fit for _, fit in bad]
    models = ", ".join(sorted({frame.lens.model for frame, _ in bad}))
    lens = found[0].camera.lens
    nearest = "pinhole" if lens.is_pinhole else f"{lens.model} lens"
    rms = math.sqrt(sum(fit.rms**2 for fit in found) / len(found))
    have = f"{quantity(len(bad), 'image')} {'has' if len(bad) == 1 else 'have'}"
    detail = (
        f"{have} a lens ({models}) that {target} lacks; the nearest {nearest} is written, off by "
        f"up to {max(fit.worst for fit in found):.2g} pixels ({rms:.2g} RMS)"
    )
    missed = sum(fit.missed for fit in found) / len(found)
    if missed > 0:
        detail += f", and {missed:.1%} of the pixels lie beyond what it can show"
    return [Unsupported("lens", detail)]


def _spread(frames: Sequence[Frame], values: Sequence[float], what: str, used: str) -> str:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return ""
    return f"{what} from {low:.6g} to {high:.6g} in {quantity(len(frames), 'image')}; {used}"


def _one_focal(source: Source) -> str:
    ratios = [frame.focal[0] / frame.size[0] for frame in source.frames]
    used = f"{median_focal(source.frames):.6g} is written for all"
    return _spread(source.frames, ratios, "the focal length is of the image's width", used)


def _square_pixels(source: Source) -> str:
    off = [f for f in source.frames if abs(f.focal[0] / f.focal[1] - 1) > 1e-9]
    if not off:
        return ""
    worst = max(off, key=lambda f: abs(f.focal[0] / f.focal[1] - 1))
    x, y = worst.focal
    images = quantity(len(off), "image")
    return f"fx other than fy in {images} (as {x:.6g} and {y:.6g}); fx is written"


def _central_principal(source: Source) -> str:
    def miss(frame: Frame) -> float:
        return max(abs(c - side / 2) for c, side in zip(frame.principal, frame.size, strict=True))

    off = [frame for frame in source.frames if miss(frame) > 1e-6]
    if not off:
        return ""
    most = max(map(miss, off))
    return f"off the middle in {quantity(len(off), 'image')}, by up to {most:.4g} pixels"


def _splits(source: Source) -> str:
    named = sorted({frame.split for frame in source.frames if frame.split})
    return f"which images are for {', '.join(named)}" if named else ""


def _splits_without_training(source: Source) -> str:
    if any((frame.split or "train") == "train" for frame in source.frames):
        return ""
    return f"{_splits(source)}, for no image is for training"


def _masks(source: Source) -> str:
    n = sum(frame.mask is not None for frame in source.frames)
    return f"of {quantity(n, 'image')}" if n else ""


def _depths(source: Source) -> str:
    n = sum(frame.depth is not None for frame in source.frames)
    return f"depth images of {quantity(n, 'view')}" if n else ""


def _bounds(source: Source) -> str:
    n = sum(frame.bounds is not None for frame in source.frames)
    return f"near and far of {quantity(n, 'view')}" if n else ""


def _box(source: Source) -> str:
    if source.box is None or source.keep_frame:  # Blender's, which readers know
        return ""
    return describe_box(source.box)


def describe_box(box: Box) -> str:
    """State a box's size and place in the source's units."""
    return f"half size {box.half_size:.4g} around ({', '.join(f'{c:.4g}' for c in box.center)})"


def _cascades(source: Source) -> str:
    box = source.box
    return f"{box.n_cascades} of them" if box and box.n_cascades > MAX_CASCADES else ""


def _points(source: Source) -> str:
    return f"{len(source.points)} sparse points" if source.points is not None else ""


def _observations(source: Source) -> str:
    n = 0 if source.points is None else len(source.points.point)
    return f"where images see the points ({n} observations), and the points' errors" if n else ""


def _crop(source: Source) -> str:
    return f"{source.crop_radius:g} pixels" if source.crop_radius else ""


def _applied(source: Source) -> str:
    moved = source.applied_transform is not None or source.applied_scale != 1.0
    return "the relation to the frame before" if moved else ""


def _depths_beyond_ngp(source: Source) -> str:
    n = sum(f.depth is not None and not is_ngp_depth(f.depth) for f in source.frames)
    return f"{n} depth images are along the rays, or no PNG files" if n else ""


def _depth_units(source: Source) -> str:
    kinds = {(f.depth.scale, f.depth.is_euclidean) for f in source.frames if f.depth}
    return f"{len(kinds)} different units" if len(kinds) > 1 else ""


def _depth_units_of_ngp(source: Source) -> str:
    frames = tuple(f for f in source.frames if f.depth is not None and is_ngp_depth(f.depth))
    return _depth_units(replace(source, frames=frames))


# what, the targets that hold it, and its description (empty: nothing is lost); worst first
CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Source], str]], ...] = (
    ("one focal length", ("llff", "colmap", *TABLES), _one_focal),
    ("square pixels", ("colmap", *TABLES), _square_pixels),
    ("principal point", ("colmap", *TABLES), _central_principal),
    ("masks", ("colmap", *TABLES), _masks),
    ("fisheye circle", ("transforms",), _crop),
    ("splits", ("blender", "colmap", "transforms"), _splits),
    ("splits", ("llff", "instant-ngp"), _splits_without_training),
    ("points", ("colmap", "transforms"), _points),
    ("observations", ("colmap",), _observations),
    ("box", ("blender", *TABLES), _box),
    ("cascades", (), _cascades),
    ("bounds", ("llff",), _bounds),
    ("depth", TABLES, _depths),
    ("depth", ("blender", "llff", "colmap", "transforms"), _depths_beyond_ngp),
    ("depth units", ("blender", "llff", "colmap", "instant-ngp"), _depth_units),
    ("depth units", ("blender", "llff", "colmap", "transforms"), _depth_units_of_ngp),
    ("applied_transform", ("transforms",), _applied),
)
