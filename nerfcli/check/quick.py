"""The cheap part of the check, for `nerf train`: a few views, a few seconds, no verdict on each."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from nerfcli.check.judge_poses import pixels_text
from nerfcli.check.poses import explain, tolerance_for
from nerfcli.check.report import Finding
from nerfcli.matching.matching import Look, look_at_images, nearness, shared_matches
from nerfcli.scenes.scene import Scene

GROUPS, NEIGHBOURS = 6, 2  # views spread over the scene, each with its nearest
LARGEST, FEATURES = 480, 600
SECONDS = 5.0


def quick_warnings(scene: Scene, *, seconds: float = SECONDS) -> list[Finding]:
    """Convention and focal length, tested on some training views and their neighbours.

    Silent where it sees nothing wrong and where it cannot tell; never raises for bad images,
    which reading them all will name. No new image is begun after 0.6 of `seconds`.
    """
    start = time.monotonic()
    cameras = [i for i in scene.splits["train"] if scene.image_paths[i] is not None]
    if len(cameras) < 4:
        return []
    apart = nearness(scene, cameras)
    stride = max(len(cameras) // GROUPS, 1)
    pairs = []
    for i in range(0, len(cameras), stride):
        near = apart[i].argsort()[:NEIGHBOURS].tolist()
        pairs += [(cameras[min(i, j)], cameras[max(i, j)]) for j in near]
    looks: dict[int, Look] = {}
    matched = []
    for pair in sorted(set(pairs)):
        if time.monotonic() - start > 0.6 * seconds:
            break
        missing = [camera for camera in pair if camera not in looks]
        looks |= look_at_images(scene, missing, largest=LARGEST, limit=FEATURES)[0]
        if all(camera in looks for camera in pair):
            matched.append(pair)
    matches = shared_matches(looks, matched)
    if len(matches.pairs) < 3:
        return []
    cameras_ = replace(
        scene.cameras, c2w=scene.scene_from_source.inverse().apply_c2w(scene.cameras.c2w)
    )
    working = torch.ones(len(scene.cameras), dtype=torch.float64)
    for i, look in looks.items():
        working[i] = look.working[0] / float(scene.cameras.size[i, 0])
    tolerance = tolerance_for([look.working for look in looks.values()])
    guess, stated, found = explain(matches, cameras_, working, tolerance, thorough=False)
    if guess.what:
        text = (
            f"{guess.words}: matches then lie {pixels_text(found.typical)} from where the poses "
            f"put them, as stated {pixels_text(stated.typical)}"
        )
        return [Finding("warning", guess.what, text)]
    if stated.agreeing < 0.5:
        text = f"only {stated.agreeing:.0%} of {len(matches.pairs)} pairs of views fit their poses"
        return [Finding("warning", "poses", text)]
    return []
