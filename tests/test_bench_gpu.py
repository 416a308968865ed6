"""`nerf bench --suite gpu`: proved at tiny sizes on a CPU, so that no bug costs a slot."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import Nerf
from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.bench import gpu, gpu_peers
from nerfcli.bench.gpu import Section
from nerfcli.bench.gpu_measures import FULL, QUICK, Bench
from nerfcli.bench.gpu_report import markdown
from nerfcli.cli.bench_gpu import bench_gpu
from nerfcli.core.devices import cuda_missing
from nerfcli.core.errors import NerfError
from nerfcli.scenes import load_scene


def test_the_command_from_end_to_end(nerf: Nerf, ball: Path, tmp_path: Path) -> None:
    backend = backends.ORDER["cpu" if cuda_missing() else "cuda"][0]
    if backends.why_unavailable(backend, "cpu" if cuda_missing() else "cuda"):
        backend = "torch"
    command = ("bench", "--suite", "gpu", ball, "--quick", "--out", "b", "--backend", backend)
    value = json.loads(nerf(*command, "--json").stdout)
    kinds = {name.partition(" ")[0] for name in value["sections"]}
    assert kinds == {"limits", "parity", "kernels", "step", "classic", "quality", "frames"}
    assert value["left"] == value["failed"] == [] and value["facts"]["quick"]
    for outcome in value["sections"].values():
        assert outcome["rows"] and "error" not in outcome
    exact, rough = value["sections"]["classic"]["rows"]
    assert exact["gradients off by"] == 0 < rough["gradients off by"] < 0.25
    (row,) = value["sections"][f"quality {backend} 1 s"]["rows"]
    # a busy machine may be late for the end; tests of the schedule have a clock of their own
    assert row["seconds"] > 0.7 and row["PSNR"] > 5 and row["steps"] >= 1
    report = (tmp_path / "b" / "gpu.md").read_text()
    for words in ("measure nothing", f"| {backend} |", "## Time to quality", "torch 2."):
        assert words in report
    assert json.loads((tmp_path / "b" / "gpu.json").read_text())["sections"] == value["sections"]
    before = json.dumps(value["sections"])
    again = json.loads(nerf(*command, "--json").stdout)  # nothing is left to do
    assert json.dumps(again["sections"]) == before
    if cuda_missing():
        refused = nerf("bench", "--suite", "gpu", ball, "--out", "c", code=2)
        assert "cuda" in refused.stderr and not (tmp_path / "c").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="nowhere: no such folder"):
        bench_gpu(
            tmp_path / "nowhere", tmp_path, (), slot=1.0, quick=True, kind="quiet", as_json=False
        )


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three sections that note when they are called; `b` goes wrong."""
    calls: dict[str, Any] = {"a": 0, "b": 0, "c": 0, "fail": True}

    def call(name: str) -> list[dict]:
        calls[name] += 1
        if name == "b" and calls["fail"]:
            raise RuntimeError("CUDA error: misaligned address")
        return [{"backend": name, "ms": 1.5, "agrees": True}]

    plan = [Section(f"step {n}", 100.0, lambda n=n: call(n)) for n in "abc"]
    monkeypatch.setattr(gpu, "plan", lambda *_: plan)
    monkeypatch.setattr(gpu, "collect_facts", lambda *_: {**FACTS, **calls.get("facts", {})})
    return calls


FACTS = {
    "nerf": "1",
    "commit": None,
    "environment": "a GPU",
    "python": "3.11",
    "cuda": None,
    "packages": {},
    "scene": "s",
    "quick": True,
}


def bench(out: Path, minutes: float = 60) -> dict[str, Any]:
    return gpu.gpu_bench(out, out, quick=True, minutes=minutes, note=lambda _: None)


def test_an_error_costs_one_section_and_is_tried_again(
    sections: dict[str, Any], tmp_path: Path
) -> None:
    state = bench(tmp_path)
    assert gpu.failed(state) == ["step b"] and gpu.left(state) == []
    assert "misaligned" in state["sections"]["step b"]["error"]
    assert "Traceback" in state["sections"]["step b"]["traceback"]
    report = (tmp_path / "gpu.md").read_text()
    assert "## Went wrong" in report and "misaligned" in report
    sections["fail"] = False
    state = bench(tmp_path)
    assert gpu.failed(state) == [] and (sections["a"], sections["b"], sections["c"]) == (1, 2, 1)


def test_a_device_that_is_lost_ends_the_slot_alone(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access, every call of CUDA fails in that process."""

    def lost(*_: Any) -> None:
        if sections["b"]:
            raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "pick", lambda name: "cpu")
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lost)
    state = bench(tmp_path)
    assert gpu.failed(state) == ["step b"] and gpu.left(state) == ["step c"]
    sections["b"] = 0  # another process
    state = bench(tmp_path)  # what is left comes before what went wrong
    assert list(state["sections"]) == ["step a", "step c", "step b"]
    assert (sections["a"], sections["c"]) == (1, 1) and gpu.left(state) == []
    # an error that shows only when the device is waited for
    sections["fail"], sections["b"] = False, 0
    assert "misaligned" in bench(tmp_path)["sections"]["step b"]["error"]


@pytest.mark.parametrize("agrees", [True, False])
def test_a_backend_that_differs_is_not_timed(
    agrees: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = {"parity x": [{"agrees": agrees}], "step x": [{"ms": 1}], "step y": [{"ms": 2}]}
    plan = [Section(name, 1, lambda r=r: r) for name, r in rows.items()]
    monkeypatch.setattr(gpu, "plan", lambda *_: plan)
    state = bench(tmp_path)
    assert state["sections"]["step y"]["rows"] == [{"ms": 2}]
    assert state["sections"]["step x"]["rows"] == ([{"ms": 1}] if agrees else [])
    assert gpu.failed(state) == ([] if agrees else ["parity x", "step x"])


def test_kernels_are_first_tried_in_a_process_of_their_own(
    ball: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that faults there leaves this process its device."""
    asked: list[tuple[str, str]] = []

    def verdict(name: str, device: str) -> str:
        asked.append((name, device))
        return "its self-check failed (illegal access)"

    monkeypatch.setattr("nerfcli.backends.selfcheck_cache.verdict", verdict)
    with pytest.raises(NerfError, match=r"backend triton: its self-check failed \(illegal access"):
        Bench(ball, ball, "cuda", QUICK).parity("triton")
    assert Bench(ball, ball, "cpu", QUICK).parity("torch")[0]["agrees"]
    assert asked == [("triton", "cuda")]


def test_a_slot_that_runs_out_goes_on_later(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["fail"] = False
    assert gpu.left(bench(tmp_path, minutes=1)) == ["step b", "step c"]  # one at least
    assert "## Not yet measured\n\n- step b" in (tmp_path / "gpu.md").read_text()
    assert gpu.left(bench(tmp_path)) == []
    assert sections["a"] == sections["b"] == sections["c"] == 1


def test_figures_of_another_machine_are_not_mixed_in(
    sections: dict[str, Any], tmp_path: Path
) -> None:
    bench(tmp_path)
    sections["facts"] = {"environment": "another GPU"}
    with pytest.raises(NerfError, match="figures of another environment; choose another --out"):
        bench(tmp_path)
    (tmp_path / "gpu.json").write_text("[1]")
    with pytest.raises(NerfError, match="not of this command"):
        bench(tmp_path)


def test_a_backend_that_differs_is_told() -> None:
    row = {"backend": "triton", "agrees": False}
    state = {"facts": FACTS, "date": "d", "sections": {"parity triton": {"rows": [row]}}}
    assert gpu.failed(state) == ["parity triton"]
    assert "| triton | **no** |" in markdown(state, [])


def test_eight_minutes_hold_all_but_the_longest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerfcli.backends.why_unavailable", lambda name, device: None)
    plan = gpu.plan(Path("s"), Path("o"), "cuda", FULL)
    names = [section.name for section in plan]
    for name in ("quality triton 5 s", "quality triton 300 s", "quality tcnn 15 s", "step torch"):
        assert name in names
    until = names.index("quality triton 300 s")
    assert sum(section.seconds for section in plan[:until]) < 60 * 8


def test_the_limit_counts_bytes_and_arithmetic(ball: Path) -> None:
    from nerfcli.reference.radiance import NetSpec

    bench = Bench(ball, ball, "cpu", QUICK)
    bench.__dict__["rates"] = (4000.0, 700_000.0)  # GB/s, GFLOP/s: about an H200
    # 2^18 samples of the default field: 56.4 kFLOP a sample; 6 bytes for each of 67 M corner
    # features, and 4 for each of 12.2 M parameters
    flop, moved = 56.448e3 * 2**18, 6 * 8 * 32 * 2**18 + 4 * 12_196_240
    want = flop / 700e12 + moved / 4e12
    assert bench._limit(NetSpec(), 2**18) == pytest.approx(want)


@pytest.mark.parametrize(("there", "taken"), [(200, 25), (25, 25), (40, 40), (3, 3)])
def test_scores_are_of_enough_views(there: int, taken: int, ball: Path) -> None:
    """Also where somebody has already thinned them out."""
    scene = load_scene(ball)
    full = replace(scene, splits={"train": (0,), "test": tuple(range(there))})
    bench = Bench(ball, ball, "cpu", FULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nerfcli.bench.gpu_measures.load_scene", lambda path: full)
        views = bench.scene.splits["test"]
    assert len(views) == taken and views[0] == 0 and views[-1] >= there - 8


def test_nerfacc_gets_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in with its interface, which marches as we do."""
    seen = SimpleNamespace()

    class Grid:
        def __init__(self, aabb: list[float], resolution: int, levels: int) -> None:
            seen.aabb, seen.resolution, seen.levels = aabb, resolution, levels

        def to(self, device: str) -> Grid:
            return self

        def sampling(self, origins: torch.Tensor, directions: torch.Tensor, **options: Any) -> Any:
            samples = seen.work.march(Backend())
            return samples.ray_indices(), samples.t_starts, samples.t_ends

    module = ModuleType("nerfacc")
    module.OccGridEstimator = Grid  # type: ignore[attr-defined]
    module.render_weight_from_density = lambda t0, t1, sigmas, **_: (sigmas, t0, t1)  # type: ignore[attr-defined]
    module.accumulate_along_rays = lambda weights, **_: weights  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nerfacc", module)
    seen.work = gpu_peers.Workload(256, "cpu")
    monkeypatch.setattr(gpu_peers, "Workload", lambda n, device: seen.work)
    rows = gpu_peers.nerfacc_rows("cpu", QUICK)
    assert [row["operation"] for row in rows] == ["march", "composite"]
    assert all(row["samples"] > 200 and row["ms"] > 0 for row in rows)
    assert seen.aabb == [-1.5, -1.5, -1.5, 1.5, 1.5, 1.5] and seen.levels == 1
    assert gpu_peers.nerfacc_missing("cpu") == "it does not run on cpu"
