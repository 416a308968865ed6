"""report.html and the comparison of two runs: content, size, escaping, statistics."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from conftest import SMALL, Call, write_blender_scene
from nerfcli.cli import main
from nerfcli.engine.evaluate import ScoredView
from nerfcli.engine.runs import Run
from nerfcli.report import pictures, run_record, scores
from nerfcli.report.comparison_page import comparison_page, conclusion
from nerfcli.report.curves import Axis, histogram, line_chart, thin_out
from nerfcli.report.eval_report import eval_page
from nerfcli.report.page import fill_page
from nerfcli.report.paired import paired_difference
from nerfcli.report.pictures import Gallery
from nerfcli.report.run_comparison import ScoredRun, compare_runs

EVIL = "<script>alert('@BODY@')</script>&\"x"
rng = np.random.default_rng(4)


class Outline(HTMLParser):
    """Collects tags with their attributes, and what they would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_asks_for_nothing(page: str) -> None:
    """No tag of the page loads anything, and its policy forbids it."""
    outline = Outline(page)
    for _, attributes in outline.tags:
        for key in ("src", "href", "srcset", "data", "poster", "action"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in outline.tags}
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\(", page)
    policies = [m["content"] or "" for m in outline.of("meta") if "http-equiv" in m]
    assert policies and "default-src 'none'; img-src data:" in policies[0]
    assert len(outline.of("script")) == 1


def make_view(name: str, size: int = 24, noise: float = 0.1, **scores: float) -> ScoredView:
    photo = rng.random((size, size, 3))
    image = np.clip(photo + noise * rng.normal(size=photo.shape), 0, 1)
    depth = np.full((size, size), 2.0)
    return ScoredView({"name": name, **scores}, photo, image, None, depth, np.ones_like(depth))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two scored runs of the ball, which differ in their length."""
    folder = tmp_path_factory.mktemp("report")
    scene = write_blender_scene(folder / "ball", n_test=3)
    for name, steps in (("one", "100"), ("two", "2")):
        words = [str(scene), "--out", str(folder / name), "--steps", steps]
        here = ["--backend", "torch", "--device", "cpu", "--quiet"]
        for command in (["train", *words, *here, *SMALL], ["eval", words[2], *here[2:]]):
            with pytest.raises(SystemExit, match="0"):
                main(command)
    return folder


@pytest.fixture
def runs(scored: Path, tmp_path: Path) -> Path:
    """A copy of the two runs, to be changed."""
    for name in ("one", "two"):
        shutil.copytree(scored / name, tmp_path / name)
    return tmp_path


def result_of(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    means = {n: float(np.mean([row[n] for row in rows])) for n in ("psnr", "ssim")}
    protocol = {"split": "test", "background": "white"}
    environment = dict.fromkeys(("nerf", "python", "torch", "platform", "backend"), "x")
    return {"step": 100, **means, "n_views": len(rows), "exact_views": 0, "seconds_per_view": 0.1,
            "protocol": protocol, "environment": environment, "views": rows, **more}  # fmt: skip


def test_eval_writes_a_page_that_shows_every_view(scored: Path) -> None:
    page = (scored / "one" / "report.html").read_text(encoding="utf-8")
    result = json.loads((scored / "one" / "eval.json").read_text())
    assert_asks_for_nothing(page)
    outline = Outline(page)
    assert len(outline.of("details")) == 3 + 1  # views, and the settings
    assert [image["data-role"] for image in outline.of("img") if "data-role" in image] == [
        *("image", "photo", "error", "depth")
    ] * 3
    worst = sorted(result["views"], key=lambda row: row["psnr"])
    names = re.findall(r'<summary class="row" [^>]*><span class="name">([^<]*)</span>', page)
    assert names == [row["name"] for row in worst]
    for text in (
        f"<dd>{result['psnr']:.2f} <small>dB</small>",
        f"<span>{worst[0]['psnr']:.2f}</span><span>{worst[0]['ssim']:.4f}</span>",
        "PSNR of training rays, dB",
        "Histogram of PSNR dB over views",
        "The quick check of poses and focal length before training found nothing",
        "100 steps, seed 0",
        f"nerf eval {scored / 'one'}",
        f"nerf train {scored / 'ball'} --config {scored / 'one' / 'config.toml'}",
        f"torch {torch.__version__}",
        "[hashgrid]",
    ):
        assert text in page, text
    assert len(page) < 200_000


def test_the_command_in_the_page_trains_the_same_again(scored: Path, call: Call) -> None:
    page = (scored / "two" / "report.html").read_text(encoding="utf-8")
    found = re.search(r"<pre>nerf (train .*?)</pre>", page)
    assert found is not None
    done = call(*found[1].split()[:-1], "again", "--quiet", "--json")
    assert done.code == 0, done.err
    first, again = (Run.open(path) for path in (scored / "two", Path("again")))
    weights, others = first.load_model()[0], again.load_model()[0]
    assert all(bool((weights[name] == others[name]).all()) for name in weights)


def test_no_report_and_other_splits(runs: Path, call: Call) -> None:
    one = runs / "one"
    (one / "report.html").unlink()
    done = call("eval", one, "--no-report", "--no-images", "--json", "--quiet")
    assert "report" not in done.value and not (one / "report.html").exists()
    done = call("eval", one, "--split", "train", "--out", "s", "--no-images", "--json", "--quiet")
    assert done.value["report"] == str(Path("s/report-train.html"))
    assert Path("s/report-train.html").is_file() and not (one / "report-train.html").exists()
    Path("s/eval-train.json").unlink()
    done = call("eval", one, "--split", "train", "--out", "s", "--no-images")
    assert done.code == 2 and "report-train.html exists; replace it by --overwrite" in done.err
    done = call("train", "--overwrite", "--out", one, "--quiet", runs / "none")
    assert done.code == 2 and one.is_dir()


def test_a_run_that_is_replaced_loses_its_pages(runs: Path) -> None:
    from nerfcli.engine.run_folders import clear

    for name in ("report-val.html", "compare-two.html", "mine.html"):
        (runs / "one" / name).touch()
    clear(runs / "one")
    assert [path.name for path in (runs / "one").glob("*.html")] == ["mine.html"]


def test_hostile_names_are_text(runs: Path) -> None:
    run = Run.open(runs / "one")
    run.scene_json |= {"name": EVIL, "notes": [EVIL], "warnings": [EVIL], "method_reason": EVIL}
    run.scene_json["data_source"] = {"given": EVIL, "resolved": EVIL}
    gallery = Gallery(1)
    view = make_view(EVIL, psnr=20.0, ssim=0.5)
    view.row[EVIL] = 1.0
    gallery.add(view)
    rows = [view.row]
    assert_asks_for_nothing(page := eval_page(run, result_of(rows), gallery.views))
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert(&#x27;@BODY@") > 6
    sides = [ScoredRun(run, result_of(rows)) for _ in range(2)]
    value = compare_runs(sides[0], sides[1], "test")
    page = comparison_page(sides[0], sides[1], value, [], EVIL)
    assert_asks_for_nothing(page)
    assert "<script>alert" not in page


def test_any_score_of_a_view_has_its_column(runs: Path) -> None:
    gallery = Gallery(2)
    for name, lpips in (("a", 0.25), ("b", 0.125)):
        gallery.add(make_view(name, psnr=20.0, ssim=0.5, lpips_vgg=lpips, psnr_corrected=21.0))
    rows = [view.row for view in gallery.views]
    rows.append({"name": "c", "psnr": None, "ssim": 1.0, "exact": True})
    result = result_of(rows[:2]) | {"views": rows, "exact_views": 1, "lpips_vgg": 0.1875}
    page = eval_page(Run.open(runs / "one"), result, gallery.views)
    assert "<span>LPIPS VGG</span><span>PSNR corrected dB</span>" in page
    assert "<dd>0.1875 <small>" in page and "<span>0.1250</span><span>21.00</span>" in page
    assert ">c</span><span>∞</span><span>1.0000</span><span>–</span>" in page
    assert scores.worst_first(rows) == [0, 1, 2]


def test_the_page_of_25_large_views_is_below_10_mb(runs: Path) -> None:
    """Noise is the worst of pictures; one view stands for the others, which are alike."""
    gallery = Gallery(25)
    view = make_view("a", 800, psnr=20.0, ssim=0.5)
    gallery.add(view)
    shown = gallery.views[0]
    assert shown.size == (800, 800) and 64 < shown.shown[0] < 800
    one = eval_page(Run.open(runs / "one"), result_of([shown.row]), [shown])
    assert 25 * len(one) < 10_000_000
    assert f"scaled down to {shown.shown[0]} pixels in width" in one
    assert pictures.size_remark([shown]) and "Scores are of all pixels" in one
    plain = Gallery(25)
    plain.add(make_view("b", 16))
    assert plain.views[0].shown == (16, 16) and pictures.size_remark(plain.views) == ""


def test_the_error_map_has_a_fixed_scale() -> None:
    photo = np.zeros((1, 4, 3))
    image = photo + np.array([0, 16, 64, 200])[:, None] / 255
    colors = pictures.error_map(image, photo, np.array([[True, True, True, True]]))
    ramp = np.round(255 * pictures.ramp_colors(np.array([0.0, 0.5, 1.0, 1.0])))
    np.testing.assert_array_equal(colors[0], ramp)
    usable = np.array([[True, False, True, True]])
    assert (pictures.error_map(image, photo, usable)[0, 1] == 128).all()


def test_depth_spans_what_is_hit() -> None:
    depth = np.array([[1.0, 3.0, 9.0, np.nan]])
    opacity = np.array([[1.0, 1.0, 0.1, 1.0]])
    colors, limits = pictures.depth_picture(depth, opacity)
    assert limits == pytest.approx((1.0, 3.0), abs=0.05)
    assert (colors[0, 0] > colors[0, 1]).all()
    assert pictures.depth_picture(depth, 0 * opacity)[1] is None


def test_exposure_codes_are_shown(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(runs / "one")
    assert run_record.read_exposures(run) == []
    frames = len(run.scene_json["frames"])
    codes = torch.zeros(frames, 6)
    codes[0] = torch.tensor([math.log(2.0), 0.0, -math.log(2.0), 0.25, 0.0, 0.0])
    monkeypatch.setattr(run, "load_checkpoint", lambda: ({}, {"exposure.codes": codes}, {}))
    run.config = replace(run.config, train=replace(run.config.train, exposure=True))
    found = run_record.read_exposures(run)
    assert len(found) == len(run.scene_json["splits"]["train"])
    assert found[0].stops == pytest.approx((1.0, 0.0, -1.0), abs=1e-6)
    assert found[0].offsets[0] == pytest.approx(0.25)
    page = eval_page(run, result_of([{"name": "a", "psnr": 20.0, "ssim": 0.5}]), [])
    assert "gain of red, green, blue, stops" in page and "<td>1.000</td><td>0.000</td>" in page


def test_charts_keep_to_their_axes() -> None:
    chart = line_chart("t", "y", "step", [("first", [(0.0, 1.0), (50.0, 2.0), (100.0, 3.0)])])
    points = re.findall(r"([\d.]+),([\d.]+)", chart.partition('points="')[2])
    xs, ys = ([float(p[i]) for p in points[:3]] for i in (0, 1))
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2) and ys[0] > ys[1] > ys[2]
    assert all(f">{tick}</text>" in chart for tick in ("0", "20", "100", "2"))
    loss = line_chart("t", "y", "step", [("first", [(0, 1.0), (1, 0.0), (2, 0.01)])], is_log=True)
    assert loss.count("polyline") == 1 and "nan" not in loss
    assert line_chart("t", "y", "x", [("first", [(0.0, math.nan), (1.0, 1.0)])]) == ""
    assert [round(t, 3) for t in Axis(0.001, 1.0, "", True).ticks(4)] == [0.001, 0.01, 0.1, 1.0]
    many = thin_out([(float(i), 1.0) for i in range(10_001)])
    assert len(many) <= 300 and many[0][0] < many[-1][0]


def test_torn_lines_of_metrics_are_no_rows(runs: Path) -> None:
    run = Run.open(runs / "one")
    rows = [{"step": 50 * i, "seconds": 2.0 * i, "n_rays": 10, "psnr": 1.0} for i in (1, 2, 4)]
    text = "\n".join(json.dumps(row) for row in rows) + '\n7\n{"step": 250, "sec'
    (run.path / "metrics.jsonl").write_text(text)
    found = run_record.read_metrics(run)
    assert found == rows
    assert run_record.ray_rates(found, "step") == [(100.0, 250.0), (200.0, 250.0)]
    assert run_record.curve([{"step": 1, "psnr": None}, *rows], "step", "psnr")[0] == (50.0, 1.0)
    (run.path / "metrics.jsonl").unlink()
    assert run_record.read_metrics(run) == []


def test_a_histogram_counts_every_view_once() -> None:
    values = [20.0, 20.4, 21.0, 25.99, 26.0]
    bars = re.findall(
        r"<title>([\d.]+) to ([\d.]+): (\d+)</title>", histogram("t", "dB", values, 0.1)
    )
    assert sum(int(n) for _, _, n in bars) == len(values)
    for low, high, n in bars:
        assert sum(float(low) <= v < float(high) for v in values) == int(n)
    assert "rect" in histogram("t", "dB", [20.0], 0.1) and histogram("t", "dB", [], 0.1) == ""


def test_paired_differences_are_those_of_scipy() -> None:
    a = rng.normal(30, 2, 12)
    b = a + rng.normal(0.3, 0.2, 12)
    found, expected = paired_difference(list(a), list(b)), stats.ttest_rel(b, a)
    interval = expected.confidence_interval(0.95)
    assert found["mean"] == pytest.approx((b - a).mean())
    assert found["standard_error"] == pytest.approx(stats.sem(b - a))
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert (found["p"], found["n"]) == (pytest.approx(expected.pvalue), 12)
    hand = paired_difference([1.0, 2.0], [2.0, 5.0])  # differences 1 and 3, t of one freedom 12.706
    assert (hand["mean"], hand["standard_error"]) == (2.0, pytest.approx(1.0))
    assert hand["high"] == pytest.approx(2 + 12.7062, abs=1e-4)
    assert paired_difference([1.0], [2.0])["low"] is None
    same = paired_difference([1.0, 2.0], [1.5, 2.5])
    assert (same["low"], same["high"], same["p"]) == (0.5, 0.5, None)


def test_two_runs_are_compared_view_by_view(runs: Path, call: Call) -> None:
    done = call("compare", runs / "one", runs / "two", "--json")
    assert (done.code, done.err) == (0, "")
    value = done.value
    files = [json.loads((runs / name / "eval.json").read_text()) for name in ("one", "two")]
    psnr = value["scores"][0]
    changes = [y["psnr"] - x["psnr"] for x, y in zip(*(f["views"] for f in files), strict=True)]
    assert psnr["difference"] == pytest.approx(np.mean(changes))
    assert psnr["n_better"] == sum(change > 0 for change in changes)
    assert value["settings"] == [{"key": "train.steps", "a": 100, "b": 2}]
    assert (value["pictures"], value["missing"]) == (3, None)
    page = (runs / "two" / "compare-one.html").read_text(encoding="utf-8")
    assert value["report"] == str(runs / "two" / "compare-one.html")
    assert_asks_for_nothing(page)
    roles = [image["data-role"] for image in Outline(page).of("img") if "data-role" in image]
    assert roles == ["a", "b", "photo", "error-a", "error-b"] * 3
    order = re.findall(r'<summary[^>]*><span class="name">([^<]*)</span>', page)
    names = [row["name"] for row in files[0]["views"]]
    assert order == [names[i] for i in np.argsort(changes)]
    text = call("compare", runs / "one", runs / "two", "--out", "x.html").out
    assert "PSNR: B is " in text and "95 % interval" in text and "train.steps  100  2" in text
    assert "report: x.html" in text and "say nothing about other seeds" in text


def test_a_score_that_one_run_alone_has_is_named(runs: Path, call: Call) -> None:
    path = runs / "two" / "eval.json"
    whole = json.loads(path.read_text())
    for row in whole["views"]:
        row["ms_ssim"] = 0.9
    path.write_text(json.dumps(whole))
    value = call("compare", runs / "one", runs / "two", "--json", "--no-report").value
    assert value["unpaired"] == ["ms_ssim"]
    assert "ms_ssim" not in [score["score"] for score in value["scores"]]
    text = call("compare", runs / "one", runs / "two", "--no-report").out
    assert "of one run alone, so not compared: ms_ssim" in text


def test_the_command_asks_for_the_scores_of_the_page(scored: Path) -> None:
    run = Run.open(scored / "two")
    keys = {"psnr", "ssim", "lpips_vgg", "lpips_alex", "psnr_cc", "views"}
    assert run_record.eval_command(run, "val", keys) == (
        f"nerf eval {run.path} --split val --lpips vgg,alex --psnr-cc"
    )
    assert run_record.eval_command(run, "test") == f"nerf eval {run.path}"


def test_a_page_without_pictures_says_so(runs: Path, call: Call) -> None:
    shutil.rmtree(runs / "one" / "renders")
    done = call("compare", runs / "one", runs / "two")
    assert done.code == 0 and "3 of 3 views have no pictures here: " in done.out
    page = (runs / "two" / "compare-one.html").read_text(encoding="utf-8")
    assert "is missing. To have them, run nerf eval" in page and "<img data-role" not in page


def test_a_picture_of_an_earlier_step_is_not_shown(runs: Path, call: Call) -> None:
    picture = next((runs / "one" / "renders" / "test").iterdir())
    shape = np.asarray(Image.open(picture)).shape
    both = np.asarray(Image.open(picture)).copy()
    both[:, shape[1] // 2 :] = 0
    Image.fromarray(both).save(picture)
    assert call("compare", runs / "one", runs / "two", "--json").value["pictures"] == 3
    os.utime(picture, (1.0, 1.0))
    value = call("compare", runs / "one", runs / "two", "--json").value
    assert value["pictures"] == 2 and "older than the run's last step" in value["missing"]


def change(path: Path, key: str, value: object) -> None:
    whole = json.loads(path.read_text())
    *above, last = key.split("/")
    inner = whole
    for part in above:
        inner = inner[int(part) if part.isdigit() else part]
    inner[int(last) if last.isdigit() else last] = value
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eval.json:views/0/name", "other.png", "2 are of one alone, first 'other.png'"),
        ("eval.json:protocol/background", "black", "background is 'white' and 'black'"),
        ("eval.json:step", 7, "is of step 7, the run of step 2. Run: nerf eval"),
        ("eval.json:views", [], "is not what nerf eval writes"),
        ("scene.json:frames/8/size", [8, 8], "16 x 16 pixels in"),
        ("scene.json:frames/8", {}, "scene.json is damaged"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    runs: Path, call: Call, key: str, value: object, message: str
) -> None:
    file, _, place = key.partition(":")
    change(runs / "two" / file, place, value)
    done = call("compare", runs / "one", runs / "two")
    assert done.code == 2 and message in done.err
    assert not list(runs.glob("*/compare-*"))


def test_wrong_pairs_and_options_are_refused(runs: Path, call: Call) -> None:
    import trimesh

    trimesh.creation.box().export("cube.ply")
    one, two = runs / "one", runs / "two"
    shutil.rmtree(two / "renders")
    for words, message in (
        ([one, "cube.ply"], "is a run and cube.ply is none: name two runs, or two shapes"),
        ([one, two, "--samples", "3"], "--samples does not go with two runs"),
        (["cube.ply", "cube.ply", "--split", "val"], "--split does not go with two shapes"),
        ([one, two, "--split", "val"], "has no scores of its val views (eval-val.json)"),
        ([one, two, "--no-report", "--out", "x.html"], "--no-report asks for none"),
        ([one, two, "--out", "."], "is a folder; name the page"),
        ([one, two, "--out", "cube.ply"], "cube.ply exists; replace it by --overwrite"),
    ):
        done = call("compare", *words)
        assert done.code == 2 and message in done.err, (words, done.err)


def test_two_scenes_with_the_same_names_are_refused(runs: Path, call: Call) -> None:
    for picture in (runs / "two" / "renders" / "test").iterdir():
        both = 255 - np.asarray(Image.open(picture))
        Image.fromarray(both).save(picture)
    done = call("compare", runs / "one", runs / "two", "--no-report")
    assert done.code == 2 and "these are two scenes" in done.err


def test_a_conclusion_needs_an_interval_without_0() -> None:
    score = {"low": 0.1, "high": 0.2, "higher_is_better": True}
    assert conclusion(score) == "B is better"
    assert conclusion(score | {"higher_is_better": False}) == "A is better"
    assert conclusion(score | {"low": -0.1}) == "no difference shown"
    assert conclusion(score | {"low": None}) == "no difference shown"


def test_a_name_that_is_no_text_becomes_a_page() -> None:
    """A folder's name may be any bytes."""
    assert b"body" in fill_page("run \udcff", "body \udcff").encode("utf-8")
