"""The check before a GPU backend is trusted, on backends that are wrong on purpose."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nerfcli import backends
from nerfcli.backends import ops_torch, selfcheck
from nerfcli.backends.ops import Ops, reference
from nerfcli.encoding import GridSpec
from nerfcli.errors import BackendUnavailable, NerfError
from nerfcli.radiance import NetParams, NetSpec
from nerfcli.rays import Samples


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "NET", NetSpec(GridSpec(3, 2, 9, 4, 32), width=16))
    monkeypatch.setattr(selfcheck, "N_RAYS", 16)
    monkeypatch.setattr(selfcheck, "N_POINTS", 63)


def scaled(op: Callable[..., Any], factor: float = 1.1) -> Callable[..., Any]:
    """The op with every tensor that it returns ten percent too large."""

    def wrong(*args: Any, **options: Any) -> Any:
        out = op(*args, **options)
        if isinstance(out, torch.Tensor):
            return out * factor
        if isinstance(out, tuple):
            return tuple(part * factor for part in out)
        values = {f.name: getattr(out, f.name) * factor for f in dataclasses.fields(out)}
        return type(out)(**values)

    return wrong


class _DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * grad


def test_the_reference_agrees_with_itself() -> None:
    assert selfcheck.fault(reference(), "cpu") is None


@pytest.mark.parametrize(
    "op", ["spherical_harmonics", "hash_grid", "mlp", "density", "radiance", "composite"]
)
def test_a_wrong_output_is_found(op: str) -> None:
    ops = dataclasses.replace(reference(), **{op: scaled(getattr(reference(), op))})
    assert str(selfcheck.fault(ops, "cpu")).startswith(f"{op}")
    assert "differs from the reference by 10%" in str(selfcheck.fault(ops, "cpu"))


@pytest.mark.parametrize("op", ["hash_grid", "radiance", "composite"])
def test_a_wrong_gradient_is_found(op: str) -> None:
    right = getattr(reference(), op)

    def wrong(*args: Any) -> Any:
        first = args[1] if op == "hash_grid" else args[0]
        if op == "radiance":
            doubled = NetParams(*(_DoubledGradient.apply(p) for p in args[2].tensors()))
            return right(args[0], args[1], doubled, args[3])
        doubled = _DoubledGradient.apply(first)
        return right(args[0], doubled, args[2]) if op == "hash_grid" else right(doubled, *args[1:])

    ops = dataclasses.replace(reference(), **{op: wrong})
    assert selfcheck.fault(ops, "cpu") == f"the gradient of {op} differs from the reference by 100%"


def test_a_march_that_loses_samples_is_found() -> None:
    def wrong(*args: Any) -> Samples:
        samples = reference().march(*args)
        keep = torch.arange(samples.capacity) % 10 != 0
        return samples.select(keep)

    ops = dataclasses.replace(reference(), march=wrong)
    assert str(selfcheck.fault(ops, "cpu")).startswith("march differs")


def test_gradients_of_a_step_that_are_never_written_are_found() -> None:
    def wrong(params: NetParams, grads: NetParams, *args: Any, **options: Any) -> Any:
        nowhere = NetParams(*(torch.zeros_like(g) for g in grads.tensors()))
        return reference().photometric_gradients(params, nowhere, *args, **options)

    ops = dataclasses.replace(reference(), photometric_gradients=wrong)
    assert "photometric_gradients differs" in str(selfcheck.fault(ops, "cpu"))


def test_a_wrong_picture_is_found() -> None:
    ops = dataclasses.replace(reference(), render_rays=scaled(reference().render_rays))
    assert "render_rays (rgb) differs" in str(selfcheck.fault(ops, "cpu"))


def test_an_adam_that_keeps_its_gradients_is_found() -> None:
    def wrong(params: torch.Tensor, grads: torch.Tensor, *args: Any, **options: Any) -> None:
        reference().adam_step(params, grads.clone(), *args, **options)

    ops = dataclasses.replace(reference(), adam_step=wrong)
    assert "adam_step differs" in str(selfcheck.fault(ops, "cpu"))


def test_what_is_not_finite_is_found() -> None:
    ops = dataclasses.replace(reference(), mlp=scaled(reference().mlp, float("nan")))
    assert "mlp differs" in str(selfcheck.fault(ops, "cpu"))


def test_the_check_runs_in_a_process_of_its_own() -> None:
    assert selfcheck.examine("torch", "cpu") is None


def test_a_check_that_dies_is_a_fault_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(code: str) -> str | None:
        return selfcheck.examine("any", "cuda", [sys.executable, "-c", code])

    assert run("raise RuntimeError('PTX refused.')") == (
        "its self-check failed (RuntimeError: PTX refused)"
    )
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run(killed) == "its self-check failed (exit status -9)"
    monkeypatch.setattr(selfcheck, "SECONDS", 0.2)
    assert "not done after 0.2 s" in str(run("import time; time.sleep(60)"))


def test_a_verdict_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked, notes = tmp_path / "cache" / "verdicts.json", [], []
    answers: dict[str, str | None] = {"good": None, "bad": "mlp differs from the reference by 9%"}

    def examine(name: str, device: str) -> str | None:
        asked.append(name)
        return answers[name]

    monkeypatch.setattr(selfcheck, "examine", examine)
    for _ in range(2):
        for name, want in answers.items():
            assert selfcheck.verdict(name, "cpu", notes.append, path) == want
    assert asked == ["good", "bad"] and len(notes) == 2
    assert "first use" in notes[0] and "good" in notes[0]
    monkeypatch.setattr(selfcheck, "environment", lambda device: "another driver")
    assert selfcheck.verdict("good", "cpu", None, path) is None
    assert asked == ["good", "bad", "good"]
    assert len(json.loads(path.read_text())) == 3


def test_a_broken_or_readonly_memory_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "examine", lambda name, device: None)
    broken = tmp_path / "verdicts.json"
    for text in ("{", "null"):
        broken.write_text(text)
        assert selfcheck.verdict("good", "cpu", None, broken) is None
        assert len(json.loads(broken.read_text())) == 1

    def refuse(path: Path, value: object) -> None:
        raise NerfError(f"cannot write {path}: Read-only file system.")

    monkeypatch.setattr(selfcheck, "write_json", refuse)
    notes: list[str] = []
    assert selfcheck.verdict("good", "cpu", notes.append, tmp_path / "other.json") is None
    assert "not remembered" in notes[-1] and "Read-only" in notes[-1]


def test_a_verdict_holds_for_the_versions_that_it_names() -> None:
    text = selfcheck.environment("cpu")
    assert text.startswith("cpu | ") and f"torch {torch.__version__}" in text and "triton" in text


def test_the_memory_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert selfcheck.cache_folder() == Path("/some/cache/nerfcli")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert selfcheck.cache_folder() == Path.home() / ".cache" / "nerfcli"


@pytest.fixture
def wrong_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ops:
    """A backend `swift` for cuda that adds ten percent; checked here, not in another process."""
    ops = dataclasses.replace(reference(), name="swift", mlp=scaled(reference().mlp))
    module = ModuleType("nerfcli.backends.ops_swift")
    module.unavailable = lambda device: None  # type: ignore[attr-defined]
    module.load = lambda: ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(backends, "ORDER", {"cuda": ("swift", "torch"), "cpu": ("torch",)})
    monkeypatch.setattr(ops_torch, "cuda_missing", lambda: None)
    monkeypatch.setattr(selfcheck, "examine", lambda name, device: selfcheck.fault(ops, "cpu"))
    monkeypatch.setattr(selfcheck, "environment", lambda device: "a GPU")
    monkeypatch.setattr(selfcheck, "cache_folder", lambda: tmp_path)
    return ops


def test_auto_passes_over_a_wrong_backend_and_says_so(wrong_backend: Ops) -> None:
    notes: list[str] = []
    choice = backends.select("auto", "cuda", notes.append)
    assert choice.ops.name == "torch"
    assert "not swift: mlp differs from the reference by 10%" in choice.line
    assert len(notes) == 1
    assert backends.select("auto", "cuda", notes.append).ops.name == "torch"
    assert len(notes) == 1  # remembered


def test_an_explicit_name_is_taken_at_its_word(
    wrong_backend: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backends.select("swift", "cuda").ops is wrong_backend
    module = sys.modules["nerfcli.backends.ops_swift"]
    monkeypatch.setattr(module, "unavailable", lambda device: "no GPU")
    with pytest.raises(BackendUnavailable, match="no GPU"):
        backends.select("swift", "cuda")
