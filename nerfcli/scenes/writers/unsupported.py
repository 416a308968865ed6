"""List what a format cannot hold of a scene, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nerfcli.scenes.extent import MAX_CASCADES
from nerfcli.scenes.readers.colmap_cameras import Intrinsics, camera_model_of
from nerfcli.scenes.source import Frame, Source, median_focal

TARGETS = ("blender", "llff", "colmap", "transforms")


@dataclass(frozen=True)
class Unsupported:
    """One property of a scene that a target cannot hold, and what happens to it."""

    what: str
    detail: str


def list_unsupported(source: Source, target: str) -> list[Unsupported]:
    """List all of `source` that the format `target` cannot hold, most harmful first."""
    checked = [(what, describe(source)) for what, held_by, describe in CHECKS
               if target not in held_by]  # fmt: skip
    lost = [Unsupported(what, detail) for what, detail in (*checked, *source.beyond) if detail]
    return list_unsupported_lenses(source.frames, target) + lost


def list_unsupported_lenses(frames: Sequence[Frame], target: str) -> list[Unsupported]:
    """List lenses that the target has no model for; readers would take the images for pinholes."""
    bad = [frame for frame in frames if not holds_lens(frame, target)]
    panoramas = {frame.lens.model == "equirectangular" for frame in frames}
    if target == "transforms" and len(panoramas) == 2:  # camera_model holds for all
        bad = [frame for frame in frames if frame.lens.model == "equirectangular"]
    if not bad:
        return []
    models = ", ".join(sorted({frame.lens.model for frame in bad}))
    detail = f"{len(bad)} images have a lens ({models}) and are written as if they had none"
    return [Unsupported("lens", detail)]


def holds_lens(frame: Frame, target: str) -> bool:
    """Whether the target has a model for the lens of a frame."""
    lens = frame.lens
    if lens.is_pinhole:
        return True
    if target == "colmap":
        camera = Intrinsics(frame.size, frame.focal, frame.principal, lens)
        return camera_model_of(camera) is not None
    return target == "transforms" and lens.model in ("brown", "fisheye", "equirectangular")


def _spread(frames: Sequence[Frame], values: Sequence[float], what: str, used: str) -> str:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return ""
    return f"{what} from {low:.6g} to {high:.6g} in {len(frames)} images; {used}"


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
    return f"{len(off)} images have fx other than fy (as {x:.6g} and {y:.6g}); fx is written"


def _central_principal(source: Source) -> str:
    def miss(frame: Frame) -> float:
        return max(abs(c - side / 2) for c, side in zip(frame.principal, frame.size, strict=True))

    off = [frame for frame in source.frames if miss(frame) > 1e-6]
    if not off:
        return ""
    most = max(map(miss, off))
    return f"{len(off)} images have theirs off the middle, by up to {most:.4g} pixels"


def _splits(source: Source) -> str:
    named = sorted({frame.split for frame in source.frames if frame.split})
    return f"which images are for {', '.join(named)}" if named else ""


def _masks(source: Source) -> str:
    n = sum(frame.mask is not None for frame in source.frames)
    return f"of {n} images" if n else ""


def _depths(source: Source) -> str:
    n = sum(frame.depth is not None for frame in source.frames)
    return f"depth images of {n} views" if n else ""


def _bounds(source: Source) -> str:
    n = sum(frame.bounds is not None for frame in source.frames)
    return f"near and far of {n} views" if n else ""


def _box(source: Source) -> str:
    if source.box is None or source.keep_frame:  # Blender's, which readers know
        return ""
    return f"half size {source.box.half_size:.4g} around {tuple(source.box.center)}"


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


def _depth_units(source: Source) -> str:
    kinds = {(f.depth.scale, f.depth.is_euclidean) for f in source.frames if f.depth}
    return f"{len(kinds)} different units" if len(kinds) > 1 else ""


# what, the targets that hold it, and its description (empty: nothing is lost); worst first
CHECKS: tuple[tuple[str, tuple[str, ...], Callable[[Source], str]], ...] = (
    ("one focal length", ("llff", "colmap", "transforms"), _one_focal),
    ("square pixels", ("colmap", "transforms"), _square_pixels),
    ("principal point", ("colmap", "transforms"), _central_principal),
    ("masks", ("colmap", "transforms"), _masks),
    ("fisheye circle", ("transforms",), _crop),
    ("splits", ("blender", "colmap", "transforms"), _splits),
    ("points", ("colmap", "transforms"), _points),
    ("observations", ("colmap",), _observations),
    ("box", ("blender", "transforms"), _box),
    ("cascades", (), _cascades),
    ("bounds", ("llff",), _bounds),
    ("depth", ("transforms",), _depths),
    ("depth units", ("blender", "llff", "colmap"), _depth_units),
    ("applied_transform", ("transforms",), _applied),
)
