"""The commands as scripts use them: files, exit codes, JSON, signals; and what bad input does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import HANGS, SMALL, Nerf, nerf_environment
from nerfcli.backends import why_unavailable
from nerfcli.cli import main
from nerfcli.engine import resolve, train
from nerfcli.engine.runs import in_training
from nerfcli.methods import StepResult, hashgrid_trainer


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """The same command line in this process, in tmp_path: no start-up time; one thread."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*args: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        return Outcome(code, out, err)

    yield run
    torch.set_num_threads(threads)


Inside = Callable[..., Outcome]


class Trained(NamedTuple):
    run: Path
    result: dict[str, Any]
    err: str


@pytest.fixture(scope="module")
def trained(ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run of the tiny scene, made by a real command; read only."""
    folder = tmp_path_factory.mktemp("work")
    done = subprocess.run(
        [sys.executable, "-m", "nerfcli", "train", str(ball), "--steps", "150", "--json", *SMALL],
        cwd=folder,
        env=nerf_environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    return Trained(folder / "runs" / "ball-1", json.loads(done.stdout), done.stderr)


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """A copy of that run to do things to, under another name in another place."""
    return Path(shutil.copytree(trained.run, tmp_path / "runs" / "moved"))


def test_train_gives_one_object_and_a_run_folder(trained: Trained) -> None:
    assert trained.result["run"] == "runs/ball-1"
    assert trained.result["steps"] == 150
    assert trained.result["stopped"] is None
    assert 5e7 < trained.result["peak_memory_bytes"] < 2.5e9  # torch alone takes 0.2 GB
    assert trained.result["psnr"] > 10.0  # a white image has about 9 dB here
    names = {path.name for path in trained.run.iterdir()}
    assert names == {
        *("config.toml", "scene.json", "state.json", "metrics.jsonl", "renders"),
        *("model-150.safetensors", "optimizer-150.safetensors"),
    }
    rows = [json.loads(row) for row in (trained.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150]
    assert "run runs/ball-1" in trained.err
    assert "backend" in trained.err


def test_resolved_config_has_no_auto_left(trained: Trained) -> None:
    text = (trained.run / "config.toml").read_text()
    assert 'method = "hashgrid"' in text
    assert "log2_table_size = 10" in text
    for key in ("method", "background", "loss", "device"):
        assert f'{key} = "auto"' not in text


@pytest.mark.parametrize(("name", "magic"), [("a.mp4", b"ftyp"), ("a.gif", b"GIF89a")])
def test_render_a_video_without_the_photos(
    copy: Path, inside: Inside, name: str, magic: bytes
) -> None:
    done = inside("render", copy, "--out", name, "--frames", 3, "--json", "--path", "orbit")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["n_frames"], result["files"], result["stopped"]) == (3, [name], None)
    assert magic in Path(name).read_bytes()[:16]


def test_render_takes_the_newest_run_and_its_own_folder(copy: Path, inside: Inside) -> None:
    words = ("render", "--path", "spiral", "--frames", 2, "--scale", 0.5)
    for name in ("spiral.mp4", "spiral-2.mp4", "spiral-3.mp4"):  # nothing is replaced unasked
        done = inside(*words)
        assert done.code == 0, done.err
        assert f"runs/moved/renders/{name}" in done.out
        assert (copy / "renders" / name).stat().st_size > 0
    assert "run runs/moved" in done.err
    assert "2 frames of 8x8, less than a second" in done.err
    assert "2 frames" in done.out
    assert "renders/spiral.mp4" in inside(*words, "--overwrite").out
    assert len(os.listdir(copy / "renders")) == 3


def test_render_one_frame(copy: Path, inside: Inside) -> None:
    words = ("render", copy, "--frames", 3, "--save", "rgb,depth")
    assert inside(*words, "--out", "all").code == 0
    done = inside(*words, "--frame", 2, "--target", "subject")
    assert done.code == 0, done.err
    assert "1 frame" in done.out
    assert {path.name for path in (copy / "renders").iterdir()} == {
        *("orbit_0002.png", "orbit_0002_depth.png", "orbit_0002_depth.npy"),
        "orbit_0002_depth.json",
    }
    assert inside(*words, "--frame", 2, "--out", "x.png", "--scale", 0.9).code == 0
    assert np.asarray(Image.open("x.png")).shape == (14, 14, 3)
    assert "x.png exists" in inside(*words, "--out", "x.png").err
    assert inside(*words, "--out", "x.png", "--overwrite").code == 0  # the first frame
    first = np.asarray(Image.open("all/rgb_0000.png"))
    np.testing.assert_array_equal(np.asarray(Image.open("x.png")), first)
    assert sorted(os.listdir()) == [
        *("all", "runs", "x.png", "x_depth.json", "x_depth.npy", "x_depth.png")
    ]


def test_render_layers_to_a_folder(copy: Path, inside: Inside) -> None:
    words = ("render", copy, "--path", "test", "--save", "rgb,depth,opacity", "--out", "views")
    done = inside(*words, "--quiet")
    assert (done.code, done.err) == (0, "")
    names = sorted(os.listdir("views"))
    assert [n for n in names if n.endswith(".png")] == [
        f"{layer}_{i:04d}.png" for layer in ("depth", "opacity", "rgb") for i in (0, 1)
    ]
    assert np.asarray(Image.open("views/rgb_0000.png")).shape == (16, 16, 3)
    assert "2 of them finished before" in inside(*words).out
    refused = inside(*words, "--scale", 0.5)
    assert refused.code == 2
    assert "views/rgb_0000.png is a frame of another render" in refused.err
    assert inside(*words, "--overwrite").code == 0


def test_render_interpolates_between_the_views(copy: Path, inside: Inside) -> None:
    done = inside("render", copy, "--path", "interpolate", "--frames", 4, "--out", "p", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["files"]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--path", "orbti"], "--path: unknown path 'orbti'"),
        (["--out", "x.avi"], "unknown suffix '.avi'"),
        (["--save", "rgb,normals"], "normals"),
        (["--frames", "0"], "--frames must be at least 1"),
        (["--scale", "-1"], "--scale must be above 0"),
        (["--fps", "0"], "--fps must be from 1"),
        (["--backend", "cuda"], "unknown backend 'cuda'"),
        (["--device", "tpu"], "--device: 'tpu'"),
        (["--progress", "loud"], "--progress: unknown kind 'loud'"),
        (["--fraems", "3"], "Did you mean --frames?"),
        (["--frame", "-1"], "--frame must be at least 0"),
        (["--frame", "120"], "--frame 120: the path has the frames 0 to 119"),
        (["--frame", "1", "--out", "a.mp4"], "--frame 1 is one picture; --out must end in .png"),
        (["--target", "here"], "--target: 'here' is no point"),
        (["--target", "1,2,nan"], "--target: '1,2,nan' is no point"),
        (["--distance", "0"], "--distance must be above 0"),
        (["--height", "inf"], "--height must be a finite number"),
        (["--turns", "2", "--path", "spiral"], "--turns is of an orbit"),
        (["--scale", "0.01"], "frames of 1x1 are too small for .mp4"),
        (["--out", "/proc/x/y.mp4"], "cannot write /proc/x/y.mp4"),
    ],
)
def test_render_bad_usage(copy: Path, inside: Inside, words: list[str], message: str) -> None:
    done = inside("render", copy, *words)
    assert_refused(done, message)
    assert os.listdir(copy / "renders") == []
    assert os.listdir() == ["runs"]


def test_eval_scores_the_held_out_views(copy: Path, inside: Inside) -> None:
    done = inside("eval", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert isinstance(result["psnr"], float)
    assert isinstance(result["ssim"], float)
    assert len(result["views"]) == 2
    means = np.mean([[view["psnr"], view["ssim"]] for view in result["views"]], axis=0)
    # both sides are rounded to 4 digits
    assert means == pytest.approx([result["psnr"], result["ssim"]], abs=2e-4)
    assert result["protocol"]["background"] == "white"
    saved = json.loads((copy / "eval.json").read_text())
    assert saved["psnr"] == result["psnr"]
    assert saved["step"] == 150  # a run that goes on keeps the scores of before
    assert len(list((copy / "renders" / "test").glob("*.png"))) == 2


def test_eval_for_people_with_a_target(copy: Path, inside: Inside) -> None:
    met = inside("eval", copy, "--no-images", "--target-psnr", 1)
    assert met.code == 0, met.err
    assert "target 1 dB reached" in met.out
    assert re.search(r"^mean +\d+\.\d\d +-?\d\.\d{4}$", met.out, re.MULTILINE)
    assert os.listdir(copy / "renders") == []
    missed = inside("eval", copy, "--no-images", "--target-psnr", 90, "--json")
    assert missed.code == 3
    assert json.loads(missed.out)["target_met"] is False


def test_eval_finds_photos_that_moved(copy: Path, inside: Inside, ball: Path) -> None:
    scene_json = json.loads((copy / "scene.json").read_text())
    scene_json["data_source"] = {"given": "gone", "resolved": "/gone"}
    (copy / "scene.json").write_text(json.dumps(scene_json))
    assert_refused(inside("eval", copy), "were at /gone", "--scene FOLDER")
    done = inside("eval", copy, "--scene", ball, "--no-images")
    assert done.code == 0, done.err


def test_eval_of_another_scene(copy: Path, inside: Inside, tmp_path: Path, ball: Path) -> None:
    other = Path(shutil.copytree(ball, tmp_path / "other"))
    table = json.loads((other / "transforms_test.json").read_text())
    table["frames"] = table["frames"][:1]
    (other / "transforms_test.json").write_text(json.dumps(table))
    assert_refused(inside("eval", copy, "--scene", other), "lacks 1 of 10 images")


def test_info_of_a_run_and_of_the_machine(copy: Path, inside: Inside) -> None:
    run = json.loads(inside("info", copy, "--json").out)
    assert (run["step"], run["method"], run["scene"]) == (150, "hashgrid", "ball")
    assert (run["views"], run["sizes"]) == ({"train": 8, "val": 0, "test": 2}, [[16, 16]])
    assert run["test_psnr"] is None
    score = {"psnr": 21.5, "step": 100, "protocol": {"split": "test"}}
    (copy / "eval.json").write_text(json.dumps(score))
    text = inside("info", copy).out
    assert "step 150" in text and "views: 8 to train on, 2 held out, 16 x 16" in text
    assert "held-out PSNR 21.50 dB at step 100" in text
    machine = json.loads(inside("info", "--json").out)
    names = {row["name"]: row for row in machine["backends"]}
    assert names["torch"]["available"] is True
    assert all(row["available"] or row["reason"] for row in machine["backends"])
    assert "backend torch on cpu: available" in inside("info").out


def test_finished_run_resumes_to_nothing(
    copy: Path, trained: Trained, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quick, without the photos, and not a byte is written: a script may repeat its command."""
    monkeypatch.setattr(train, "train", lambda *a, **k: pytest.fail("it trains"))
    record = copy / "scene.json"
    record.write_text(record.read_text().replace(str(trained.result["scene"]), "gone"))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    for words in ([], ["--steps", 150], ["--steps", 20], ["--minutes", 1e-6]):
        done = inside("train", "--resume", copy, *words, "--json")
        assert done.code == 0, done.err
        result = json.loads(done.out)
        assert result.keys() == trained.result.keys()
        assert (result["steps"], result["stopped"]) == (150, None)
        assert (result["psnr"], result["steps_per_second"]) == (trained.result["psnr"], None)
    assert "nothing to do" in inside("train", "--resume", copy).out
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def config_length(run: Path) -> tuple[int | None, float | None]:
    settings = tomllib.loads((run / "config.toml").read_text())["train"]
    return settings.get("steps"), settings.get("minutes")


def test_finished_run_goes_on_to_more_steps_then_to_more_minutes(
    copy: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = inside("train", "--resume", copy, "--steps", 250, "--json")
    assert longer.code == 0, longer.err
    assert "from step 150 to step 250" in longer.err
    spent = json.loads(longer.out)["seconds"]
    assert json.loads(longer.out)["steps"] == 250
    assert config_length(copy) == (250, None)
    rows = [json.loads(row) for row in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150, 200, 250]
    rates = [row["lr"] for row in rows]
    assert rates[3] > 2 * rates[2] > 2 * rates[4]  # 0.6 and 0.8 of the run, then its end

    ticks = count()  # a clock that no other process can make late
    monkeypatch.setattr(
        "nerfcli.engine.schedule.Clock.elapsed", lambda self: self.before + 0.02 * next(ticks)
    )
    minutes = (spent + 2.0) / 60
    clocked = inside("train", "--resume", copy, "--minutes", minutes, "--json")
    assert clocked.code == 0, clocked.err
    result = json.loads(clocked.out)
    assert result["steps"] > 250
    assert result["seconds"] == pytest.approx(spent + 2.0, abs=0.2)
    assert config_length(copy) == (None, minutes)
    again = inside("train", "--resume", copy, "--minutes", minutes)
    assert "nothing to do" in again.out
    back = inside("train", "--resume", copy, "--steps", result["steps"] + 3, "--json")
    assert json.loads(back.out)["steps"] == result["steps"] + 3
    assert config_length(copy) == (result["steps"] + 3, None)


def test_a_run_is_lengthened_as_exactly_as_it_is_resumed(
    inside: Inside, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped on the way to its new length and gone on with, or not stopped: the same bytes."""
    words = ("--steps", 40, "--backend", "torch", *SMALL)
    for name in "ab":
        assert inside("train", ball, "--out", name, *words).code == 0
    assert inside("train", "--resume", "a", "--steps", 80).code == 0
    step = hashgrid_trainer.HashGridTrainer.step

    def interrupted(self: hashgrid_trainer.HashGridTrainer, lr: float) -> StepResult:
        if self.step_count == 60:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, lr)

    with monkeypatch.context() as patched:
        patched.setattr(hashgrid_trainer.HashGridTrainer, "step", interrupted)
        assert inside("train", "--resume", "b", "--steps", 80).code == 75
    assert inside("train", "--resume", "b").code == 0
    for part in ("model", "optimizer"):
        ours, theirs = (load_file(Path(run) / f"{part}-80.safetensors") for run in "ab")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_is_trained_by_one_process_at_a_time(copy: Path, inside: Inside, ball: Path) -> None:
    """A second one would take away the files of the first."""
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    with in_training(copy):
        for words in (["--resume", "--steps", 160], ["--overwrite", "--steps", 3]):
            refused = inside("train", ball, "--out", copy, *words)
            assert_refused(refused, "is being trained by another process")
        assert inside("train", "--resume", copy).code == 0  # nothing to do, as before
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    assert inside("train", "--resume", copy, "--steps", 160).code == 0


def test_held_out_views_of_a_finished_run_are_judged_again(copy: Path, inside: Inside) -> None:
    missed = inside("train", "--resume", copy, "--target-psnr", 80, "--json")
    assert missed.code == 3, missed.err
    assert json.loads(missed.out)["target_met"] is False


def test_existing_run_is_not_trained_over(copy: Path, inside: Inside, ball: Path) -> None:
    before = (copy / "state.json").read_bytes()
    assert_refused(inside("train", ball, "--out", copy), "--resume", "--overwrite")
    assert (copy / "state.json").read_bytes() == before


def test_resumed_run_keeps_its_settings(copy: Path, inside: Inside, ball: Path) -> None:
    same = inside("train", ball, "--out", copy, "--resume", "--steps", 150, *SMALL)
    assert same.code == 0, same.err
    words = ("--steps", 300, "--seed", 3)  # another length does not open the door to others
    other = inside("train", ball, "--out", copy, "--resume", *words)
    assert_refused(other, "train.seed = 0", "3")
    assert config_length(copy) == (150, None)


def test_resume_without_a_run_begins_one(inside: Inside, ball: Path) -> None:
    """One command in a loop of restarts: it begins, goes on, and ends."""
    words = ("train", ball, "--out", "r", "--resume", "--steps", 3, "--json", *SMALL)
    first, second = inside(*words), inside(*words)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "going on" not in first.err and "there is no run r yet; it begins" in first.err
    Path("r/state.json").unlink()  # killed before its first checkpoint
    third = inside(*words)
    assert "run r has no checkpoint; it begins again from step 0" in third.err
    named = inside("train", ball, "--resume", "--steps", 2, *SMALL)
    assert "no run under runs/ has a checkpoint of" in named.err
    assert json.loads(second.out)["steps_per_second"] is None
    assert_refused(inside("train", "--resume", "--out", "none"), "none holds no checkpoint")


def test_train_target(inside: Inside, ball: Path) -> None:
    words = ("train", ball, "--out", "r", "--steps", 2, "--quiet", *SMALL)
    missed = inside(*words, "--target-psnr", 80, "--json")
    assert missed.code == 3, missed.err
    assert missed.err == ""
    assert json.loads(missed.out)["target_met"] is False
    met = inside(*(word for word in words if word != "--quiet"), "--target-psnr", 1, "--overwrite")
    assert met.code == 0, met.err
    assert "target 1 dB reached" in met.out
    assert "training ends early where 2 held-out views reach it" in met.err
    assert "2 test views of 16x16, less than a second" in met.err


def test_classic_preset_trains_renders_and_evals(inside: Inside, ball: Path) -> None:
    words = ("--preset", "classic-small", "--set", "classic.n_rays=32", "--set", "classic.width=16")
    done = inside("train", ball, "--out", "c", "--steps", 2, *words)
    assert done.code == 0, done.err
    assert 'method = "classic"' in Path("c/config.toml").read_text()
    assert inside("render", "c", "--path", "test", "--out", "x").code == 0
    assert inside("eval", "c", "--no-images").code == 0


def stopped_run(folder: Path, ball: Path, number: int) -> subprocess.CompletedProcess[str]:
    """Train in a subprocess that gets a signal in its 61st step."""
    code = (
        "import os; from nerfcli.__main__ import main\n"
        "from nerfcli.methods.hashgrid_trainer import HashGridTrainer\n"
        "step = HashGridTrainer.step\n"
        "def stopped(self, lr):\n"
        f"    if self.step_count == 60: os.kill(os.getpid(), {int(number)})\n"
        "    return step(self, lr)\n"
        "HashGridTrainer.step = stopped\n"
        "main()\n"
    )
    words = ["train", str(ball), "--out", "r", "--steps", "300", "--backend", "torch"]
    return subprocess.run(
        [sys.executable, "-c", code, *words, "--json", *SMALL],
        cwd=folder,
        env=nerf_environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


def test_sigterm_saves_and_the_rest_is_bit_exact(
    tmp_path: Path, inside: Inside, ball: Path
) -> None:
    steps = 300
    stopped = stopped_run(tmp_path, ball, signal.SIGTERM)
    assert stopped.returncode == 75, stopped.stderr
    result = json.loads(stopped.stdout)
    assert result["steps"] == 61
    assert result["stopped"] == signal.SIGTERM
    state = json.loads((tmp_path / "r" / "state.json").read_text())
    assert state["step"] == result["steps"]

    resumed = inside("train", "--resume", "r", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["steps"] == steps
    straight = inside("train", ball, "--out", "s", "--steps", steps, "--backend", "torch", *SMALL)
    assert straight.code == 0, straight.err
    for part in ("model", "optimizer"):
        ours = load_file(tmp_path / "r" / f"{part}-{steps}.safetensors")
        theirs = load_file(tmp_path / "s" / f"{part}-{steps}.safetensors")
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].numpy().tobytes() == theirs[name].numpy().tobytes(), name
    rows = [json.loads(row) for row in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(50, steps + 1, 50))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_resumed_run_prints_and_saves_the_same(
    inside: Inside, ball: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Numbers, rows and files; only the seconds that it took are its own."""
    if backend == "cpu" and why_unavailable("cpu", "cpu"):
        pytest.skip("the compiled kernels are not here")
    monkeypatch.setattr("nerfcli.engine.loop.METRICS_EVERY", 6)
    words = ("train", ball, "--steps", 20, "--backend", backend, "--json", *SMALL)
    straight = inside(*words, "--out", "s")
    step = hashgrid_trainer.HashGridTrainer.step
    for stop in (3, 10):  # before the first row, and behind it
        with monkeypatch.context() as patched:
            patched.setattr(hashgrid_trainer.HashGridTrainer, "step", stopping_at(stop, step))
            stopped = inside(*words, "--out", "r", "--resume")
        assert (stopped.code, json.loads(stopped.out)["held_out"]) == (75, None), stopped.err
    resumed = inside(*words, "--out", "r", "--resume")
    assert (resumed.code, straight.code) == (0, 0), resumed.err + straight.err
    ours, theirs = json.loads(resumed.out), json.loads(straight.out)
    for key in ("steps", "psnr", "held_out", "n_held_out", "method"):
        assert ours[key] == theirs[key], key
    files = {path.name for path in Path("s").iterdir()}
    before = {"previous.json", "model-10.safetensors", "optimizer-10.safetensors"}
    assert {path.name for path in Path("r").iterdir()} == files | before
    for name in files - {"renders", "state.json", "metrics.jsonl"}:
        assert Path("r", name).read_bytes() == Path("s", name).read_bytes(), name
    for name in ("state.json", "metrics.jsonl"):
        ours, theirs = (without_seconds(Path(run, name).read_text()) for run in "rs")
        assert ours == theirs


def stopping_at(stop: int, step: Callable[..., StepResult]) -> Callable[..., StepResult]:
    """The step of a trainer, which gets a SIGTERM as the last one before `stop`."""

    def stopping(self: hashgrid_trainer.HashGridTrainer, lr: float) -> StepResult:
        if self.step_count == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, lr)

    return stopping


def without_seconds(text: str) -> str:
    return re.sub(r'"seconds": [\d.e-]+', "", text)


def test_a_killed_run_is_rendered_and_gone_on_with(
    inside: Inside, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint comes after seconds of a run whose end would be the only one."""

    class Killed(BaseException):
        pass

    def killed(self: hashgrid_trainer.HashGridTrainer, lr: float) -> StepResult:
        if self.step_count == 20:
            raise Killed
        return step(self, lr)

    step, ticks = hashgrid_trainer.HashGridTrainer.step, count()
    with monkeypatch.context() as patched:
        patched.setattr(
            "nerfcli.engine.schedule.Clock.elapsed", lambda self: self.before + 0.4 * next(ticks)
        )
        patched.setattr(hashgrid_trainer.HashGridTrainer, "step", killed)
        with pytest.raises(Killed):
            main(["train", str(ball), "--out", "r", "--steps", "30", *SMALL])
    saved = json.loads(inside("info", "r", "--json").out)
    assert 0 < saved["step"] < 20 and saved["finished"] is False
    assert inside("render", "r", "--path", "test", "--out", "x").code == 0
    again = inside("train", "--resume", "r", "--json")
    assert json.loads(again.out)["steps"] == 30


def test_held_out_quality_is_estimated(inside: Inside, ball: Path) -> None:
    words = ("train", ball, "--steps", 60, *SMALL)
    done = inside(*words, "--out", "r")
    value = inside("train", "--resume", "r", "--json")
    found = json.loads(value.out)["held_out"]
    assert (found["n_views"], found["n_held_out"]) == (2, 2)
    line = f"about {found['psnr']:.1f} dB on 2 held-out views, up to 256 pixels of each"
    assert f"{line}; nerf eval measures all of them" in done.out
    exact = json.loads(inside("eval", "r", "--json", "--no-images").out)["psnr"]
    assert found["psnr"] == pytest.approx(exact, abs=1.0)
    none = inside("train", ball / "transforms_train.json", "--holdout", 0, "--steps", 2, *SMALL)
    assert "no view is held out" in none.out


def test_ctrl_c_saves_too(tmp_path: Path, ball: Path) -> None:
    stopped = stopped_run(tmp_path, ball, signal.SIGINT)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert json.loads(stopped.stdout)["stopped"] == signal.SIGINT
    assert (tmp_path / "r" / "state.json").is_file()


def assert_refused(done: Outcome, *words: str) -> None:
    """Exit code 2 and one clear message: no traceback, nothing on stdout."""
    assert done.code == 2, done.err
    assert done.out == ""
    messages = [line for line in done.err.splitlines() if line.startswith("nerf: ")]
    assert len(messages) == 1, done.err
    assert done.err.endswith(messages[0] + "\n")
    for word in words:
        assert word in messages[0]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ([], ["SCENE is missing"]),
        (["BALL", "--steps", "3", "--minutes", "1"], ["--steps and --minutes exclude each other"]),
        (["BALL", "--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["BALL", "--stpes", "3"], ["No such option: --stpes", "Did you mean --steps?"]),
        (["BALL", "--steps", "three"], ["--steps"]),
        (["BALL", "--steps", "-3"], ["--steps must be above 0, got -3"]),
        (["BALL", "--minutes", "0"], ["--minutes must be above 0, got 0"]),
        (["BALL", "--minutes", "nan"], ["--minutes must be above 0, got nan"]),
        (["BALL", "--set", "train.stepz=3"], ["unknown key 'train.stepz'", "train.steps"]),
        (["BALL", "--preset", "quik"], ["unknown preset 'quik'; did you mean quick?"]),
        (["BALL", "--config", "none.toml"], ["cannot read config none.toml"]),
        (["BALL", "--method", "nurf"], ["must be one of hashgrid, unbounded, classic", "nurf"]),
        (["BALL", "--backend", "cuda"], ["unknown backend 'cuda'"]),
        (["BALL", "--device", "tpu"], ["device", "'tpu'"]),
        (["BALL", "--out", "/proc/x"], ["cannot write /proc/x"]),
        (["BALL", "--out", "BALL"], ["not empty and not a run"]),
        (["BALL", "--out", "BALL/transforms_train.json"], ["is a file"]),
        (
            ["BALL/transforms_train.json", "--holdout", "0", "--target-psnr", "3"],
            ["has no held-out views"],
        ),
        (["none"], ["none"]),
        (["none", "--out", "/proc/x"], ["cannot write /proc/x"]),  # before anything is read
        (["."], ["Looked for", "transforms_train.json", "transforms.json"]),
    ],
)
def test_train_bad_usage(inside: Inside, ball: Path, words: list[str], messages: list[str]) -> None:
    before = sorted(ball.rglob("*"))
    done = inside("train", *[word.replace("BALL", str(ball)) for word in words])
    assert_refused(done, *messages)
    assert os.listdir() == []  # nothing half-written
    assert sorted(ball.rglob("*")) == before


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A fault in the training table of a scene."""

    def apply(scene: Path) -> None:
        file = scene / "transforms_train.json"
        table = json.loads(file.read_text())
        change(table)
        file.write_text(json.dumps(table))

    return apply


def pose(table: dict[str, Any]) -> list[list[float]]:
    return table["frames"][3]["transform_matrix"]


def cut_json(scene: Path) -> None:
    file = scene / "transforms_train.json"
    file.write_text("\n".join(file.read_text().splitlines()[:9]))


def cut_image(scene: Path) -> None:
    file = scene / "train" / "r_3.png"
    file.write_bytes(file.read_bytes()[:-40])


def spoil_image(scene: Path) -> None:
    (scene / "train" / "r_3.png").write_bytes(b"not a picture")


BAD_SCENES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "broken JSON": (cut_json, ["transforms_train.json", "line"]),
    "zero frames": (edit(lambda t: t["frames"].clear()), ["transforms_train.json", "frames"]),
    "no frames": (edit(lambda t: t.pop("frames")), ["transforms_train.json", "frames"]),
    "nan pose": (edit(lambda t: pose(t)[0].__setitem__(1, float("nan"))), ["train/r_3"]),
    "skewed pose": (edit(lambda t: pose(t)[0].__setitem__(1, 7.0)), ["train/r_3"]),
    "flat pose": (edit(lambda t: t["frames"][3].update(transform_matrix=[1.0])), ["train/r_3"]),
    "no pose": (edit(lambda t: t["frames"][3].pop("transform_matrix")), ["train/r_3"]),
    "zero angle": (edit(lambda t: t.update(camera_angle_x=0.0)), ["field of view", "absurd"]),
    "wide angle": (edit(lambda t: t.update(camera_angle_x=3.5)), ["field of view", "absurd"]),
    "word angle": (edit(lambda t: t.update(camera_angle_x="wide")), ["camera_angle_x"]),
    "truncated image": (cut_image, ["r_3.png"]),
    "corrupt image": (spoil_image, ["r_3.png"]),
}


@pytest.mark.parametrize("name", list(BAD_SCENES))
def test_train_bad_scene(inside: Inside, ball: Path, tmp_path: Path, name: str) -> None:
    spoil, messages = BAD_SCENES[name]
    scene = Path(shutil.copytree(ball, tmp_path / "bad"))
    spoil(scene)
    assert_refused(inside("train", scene, "--steps", 1), *messages)
    assert os.listdir() == ["bad"]


def test_train_bad_held_out_view(copy: Path, inside: Inside, ball: Path, tmp_path: Path) -> None:
    """Before training: eval, or --target-psnr, would fail after it. So does a run that goes on."""
    scene = Path(shutil.copytree(ball, tmp_path / "bad"))
    file = scene / "test" / "r_9.png"
    file.write_bytes(file.read_bytes()[:-40])
    assert_refused(inside("train", scene, "--out", "r"), "r_9.png is corrupt", "held-out view")
    assert not Path("r").exists()
    again = inside("train", scene, "--out", copy, "--resume", "--steps", 999)
    assert_refused(again, "r_9.png is corrupt", "held-out view")
    assert config_length(copy) == (150, None)
    Image.open(ball / "test" / "r_9.png").resize((16, 8)).save(file)
    remarked = inside("train", scene, "--out", "r", "--steps", 2, *SMALL)
    assert remarked.code == 0, remarked.err
    assert "warning: held-out images of another shape" in remarked.err


def cut_model(run: Path) -> None:
    file = run / "model-150.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_version(run: Path) -> None:
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps(state | {"format": 99}))


BAD_RUNS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda run: shutil.rmtree(run), "no such run"),
    "no checkpoint": (lambda run: (run / "state.json").unlink(), "has no checkpoint"),
    "another version": (other_version, "checkpoint format 99, this version reads up to 2"),
    "truncated": (cut_model, "model-150.safetensors is truncated or damaged"),
    "broken scene": (lambda run: (run / "scene.json").write_text("{"), "scene.json, line 1"),
    "broken config": (lambda run: (run / "config.toml").write_text("a"), "config.toml"),
}


@pytest.mark.parametrize("name", list(BAD_RUNS))
def test_bad_runs(copy: Path, inside: Inside, ball: Path, name: str) -> None:
    spoil, message = BAD_RUNS[name]
    spoil(copy)
    for words in (("render",), ("eval", "--scene", ball), ("info",), ("train", "--resume")):
        if name == "gone" and words[0] == "train":
            continue  # a path that is no run is taken for a scene
        assert_refused(inside(words[0], copy, *words[1:]), message)


def test_no_run_at_all(inside: Inside) -> None:
    for words in (("render",), ("eval",), ("train", "--resume")):
        assert_refused(inside(*words), "no run with a checkpoint under runs/", "nerf train SCENE")


def test_errors_in_json_too(inside: Inside) -> None:
    for words in (["train", "none", "--json"], ["eval", "--stuff", "--json"]):
        done = inside(*words)
        assert done.code == 2
        assert f"nerf: {json.loads(done.out)['error']}\n" == done.err


def test_a_bug_of_ours_is_a_traceback(nerf: Nerf, tmp_path: Path) -> None:
    """Exit code 1: a script can tell our fault from its own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import nerfcli.cli.info as info\n"
        "def machine():\n    raise ZeroDivisionError('planted')\n"
        "info.machine = machine\n"
    )
    environment = nerf_environment()
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "nerfcli", "info"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: planted" in done.stderr


def test_command_line_basics(nerf: Nerf) -> None:
    assert re.fullmatch(r"nerf \d+\.\d+\.\d+\n", nerf("--version").stdout)
    for words in (
        ["--help"],
        ["train", "-h"],
        ["render", "--help"],
        ["eval", "-h"],
        ["info", "-h"],
    ):
        assert "Example" in nerf(*words).stdout
    assert "Usage: nerf" in nerf(code=2).stdout
    assert "Did you mean 'train'?" in nerf("trian", code=2).stderr


def test_shell_completion(tmp_path: Path) -> None:
    """What bash asks for when someone types `nerf train --see<TAB>`."""
    words = {"COMP_WORDS": "nerf train --see", "COMP_CWORD": "2"}
    code = "import sys; sys.argv[0] = 'nerf'; from nerfcli.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**nerf_environment(), **words, "_NERF_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["--seed"]


def test_a_run_that_diverged_is_an_error_and_never_a_checkpoint(
    inside: Inside, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it ends, or saves, between two looks at the loss."""
    step = hashgrid_trainer.HashGridTrainer.step

    def too_far(self: hashgrid_trainer.HashGridTrainer, lr: float) -> StepResult:
        result = step(self, lr)
        self.optimizer.model()["color.weights"][0] = float("nan")
        return result

    monkeypatch.setattr(hashgrid_trainer.HashGridTrainer, "step", too_far)
    done = inside("train", ball, "--steps", "5", "--out", "d", *SMALL)
    assert_refused(done, "diverged", "lower rate")
    assert not list(Path("d").glob("*.safetensors")) and not Path("d/state.json").exists()


def test_frames_of_several_sizes_are_no_video(copy: Path, inside: Inside) -> None:
    record = copy / "scene.json"
    scene = json.loads(record.read_text())
    held_out = scene["splits"]["test"]
    frame = scene["frames"][held_out[0]]
    frame["size"] = [n // 2 for n in frame["size"]]
    record.write_text(json.dumps(scene))
    for name in ("a.mp4", "a.gif"):
        words = ("render", copy, "--path", "test", "--out", name)
        assert_refused(inside(*words), "several sizes", "folder")
        assert not Path(name).exists()
    inside("render", copy, "--path", "test", "--out", "frames")
    assert len(list(Path("frames").glob("rgb_*.png"))) == len(held_out)


def test_the_default_length_says_what_more_time_gives(
    inside: Inside, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "DEFAULT_MINUTES", 0.01)
    done = inside("train", ball, "--out", "r", *SMALL)
    assert done.code == 0, done.err
    assert "nerf train --resume r --minutes 10" in done.out
    asked = inside("train", ball, "--out", "q", "--steps", 2, *SMALL)
    assert "more time" not in asked.out


def test_a_wrong_number_of_threads_is_told_before_there_is_a_run(
    inside: Inside, ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NERF_THREADS", "two")
    assert_refused(inside("train", ball, "--steps", 2), "NERF_THREADS", "'two'")
    assert os.listdir() == []


def test_a_checkpoint_of_another_shape_is_told(copy: Path, inside: Inside) -> None:
    config = copy / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("n_levels = 4", "n_levels = 2"))
    for command in (["render"], ["train", "--steps", 151, "--resume"]):
        assert_refused(inside(*command, copy), "does not fit its config.toml", "grid.table")
    config.write_text(text.replace('method = "hashgrid"', 'method = "classic"'))
    assert_refused(inside("render", copy), "config.toml: hashgrid.", "the method is classic")
    config.write_text('method = "hashgrid"\n')
    assert_refused(inside("render", copy), "config.toml lacks a setting")
    config.write_text('method = "classic"\n')
    assert_refused(inside("render", copy), "does not fit its config.toml", "is missing")


@pytest.mark.slow
def test_memory_of_large_photos(nerf: Nerf) -> None:
    """100 views of 800x800 RGBA are 256 MB; all of the rest must not grow with them."""
    if "NERF_DATA" not in os.environ:
        pytest.skip("NERF_DATA does not name a folder with the scene lego800")
    done = nerf("train", Path(os.environ["NERF_DATA"]) / "lego800", "--steps", 100, "--json")
    assert json.loads(done.stdout)["peak_memory_bytes"] < 2.5e9
