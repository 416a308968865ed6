"""Box, bounds, masks and depth images against points that the matches triangulate; coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras, common_focus
from nerfcli.check.epipolar import Evidence, behind, points, residuals
from nerfcli.check.report import Finding
from nerfcli.core.errors import NerfError
from nerfcli.matching.matching import Matches
from nerfcli.scenes.images import read_mask
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Source, abbreviate

PARALLAX = math.radians(1.0)  # between the rays of a point; below it the distance says little
DEPTH_SLACK = 0.1  # of a depth image's scale; triangulation itself is good to a few percent
MASK_VIEWS = 24  # masks that are read for the test of their polarity
DENSER = 4.0  # how much denser matched points lie in ignored pixels than in used ones
ENOUGH = 50


def cloud(seen: Evidence, c2w: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Points that two views agree about: [k, 3], and which matches they are [k]."""
    found = residuals(seen, c2w)
    limit = torch.full_like(found.pixels, tolerance)
    good = (found.pixels < tolerance) & ~behind(seen, found, limit)
    good &= (found.parallax > math.sin(PARALLAX)) & (found.depths > 0).all(-1)
    return points(seen, found, c2w)[good], good.nonzero()[:, 0]


def judge_box(scene: Scene, xyz: Tensor, seen: Evidence, which: Tensor) -> list[Finding]:
    """Whether the box, near and far hold what the photos show. xyz [k, 3] in scene space."""
    if len(xyz) < ENOUGH:
        return []
    findings = []
    center = xyz.new_tensor(scene.box.center)
    reach = (xyz - center).abs().amax(-1)
    outside = float((reach > scene.box.outer_half_size).double().mean())
    if outside > 0.5:
        words = (
            f"{outside:.0%} of the matched points lie outside the box ({scene.box_source}); "
            f"half of them reach {float(reach.median()) / scene.box.outer_half_size:.2g} times "
            "as far: use --set scene.box=... or scene.cascades=..."
        )
        findings.append(Finding("fault", "box", words))
    elif outside > 0.1:
        words = f"{outside:.0%} of the matched points lie outside the box ({scene.box_source})"
        findings.append(Finding("warning", "box", words))
    origin = scene.cameras.positions[seen.cameras[which, 0]]
    distance = (xyz - origin).norm(dim=-1)
    for name, beyond in (("near", distance < scene.near), ("far", distance > scene.far)):
        share = float(beyond.double().mean())
        if share > 0.05:
            side = "nearer than near" if name == "near" else "farther than far"
            limit = getattr(scene, name)
            level = "fault" if share > 0.5 else "warning"
            text = f"{share:.0%} of the matched points are {side} ({limit:.3g}): set scene.{name}"
            findings.append(Finding(level, "bounds", text))
    return findings


def judge_masks(scene: Scene, matches: Matches, which: Tensor) -> list[Finding]:
    """Whether masks leave out what they should keep.

    Evidence of the contrary: fixed points of the scene lie much denser in the ignored pixels, and
    the point that all cameras look at is ignored too. A mask that keeps an object in front of a
    rich background fails the second test, one that removes passers-by the first.
    """
    masked = [i for i, path in enumerate(scene.mask_paths) if path is not None]
    if not masked:
        return []
    chosen = [
        masked[i] for i in np.linspace(0, len(masked) - 1, min(MASK_VIEWS, len(masked)), dtype=int)
    ]
    focus = common_focus(scene.cameras)
    kept, ignored, used_area, center_ignored = 0, 0, [], []
    cameras, xy = matches.cameras[which], matches.xy[which]
    for camera in chosen:
        width, height = scene.cameras.size[camera].tolist()
        path = scene.mask_paths[camera]
        assert path is not None
        try:
            usable = read_mask(path, (width, height), scene.masked_where, scene.downscale)
        except NerfError as error:
            return [Finding("fault", "unreadable", str(error), (scene.names[camera],))]
        places = torch.cat([xy[cameras[:, side] == camera, side] for side in (0, 1)]).long()
        x, y = places[:, 0].clamp(0, width - 1), places[:, 1].clamp(0, height - 1)
        inside = usable[y, x]
        kept, ignored = kept + int(inside.sum()), ignored + int((~inside).sum())
        used_area.append(float(usable.double().mean()))
        if focus is not None:
            at, depth = scene.cameras.project(camera, focus[0][None])
            u, v = at[0].tolist()
            if float(depth) > 0 and 0 <= u < width and 0 <= v < height:
                center_ignored.append(not bool(usable[int(v), int(u)]))
    used = float(np.mean(used_area))
    if kept + ignored < ENOUGH or not 0 < used < 1:
        return []
    density = (ignored / (1 - used)) / max(kept / used, 1e-9)
    central = float(np.mean(center_ignored)) if center_ignored else 0.0
    if density > DENSER and central > 0.5:
        text = (
            f"the masks look inverted: {ignored / (kept + ignored):.0%} of the scene's fixed "
            f"points and what the cameras look at are in ignored pixels ({scene.masked_where} = "
            "ignored here); invert the masks"
        )
        return [Finding("fault", "masks-inverted", text)]
    return []


def judge_depth(
    source: Source, cameras: Cameras, matches: Matches, which: Tensor, xyz: Tensor
) -> tuple[list[Finding], float | None]:
    """The scale of depth images against triangulated points; everything in the source's frame.

    Returns:
        Findings, and the median of stated over triangulated depth, None without depth images.
    """
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
            mine = matches.cameras[which][:, side] == camera
            place, point = matches.xy[which][mine, side], xyz[mine]
            scale = torch.tensor([depth.shape[1], depth.shape[0]]) / cameras.size[camera]
            u, v = (place * scale).long().unbind(-1)
            u, v = u.clamp(0, depth.shape[1] - 1), v.clamp(0, depth.shape[0] - 1)
            stated = torch.from_numpy(depth[v.numpy(), u.numpy()])
            pose = cameras.c2w[camera]
            offset = point - pose[:, 3]
            euclidean = frame.depth.is_euclidean
            true = offset.norm(dim=-1) if euclidean else offset @ pose[:, 2]
            known = (stated > 0) & (true > 0) & stated.isfinite()
            ratios.append((stated / true)[known])
    if not any(frame.depth for frame in source.frames):
        return [], None
    ratio = torch.cat(ratios) if ratios else torch.zeros(0)
    if len(ratio) < ENOUGH:
        return [Finding("note", "depth", "too few matched points to judge the depth images")], None
    middle = float(ratio.median())
    spread = float((ratio / middle).log().abs().median())
    if abs(math.log(middle)) <= max(math.log(1 + DEPTH_SLACK), spread):
        return [], middle
    text = (
        f"the depth images are {middle:.3g} times as deep as the scene that the poses span; "
        f"divide their scale (depth_unit_scale_factor, integer_depth_scale) by {middle:.4g}"
    )
    return [Finding("fault", "depth-scale", text)], middle


def _read_depth(path) -> np.ndarray:
    """[height, width] float64, as stored."""
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


def upwards(cameras: Cameras) -> Tensor:
    """The mean of the cameras' upward axes, unit length. [3]"""
    up = -cameras.c2w[:, :, 1].mean(0)
    if float(up.norm()) < 1e-6:  # cameras all around; any axis will do
        up = cameras.c2w.new_tensor([0.0, 0.0, 1.0])
    return up / up.norm()


def coverage(cameras: Cameras) -> dict[str, object]:
    """How the views spread around what they look at, in words."""
    focus = common_focus(cameras)
    if focus is None:
        return {"coverage": "the views have no common focus"}
    offsets = cameras.positions - focus[0]
    up = upwards(cameras)
    height = torch.rad2deg(torch.asin((offsets @ up / offsets.norm(dim=-1)).clamp(-1, 1)))
    flat = offsets - (offsets @ up)[:, None] * up
    axis = flat[flat.norm(dim=-1).argmax()]
    axis = axis / axis.norm().clamp(min=1e-9)
    side = torch.linalg.cross(up, axis)
    around = torch.rad2deg(torch.atan2(flat @ side, flat @ axis)).sort().values
    gaps = torch.cat([around.diff(), (around[0] + 360 - around[-1])[None]])
    gap = float(gaps.max())
    words = (
        f"{360 - gap:.0f} of 360 degrees around, elevation {float(height.min()):.0f} to "
        f"{float(height.max()):.0f}, largest gap {gap:.0f}"
    )
    return {"coverage": words}


def judge_links(names: Sequence[str], matches: Matches, looked: Sequence[int]) -> list[Finding]:
    """Views that share nothing with others, and groups that share nothing with the rest."""
    alone = sorted(set(looked) - set(matches.pairs.reshape(-1).tolist()))
    findings = []
    if alone:
        text = (
            f"{len(alone)} of {len(looked)} views share too few features with others to be "
            f"judged: {abbreviate([names[i] for i in alone])}"
        )
        findings.append(Finding("note", "unmatched", text, tuple(names[i] for i in alone)))
    groups = _groups(matches)
    if len(groups) > 1:
        small = [names[group[0]] for group in groups[1:]]
        text = (
            f"the views fall into {len(groups)} groups that share nothing with each other "
            f"({', '.join(str(len(group)) for group in groups)} views; the smaller ones begin "
            f"with {abbreviate(small)}): nothing shows whether these groups fit together"
        )
        findings.append(Finding("note", "groups", text, tuple(small)))
    return findings


def _groups(matches: Matches) -> list[list[int]]:
    """Connected views, the largest group first."""
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
