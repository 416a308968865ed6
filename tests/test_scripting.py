"""docs/scripting.md says what the commands print; their examples and completion work."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from conftest import ROOT, SMALL, Call, nerf_environment
from nerfcli.bench.kernels import KernelRow
from nerfcli.bench.parity import ParityRow
from nerfcli.bench.training import TrainingRow
from nerfcli.cli import app, dry_run, main, output
from nerfcli.cli.bench import Report
from nerfcli.cli.options import complete_runs
from nerfcli.core.progress import Progress
from nerfcli.prepare import pipeline

TEXT = (ROOT / "docs" / "scripting.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


class Row:
    """A documented key: its types, and whether it may be absent."""

    def __init__(self, key: str, types: str) -> None:
        self.key, self.is_optional = key.rstrip("?"), key.endswith("?")
        self.types = types.split(" or ")

    def fits(self, value: object) -> bool:
        if isinstance(value, bool):
            return "boolean" in self.types
        return any(isinstance(value, TYPES[name]) for name in self.types)


def tables_under(title: str) -> list[list[Row]]:
    match = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/scripting.md has no section {title}"
    parts = re.split(r"^\| key \| type \| meaning \|$", match[1], flags=re.MULTILINE)[1:]
    return [[Row(*m) for m in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", p, re.M)] for p in parts]


def faults(value: dict[str, Any], rows: Sequence[Row], above: str = "") -> list[str]:
    """What is wrong with an object by the rows of its table."""
    here = {r.key[len(above) :]: r for r in rows if re.fullmatch(r"[^.\[]+", r.key[len(above) :])}
    found = [f"{above}{key} is not documented" for key in value.keys() - here.keys()]
    for key, row in here.items():
        if key not in value:
            found += [] if row.is_optional else [f"{row.key} is missing"]
        elif not row.fits(value[key]):
            found.append(f"{row.key} is {value[key]!r}, not {row.types}")
        elif isinstance(value[key], dict):
            inner = [r for r in rows if r.key.startswith(f"{row.key}.")]
            found += faults(value[key], inner, f"{row.key}.") if inner else []
        elif isinstance(value[key], list):
            inner = [r for r in rows if r.key.startswith(f"{row.key}[].")]
            for item in value[key] if inner else ():
                found += faults(item, inner, f"{row.key}[].")
    return found


@pytest.fixture(scope="module")
def place(ball: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the ball."""
    folder = tmp_path_factory.mktemp("scripting")
    words = ["train", str(ball), "--out", str(folder / "r"), "--steps", "20", "--quiet"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--backend", "torch", "--device", "cpu", *SMALL])
    with pytest.raises(SystemExit, match="0"):
        main(["eval", words[3], "--quiet", "--device", "cpu"])
    return folder


CASES: dict[str, list[list[str]]] = {
    "nerf train": [
        ["train", "BALL", "--out", "new", "--steps", "2", "--target-psnr", "1", *SMALL],
        ["train", "--resume", "PLACE/r", "--steps", "20"],
    ],
    "nerf train --dry-run": [["train", "BALL", "--dry-run", "--minutes", "1", *SMALL]],
    "nerf render": [
        ["render", "PLACE/r", "--frames", "2", "--scale", "0.5", "--out", "f"],
        ["render", "PLACE/r", "--path", "test", "--scale", "0.5", "--out", "t"],
    ],
    "nerf eval": [
        ["eval", "PLACE/r", "--out", "e", "--no-images", "--target-psnr", "90"],
        ["eval", "PLACE/r", "--out", "f", "--no-images", "--ms-ssim", "--psnr-cc"],
    ],
    "nerf export": [
        ["export", "PLACE/r", "--to", "views", "--views", "2", "--out", "views"],
        ["export", "PLACE/r", "--to", "cameras", "--out", "cameras"],
        ["export", "cube.ply", "--to", "points", "--points", "20", "--out", "p.ply"],
        ["export", "cube.ply", "--to", "voxels", "--resolution", "8", "--out", "v.npz"],
    ],
    "nerf compare": [["compare", "cube.ply", "cube.ply", "--samples", "200"]],
    "nerf compare RUN RUN": [["compare", "PLACE/r", "PLACE/r", "--out", "page.html"]],
    "nerf check": [["check", "BALL", "--views", "2", "--picture", "check.png"]],
    "nerf convert": [["convert", "BALL", "--to", "nerfstudio", "--out", "c", "--link"]],
    "nerf split": [["split", "BALL", "--blocks", "2", "--out", "blocks"]],
    "nerf runs": [["runs", "PLACE"]],
    "nerf info": [["info"]],
    "nerf info RUN": [["info", "PLACE/r"]],
}


SURFACES = [  # some ten seconds each
    ["export", "PLACE/r", "--to", "mesh", "--resolution", "8", "--out", "m.ply"],
    ["export", "PLACE/r", "--to", "sdf", "--resolution", "8", "--out", "v.npz"],
    ["export", "PLACE/r", "--to", "mpi", "--planes", "2", "--out", "mpi"],
]


@pytest.mark.parametrize(
    ("title", "cases"),
    [*CASES.items(), pytest.param("nerf export", SURFACES, marks=pytest.mark.slow)],
)
def test_the_keys_that_are_printed_are_documented(
    title: str,
    cases: list[list[str]],
    call: Call,
    ball: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import trimesh

    monkeypatch.setattr(dry_run, "PROBE_SECONDS", 0.0)
    trimesh.creation.box().export("cube.ply")
    for words in cases:
        named = [w.replace("BALL", str(ball)).replace("PLACE", str(place)) for w in words]
        done = call(*named, "--json", *([] if "runs" in title else ["--quiet"]))
        assert done.code in (0, 3), done.err
        assert done.out.count("\n") == 1 and done.err == ""
        assert faults(done.value, tables_under(title)[0]) == []


def test_every_command_with_json_is_documented() -> None:
    asked = {verb for verb, c in COMMANDS.items() if any("--json" in p.opts for p in c.params)}
    assert asked == {title.split()[1] for title in CASES} | {"prepare", "bench", "view"}
    assert set(COMMANDS) - asked == {"help"}


def test_the_record_of_prepare_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.sfm, "count_matches", lambda database: {})
    model: Any = SimpleNamespace(
        images={1: SimpleNamespace(name="a.jpg", has_pose=True)},
        compute_mean_reprojection_error=lambda: 0.5,
        compute_mean_track_length=lambda: 2.0,
        num_points3D=lambda: 7,
        num_reg_images=lambda: 1,
    )
    job: Any = SimpleNamespace(out=tmp_path, work=tmp_path)
    source: Any = SimpleNamespace(frames=[SimpleNamespace(focal=(9.0, 9.0))], applied_scale=1.0)
    workspace: Any = SimpleNamespace(database=None, zoom=1.0)
    names = ["a.jpg", "b.jpg"]
    record = pipeline._make_record(job, names, {"c.jpg": "broken"}, [model], source, workspace)
    record |= {"asked": {}, "seconds": 0.1}
    assert faults(record, tables_under("nerf prepare")[0]) == []


def test_the_report_of_bench_is_documented() -> None:
    report = Report("cpu", 1.0, 1, {"triton": "no GPU"})
    report.parity.append(ParityRow("cpu", True, "mlp", 0.0, 0.1, 3))
    report.kernels.append(KernelRow("cpu", "mlp", 1, 0.1, 0.1, 10.0, None, None))
    report.training.append(TrainingRow("cpu", 1, 2, 3, 4, 5, 0.1, 0.1, 40.0, 1.0, 0.5, None))
    value = json.loads(json.dumps({"machine": {}, "quick": True, **report.as_dict()}))
    assert faults(value, tables_under("nerf bench")[0]) == []


def test_progress_in_json_is_documented(call: Call, place: Path) -> None:
    remark, done = tables_under("Progress")
    seen = call("eval", place / "r", "--out", "e", "--no-images", "--json", "--progress", "json")
    lines = [json.loads(line) for line in seen.err.splitlines()]
    assert {line["event"] for line in lines} == {"note", "progress"}
    for line in lines:
        assert faults(line, remark if line["event"] == "note" else done) == []
    with redirect_stderr(io.StringIO()) as stream, Progress("json", None, "step", "train") as bar:
        bar.update(5, spent=(1.0, 60.0), rays_per_s=10.0, psnr=20.0)
    assert faults(json.loads(stream.getvalue()), done) == []


def test_an_error_is_one_object_and_one_line(call: Call) -> None:
    done = call("info", "none", "--json")
    assert (done.code, list(done.value)) == (2, ["error"])
    assert done.err.count("\n") == 1 and done.value["error"] in done.err


def test_exit_codes_are_documented() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    assert listed == {0, 1, 2, output.NOT_MET, *output.STOP_CODES.values()}


def examples_of(verb: str) -> list[str]:
    text = COMMANDS[verb].help.partition("Example")[2]
    parts = [part.strip() for line in text.splitlines() for part in line.split("&&")]
    return [part for part in parts if part.startswith("nerf ")]


@pytest.mark.parametrize("verb", list(COMMANDS))
def test_examples_in_the_help_parse(verb: str) -> None:
    examples = examples_of(verb)
    assert examples
    for example in examples:
        _, name, *words = shlex.split(example)
        context = COMMANDS[name].make_context(f"nerf {name}", words)  # raises on a wrong flag
        assert context.params


def test_completion_offers_runs(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete_runs("") == []
    (tmp_path / "runs" / "no-run").mkdir(parents=True)
    (tmp_path / "runs" / "chair-1").symlink_to(place / "r")
    for word in ("", "runs/ch", "cha"):
        assert complete_runs(word) == ["runs/chair-1"]
    assert complete_runs("x") == []
    code = (
        "import sys; sys.argv[:] = ['nerf', *sys.argv[1:]]\nfrom nerfcli.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-c", code, *words],
            env={**nerf_environment(), "HOME": str(tmp_path), **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    words = {"COMP_WORDS": "nerf render r", "COMP_CWORD": "2", "_NERF_COMPLETE": "complete_bash"}
    done = run(**words)
    assert (done.stdout.split(), done.stderr.split()) == (["runs/chair-1"], ["False"])
    done = run("--install-completion")
    assert done.returncode == 0, done.stderr
    script = (tmp_path / ".bash_completions" / "nerf.sh").read_text()
    assert "complete -o default -F _nerf_completion nerf" in script
    assert os.listdir(tmp_path / "runs")
