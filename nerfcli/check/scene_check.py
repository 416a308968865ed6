"""The check of a scene, from its files to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.check.epipolar import Evidence, behind, residuals
from nerfcli.check.gather import MAX_VIEWS, Gathered, gather
from nerfcli.check.judge_geometry import (
    cloud,
    coverage,
    judge_box,
    judge_depth,
    judge_links,
    judge_masks,
)
from nerfcli.check.judge_images import judge_photos, visibly_moved
from nerfcli.check.judge_poses import Judged, judge_poses, mixed_rank, pixels_text
from nerfcli.check.poses import Hypothesis, tolerance_for
from nerfcli.check.report import Finding, Report, View, by_level, counted
from nerfcli.core.config import SceneConfig
from nerfcli.core.progress import Progress
from nerfcli.matching.matching import nearness
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Source


@dataclass(frozen=True)
class Checked:
    """What a check leaves: the report, and what pictures and corrections need.

    Attributes:
        hypothesis: the reading under which the matches fit; as stated if nothing is wrong.
        cameras: as they should have been stated, in the source's frame.
        points: [k, 3] triangulated, in the source's frame.
        strays: cameras whose poses contradict the others. exchanged: (image, pose) among them.
    """

    report: Report
    source: Source
    scene: Scene
    hypothesis: Hypothesis
    cameras: Cameras
    points: Tensor
    strays: tuple[int, ...]
    exchanged: tuple[tuple[int, int], ...]


def check_source(source: Source, progress: Progress, *, max_views: int = MAX_VIEWS) -> Checked:
    """Test a scene: poses, intrinsics, images, masks, depth, box.

    Raises:
        NerfError: what the files state is no scene at all.
    """
    scene = scene_from_source(source, SceneConfig(holdout=0))
    return judge(source, scene, gather(scene, progress, max_views))


def judge(source: Source, scene: Scene, seen: Gathered) -> Checked:
    """The report on a scene whose images have been looked at."""
    names, matches, working = scene.names, seen.matches, seen.working(scene)
    back = scene.scene_from_source.inverse()
    cameras = replace(scene.cameras, c2w=back.apply_c2w(scene.cameras.c2w))
    tolerance = tolerance_for([look.working for look in seen.looks.values()] or [(1, 1)])
    mixed = mixed_rank(seen.shared, nearness(scene, seen.looked))
    judged = judge_poses(names, matches, cameras, working, tolerance, mixed)
    right = judged.hypothesis.cameras(cameras)
    moved = visibly_moved(cameras.c2w, cameras.focal.mean(-1) * working)
    findings = [
        *(Finding("note", "reader", note) for note in source.notes),
        *_not_seen(names, seen),
        *judged.findings,
        *judge_photos(names, seen.looks, matches, moved),
        *judge_links(names, matches, seen.looked),
    ]
    xyz, which = cloud(judged.seen, right.c2w, tolerance)
    measures = _measures(scene, seen, judged, len(xyz))
    if judged.convincing:
        placed = replace(
            scene, cameras=replace(right, c2w=scene.scene_from_source.apply_c2w(right.c2w))
        )
        if not judged.hypothesis.what:  # wrong poses move the points, not the stated box
            inside = scene.scene_from_source.apply(xyz)
            findings += judge_box(placed, inside, judged.seen, which)
        findings += judge_masks(placed, matches, which)
        more, ratio = judge_depth(source, right, matches, which, xyz)
        findings += more
        measures |= {} if ratio is None else {"depth / geometry": ratio}
    measures |= coverage(right)
    views = _views(names, seen.looked, judged.seen, right.c2w, tolerance)
    report = Report(scene.name, by_level(findings), views, measures)
    return Checked(
        report, source, scene, judged.hypothesis, right, xyz, judged.strays, judged.exchanged
    )


def _not_seen(names: Sequence[str], seen: Gathered) -> list[Finding]:
    findings = []
    if seen.unreadable:
        reasons = "; ".join(list(seen.unreadable.values())[:3])
        text = f"{counted(len(seen.unreadable), 'image')} cannot be read: {reasons}"
        views = tuple(names[i] for i in seen.unreadable)
        findings.append(Finding("fault", "unreadable", text, views))
    there = len(seen.looked) + len(seen.unreadable)
    if there < len(names):
        text = f"{there} of {len(names)} views are looked at, evenly chosen (--views)"
        findings.append(Finding("note", "views", text))
    return findings


def _measures(scene: Scene, seen: Gathered, judged: Judged, n_points: int) -> dict[str, Any]:
    width, height = scene.cameras.size[0].tolist()
    focal = scene.cameras.focal[:, 0] / scene.cameras.size[:, 0]
    angle = 2 * torch.rad2deg(torch.atan(0.5 / focal))
    seen_at = next(iter(seen.looks.values())).working if seen.looks else (0, 0)
    return {
        "scene": f"{scene.name} ({scene.kind})",
        "views": f"{len(scene.names)}, {width}x{height}",
        "field of view": f"{float(angle.median()):.3g} degrees across",
        "pairs of views": len(seen.matches.pairs),
        "matches": len(seen.matches),
        "residual": f"{pixels_text(judged.stated.typical)} at {seen_at[0]}x{seen_at[1]}",
        "residual_px": judged.stated.typical,
        "agreeing pairs": f"{judged.stated.agreeing:.0%}",
        "agreeing_pairs": judged.stated.agreeing,
        "triangulated": n_points,
        "box": f"half size {scene.box.half_size:.3g}, {scene.box.n_cascades} cascades, from "
        f"{scene.box_source}",
        "near, far": f"{scene.near:.3g}, {scene.far:.3g}",
    }


def _views(
    names: Sequence[str], looked: Sequence[int], seen: Evidence, c2w: Tensor, tolerance: float
) -> tuple[View, ...]:
    found = residuals(seen, c2w)
    limit = torch.full_like(found.pixels, tolerance)
    wrong = behind(seen, found, limit)
    agrees = (found.pixels < tolerance) & ~wrong
    views = []
    for i in looked:
        mine = (seen.cameras == i).any(-1)
        n = int(mine.sum())
        residual = float(found.pixels[mine].median()) if n else None
        agreeing = float(agrees[mine].double().mean()) if n else None
        views.append(View(names[i], n, residual, agreeing))
    return tuple(views)
