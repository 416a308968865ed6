"""Which backend is taken, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from nerfcli import backends
from nerfcli.backends import selfcheck
from nerfcli.backends.base import Backend
from nerfcli.core.devices import cuda_missing
from nerfcli.core.errors import BackendUnavailable, NerfError


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Backends `swift` and `quick` in front of torch; the values say why they cannot run."""
    reasons: dict[str, str | None] = {"swift": None, "quick": None}
    classes = {"torch": Backend}
    for key in reasons:

        class Fake(Backend):
            name = key

            @classmethod
            def why_unavailable(cls, device: str) -> str | None:
                return reasons[cls.name]

        classes[key] = Fake
    monkeypatch.setattr(backends, "backend_class", classes.__getitem__)
    order = {"cpu": ("swift", "quick", "torch"), "cuda": ("quick", "torch")}
    monkeypatch.setattr(backends, "ORDER", order)
    return reasons


def test_auto_takes_the_fastest_that_runs(fakes: dict[str, str | None]) -> None:
    choice = backends.select("auto", "cpu")
    assert choice.backend.name == "swift"
    assert "swift" in choice.line and "cpu" in choice.line


def test_auto_says_why_not_the_faster_ones(fakes: dict[str, str | None]) -> None:
    fakes["swift"] = "no compiler found"
    fakes["quick"] = "needs AVX2"
    choice = backends.select("auto", "cpu")
    assert choice.backend.name == "torch"
    for word in ("torch", "swift", "no compiler found", "quick", "needs AVX2"):
        assert word in choice.line


def test_an_explicit_name_never_falls_back(fakes: dict[str, str | None]) -> None:
    fakes["swift"] = "no compiler found"
    with pytest.raises(BackendUnavailable, match=r"swift.*cpu.*no compiler found"):
        backends.select("swift", "cpu")
    assert backends.select("quick", "cpu").backend.name == "quick"


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
    assert backends.why_unavailable("torch", device) == (
        cuda_missing() if device == "cuda" else None
    )


def test_the_reference_is_the_base_class() -> None:
    backend = backends.select("torch", "cpu").backend
    assert type(backend) is Backend and backend.name == "torch"


def test_a_backend_that_overrides_one_op_composes_the_wholes_with_it() -> None:
    """A density of nothing makes every picture the background."""

    class Empty(Backend):
        def radiance(self, network, positions, ray_inputs, scales=None):
            sigmas, rgbs = super().radiance(network, positions, ray_inputs, scales)
            return 0 * sigmas, rgbs

    case = selfcheck.Case("cpu")
    args = (case.network, case.rays, case.bounds, case.jitter, case.grid, case.batch.background)
    assert torch.equal(Empty().render_rays(*args).rgb, case.batch.background)
    assert not torch.equal(Backend().render_rays(*args).rgb, case.batch.background)


def test_every_backend_in_the_order_offers_the_two_functions() -> None:
    for name in backends.names():
        for device in ("cpu", "cuda"):
            reason = backends.why_unavailable(name, device)
            assert reason is None or (reason and not reason.endswith("."))


def test_auto_on_the_cpu_really_loads() -> None:
    choice = backends.select("auto", "cpu")
    assert isinstance(choice.backend, Backend)
    assert f"backend {choice.backend.name} on cpu" in choice.line
