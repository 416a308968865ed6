"""Judge box, bounds, masks and depth images by triangulated matches; measure coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.cameras.rotations import mean_up
from nerfcli.check.epipolar import MatchedRays, compute_residuals, is_behind, triangulate
from nerfcli.check.report import Finding
from nerfcli.core.errors import NerfError
from nerfcli.matching.matching import Matches
from nerfcli.scenes.images import read_mask
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Source, abbreviate

PARALLAX = math.radians(1.0)  # between the rays of a point; below it the distance says little
DEPTH_SLACK = 0.1  # of a depth image's scale; triangulation itself is good to a few percent
MASK_VIEWS = 24  # masks that are read for the test of their polarity
DENSER = 4.0  # density of matched points in ignored pixels over that in used ones
ENOUGH = 50  # points or matches that a judgement needs


def triangulate_agreeing(rays: MatchedRays, c2w: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Triangulate the matches on which two views agree.

    Args:
        c2w: [n, 3, 4]. tolerance: largest residual, pixels.

    Returns:
        Points [k, 3] in the frame of the poses, and their matches [k] int64.
    """
    residuals = compute_residuals(rays, c2w)
    good = (residuals.pixels < tolerance) & ~is_behind(rays, residuals, tolerance)
    good &= (residuals.parallax > math.sin(PARALLAX)) & (residuals.depths > 0).all(-1)
    return triangulate(rays, residuals, c2w)[good], good.nonzero()[:, 0]


def judge_extent(
    scene: Scene, xyz: Tensor, rays: MatchedRays, which: Tensor, *, is_unbounded: bool = False
) -> list[Finding]:
    """Test whether what is trained, from near to far and in the box, holds what the photos show.

    Args:
        xyz: [k, 3] triangulated points, scene space. which: [k] their matches.
        is_unbounded: of the method; neither the box nor far bounds it then.
    """
    if len(xyz) < ENOUGH:
        return []
    origin = scene.cameras.positions[rays.cameras[which, 0]]
    distance = (xyz - origin).norm(dim=-1)
    where = f"nearer than near ({scene.near:.3g} scene units)"
    nearer = _judge_beyond(distance < scene.near, where, "near")
    if is_unbounded:
        return nearer
    where = f"farther than far ({scene.far:.3g} scene units)"
    farther = _judge_beyond(distance > scene.far, where, "far")
    return _judge_box(scene, xyz) + nearer + farther


def _judge_beyond(beyond: Tensor, where: str, setting: str) -> list[Finding]:
    share = float(beyond.double().mean())
    if share <= 0.05:
        return []
    level = "fault" if share > 0.5 else "warning"
    text = f"{share:.0%} of the matched points are {where}: set scene.{setting}"
    return [Finding(level, "bounds", text)]


def _judge_box(scene: Scene, xyz: Tensor) -> list[Finding]:
    findings = []
    center = xyz.new_tensor(scene.box.center)
    reach = (xyz - center).abs().amax(-1)
    outside = float((reach > scene.box.outer_half_size).double().mean())
    if outside > 0.5:
        text = (
            f"{outside:.0%} of the matched points lie outside the box ({scene.box_source}); "
            f"half of them reach {float(reach.median()) / scene.box.outer_half_size:.2g} times "
            "as far: use --set scene.box=... or scene.cascades=..."
        )
        findings.append(Finding("fault", "box", text))
    elif outside > 0.1:
        text = f"{outside:.0%} of the matched points lie outside the box ({scene.box_source})"
        findings.append(Finding("warning", "box", text))
    return findings


def judge_masks(scene: Scene, matches: Matches, which: Tensor) -> list[Finding]:
    """Test whether masks ignore what they should keep.

    Masks are inverted if fixed points of the scene lie much denser in the ignored pixels and the
    cameras' common focus is ignored too. A mask that keeps an object in front of a rich background
    fails only the first condition, one that removes passers-by only the second.

    Args:
        which: [k] matches that triangulate to fixed points.
    """
    masked = [i for i, path in enumerate(scene.mask_paths) if path is not None]
    if not masked:
        return []
    chosen = [
        masked[i] for i in np.linspace(0, len(masked) - 1, min(MASK_VIEWS, len(masked)), dtype=int)
    ]
    focus = common_focus(scene.cameras)
    n_kept, n_ignored, used_areas, focus_ignored = 0, 0, [], []
    cameras, xy = matches.cameras[which], matches.xy[which]
    for camera in chosen:
        width, height = scene.cameras.size[camera].tolist()
        path = scene.mask_paths[camera]
        assert path is not None
        try:
            usable = read_mask(path, (width, height), scene.masked_where, scene.downscale)
        except NerfError as error:
            return [Finding("fault", "unreadable", str(error), (scene.names[camera],))]
        pixels = torch.cat([xy[cameras[:, side] == camera, side] for side in (0, 1)]).long()
        x, y = pixels[:, 0].clamp(0, width - 1), pixels[:, 1].clamp(0, height - 1)
        kept = usable[y, x]
        n_kept, n_ignored = n_kept + int(kept.sum()), n_ignored + int((~kept).sum())
        used_areas.append(float(usable.double().mean()))
        if focus is not None:
            at, depth = scene.cameras.project(camera, focus[0][None])
            u, v = at[0].tolist()
            if float(depth) > 0 and 0 <= u < width and 0 <= v < height:
                focus_ignored.append(not bool(usable[int(v), int(u)]))
    used = float(np.mean(used_areas))
    if n_kept + n_ignored < ENOUGH or not 0 < used < 1:
        return []
    density = (n_ignored / (1 - used)) / max(n_kept / used, 1e-9)
    central = float(np.mean(focus_ignored)) if focus_ignored else 0.0
    if density > DENSER and central > 0.5:
        text = (
            f"the masks look inverted: {n_ignored / (n_kept + n_ignored):.0%} of the scene's fixed "
            f"points and what the cameras look at are in ignored pixels ({scene.masked_where} = "
            "ignored here); invert the masks"
        )
        return [Finding("fault", "masks-inverted", text)]
    return []


def judge_depth(
    source: Source, cameras: Cameras, matches: Matches, which: Tensor, xyz: Tensor
) -> tuple[list[Finding], float | None]:
    """Compare the scale of depth images with triangulated points.

    Args:
        cameras: poses in the source's frame.
        which: [k] matches that triangulate to the points. xyz: [k, 3] in the source's frame.

    Returns:
        Findings, and the median of stated over triangulated depth, None without depth images.
    """
    if not any(frame.depth for frame in source.frames):
        return [], None
    ratios = []
    for camera, frame in enumerate(source.frames):
        if frame.depth is None:
            continue
        try:
            depth = _read_depth(frame.depth.path) * frame.depth.scale
        except (NerfError, OSError, SyntaxError, ValueError, EOFError) as error:
            text = f"{frame.depth.path} cannot be read ({error})"
            return [Finding("fault", "unreadable", text, (frame.name,))], None
        for side in (0, 1):
            rows = matches.cameras[which][:, side] == camera
            pixels, points = matches.xy[which][rows, side], xyz[rows]
            scale = torch.tensor([depth.shape[1], depth.shape[0]]) / cameras.size[camera]
            u, v = (pixels * scale).long().unbind(-1)
            u, v = u.clamp(0, depth.shape[1] - 1), v.clamp(0, depth.shape[0] - 1)
            stated = torch.from_numpy(depth[v.numpy(), u.numpy()])
            pose = cameras.c2w[camera]
            offset = points - pose[:, 3]
            true = offset.norm(dim=-1) if frame.depth.is_euclidean else offset @ pose[:, 2]
            known = (stated > 0) & (true > 0) & stated.isfinite()
            ratios.append((stated / true)[known])
    ratio = torch.cat(ratios)
    if len(ratio) < ENOUGH:
        return [Finding("note", "depth", "too few matched points to judge the depth images")], None
    median = float(ratio.median())
    spread = float((ratio / median).log().abs().median())
    if abs(math.log(median)) <= max(math.log(1 + DEPTH_SLACK), spread):
        return [], median
    text = (
        f"the depth images are {median:.3g} times as deep as the scene that the poses span; "
        f"divide their scale (depth_unit_scale_factor, integer_depth_scale) by {median:.4g}"
    )
    return [Finding("fault", "depth-scale", text)], median


def _read_depth(path: Path) -> np.ndarray:
    """Read [height, width] float64, as stored."""
    if path.suffix.lower() == ".npy":
        values = np.load(path, allow_pickle=False).astype(np.float64)
        values = values[..., 0] if values.shape[2:] == (1,) else values
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"an array of shape {values.shape} is no image")
        return values
    from PIL import Image

    with Image.open(path) as image:
        values = np.array(image).astype(np.float64)
    return values if values.ndim == 2 else values[..., 0]


def measure_coverage(cameras: Cameras) -> str:
    """Describe how the views spread around their common focus, for people; angles in degrees."""
    focus = common_focus(cameras)
    if focus is None:
        return "the views have no common focus"
    offsets = cameras.positions - focus[0]
    up = torch.from_numpy(mean_up(cameras.c2w.numpy()))
    height = torch.rad2deg(torch.asin((offsets @ up / offsets.norm(dim=-1)).clamp(-1, 1)))
    flat = offsets - (offsets @ up)[:, None] * up
    axis = flat[flat.norm(dim=-1).argmax()]
    axis = axis / axis.norm().clamp(min=1e-9)
    side = torch.linalg.cross(up, axis)
    azimuths = torch.rad2deg(torch.atan2(flat @ side, flat @ axis)).sort().values
    gaps = torch.cat([azimuths.diff(), (azimuths[0] + 360 - azimuths[-1])[None]])
    gap = float(gaps.max())
    return (
        f"{360 - gap:.0f} of 360 degrees around, elevation {float(height.min()):.0f} to "
        f"{float(height.max()):.0f}, largest gap {gap:.0f}"
    )


def judge_links(names: Sequence[str], matches: Matches, analysed: Sequence[int]) -> list[Finding]:
    """Find views that match no other, and groups of views that match no other group.

    Args:
        analysed: cameras whose images were analysed.
    """
    alone = sorted(set(analysed) - set(matches.pairs.reshape(-1).tolist()))
    findings = []
    if alone:
        text = (
            f"{len(alone)} of {len(analysed)} views share too few features with others to be "
            f"judged, as where little texture is seen: {abbreviate([names[i] for i in alone])}"
        )
        findings.append(Finding("note", "unmatched", text, tuple(names[i] for i in alone)))
    groups = _connect_views(matches)
    if len(groups) > 1:
        small = [names[group[0]] for group in groups[1:]]
        text = (
            f"the views fall into {len(groups)} groups that share no features "
            f"({', '.join(str(len(group)) for group in groups)} views; the smaller ones begin "
            f"with {abbreviate(small)}), which is usual for an object seen from all sides: "
            "whether the groups fit together is not judged"
        )
        findings.append(Finding("note", "groups", text, tuple(small)))
    return findings


def _connect_views(matches: Matches) -> list[list[int]]:
    """Group views that matches connect, the largest group first."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(matches.pairs):
        return []
    views, local = torch.unique(matches.pairs, return_inverse=True)
    a, b = local.numpy().T
    graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(len(views), len(views)))
    count, label = connected_components(graph, directed=False)
    groups = [views[torch.from_numpy(label == g)].tolist() for g in range(count)]
    return sorted(groups, key=len, reverse=True)
