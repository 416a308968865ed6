from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nerfcli.cli.runs import describe, list_runs
from nerfcli.cli.train_request import run_to_resume
from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, json_text, read_json, replacing, write_json
from nerfcli.engine import checkpoints, runs
from nerfcli.engine.runs import Run, ensure_free, newest_run, next_run_path

SCENE = {"name": "ball", "frames": []}


def tensors(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    model = {"w": torch.randn(3, 4, generator=generator), "n": torch.tensor(step)}
    return model, {"m.w": torch.randn(3, 4, generator=generator)}


def save(run: Run, step: int) -> None:
    run.save_checkpoint(*tensors(step), {"step": step, "rng": [1, 2]})


def assert_holds(path: Path, step: int) -> None:
    """All three parts are those of `step`."""
    model, optimizer, state = Run.open(path).load_checkpoint()
    want_model, want_optimizer = tensors(step)
    assert state == {"step": step, "rng": [1, 2]}
    assert model.keys() == want_model.keys()
    assert all(torch.equal(model[k], want_model[k]) for k in model)
    assert torch.equal(optimizer["m.w"], want_optimizer["m.w"])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "ball-1", Config(), SCENE)


def test_create_writes_config_and_scene_before_step_0(run: Run) -> None:
    assert (run.path / "config.toml").is_file()
    assert read_json(run.path / "scene.json") == SCENE
    assert not run.has_checkpoint
    with pytest.raises(NerfError, match="has no checkpoint"):
        Run.open(run.path)


def test_checkpoint_comes_back(run: Run) -> None:
    save(run, 10)
    assert_holds(run.path, 10)
    opened = Run.open(run.path)
    assert (opened.config, opened.scene_json) == (Config(), SCENE)
    model, state = opened.load_model()
    assert (int(model["n"]), state["step"]) == (10, 10)


def test_odd_tensors_come_back_bit_for_bit(run: Run) -> None:
    """NaN, -0, subnormals, slices of a larger buffer, transposes, empty and scalar tensors."""
    buffer = torch.arange(100.0)
    model = {
        "special": torch.tensor([float("nan"), -0.0, 1e-42, float("inf")]),
        "slice": buffer[3:7],
        "neighbour": buffer[7:9],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
        "half": torch.ones(3, dtype=torch.float16),
    }
    run.save_checkpoint(model, {}, {"step": 1})
    back, _, _ = Run.open(run.path).load_checkpoint()
    for name, tensor in model.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    assert (run.path / "model-1.safetensors").stat().st_size < 2000  # not the whole buffer


def test_only_the_last_two_checkpoints_are_kept(run: Run) -> None:
    for name in (".model-3.77.safetensors", ".tmpXq3b9Z", ".state.77.json", ".metrics.77.jsonl"):
        (run.path / name).write_bytes(b"left by a killed process")
    for step in (5, 10, 10, 10, 15):
        save(run, step)
        assert_holds(run.path, step)
    names = sorted(path.name for path in run.path.rglob("*.safetensors"))
    assert names == [f"{part}-{tag}.safetensors" for part in runs.PARTS for tag in ("10c", "15")]
    assert not list(run.path.glob(".*"))


class Crash(BaseException):
    """The process is gone: no handler of ours may see it."""


@pytest.mark.parametrize("step", [20, 10])  # 10: the same step saved again
def test_a_crash_at_any_moment_leaves_one_whole_step(
    run: Run, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Kill after each file-system call of a save in turn; the folder opens every time."""
    seen: list[str] = []
    limit = 0

    def counted(name: str, call):  # noqa: ANN001, ANN202
        def wrapped(*args: object, **kwargs: object) -> object:
            if len(seen) >= limit:
                raise Crash
            seen.append(name)
            return call(*args, **kwargs)

        return wrapped

    outcomes = []
    while True:
        shutil.rmtree(run.path)
        fresh = Run.create(run.path, Config(), SCENE)
        save(fresh, 10)
        seen.clear()
        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
                patch.setattr(module, name, counted(name, getattr(module, name)))
            try:
                model, optimizer = tensors(step)
                model["n"] = torch.tensor(-step)
                fresh.save_checkpoint(model, optimizer, {"step": step, "rng": []})
                crashed = False
            except Crash:
                crashed = True
        model, optimizer, state = Run.open(run.path).load_checkpoint()
        is_new = int(model["n"]) < 0
        assert state["rng"] == ([] if is_new else [1, 2])
        assert torch.equal(optimizer["m.w"], tensors(step if is_new else 10)[1]["m.w"])
        outcomes.append(is_new)
        if not crashed:
            break
        limit += 1
    assert outcomes == sorted(outcomes)  # old, old, ..., new, new
    assert outcomes.count(False) >= 3
    assert outcomes.count(True) >= 2


def test_disk_that_changes_bytes_is_caught(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 5)

    def corrupt(descriptor: int) -> None:
        os.pwrite(descriptor, b"\xff", os.fstat(descriptor).st_size - 1)

    monkeypatch.setattr(checkpoints.os, "fsync", corrupt)
    with pytest.raises(NerfError, match="came back changed"):
        save(run, 6)
    monkeypatch.undo()
    assert_holds(run.path, 5)


def test_a_folder_moves(run: Run, tmp_path: Path) -> None:
    save(run, 7)
    assert str(tmp_path) not in "".join(p.read_text() for p in run.path.glob("*.json"))
    moved = tmp_path / "elsewhere" / "x"
    shutil.copytree(run.path, moved)
    shutil.rmtree(run.path)
    assert_holds(moved, 7)


def test_rendering_needs_no_optimizer(run: Run) -> None:
    save(run, 7)
    (run.path / "optimizer-7.safetensors").unlink()
    opened = Run.open(run.path)
    assert int(opened.load_model()[0]["n"]) == 7
    with pytest.raises(NerfError, match="optimizer-7.safetensors is missing"):
        opened.load_checkpoint()


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_tensors(run: Run, kept: int) -> None:
    save(run, 7)
    file = run.path / "model-7.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(NerfError, match="model-7.safetensors is truncated or damaged"):
        Run.open(run.path).load_model()


def test_files_of_two_checkpoints(run: Run, tmp_path: Path) -> None:
    save(run, 7)
    other = Run.create(tmp_path / "other", Config(), SCENE)
    save(other, 8)
    shutil.copy(other.path / "model-8.safetensors", run.path / "model-7.safetensors")
    with pytest.raises(NerfError, match="of step 8, state.json of step 7"):
        Run.open(run.path).load_model()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"format": 99}, "checkpoint format 99, this version reads up to 2"),
        (lambda s: {k: v for k, v in s.items() if k != "format"}, "checkpoint format None"),
        (lambda s: {k: v for k, v in s.items() if k != "files"}, "`step` or `files`"),
        (lambda s: s | {"step": "seven"}, "`step` or `files`"),
        (lambda s: s | {"files": {"model": "../x", "optimizer": "y"}}, "`step` or `files`"),
        (lambda s: [s], "expected a JSON object"),
    ],
)
def test_state_of_another_kind(run: Run, change, message: str) -> None:  # noqa: ANN001
    save(run, 7)
    file = run.path / "state.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(NerfError, match="state.json") as error:
        Run.open(run.path)
    assert message in str(error.value)


def test_truncated_state_names_the_line(run: Run) -> None:
    save(run, 7)
    file = run.path / "state.json"
    file.write_text(file.read_text()[:30])
    with pytest.raises(NerfError, match=r"state.json, line \d+, column \d+: broken JSON"):
        Run.open(run.path)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="no such run"):
        Run.open(tmp_path / "none")
    with pytest.raises(NerfError, match="is not a run folder"):
        Run.open(tmp_path)


def test_a_checkpoint_that_is_replaced_while_it_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run can be rendered while it trains: the file that state.json named may be gone by then."""
    save(run, 7)
    opened, read = Run.open(run.path), runs.read_tensors

    def late(*args: object) -> dict[str, Tensor]:
        monkeypatch.setattr(runs, "read_tensors", read)
        save(run, 8)
        save(run, 9)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "read_tensors", late)
    model, state = opened.load_model()
    assert (int(model["n"]), state["step"], opened.step) == (9, 9, 9)


def test_the_header_of_a_checkpoint_is_always_the_same(run: Run) -> None:
    save(run, 7)
    head = (run.path / "model-7.safetensors").read_bytes()[8:40]
    assert head == b'{"__metadata__":{"step":"7"},"n"'  # of several keys the order is chance


def test_metrics_are_cut_to_the_checkpoint_by_the_next_writer(run: Run) -> None:
    for step in (1, 2):
        run.append_metrics({"step": step, "psnr": float("inf")})
    save(run, 2)
    run.append_metrics({"step": 3})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ps')
    before = (run.path / "metrics.jsonl").read_text()
    resumed = Run.open(run.path)
    resumed.load_checkpoint()
    assert (run.path / "metrics.jsonl").read_text() == before  # reading changes nothing
    resumed.append_metrics({"step": 3, "again": True})
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "psnr": None},
        {"step": 2, "psnr": None},
        {"step": 3, "again": True},
    ]


def test_existing_run_is_kept_unless_overwritten(run: Run) -> None:
    save(run, 7)
    run.append_metrics({"step": 7})
    (run.path / "renders" / "orbit.mp4").write_bytes(b"old")
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(NerfError, match="--resume.*--overwrite"):
        Run.create(run.path, Config(), SCENE)
    assert_holds(run.path, 7)
    again = Run.create(run.path, Config(), SCENE, overwrite=True)
    assert not again.has_checkpoint
    left = sorted(p.name for p in run.path.rglob("*"))
    assert left == ["config.toml", "notes.txt", "renders", "scene.json"]


def test_overwrite_spares_what_is_not_a_run(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    photo.write_bytes(b"x")
    with pytest.raises(NerfError, match="not a run"):
        Run.create(photo.parent, Config(), SCENE, overwrite=True)
    with pytest.raises(NerfError, match="is a file"):
        Run.create(photo, Config(), SCENE, overwrite=True)
    assert photo.read_bytes() == b"x"
    assert os.listdir(photo.parent) == ["a.png"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_another_config_toml_is_not_a_run(tmp_path: Path, resume: bool) -> None:
    site = tmp_path / "site"  # of a web page
    (site / "renders").mkdir(parents=True)
    (site / "config.toml").write_text('title = "mine"\n')
    (site / "renders" / "a.png").write_bytes(b"x")
    if resume:
        with pytest.raises(NerfError, match="site holds no checkpoint"):
            run_to_resume(None, site)
        assert run_to_resume(tmp_path / "scene", site) is None  # so it begins, which is refused
    with pytest.raises(NerfError, match="not a run"):
        Run.create(site, Config(), SCENE, overwrite=True)
    with pytest.raises(NerfError, match="it has no scene.json"):
        Run.open(site)
    assert list_runs(tmp_path) == []
    assert sorted(p.name for p in site.rglob("*")) == ["a.png", "config.toml", "renders"]


def test_unwritable_place_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NerfError, match="file is not a folder"):
        ensure_free(tmp_path / "file" / "a" / "run")
    with pytest.raises(NerfError, match="cannot write|no permission"):
        ensure_writable(Path("/proc/nerf-run"))
    ensure_free(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == ["file"]


def test_newest_run_is_the_last_written(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="nerf train SCENE"):
        newest_run(tmp_path)
    for i, name in enumerate(("b", "a", "c")):
        run = Run.create(tmp_path / name, Config(), SCENE)
        if name != "c":  # c has not reached its first checkpoint
            save(run, 1)
            os.utime(run.path / "state.json", (1000 + i, 1000 + i))
    assert newest_run(tmp_path) == tmp_path / "a"


def test_next_run_path_counts_up(tmp_path: Path) -> None:
    assert next_run_path("lego", tmp_path) == tmp_path / "lego-1"
    for name in ("lego-1", "lego-12", "lego-x", "legoland-40", "lego"):
        (tmp_path / name).mkdir()
    assert next_run_path("lego", tmp_path) == tmp_path / "lego-13"
    assert next_run_path("../a b/c", tmp_path) == tmp_path / "a-b-c-1"
    assert next_run_path("..", tmp_path) == tmp_path / "scene-1"


def test_two_programs_that_start_together_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run.create_next("lego", Config(), SCENE, tmp_path)
    stale = iter([first.path, tmp_path / "lego-2"])  # the first answer was computed too early
    monkeypatch.setattr(runs, "next_run_path", lambda name, root: next(stale))
    assert Run.create_next("lego", Config(), SCENE, tmp_path).path == tmp_path / "lego-2"


def test_using_leaves_the_folder_alone(run: Run) -> None:
    save(run, 1)
    other = Run.open(run.path).using(backend="torch", device="cpu")
    assert (other.config.backend, other.config.device) == ("torch", "cpu")
    assert Run.open(run.path).config == Config()


def test_json_is_standard_and_atomic(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [1.5, float("-inf")], "p": Path("x/y"), 3: (True, None)}
    assert json.loads(json_text(value)) == {
        "a": None,
        "b": [1.5, None],
        "p": "x/y",
        "3": [True, None],
    }
    file = tmp_path / "v.json"
    write_json(file, {"old": 1})
    with pytest.raises(RuntimeError), replacing(file) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert read_json(file) == {"old": 1}
    assert os.listdir(tmp_path) == ["v.json"]


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NerfError, match=r"cannot write .*file/v\.json"):
        write_json(tmp_path / "file" / "v.json", {})
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_whose_checkpoint_is_replaced_meanwhile_is_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)

    def replaced_first(path: Path, step: int) -> None:
        if step == 10:
            save(Run.open(run.path), 20)
        checkpoints.ensure_whole(path, step)

    monkeypatch.setattr(runs, "ensure_whole", replaced_first)
    row = describe(run.path)
    assert (row["broken"], row["step"]) == (None, 20)
