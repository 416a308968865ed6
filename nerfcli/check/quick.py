"""Check a few views in a few seconds, before training: convention and focal length only."""

from __future__ import annotations

import time
from dataclasses import replace

from nerfcli.check.judge_poses import format_pixels
from nerfcli.check.poses import compute_tolerance, find_hypothesis
from nerfcli.check.report import Finding
from nerfcli.matching.matching import (
    ImageAnalysis,
    analyse_images,
    compute_working_scale,
    match_pairs,
    measure_pose_distances,
)
from nerfcli.scenes.scene import Scene

GROUPS, NEIGHBOURS = 6, 2  # views spread over the scene, each with its nearest
LARGEST, FEATURES = 480, 600  # pixels of the longer side, features of an image
SECONDS = 5.0


def check_few_views(scene: Scene, *, seconds: float = SECONDS) -> list[Finding]:
    """Test convention and focal length on some training views and their neighbours.

    Returns no finding where all seems well and where it cannot tell. Unreadable images are
    skipped: training reads all of them and names them. No new image is begun after 0.6 of
    `seconds`.
    """
    start = time.monotonic()
    cameras = [i for i in scene.splits["train"] if scene.image_paths[i] is not None]
    if len(cameras) < 4:
        return []
    distances = measure_pose_distances(scene, cameras)
    stride = max(len(cameras) // GROUPS, 1)
    candidates: set[tuple[int, int]] = set()
    for i in range(0, len(cameras), stride):
        near = distances[i].argsort()[:NEIGHBOURS].tolist()
        candidates |= {(cameras[min(i, j)], cameras[max(i, j)]) for j in near}
    images: dict[int, ImageAnalysis] = {}
    pairs = []
    for pair in sorted(candidates):
        if time.monotonic() - start > 0.6 * seconds:
            break
        missing = [camera for camera in pair if camera not in images]
        images |= analyse_images(scene, missing, largest=LARGEST, limit=FEATURES)[0]
        if all(camera in images for camera in pair):
            pairs.append(pair)
    matches = match_pairs(images, pairs)
    if len(matches.pairs) < 3:
        return []
    source_from_scene = scene.scene_from_source.inverse()
    source_cameras = replace(scene.cameras, c2w=source_from_scene.apply_c2w(scene.cameras.c2w))
    tolerance = compute_tolerance([image.working_size for image in images.values()])
    hypothesis, stated, fit = find_hypothesis(
        matches, source_cameras, compute_working_scale(scene, images), tolerance, thorough=False
    )
    if hypothesis.fault:
        text = (
            f"{hypothesis.description}: matches then lie {format_pixels(fit.median)} from where "
            f"the poses put them, as stated {format_pixels(stated.median)}"
        )
        return [Finding("warning", hypothesis.fault, text)]
    if stated.agreeing < 0.5:
        text = f"only {stated.agreeing:.0%} of {len(matches.pairs)} pairs of views fit their poses"
        return [Finding("warning", "poses", text)]
    return []
