"""Check a scene, from its files to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.check.epipolar import MatchedRays, compute_residuals, is_behind
from nerfcli.check.judge_alpha import judge_alpha
from nerfcli.check.judge_geometry import (
    judge_depth,
    judge_extent,
    judge_links,
    judge_masks,
    measure_coverage,
    triangulate_agreeing,
)
from nerfcli.check.judge_images import is_visibly_moved, judge_images
from nerfcli.check.judge_lens import judge_lens
from nerfcli.check.judge_poses import (
    PoseJudgement,
    format_pixels,
    judge_poses,
    measure_similarity_rank,
)
from nerfcli.check.poses import Hypothesis, compute_tolerance
from nerfcli.check.report import Finding, Report, View, sort_by_level
from nerfcli.core.config import Config, SceneConfig
from nerfcli.core.progress import Progress
from nerfcli.core.text import quantity
from nerfcli.matching.matching import (
    MAX_VIEWS,
    MatchedScene,
    compute_working_scale,
    match_scene,
    measure_pose_distances,
)
from nerfcli.methods import choose_method, method_of
from nerfcli.scenes.blind import describe_blind_lenses, find_blind_lenses
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Source


@dataclass(frozen=True)
class SceneCheck:
    """A report, with everything that pictures and corrections need.

    Attributes:
        hypothesis: the reading under which the matches fit; as stated if nothing is wrong.
        cameras: corrected cameras, in the source's frame.
        points: [k, 3] triangulated, in the source's frame.
        outliers: cameras whose poses contradict the others.
        swapped: (image, pose) among the outliers.
    """

    report: Report
    source: Source
    scene: Scene
    hypothesis: Hypothesis
    cameras: Cameras
    points: Tensor
    outliers: tuple[int, ...]
    swapped: tuple[tuple[int, int], ...]


def check_source(
    source: Source,
    progress: Progress,
    *,
    max_views: int = MAX_VIEWS,
    alpha: Literal["transparent", "ignore"] | None = None,
    method: str | None = None,
) -> SceneCheck:
    """Test a scene's poses, intrinsics, images, masks, alpha, depth images, box and bounds.

    Args:
        alpha: as in the settings of a scene.
        method: that is to be trained; None: the one that the scene chooses.

    Raises:
        NerfError: the files do not state a scene.
    """
    scene = scene_from_source(source, SceneConfig(holdout=0, alpha=alpha))
    return judge_scene(source, scene, match_scene(scene, progress, max_views), method)


def judge_scene(
    source: Source, scene: Scene, matched: MatchedScene, method: str | None = None
) -> SceneCheck:
    """Judge a scene whose images have been matched, and what its method will train."""
    config = Config(method)
    name, reason = choose_method(config, scene)
    config = replace(config, method=name)
    is_unbounded = method_of(config).is_unbounded
    names, matches, images = scene.names, matched.matches, matched.images
    working_scale = compute_working_scale(scene, images)
    source_from_scene = scene.scene_from_source.inverse()
    cameras = replace(scene.cameras, c2w=source_from_scene.apply_c2w(scene.cameras.c2w))
    tolerance = compute_tolerance([image.working_size for image in images.values()] or [(1, 1)])
    distances = measure_pose_distances(scene, matched.analysed)
    rank = measure_similarity_rank(matched.shared, distances)
    judgement = judge_poses(names, matches, cameras, working_scale, tolerance, rank)
    corrected = judgement.hypothesis.correct_cameras(cameras)
    lens_findings = []
    if not judgement.hypothesis.fault:
        lens_findings = judge_lens(matches, cameras, working_scale, tolerance)
    moved = is_visibly_moved(cameras.c2w, cameras.focal.mean(-1) * working_scale)
    findings = [
        *(Finding("note", "reader", note) for note in source.notes),
        *_report_missing(names, matched),
        *_report_blind(scene),
        *judgement.findings,
        *lens_findings,
        *judge_images(names, images, matches, moved),
        *judge_links(names, matches, matched.analysed),
        *judge_alpha(source, scene, judgement.convincing and not judgement.hypothesis.fault),
    ]
    xyz, which = triangulate_agreeing(judgement.rays, corrected.c2w, tolerance)
    measures = _list_measures(scene, matched, judgement, len(xyz))
    measures |= _list_extent(scene, is_unbounded)
    text = f"{name}: {reason}" if reason else name
    measures |= {"method": text, "method_name": name, "method_reason": reason}
    if judgement.convincing:
        c2w = scene.scene_from_source.apply_c2w(corrected.c2w)
        corrected_scene = replace(scene, cameras=replace(corrected, c2w=c2w))
        if not judgement.hypothesis.fault:  # wrong poses move the points, not the stated box
            points = scene.scene_from_source.apply(xyz)
            findings += judge_extent(
                corrected_scene, points, judgement.rays, which, is_unbounded=is_unbounded
            )
        findings += judge_masks(corrected_scene, matches, which)
        depth_findings, ratio = judge_depth(source, corrected, matches, which, xyz)
        findings += depth_findings
        measures |= {} if ratio is None else {"depth / geometry": ratio}
    measures["coverage"] = measure_coverage(corrected)
    views = _measure_views(names, matched.analysed, judgement.rays, corrected.c2w, tolerance)
    return SceneCheck(
        Report(scene.name, sort_by_level(findings), views, measures),
        source,
        scene,
        judgement.hypothesis,
        corrected,
        xyz,
        judgement.outliers,
        judgement.swapped,
    )


def _report_missing(names: Sequence[str], matched: MatchedScene) -> list[Finding]:
    """Report images that cannot be read, and views that were left out."""
    findings = []
    if matched.unreadable:
        reasons = "; ".join(list(matched.unreadable.values())[:3])
        text = f"{quantity(len(matched.unreadable), 'image')} cannot be read: {reasons}"
        views = tuple(names[i] for i in matched.unreadable)
        findings.append(Finding("fault", "unreadable", text, views))
    n_chosen = len(matched.analysed) + len(matched.unreadable)
    if n_chosen < len(names):
        text = f"{n_chosen} of {len(names)} views are looked at, evenly chosen (--views)"
        findings.append(Finding("note", "views", text))
    return findings


def _report_blind(scene: Scene) -> list[Finding]:
    """Report lenses that leave an image no usable pixel."""
    blind = find_blind_lenses(scene, range(len(scene.names)))
    if not blind:
        return []
    views = tuple(scene.names[i] for i in blind)
    return [Finding("fault", "lens", describe_blind_lenses(scene, blind), views)]


def _list_measures(
    scene: Scene, matched: MatchedScene, judgement: PoseJudgement, n_points: int
) -> dict[str, Any]:
    width, height = scene.cameras.size[0].tolist()
    focal = scene.cameras.focal[:, 0] / scene.cameras.size[:, 0]
    angle = 2 * torch.rad2deg(torch.atan(0.5 / focal))
    size = next(iter(matched.images.values())).working_size if matched.images else (0, 0)
    stated = judgement.stated
    return {
        "scene": f"{scene.name} ({scene.kind})",
        "views": f"{len(scene.names)}, {width}x{height}",
        "field of view": f"{float(angle.median()):.3g} degrees across",
        "pairs of views": len(matched.matches.pairs),
        "matches": len(matched.matches),
        "residual": f"{format_pixels(stated.median)} at {size[0]}x{size[1]}",
        "residual_px": stated.median,
        "agreeing pairs": f"{stated.agreeing:.0%}",
        "agreeing_pairs": stated.agreeing,
        "triangulated": n_points,
    }


def _list_extent(scene: Scene, is_unbounded: bool) -> dict[str, Any]:
    """List what is trained of the scene, in source units."""
    box = "detail cube" if is_unbounded else "box"
    fitted = "; training fits it to the silhouettes" if scene.has_alpha else ""
    near, far = (depth / scene.scene_from_source.scale for depth in (scene.near, scene.far))
    end = "no end" if is_unbounded else f"{far:.4g}"
    return {
        box: f"{scene.describe_box(is_unbounded=is_unbounded)}{fitted}",
        "near, far": f"{near:.4g}, {end} in source units",
        "box_half_size": scene.half_size_in_source,
        "box_cascades": scene.box.n_cascades,
        "near_distance": near,
        "far_distance": None if is_unbounded else far,
    }


def _measure_views(
    names: Sequence[str], analysed: Sequence[int], rays: MatchedRays, c2w: Tensor, tolerance: float
) -> tuple[View, ...]:
    residuals = compute_residuals(rays, c2w)
    agrees = (residuals.pixels < tolerance) & ~is_behind(rays, residuals, tolerance)
    views = []
    for i in analysed:
        rows = (rays.cameras == i).any(-1)
        n = int(rows.sum())
        residual = float(residuals.pixels[rows].median()) if n else None
        agreeing = float(agrees[rows].double().mean()) if n else None
        views.append(View(names[i], n, residual, agreeing))
    return tuple(views)
