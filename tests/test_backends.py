"""Which backend is taken, and what is said about it."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import pytest
import torch

from nerfcli import backends
from nerfcli.backends.ops import Ops, reference
from nerfcli.core.devices import cuda_missing
from nerfcli.core.errors import BackendUnavailable, NerfError


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Backends `swift` and `quick` in front of torch; the values say why they cannot run."""
    reasons: dict[str, str | None] = {"swift": None, "quick": None}

    def install(name: str) -> None:
        module = ModuleType(f"nerfcli.backends.ops_{name}")
        module.unavailable = lambda device: reasons[name]  # type: ignore[attr-defined]
        module.load = lambda: dataclasses.replace(reference(), name=name)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    for name in reasons:
        install(name)
    order = {"cpu": ("swift", "quick", "torch"), "cuda": ("quick", "torch")}
    monkeypatch.setattr(backends, "ORDER", order)
    return reasons


def test_auto_takes_the_fastest_that_runs(fakes: dict[str, str | None]) -> None:
    choice = backends.select("auto", "cpu")
    assert choice.ops.name == "swift"
    assert "swift" in choice.line and "cpu" in choice.line


def test_auto_says_why_not_the_faster_ones(fakes: dict[str, str | None]) -> None:
    fakes["swift"] = "no compiler found"
    fakes["quick"] = "needs AVX2"
    choice = backends.select("auto", "cpu")
    assert choice.ops.name == "torch"
    for word in ("torch", "swift", "no compiler found", "quick", "needs AVX2"):
        assert word in choice.line


def test_an_explicit_name_never_falls_back(fakes: dict[str, str | None]) -> None:
    fakes["swift"] = "no compiler found"
    with pytest.raises(BackendUnavailable, match=r"swift.*cpu.*no compiler found"):
        backends.select("swift", "cpu")
    assert backends.select("quick", "cpu").ops.name == "quick"


def test_a_backend_of_another_device_is_refused(fakes: dict[str, str | None]) -> None:
    with pytest.raises(BackendUnavailable, match=r"swift.*cuda"):
        backends.select("swift", "cuda")


def test_an_unknown_name_lists_the_known(fakes: dict[str, str | None]) -> None:
    with pytest.raises(NerfError, match=r"'swfit'.*quick.*swift.*torch") as caught:
        backends.select("swfit", "cpu")
    assert not isinstance(caught.value, BackendUnavailable)


def test_no_backend_at_all_is_an_error(
    fakes: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes["swift"] = "broken"
    monkeypatch.setattr(backends, "ORDER", {"cpu": ("swift",), "cuda": ()})
    with pytest.raises(NerfError, match="cpu"):
        backends.select("auto", "cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_is_the_last_resort_everywhere(device: str) -> None:
    assert backends.ORDER[device][-1] == "torch"
    assert backends.why_unavailable("torch", device) == (cuda_missing() if device == "cuda" else None)


def test_the_reference_is_floor_two_itself() -> None:
    ops = backends.select("torch", "cpu").ops
    assert ops.name == "torch"
    for field in dataclasses.fields(Ops):
        function = getattr(ops, field.name)
        if callable(function):
            assert function.__name__ == field.name
            assert function.__module__.startswith("nerfcli.")
            assert not function.__module__.startswith("nerfcli.backends")


def test_the_record_is_frozen_and_a_backend_is_a_diff() -> None:
    ops = reference()
    with pytest.raises(dataclasses.FrozenInstanceError):
        ops.name = "other"  # type: ignore[misc]
    other = dataclasses.replace(ops, name="other", mlp=torch.relu)
    assert other.mlp is torch.relu and other.march is ops.march


def test_every_backend_in_the_order_offers_the_two_functions() -> None:
    for name in backends.names():
        for device in ("cpu", "cuda"):
            reason = backends.why_unavailable(name, device)
            assert reason is None or (reason and not reason.endswith("."))


def test_auto_on_the_cpu_really_loads() -> None:
    choice = backends.select("auto", "cpu")
    assert isinstance(choice.ops, Ops)
    assert f"backend {choice.ops.name} on cpu" in choice.line
