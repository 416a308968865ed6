"""Whether a GPU backend is trusted: the check in another process, and what is remembered of it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import HANGS, ROOT
from nerfcli import backends
from nerfcli.backends import base, selfcheck, selfcheck_cache
from nerfcli.backends.base import Backend
from nerfcli.backends.selfcheck_cache import Verdict
from nerfcli.core.errors import BackendUnavailable
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import NetSpec


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what is not in the cache folder."""
    monkeypatch.setattr(selfcheck_cache, "_of_this_process", {})


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    another_process(monkeypatch)
    return tmp_path / "cache"


def run(code: str) -> Verdict:
    return selfcheck_cache.examine("any", "cuda", [sys.executable, "-c", code])


def test_the_check_runs_in_a_process_of_its_own() -> None:
    assert selfcheck_cache.examine("torch", "cpu") == Verdict(None, True)


def test_a_check_that_dies_is_told_in_words_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("raise RuntimeError('PTX refused.')") == Verdict(
        "its self-check failed (RuntimeError: PTX refused)", False
    )
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run(killed) == Verdict("its self-check failed (exit status -9)", False)
    for text in ("", "[]", "42", "Warning", '{"reason": null}'):
        assert run(f"print({text!r})") == Verdict("its self-check failed (exit status 0)", False)
    missing = selfcheck_cache.examine("any", "cuda", ["/no/such/python"])
    assert missing == Verdict("its self-check did not start (No such file or directory)", False)


def test_a_check_that_hangs_is_ended_with_the_compilers_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They hold its output open, too; waiting for that would be waiting for them."""
    monkeypatch.setattr(selfcheck_cache, "SECONDS", 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 9> {pipe}; sleep {10 * HANGS}"
    begin = time.monotonic()
    hanging = run(f"import subprocess; subprocess.run(['sh', '-c', {script!r}])")
    assert hanging == Verdict("its self-check was not done after 1 s", False)
    assert time.monotonic() - begin < HANGS
    # the pipe ends when the last process that holds it is gone
    assert select.select([reader], [], [], HANGS)[0] and os.read(reader, 1) == b""
    os.close(reader)


def reported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Verdict:
    """The verdict on a backend whose self-check ends in an exception."""

    class Failing(Backend):
        def __init__(self) -> None:
            raise error

    monkeypatch.setattr(backends, "backend_class", lambda name: Failing)
    selfcheck_cache.report("failing", "cpu")
    return Verdict(**json.loads(capsys.readouterr().out))


def test_what_another_day_may_mend_is_not_lasting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
    assert reported(full, monkeypatch, capsys) == Verdict(
        "its self-check failed (OutOfMemoryError: Tried to allocate 2 GiB)", False
    )
    disk = OSError(28, "No space left on device")
    assert not reported(disk, monkeypatch, capsys).lasting
    assert not reported(RuntimeError("Failed to find C compiler."), monkeypatch, capsys).lasting
    assert not reported(RuntimeError(""), monkeypatch, capsys).lasting


def test_code_that_does_not_compile_for_this_gpu_is_lasting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = pytest.importorskip("triton.runtime.errors")
    room = errors.OutOfResources(200000, 101376, "shared memory")
    found = reported(room, monkeypatch, capsys)
    assert found.lasting and "shared memory, Required: 200000" in str(found.reason)
    assert reported(RuntimeError("PassManager::run failed"), monkeypatch, capsys).lasting


def test_numbers_are_lasting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for fault in (None, "mlp differs from the reference by 9%"):
        monkeypatch.setattr(selfcheck, "find_fault", lambda *_, fault=fault: fault)
        selfcheck_cache.report("torch", "cpu")
        assert Verdict(**json.loads(capsys.readouterr().out)) == Verdict(fault, True)


def test_a_module_in_the_users_folder_does_not_get_into_the_check(tmp_path: Path) -> None:
    """A program `nerf` does not look there, so its self-check must not, either."""
    for name in ("json", "triton", "nerfcli"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from nerfcli.backends.selfcheck_cache import examine; print(examine('torch', 'cpu'))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "Verdict(reason=None, lasting=True)", done.stderr


def test_a_checkout_that_python_m_runs_from_is_the_one_that_is_checked(tmp_path: Path) -> None:
    """It is in sys.path and nowhere else."""
    (tmp_path / "nerfcli").symlink_to(ROOT / "nerfcli")
    (tmp_path / "ask.py").write_text(
        "from nerfcli.backends import selfcheck_cache\n"
        "code = 'import json, nerfcli; print(json.dumps([nerfcli.__file__, False]))'\n"
        "import sys; done = selfcheck_cache._run([sys.executable, '-P', '-c', code])\n"
        "print(done[1])"
    )
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "ask"], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert json.loads(done.stdout)[0] == str(tmp_path / "nerfcli" / "__init__.py"), done.stderr


class Examined:
    """In place of `examine`: what it finds of each backend, and which it was asked for."""

    def __init__(self, **answers: Verdict) -> None:
        self.answers, self.asked = answers, []

    def __call__(self, name: str, device: str) -> Verdict:
        self.asked.append(name)
        return self.answers[name]


def test_a_verdict_is_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "mlp differs from the reference by 9%"
    examined = Examined(good=Verdict(None, True), bad=Verdict(bad, True))
    monkeypatch.setattr(selfcheck_cache, "examine", examined)
    notes: list[str] = []
    for _ in range(2):
        assert selfcheck_cache.verdict("good", "cpu", notes.append) is None
        assert selfcheck_cache.verdict("bad", "cpu", notes.append) == bad
        another_process(monkeypatch)
    assert examined.asked == ["good", "bad"] and len(notes) == 2
    assert "first use" in notes[0] and "good" in notes[0]
    monkeypatch.setattr(selfcheck_cache, "environment", lambda device: "another driver")
    assert selfcheck_cache.verdict("good", "cpu") is None
    assert examined.asked == ["good", "bad", "good"]
    assert len(json.loads((cache / "nerfcli" / "selfcheck.json").read_text())) == 3


def test_a_passing_trouble_is_told_and_tried_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined = Examined(swift=Verdict("its self-check failed (out of memory)", False))
    monkeypatch.setattr(selfcheck_cache, "examine", examined)
    for n in (1, 2):
        for _ in range(2):  # a command asks more than once
            assert (
                selfcheck_cache.verdict("swift", "cpu") == "its self-check failed (out of memory)"
            )
        assert examined.asked == ["swift"] * n
        another_process(monkeypatch)
    examined.answers["swift"] = Verdict(None, True)
    for _ in range(2):
        assert selfcheck_cache.verdict("swift", "cpu") is None
        another_process(monkeypatch)
    assert examined.asked == ["swift"] * 3


def test_two_processes_at_once_both_remember(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes to its verdict, of another GPU, while the first is at work."""

    def examine(name: str, device: str) -> Verdict:
        if name == "first":
            selfcheck_cache.verdict("second", "cpu")
        return Verdict(None, True)

    monkeypatch.setattr(selfcheck_cache, "examine", examine)
    selfcheck_cache.verdict("first", "cpu")
    known = json.loads((cache / "nerfcli" / "selfcheck.json").read_text())
    assert sorted(key.split(" | ")[0] for key in known) == ["first", "second"]


@pytest.mark.parametrize("text", ["{", "null", "[1]", "\udcff", "KEY", ""])
def test_a_memory_of_garbage_is_begun_anew(
    text: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck_cache, "examine", Examined(good=Verdict(None, True)))
    path = cache / "nerfcli" / "selfcheck.json"
    path.parent.mkdir(parents=True)
    if text == "KEY":  # an entry of this name that is no reason
        text = json.dumps({f"good | {selfcheck_cache.environment('cpu')}": 7})
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert selfcheck_cache.verdict("good", "cpu") is None
    assert list(json.loads(path.read_text()).values()) == [None]


def test_a_memory_that_cannot_be_written_does_not_stop_the_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck_cache, "examine", Examined(good=Verdict(None, True)))
    (cache / "nerfcli" / "selfcheck.json").mkdir(parents=True)
    notes: list[str] = []
    for _ in range(2):
        assert selfcheck_cache.verdict("good", "cpu", notes.append) is None
    assert len(notes) == 2  # it is checked once, and that is all that is lost
    assert "not remembered" in notes[-1] and "selfcheck.json" in notes[-1]


def test_a_verdict_holds_for_the_versions_that_it_names() -> None:
    text = selfcheck_cache.environment("cpu")
    assert text.startswith("cpu | ") and f"torch {torch.__version__}" in text
    assert "triton" in text and "tinycudann none" in text


def test_each_model_of_gpu_has_its_own_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES may show another one, which torch then counts as the first."""
    monkeypatch.setattr(selfcheck_cache, "driver", lambda: "570.86")
    texts = []
    for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA L4"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu=gpu: gpu)
        texts.append(selfcheck_cache.environment("cuda"))
        assert texts[-1].startswith(f"{gpu} | driver 570.86 | torch ")
    monkeypatch.setattr(selfcheck_cache, "driver", lambda: "575.51")
    texts.append(selfcheck_cache.environment("cuda"))
    assert len(set(texts)) == 3


class Swift(Backend):
    """A backend that adds ten percent."""

    name = "swift"

    @classmethod
    def why_unavailable(cls, device: str) -> str | None:
        return None

    def mlp(self, x: torch.Tensor, weights: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
        return 1.1 * super().mlp(x, weights, widths)


@pytest.fixture
def wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """`swift` for cuda; checked here, not in another process."""
    monkeypatch.setattr(selfcheck, "NET", NetSpec(GridSpec(3, 2, 9, 4, 32), width=16))
    classes = {"swift": Swift, "torch": Backend}
    monkeypatch.setattr(backends, "backend_class", classes.__getitem__)
    monkeypatch.setattr(backends, "ORDER", {"cuda": ("swift", "torch"), "cpu": ("torch",)})
    monkeypatch.setattr(base, "cuda_missing", lambda: None)
    monkeypatch.setattr(
        selfcheck_cache,
        "examine",
        lambda name, device: Verdict(selfcheck.find_fault(Swift(), "cpu"), True),
    )
    monkeypatch.setattr(selfcheck_cache, "environment", lambda device: "a GPU")


def test_auto_passes_over_a_wrong_backend_and_says_so(wrong_backend: None) -> None:
    notes: list[str] = []
    choice = backends.select("auto", "cuda", notes.append)
    assert choice.backend.name == "torch"
    assert "not swift: mlp differs from the reference by 10%" in choice.line
    assert len(notes) == 1
    assert backends.select("auto", "cuda", notes.append).backend.name == "torch"
    assert len(notes) == 1  # remembered


def test_an_explicit_name_is_taken_at_its_word(
    wrong_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(backends.select("swift", "cuda").backend, Swift)
    monkeypatch.setattr(Swift, "why_unavailable", lambda device: "no GPU")
    with pytest.raises(BackendUnavailable, match="no GPU"):
        backends.select("swift", "cuda")
