"""The check of a scene, from its files to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras import Cameras
from nerfcli.check.epipolar import Evidence, behind, evidence, residuals
from nerfcli.check.photos import judge_photos, visibly_moved
from nerfcli.check.poses import (
    DOUBTFUL,
    Fit,
    Hypothesis,
    contradicted,
    exchanged,
    explain,
    stray_views,
    tolerance_for,
)
from nerfcli.check.report import Finding, Report, View, by_level
from nerfcli.check.space import cloud, coverage, judge_box, judge_depth, judge_links, judge_masks
from nerfcli.check.witness import (
    Look,
    Matches,
    choose_pairs,
    likeness,
    look_at_images,
    nearness,
    shared_matches,
)
from nerfcli.progress import Progress
from nerfcli.scenes.build import Options, scene_from_source
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Source, shortened

MAX_VIEWS = 300  # more are thinned evenly: each is judged by its neighbours anyway
LARGEST, FEATURES = 1000, 1000  # pixels of the longer side, features of an image
LOOSE = 1.5  # pixels: typical residual above which detail of a pixel or two is lost to blur
SHUFFLED = 0.3  # mean rank of the views that look alike among those near by; 0.5 is chance


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
    scene = scene_from_source(source, Options(holdout=0))
    names = scene.names
    chosen = spread_views(scene, max_views)
    looks, unreadable = _look(scene, chosen, progress, LARGEST, FEATURES)
    looked = sorted(looks)
    shared, apart = likeness([looks[i].features for i in looked]), nearness(scene, looked)
    pairs = [(looked[a], looked[b]) for a, b in choose_pairs(shared, apart)]
    with progress.another(len(pairs), "pair", "match") as reporter:
        matches = shared_matches(looks, pairs, _counter(reporter))
    findings = [Finding("note", "reader", note) for note in source.notes] + _unreadable(
        names, unreadable
    )
    if len(chosen) < len(names):
        text = f"{len(chosen)} of {len(names)} views are looked at, evenly chosen (--views)"
        findings.append(Finding("note", "views", text))
    working = _working(scene, looks)
    cameras = replace(
        scene.cameras, c2w=scene.scene_from_source.inverse().apply_c2w(scene.cameras.c2w)
    )
    tolerance = tolerance_for([look.working for look in looks.values()] or [(1, 1)])
    mixed = _mixed_rank(shared, apart)
    judged = judge_poses(names, matches, cameras, working, tolerance, mixed)
    findings += judged.findings
    right = judged.hypothesis.cameras(cameras)
    moved = visibly_moved(cameras.c2w, cameras.focal.mean(-1) * working)
    findings += judge_photos(names, looks, matches, moved)
    findings += judge_links(names, matches, looked)
    xyz, which = cloud(judged.seen, right.c2w, tolerance)
    measures: dict[str, Any] = _measures(scene, looks, matches, judged, len(xyz))
    if judged.convincing:
        here = scene.scene_from_source.apply(xyz)
        placed = replace(
            scene, cameras=replace(right, c2w=scene.scene_from_source.apply_c2w(right.c2w))
        )
        if judged.hypothesis.what == "":  # wrong poses move the points, not the stated box
            findings += judge_box(placed, here, judged.seen, which)
        findings += judge_masks(placed, matches, which)
        more, ratio = judge_depth(source, right, matches, which, xyz)
        findings += more
        if ratio is not None:
            measures["depth / geometry"] = ratio
    measures |= coverage(right)
    views = _views(names, looked, judged.seen, right.c2w, tolerance)
    report = Report(scene.name, by_level(findings), views, measures)
    return Checked(
        report, source, scene, judged.hypothesis, right, xyz, judged.strays, judged.exchanged
    )


@dataclass(frozen=True)
class Judged:
    """The verdict on poses and intrinsics.

    Attributes:
        seen: the matches as rays of the corrected cameras.
        convincing: whether the corrected poses explain most pairs.
    """

    findings: list[Finding]
    hypothesis: Hypothesis
    stated: Fit
    found: Fit
    seen: Evidence
    strays: tuple[int, ...]
    exchanged: tuple[tuple[int, int], ...]
    convincing: bool


def judge_poses(
    names: Sequence[str],
    matches: Matches,
    cameras: Cameras,
    working: Tensor,
    tolerance: float,
    mixed: float,
) -> Judged:
    """Convention, focal length, order, and single views."""
    orders = _orders(names)
    guess, stated, found = explain(matches, cameras, working, tolerance, orders)
    seen = evidence(matches, cameras, working, focal=guess.focal, size=guess.size)
    findings: list[Finding] = []
    if len(matches.pairs) < 3:
        text = "the images share too few features: nothing can be said about the poses"
        findings.append(Finding("warning", "texture", text))
        return Judged(findings, guess, stated, found, seen, (), (), False)
    if guess.what:
        text = (
            f"{guess.words}: then matches lie {found.typical:.2g} px from where the poses put "
            f"them, as stated {_pixels(stated.typical)}"
        )
        findings.append(Finding("fault", guess.what, text))
    poses = guess.poses(cameras.c2w)
    weights = torch.bincount(matches.pair, minlength=len(matches.pairs))
    strays = stray_views(matches.pairs, weights, found, len(cameras))
    n_judged = len(set(matches.pairs.reshape(-1).tolist()))
    swaps: list[tuple[int, int]] = []
    if len(strays) > 0.5 * n_judged or found.agreeing < 0.5:
        findings.append(_hopeless(found, mixed))
        return Judged(findings, guess, stated, found, seen, tuple(strays), (), False)
    if strays:
        swaps = exchanged(seen, matches.pairs, poses, strays, tolerance)
        findings += _strays(names, strays, swaps, matches.pairs, found)
    findings += _doubtful(names, strays, matches.pairs, weights, found)
    if found.typical > LOOSE:
        text = (
            f"matches lie {found.typical:.2g} px from where the poses put them; finer detail "
            "than about twice that will blur"
        )
        findings.append(Finding("warning", "imprecise", text))
    return Judged(findings, guess, stated, found, seen, tuple(strays), tuple(swaps), True)


def _hopeless(found: Fit, mixed: float) -> Finding:
    fits = f"only {found.agreeing:.0%} of the pairs of views fit, in any usual convention"
    if mixed > SHUFFLED:
        text = (
            "images and poses do not belong together: views that look alike are not near each "
            f"other ({fits}). Shuffled file names, or another capture's poses"
        )
        return Finding("fault", "shuffled", text)
    return Finding("fault", "poses", f"the poses do not explain the images: {fits}")


def _strays(
    names: Sequence[str],
    strays: Sequence[int],
    swaps: Sequence[tuple[int, int]],
    pairs: Tensor,
    found: Fit,
) -> list[Finding]:
    findings = []
    if swaps:
        words = [f"{names[image]} has the pose of {names[pose]}" for image, pose in swaps]
        text = f"images are exchanged: {shortened(words, 6)}"
        findings.append(Finding("fault", "swapped", text, tuple(names[i] for i, _ in swaps)))
    single = [i for i in strays if i not in {image for image, _ in swaps}]
    if single:
        words = []
        for i in single:
            mine = found.pairs[(pairs == i).any(-1)]
            words.append(f"{names[i]} ({_pixels(float(mine.median()))})")
        text = f"{len(single)} poses contradict the other views: {shortened(words, 6)}"
        findings.append(Finding("fault", "pose", text, tuple(names[i] for i in single)))
    return findings


def _doubtful(
    names: Sequence[str], strays: Sequence[int], pairs: Tensor, weights: Tensor, found: Fit
) -> list[Finding]:
    """Views that agree with some and contradict others: repeated things, or groups joined wrongly."""
    keep = ~torch.isin(pairs, torch.tensor(list(strays), dtype=torch.int64)).any(-1)
    share = contradicted(pairs, weights * keep, found, len(names))
    doubtful = (share > DOUBTFUL).nonzero()[:, 0]
    wrong = keep & ~(found.pairs < found.tolerance) & torch.isin(pairs, doubtful).any(-1)
    if not wrong.any():
        return []
    order = wrong.nonzero()[:, 0][weights[wrong].argsort(descending=True)]
    words = shortened([f"{names[a]} and {names[b]}" for a, b in pairs[order].tolist()])
    text = (
        f"{len(doubtful)} views agree with some neighbours and contradict others: {words}. Either "
        "something repeats there, or the capture joins views of two sides as if they were one"
    )
    return [Finding("warning", "contradictory", text, tuple(names[i] for i in doubtful.tolist()))]


def _pixels(value: float) -> str:
    return f"{value:.2g} px" if np.isfinite(value) else "behind the cameras"


def _orders(names: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Assignments of images to poses that sorting mistakes lead to.

    Cameras are in natural order of their names; image i then belongs to pose order[i].
    """
    n = len(names)
    by_text = sorted(range(n), key=lambda i: names[i])
    place = [0] * n
    for position, i in enumerate(by_text):
        place[i] = position
    found = [
        ("the poses are in alphabetical order (1, 10, 2), the images in that of numbers", place),
        ("the poses are in the order of numbers, the images in alphabetical order", by_text),
        ("the poses are in reverse order", [n - 1 - i for i in range(n)]),
        ("the poses are late by one image", [(i + 1) % n for i in range(n)]),
        ("the poses are early by one image", [(i - 1) % n for i in range(n)]),
    ]
    return [(words, tuple(order)) for words, order in found if order != list(range(n))]


def _mixed_rank(shared: Tensor, apart: Tensor) -> float:
    """Where the view most like each view stands among those near it: 0 the nearest, 0.5 chance."""
    n = len(shared)
    if n < 4:
        return 0.0
    ranks = apart.argsort(dim=1).argsort(dim=1).double() / (n - 2)
    best = shared.argmax(dim=1)
    strong = shared.amax(dim=1) >= 8
    return float(ranks[torch.arange(n), best][strong].mean()) if bool(strong.any()) else 0.0


def spread_views(scene: Scene, limit: int) -> list[int]:
    """Cameras that have an image, at most `limit`, evenly chosen."""
    there = [i for i, path in enumerate(scene.image_paths) if path is not None]
    if len(there) <= limit:
        return there
    return [there[i] for i in np.linspace(0, len(there) - 1, limit).round().astype(int)]


def _look(
    scene: Scene, cameras: Sequence[int], progress: Progress, largest: int, limit: int
) -> tuple[dict[int, Look], dict[int, str]]:
    with progress.another(len(cameras), "image", "look") as reporter:
        return look_at_images(scene, cameras, largest=largest, limit=limit, step=_counter(reporter))


def _counter(progress: Progress):
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        progress.update(count)

    return step


def _unreadable(names: Sequence[str], faults: dict[int, str]) -> list[Finding]:
    if not faults:
        return []
    text = f"{len(faults)} images cannot be read: {'; '.join(list(faults.values())[:3])}"
    return [Finding("fault", "unreadable", text, tuple(names[i] for i in faults))]


def _working(scene: Scene, looks: dict[int, Look]) -> Tensor:
    """Pixels at working size per pixel of each camera."""
    ratio = torch.ones(len(scene.cameras), dtype=torch.float64)
    for i, look in looks.items():
        ratio[i] = look.working[0] / float(scene.cameras.size[i, 0])
    return ratio


def _measures(
    scene: Scene, looks: dict[int, Look], matches: Matches, judged: Judged, n_points: int
) -> dict[str, Any]:
    width, height = scene.cameras.size[0].tolist()
    focal = scene.cameras.focal[:, 0] / scene.cameras.size[:, 0]
    angle = 2 * torch.rad2deg(torch.atan(0.5 / focal))
    seen_at = next(iter(looks.values())).working if looks else (0, 0)
    return {
        "scene": f"{scene.name} ({scene.kind})",
        "views": f"{len(scene.names)}, {width}x{height}",
        "field of view": f"{float(angle.median()):.3g} degrees across",
        "pairs of views": len(matches.pairs),
        "matches": len(matches),
        "residual": f"{_pixels(judged.stated.typical)} at {seen_at[0]}x{seen_at[1]}",
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
