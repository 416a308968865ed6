"""What rendering will cost is said before it begins, by rays that are timed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_field import LEVEL, analytic_model, ball, density_of, sphere_cameras
from torch import Tensor

from nerfcli.cameras.cameras import common_focus
from nerfcli.cameras.rays import Rays
from nerfcli.cli import train_job
from nerfcli.engine import cost
from nerfcli.engine.subject import find_subject
from nerfcli.reference.samples import Pixels


def test_an_estimate_is_the_time_of_a_ray_for_all_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still but for 1 ms a ray, and 5 s of the very first call."""
    model, clock = analytic_model(lambda points: density_of(ball(points))), [0.0]

    def render_rays(self: object, rays: Rays, background: Tensor) -> Pixels:
        clock[0] += 1e-3 * len(rays) + (5.0 if not clock[0] else 0.0)
        zeros = torch.zeros(len(rays))
        return Pixels(torch.zeros(len(rays), 3), zeros, zeros, zeros)

    monkeypatch.setattr(type(model.field), "render_rays", render_rays)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    for n in (1, 7, 120):
        cameras = sphere_cameras(n, size=20)
        assert cost.estimate_seconds(model, cameras) == pytest.approx(0.4 * n)
    assert cost.describe_views(cameras, "frame", 48.0) == "120 frames of 20x20, about 48 seconds"
    taken = clock[0]
    cost.estimate_seconds(model, sphere_cameras(120, size=200))
    assert clock[0] - taken < 0.01 * 120 * 40  # of a long render the probe is a small part


def test_a_preview_is_offered_where_a_render_takes_long() -> None:
    assert cost.preview_scale(50) is None
    assert cost.preview_scale(400) == 0.5
    assert cost.preview_scale(4000) == 0.25
    assert (
        train_job._next("a", 50)
        == train_job._next("a", None)
        == ("next: nerf render a   nerf eval a")
    )
    assert train_job._next("a", 480) == (
        "next: nerf render a --scale 0.5   nerf eval a\n"
        "that video takes about 2 minutes, one of full size about 8 minutes"
    )


def test_the_subject_is_what_is_near_in_the_middle_of_the_views() -> None:
    """A ball aside of where the cameras look, and nothing else solid."""
    offset = torch.tensor([0.3, 0.0, 0.0])
    model = analytic_model(lambda points: density_of(ball(points - offset, 0.4)), n_views=6)
    cameras = model.scene.cameras
    points = find_subject(model, cameras)
    assert points is not None
    away = np.linalg.norm(points - offset.numpy(), axis=-1)
    assert abs(np.median(away) - 0.4) < 0.03  # on its surface
    assert np.abs(np.median(points, axis=0) - offset.numpy()).max() < 0.15
    focus = common_focus(cameras)
    assert focus is not None and float(focus[0].norm()) < 1e-6
    empty = analytic_model(lambda points: torch.zeros(len(points)) + 1e-3 * LEVEL, n_views=4)
    assert find_subject(replace(empty), cameras) is None
