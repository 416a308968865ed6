"""The benchmark: parity before timing, and rows that make sense."""

from __future__ import annotations

import json

import pytest
import torch

from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.bench import clock, kernels, training
from nerfcli.bench.clock import Effort, measure
from nerfcli.bench.parity import parity
from nerfcli.cli import main
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import NetSpec, Network

TINY = Effort(sizes=(256,), repeats=2, seconds=0.0, settle_steps=16, blocks=2, block_seconds=0.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(clock, "PEAK_SIZE", 64)
    monkeypatch.setattr(clock, "QUICK", TINY)
    monkeypatch.setattr(kernels, "NET", NetSpec(GridSpec(16, 2, 10, 4, 64)))
    monkeypatch.setattr(training, "SIZE", 24)
    monkeypatch.setattr(training, "N_CAMERAS", 4)
    monkeypatch.setattr(training, "N_SAMPLES", 512)
    monkeypatch.setattr(training, "LOG2_TABLE_SIZE", 10)


class WrongDensity(Backend):
    name = "wrong"

    def __init__(self, factor: float = 1.2) -> None:
        self.factor = factor

    def density(
        self, network: Network, positions: torch.Tensor, scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.factor * super().density(network, positions, scales)


@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_every_operation_has_a_row(name: str) -> None:
    backend = backends.select(name, "cpu").backend
    rows = list(kernels.kernel_rows(name, backend, "cpu", TINY, peak=10.0))
    assert [row.operation for row in rows] == [
        "hash_grid",
        "hash_grid + gradient",
        "density",
        "radiance",
        "radiance + gradient",
        "march",
        "composite",
        "gradients + Adam",
        "render_rays",
    ]
    assert len(rows) == kernels.N_OPERATIONS
    for row in rows:
        assert row.backend == name and row.seconds > 0 and row.spread >= 0
        assert row.samples_per_second == pytest.approx(row.samples / row.seconds)
        assert 100 < row.samples < 1000
        assert json.loads(json.dumps(row.as_dict()))["operation"] == row.operation
    radiance = rows[3]
    assert radiance.gflops == pytest.approx(radiance.samples_per_second * 18816e-9)
    assert radiance.peak_share == pytest.approx((radiance.gflops or 0.0) / 10.0)


def test_the_work_of_a_sample() -> None:
    """32 -> 64 -> 16 and 32 -> 64 -> 64 -> 3, two operations a weight."""
    assert kernels.network_flop(kernels.NET) == (6144, 6144 + 12672)


def test_a_call_is_timed_twice_at_least_and_not_the_first_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, length = [0.0], [9.0]  # the first call compiles, say
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += length[0]
        length[0] = 2.0

    assert measure(call, "cpu", repeats=7, seconds=3.0) == [2.0, 2.0]
    assert measure(call, "cpu", repeats=3, seconds=99.0) == [2.0, 2.0, 2.0]


def test_parity_names_the_worst_operation() -> None:
    row = parity("cpu", backends.select("cpu", "cpu").backend, "cpu")
    assert row.agrees and row.compared > 60
    assert row.error < 5e-5  # positions round to 6e-8, which the finest level multiplies by 256
    row = parity("wrong", WrongDensity(), "cpu")
    assert not row.agrees and row.operation == "density"
    assert row.error == pytest.approx(0.2, rel=1e-3)
    row = parity("wrong", WrongDensity(float("nan")), "cpu")
    assert not row.agrees and row.operation == "density"


def test_parity_is_strict_where_both_sides_are_float32() -> None:
    assert not parity("wrong", WrongDensity(1.001), "cpu").agrees


def test_the_ball_is_where_its_cameras_look() -> None:
    scene, views = training.ball_scene()
    assert len(views) == len(scene.cameras) == 4
    for i in range(4):
        photo = views.image(i)
        assert photo.shape == (24, 24, 4)
        middle, corner = photo[12, 12], photo[0, 0]
        assert middle[3] == 255 and corner[3] == 0
    # a ball of radius 1 seen from 4: sin of its half angle is 1/4
    radius = 0.25 / (1 - 0.25**2) ** 0.5 * float(scene.cameras.focal[0, 0])
    area = (views.pixels[:, 3] > 0).double().mean() * 24 * 24
    assert float(area) == pytest.approx(3.14159 * radius**2, rel=0.05)


def test_all_backends_train_on_the_same_samples() -> None:
    chosen = [(name, backends.select(name, "cpu").backend) for name in ("cpu", "torch")]
    rows = list(training.training_rows(chosen, "cpu", TINY, peak=10.0))
    assert [(r.backend, r.levels, r.features) for r in rows] == [
        ("cpu", 16, 2),
        ("torch", 16, 2),
        ("cpu", 8, 4),
        ("torch", 8, 4),
    ]
    for cpu, plain in (rows[:2], rows[2:]):
        assert cpu.rays == plain.rays
        # rays end where little light is left; rounding decides that for a few samples
        assert cpu.samples == pytest.approx(plain.samples, rel=0.02)
        assert plain.ratio_to_torch == 1.0
        ratio = cpu.samples_per_second / plain.samples_per_second
        assert cpu.ratio_to_torch == pytest.approx(ratio)
    alone = list(training.training_rows(chosen[:1], "cpu", TINY, peak=10.0))
    assert [row.ratio_to_torch for row in alone] == [None, None]


def test_a_settled_state_is_gone_on_from_and_kept() -> None:
    scene, views = training.ball_scene()
    config = training.config_of(scene, (16, 2), TINY)
    backend = backends.select("cpu", "cpu").backend
    settled = training.settle(scene, views, config, backend, 16)
    fresh = training.settle(scene, views, config, backend, 0)
    assert settled.extra["step"] == 16 and fresh.extra["step"] == 0
    trainer = training.create(scene, views, settled, backend)
    assert trainer.step_count == 16
    before = {k: v.clone() for k, v in settled.model.items()}
    trainer.step(1e-2)
    assert all(torch.equal(before[k], v) for k, v in settled.model.items())


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SHAPES", ((4, 4),))


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--quick", *args])
    out = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out.out, out.err


def test_the_command_shows_tables(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["--backend", "cpu"], capsys)
    assert code == 0
    assert "backend cpu agrees with the reference" in out
    assert "gradients + Adam" in out and "8x4, 2^10" in out
    assert "\n torch" not in out and "\n cpu" in out
    assert "comparing cpu" in err
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.usefixtures("one_shape")
def test_the_command_gives_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["--json", "--quiet"], capsys)
    value = json.loads(out)
    assert code == 0 and err == ""
    assert value["quick"] is True and value["peak_gflops"] > 0
    assert [row["backend"] for row in value["parity"]] == ["cpu", "torch"]
    assert len(value["kernels"]) == 2 * kernels.N_OPERATIONS
    assert [row["backend"] for row in value["training"]] == ["cpu", "torch"]
    assert value["machine"]["torch"] == str(torch.__version__)


@pytest.mark.usefixtures("one_shape")
def test_a_wrong_backend_is_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = backends.backend_class
    spoiled = {"cpu": WrongDensity}
    monkeypatch.setattr(backends, "backend_class", lambda name: spoiled.get(name) or right(name))
    code, out, _ = run(["--json", "--quiet"], capsys)
    value = json.loads(out)
    assert code == 3
    assert [row["agrees"] for row in value["parity"]] == [False, True]
    assert {row["backend"] for row in value["kernels"] + value["training"]} == {"torch"}
    code, out, _ = run(["--backend", "cpu", "--quiet"], capsys)
    assert code == 3
    assert "DIFFERS" in out and "density" in out and "operations" not in out


@pytest.mark.usefixtures("one_shape")
def test_a_backend_that_cannot_run_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(["--backend", "swift"], capsys)
    assert code == 2 and "swift" in err and "cpu" in err
    reason = backends.why_unavailable

    def no_kernels(name: str, device: str) -> str | None:
        return "no compiler" if name == "cpu" else reason(name, device)

    monkeypatch.setattr(backends, "why_unavailable", no_kernels)
    code, _, err = run(["--backend", "cpu"], capsys)
    assert code == 2 and "no compiler" in err
    code, out, _ = run(["--json", "--quiet"], capsys)
    value = json.loads(out)
    assert code == 0 and value["unavailable"] == {"cpu": "no compiler"}
    assert {row["backend"] for row in value["training"]} == {"torch"}
