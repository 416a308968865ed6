"""A single view at odds with the others: a wrong pose is a fault, matches on what repeats are not.

Matches are made from points and cameras, without images.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import sphere_c2w
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.check.judge_poses import PoseJudgement, judge_poses
from nerfcli.check.poses import compute_tolerance
from nerfcli.matching.matching import Matches
from nerfcli.scenes.source import OPENGL_COLUMNS

N, VIEW, SIZE = 14, 7, 640


@cache
def cameras() -> Cameras:
    poses = np.stack([(sphere_c2w(i, N) * OPENGL_COLUMNS)[:3] for i in range(N)])
    ones = torch.ones(N, 2, dtype=torch.float64)
    size = torch.full((N, 2), SIZE)
    return Cameras(
        torch.from_numpy(poses), 600 * ones, SIZE / 2 * ones, size, (Lens("pinhole"),) * N
    )


@cache
def true_matches(of_view: int = 60) -> Matches:
    """Each view with its four nearest: points in a ball, seen to a third of a pixel.

    of_view: matches of each pair of VIEW; other pairs have 60.
    """
    random = torch.Generator().manual_seed(0)
    positions = cameras().positions
    nearest = torch.cdist(positions, positions).argsort(dim=1)[:, 1:5].tolist()
    pairs = sorted({(min(i, j), max(i, j)) for i in range(N) for j in nearest[i]})
    pair, xy = [], []
    for number, both in enumerate(pairs):
        count = of_view if VIEW in both else 60
        points = 2 * torch.rand(count, 3, generator=random, dtype=torch.float64) - 1
        seen = torch.stack([cameras().project(i, points)[0] for i in both], dim=1)
        xy.append(seen + 0.3 * torch.randn(seen.shape, generator=random, dtype=torch.float64))
        pair.append(torch.full((count,), number))
    return Matches(torch.tensor(pairs), torch.cat(pair), torch.cat(xy))


def judge(matches: Matches, c2w: Tensor | None = None) -> PoseJudgement:
    stated = cameras() if c2w is None else replace(cameras(), c2w=c2w)
    names = [f"{i:03}.png" for i in range(N)]
    scale = torch.ones(N, dtype=torch.float64)
    return judge_poses(names, matches, stated, scale, compute_tolerance([(SIZE, SIZE)]), 0.0)


def poses_of(result: PoseJudgement) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.level, f.views) for f in result.findings if f.what == "pose"]


def turned(degrees: float) -> Tensor:
    """The poses, with that of VIEW turned to the side and moved."""
    c2w = cameras().c2w.clone()
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    cos, sin = float(angle.cos()), float(angle.sin())
    turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float64)
    c2w[VIEW, :, :3] = c2w[VIEW, :, :3] @ turn
    c2w[VIEW, :, 3] += 0.5
    return c2w


def test_sound_views_are_sound() -> None:
    assert judge(true_matches()).findings == []


@pytest.mark.parametrize("degrees", [15.0, 120.0])
def test_a_wrong_pose_is_a_fault(degrees: float) -> None:
    result = judge(true_matches(), turned(degrees))
    assert poses_of(result) == [("fault", ("007.png",))]
    assert result.outliers == (VIEW,)


def test_few_matches_prove_no_wrong_pose() -> None:
    """As few as chance may give, though they agree."""
    result = judge(true_matches(9), turned(15.0))
    assert poses_of(result) == [("warning", ("007.png",))]
    assert result.outliers == ()  # so that --fix keeps it


def test_matches_that_agree_on_no_pose_are_no_wrong_pose() -> None:
    """Each neighbour's matches moved along by steps of their own, as on stairs."""
    matches = true_matches(40)
    xy = matches.xy.clone()
    for number, both in enumerate(matches.pairs.tolist()):
        if VIEW in both:
            rows = (matches.pair == number).nonzero()[:, 0]
            steps = torch.arange(len(rows)) % 7 - 3.0
            shift = torch.tensor([(-1.0) ** number * 35.0, 80.0 + 10 * number % 70])
            xy[rows, both.index(VIEW)] += shift + steps[:, None] * torch.tensor([24.0, 31.0])
    result = judge(replace(matches, xy=xy))
    assert poses_of(result) == [("warning", ("007.png",))]
    (finding,) = [f for f in result.findings if f.what == "pose"]
    assert "matches)" in finding.text and "stairs" in finding.text
