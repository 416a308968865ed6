"""What a newcomer meets in the first hour: mistakes, short runs, and what is said of a scene."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import ROOT, SMALL, Call
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.check.judge_images import judge_images
from nerfcli.check.judge_lens import judge_lens
from nerfcli.check.picture import BOX, CAMERA, HEAD, OUTER, PANEL, choose_axes, draw_check
from nerfcli.check.poses import Hypothesis
from nerfcli.check.report import Report
from nerfcli.check.scene_check import SceneCheck, _list_extent
from nerfcli.cli import eval as eval_command
from nerfcli.cli.more_time import BONSAI_DB, LEGO_DB, more_time
from nerfcli.core.config import Config, TrainConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.text import quantity, rough_duration
from nerfcli.engine import resolve, train
from nerfcli.engine.loop import RECENT
from nerfcli.matching.features import Features
from nerfcli.matching.matching import ImageAnalysis, Matches
from nerfcli.prepare import PrepareOptions, pipeline
from nerfcli.scenes import describe_formats, load_scene
from nerfcli.scenes.scene import Scene, Similarity

QUIET = Progress("quiet", None, "", "")


def test_a_missing_run_to_resume_is_named_with_one_like_it(
    call: Call, tmp_path: Path, ball: Path
) -> None:
    run = tmp_path / "runs" / "c-1"
    run.mkdir(parents=True)
    (run / "config.toml").write_text('method = "hashgrid"\n')
    (run / "scene.json").write_text("{}")
    (run / "state.json").write_text("{}")
    done = call("train", "--resume", "runs/c1")
    assert (done.code, done.err) == (2, "nerf: no such run: runs/c1; did you mean runs/c-1?\n")
    (tmp_path / "scene").mkdir()
    done = call("train", "--resume", "scne", "--out", "new")
    assert (done.code, done.err) == (2, "nerf: no such run: scne; did you mean scene?\n")
    done = call("train", "--resume", "nothing")
    assert done.err.count("\n") == 1 and "nerf runs" in done.err
    done = call("train", "--resume", "scene")  # no scene: nothing begins
    assert done.code == 2 and "begins" not in done.err


@pytest.mark.parametrize("words", [("--device", "cuda"), ("--backend", "triton")])
def test_what_cannot_run_here_is_said_first(call: Call, ball: Path, words: tuple[str, str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("it can run here")
    done = call("train", ball, *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words[1] in done.err


def summary(seconds: float, held_out: float | None, psnr: float = 20.0) -> dict[str, Any]:
    found = None if held_out is None else {"psnr": held_out}
    return {"run": "my run", "seconds": seconds, "psnr": psnr, "held_out": found}


def test_a_short_run_says_so() -> None:
    place, thing = Config("unbounded"), Config("hashgrid")
    said = more_time(summary(60.0, 26.5), place, default_length=False)
    assert "1:00 of the 5 minutes that a place gets" in said
    assert "nerf train --resume 'my run' --minutes 5" in said
    assert "of the 2 minutes that an object gets" in more_time(
        summary(20.0, None), thing, default_length=False
    )
    for enough in (summary(300.0, 26.5), summary(60.0, 30.5), summary(60.0, None, 31.0)):
        assert not more_time(enough, place, default_length=False)
    usual = more_time(summary(300.0, 26.5), place, default_length=True)
    assert "bonsai" in usual and "--minutes 10" in usual
    table = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"{decibels} dB" in table for _, decibels in LEGO_DB)
    assert all(
        f"{decibels}" in table and f"{steps} steps" in table for steps, decibels in BONSAI_DB
    )


def test_check_and_train_say_the_same_of_the_box(ball: Path) -> None:
    scene = load_scene(ball)
    scene = replace(scene, scene_from_source=Similarity(0.5), box=Box((0.0, 0.0, 0.0), 1.0, 2))
    config = resolve.resolve(replace(Config("hashgrid"), train=TrainConfig(steps=1)), scene)
    measures = _list_extent(scene, False)
    said = scene.describe_box(is_unbounded=False)
    assert said.startswith("half size 2 in source units, 2 cascades")
    assert measures["box"].startswith(said)
    assert f"box of {said}; 1 step" in resolve.describe(scene, config)
    assert (measures["box_half_size"], measures["box_cascades"]) == (2.0, 2)
    assert measures["near_distance"] == 2 * scene.near
    assert "cascades" not in _list_extent(scene, True)["detail cube"]


def photo(grey: np.ndarray) -> ImageAnalysis:
    """An analysis of a photo of which only the brightness counts."""
    nothing = torch.zeros(0, 2)
    features = Features(nothing, torch.zeros(0), torch.zeros(0), torch.zeros(0, 128))
    thumbnail = torch.from_numpy(grey[:16, :16].astype(np.float32))
    reduced = torch.from_numpy(grey.astype(np.float32))
    return ImageAnalysis(features, (32, 32), thumbnail, 0.2, 1.0, reduced, (32, 32))


def exposures(*greys: np.ndarray) -> list[str]:
    """The text of findings about exposure, where each photo matches each at every pixel."""
    n = len(greys)
    pairs = torch.tensor([(a, b) for a in range(n) for b in range(a + 1, n)])
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    xy = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).double().expand(-1, 2, 2) + 0.5
    pair = torch.arange(len(pairs)).repeat_interleave(len(xy))
    matches = Matches(pairs, pair, xy.repeat(len(pairs), 1, 1))
    names = [f"{i}.png" for i in range(n)]
    images = {i: photo(grey) for i, grey in enumerate(greys)}
    found = judge_images(names, images, matches, torch.ones(n, n, dtype=torch.bool))
    return [finding.text for finding in found if finding.what == "exposure"]


def test_gloss_is_no_exposure() -> None:
    rng = np.random.default_rng(0)
    grey = rng.uniform(0.3, 0.8, (32, 32))
    darker = 0.6 * grey
    assert "3.png (-1.6 stops)" in exposures(grey, grey, grey, darker)[0]
    gloss = np.clip(darker * rng.uniform(0.5, 2.0, grey.shape), 0.06, 0.94)
    assert exposures(grey, grey, grey, gloss) == []


def drawn(scene: Scene, points: Tensor) -> SceneCheck:
    source: Any = None  # is not drawn
    report = Report(scene.name, (), (), {"box": ""})
    return SceneCheck(report, source, scene, Hypothesis(), scene.cameras, points, (), ())


def test_the_picture_has_a_legend_and_panels_of_their_own(ball: Path, tmp_path: Path) -> None:
    scene = load_scene(ball)
    scene = replace(scene, box=replace(scene.box, n_cascades=6))
    long = torch.randn(200, 3, dtype=torch.float64) * torch.tensor([0.1, 2.0, 0.2])
    check = drawn(scene, long)
    draw_check(check, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.array(image)
    views, legend = pixels[: HEAD + PANEL], pixels[HEAD + PANEL :]
    for colour in (CAMERA, BOX, OUTER):
        assert (legend == colour).all(-1).any()
    assert not (views == OUTER).all(-1).any()  # it is larger than both views
    for half in (views[:, :PANEL], views[:, PANEL:]):
        assert (half == BOX).all(-1).any()
    right, front, up = choose_axes(check)
    assert np.allclose(np.abs(front), [0, 1, 0], atol=0.01)  # the long side, level
    assert abs(up[2]) > 0.99
    assert np.allclose(right, np.cross(front, up))


def test_the_picture_from_the_side_shows_where_views_look(ball: Path) -> None:
    scene = load_scene(ball)
    ahead = scene.cameras.c2w[:1].expand(len(scene.cameras), -1, -1).clone()
    check = replace(drawn(scene, torch.zeros(0, 3)), cameras=replace(scene.cameras, c2w=ahead))
    _, front, up = choose_axes(check)
    level = ahead[0, :, 2].numpy() - (ahead[0, :, 2].numpy() @ up) * up
    assert np.allclose(front, level / np.linalg.norm(level))


def capture(lens: Lens) -> tuple[Cameras, Matches]:
    """Cameras around a cloud of points, and where they see it through a lens."""
    torch.manual_seed(0)
    angles = torch.linspace(0, 1.5, 6, dtype=torch.float64)
    forward = -torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=-1)
    down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(forward)
    c2w = torch.stack([torch.linalg.cross(down, forward), down, forward, -1.6 * forward], dim=-1)
    size = torch.tensor([[400, 400]]).expand(6, -1)
    focal = torch.full((6, 2), 300.0, dtype=torch.float64)
    cameras = Cameras(c2w, focal, size / 2.0, size, (lens,) * 6)
    points = 1.5 * torch.rand(60, 3, dtype=torch.float64) - 0.75
    seen = [cameras.project(i, points)[0] for i in range(6)]
    pairs = torch.tensor([(a, b) for a in range(6) for b in range(a + 1, 6)])
    xy = torch.cat([torch.stack([seen[a], seen[b]], dim=1) for a, b in pairs.tolist()])
    pair = torch.arange(len(pairs)).repeat_interleave(len(points))
    good = xy.isfinite().all(-1).all(-1)
    noise = 0.3 * torch.randn(xy.shape, dtype=torch.float64)
    return cameras, Matches(pairs, pair[good], (xy + noise)[good])


def test_a_lost_lens_parameter_is_found() -> None:
    cameras, matches = capture(Lens.of("brown", k1=-0.12))
    scale = torch.ones(6, dtype=torch.float64)
    assert judge_lens(matches, cameras, scale, 3.0) == []
    lost = replace(cameras, lenses=(Lens(),) * 6)
    (finding,) = judge_lens(matches, lost, scale, 3.0)
    assert finding.level == "warning" and "has a lens parameter been lost?" in finding.text
    assert "k1 by about -" in finding.text
    other = replace(cameras, lenses=(Lens.of("equirectangular"),) * 6)
    assert judge_lens(matches, other, scale, 3.0) == []


def test_a_finished_run_says_that_nothing_is_to_do(call: Call, ball: Path) -> None:
    first = call("train", ball, "--out", "r", "--steps", 2, "--json", *SMALL).value
    assert first["nothing_to_do"] is False and first["rays_per_second"] > 0
    assert first["held_out"]["n_pixels"] <= 16 * 16
    again = call("train", "--resume", "r", "--json").value
    assert again["nothing_to_do"] is True
    assert {again[f"{what}_per_second"] for what in ("steps", "rays", "samples")} == {None}
    assert again["box_half_size"] == first["box_half_size"] > 0
    longer = call("train", "--resume", "r", "--steps", 3)
    lines = longer.err.splitlines()
    read, method = (
        next(i for i, line in enumerate(lines) if line.startswith(start))
        for start in ("reading 8 images", "hashgrid: 8 views")
    )
    assert read < method


def test_the_psnr_shown_is_that_of_the_last_steps(ball: Path) -> None:
    config = replace(Config("hashgrid"), train=TrainConfig(steps=60))
    ready = train.prepare(load_scene(ball), config)
    shown: Any = None  # no run is made
    loop = train.start(ready, shown, train.backends.select("torch", "cpu").backend, "cpu", QUIET)
    loop.recent.extend(torch.full((RECENT,), 1.0))
    assert loop._psnr() == 0.0
    for error in [0.01] * (RECENT // 2) + [0.03] * (RECENT // 2):
        loop.recent.append(torch.tensor(error))
    assert loop._psnr() == pytest.approx(-10 * math.log10(0.02))
    loop.take_step(0.0)
    assert loop.last is not None and float(loop.recent[-1]) == float(loop.last.mse)


def test_a_stopped_eval_says_of_how_many_views_its_mean_is() -> None:
    row = {"name": "r_0", "psnr": 20.0, "ssim": 0.9}
    value = {"run": "r", "views": [row], "psnr": 20.0, "ssim": 0.9, "exact_views": 0}
    value |= {"protocol": {"split": "test", "background": "white"}, "n_views": 1}
    assert "\nmean of 1 of 7 views" in eval_command._summary(value | {"n_split_views": 7})
    assert "\nmean     20.00" in eval_command._summary(value | {"n_split_views": 1})


def test_a_record_of_another_kind_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = pipeline._Job(tmp_path, out, PrepareOptions(), QUIET, lambda: False)
    job.work.mkdir(parents=True)
    job.record.write_text(json.dumps(["lost"]))
    with pytest.raises(NerfError, match=r"options\.json holds no record.*--overwrite"):
        job.begin()
    (out / "prepare.json").write_text("[]")
    pipeline.remove_made(out)
    assert not job.work.exists()


def test_counts_agree_with_their_nouns() -> None:
    texts = [quantity(n, "minute") for n in (1, 1.0, 2.5, 2_000_000)]
    assert texts == ["1 minute", "1 minute", "2.5 minutes", "2000000 minutes"]
    assert (rough_duration(1.2), rough_duration(89.0)) == ("1 second", "89 seconds")


def test_the_formats_are_listed_shortly() -> None:
    text = describe_formats()
    assert len(text) < 300 and all(name in text for name in ("COLMAP", "NSVF", "Bundler"))
