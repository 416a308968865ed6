"""The kernel benchmark: parity before timing, and rows that make sense."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from nerfcli import backends, bench
from nerfcli.backends.ops import reference
from nerfcli.encoding import GridSpec
from nerfcli.errors import NerfError
from nerfcli.radiance import NetSpec


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(bench, "PEAK_SIZE", 64)
    monkeypatch.setattr(bench, "NET", NetSpec(GridSpec(16, 2, 10, 4, 64)))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_every_operation_has_a_row(backend: str) -> None:
    notes: list[str] = []
    rows = list(bench.kernel_rows(backend, "cpu", [256], notes.append))
    assert [row.operation for row in rows] == [
        "hash_grid",
        "hash_grid + gradient",
        "density",
        "radiance",
        "radiance + gradient",
        "march",
        "composite",
        "training step",
        "render_rays",
    ]
    for row in rows:
        assert row.backend == backend and row.seconds > 0 and row.spread >= 0
        assert row.samples_per_second == pytest.approx(row.samples / row.seconds)
        assert 100 < row.samples < 1000
        assert json.loads(json.dumps(row.as_dict()))["operation"] == row.operation
    assert "agrees" in notes[0]
    text = bench.table(rows).splitlines()
    assert len(text) == len(rows) + 1 and "training step" in text[8]


def test_the_work_of_a_sample() -> None:
    """32 -> 64 -> 16 and 32 -> 64 -> 64 -> 3, two operations a weight."""
    assert bench.network_flop() == (6144, 6144 + 12672)


def test_a_wrong_backend_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(*arguments: object) -> torch.Tensor:
        return 1.2 * reference().density(*arguments)

    wrong = dataclasses.replace(reference(), name="wrong", density=spoiled)
    monkeypatch.setattr(backends, "select", lambda name, device: backends.Choice(wrong, ""))
    monkeypatch.setattr(bench, "measure", lambda *arguments: pytest.fail("it was timed"))
    with pytest.raises(NerfError, match="wrong.*density differs"):
        next(bench.kernel_rows("wrong", "cpu", [256]))
