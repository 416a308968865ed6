"""Judge whether alpha is what it is taken for: nothing is there, or ignore the pixel."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import maximum_filter

from nerfcli.cameras.boxes import Box
from nerfcli.check.report import Finding
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import load_views
from nerfcli.scenes.alpha import HALF, survey_alpha
from nerfcli.scenes.build import scene_from_source
from nerfcli.scenes.hull import visual_hull
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import Source

VIEWS = 24  # whose silhouettes are compared
LARGEST = 200  # pixels of their longer side
CELLS = 32  # along a side of the hull; it is conservative, so coarse cells never accuse
UNCOVERED = 0.2  # of the opaque pixels, beyond which silhouettes contradict each other
ADVICE = "if alpha means 'ignore this pixel', use --alpha ignore"


def judge_alpha(source: Source, scene: Scene, poses_are_right: bool) -> list[Finding]:
    """Say what alpha is taken for, and test whether it looks like silhouettes or like a mask."""
    findings = [Finding("note", "alpha", n) for n in scene.notes if "alpha channel" in n]
    if scene.alpha_ignored or not scene.has_alpha:
        return findings
    try:
        survey = survey_alpha(source.frames)
        if survey.is_mask_like:
            text = (
                "alpha looks like a mask, not like empty space around an object: "
                f"{survey.border:.0%} of the border of images with transparent pixels is opaque; "
                f"{ADVICE}"
            )
            return [*findings, Finding("warning", "alpha-mask", text)]
        if survey.n_transparent and poses_are_right:
            share = measure_uncovered(source)
            if share > UNCOVERED:
                text = (
                    f"the views' silhouettes contradict each other: {share:.0%} of the opaque "
                    f"pixels show what other views say is empty; {ADVICE}"
                )
                findings.append(Finding("warning", "alpha-mask", text))
    except NerfError:  # an unreadable image is reported by name elsewhere
        pass
    return findings


def measure_uncovered(source: Source) -> float:
    """Measure the share of opaque pixels that do not lie on the visual hull of all views."""
    longest = max(max(frame.size) for frame in source.frames)
    smallest = min(min(frame.size) for frame in source.frames)
    downscale = min(math.ceil(longest / LARGEST), smallest)
    wanted = SceneConfig(holdout=0, downscale=downscale, alpha="transparent")
    scene = scene_from_source(source, wanted)
    with_image = [i for i, path in enumerate(scene.image_paths) if path is not None]
    chosen = np.linspace(0, len(with_image) - 1, min(VIEWS, len(with_image)), dtype=int)
    views = load_views(scene, [with_image[i] for i in chosen])
    box = Box(scene.box.center, scene.box.outer_half_size)
    cells = visual_hull(scene, views, box, CELLS, trust_all=True).nonzero().flip(-1)
    points = box.from_unit((cells.double() + 0.5) / CELLS)
    n_opaque = n_uncovered = 0
    for view, camera in enumerate(views.cameras.tolist()):
        opaque = views.image(view)[..., 3].numpy() >= HALF
        xy, depth = scene.cameras.project(camera, points)
        covered = np.zeros(opaque.shape, bool)
        seen = xy.isfinite().all(-1)
        # a cell covers the pixels within the sphere around it, at the nearest depth of any
        reach = _reach(scene, camera, box, depth[seen])
        x, y = xy[seen].floor().long().unbind(-1)
        x, y = x.clamp(0, opaque.shape[1] - 1), y.clamp(0, opaque.shape[0] - 1)
        covered[y.numpy(), x.numpy()] = True
        covered = np.asarray(maximum_filter(covered, 2 * reach + 1), dtype=bool)
        n_opaque += int(opaque.sum())
        n_uncovered += int((opaque & ~covered).sum())
    return n_uncovered / max(n_opaque, 1)


def _reach(scene: Scene, camera: int, box: Box, depth: torch.Tensor) -> int:
    """Bound the radius of a cell's image in pixels."""
    radius = math.sqrt(3) * box.half_size / CELLS
    nearest = max(float(depth.clamp(min=0).min()) - radius, radius) if len(depth) else radius
    return 1 + math.ceil(float(scene.cameras.focal[camera].max()) * radius / nearest)
