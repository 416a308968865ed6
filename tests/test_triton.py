"""The Triton backend: when it can run, its kernels under the interpreter, and their compilation.

TRITON_INTERPRET is read when a kernel is declared, so tests/triton runs in a process of its own:
    TRITON_INTERPRET=1 pytest tests/triton -o python_files='interpreted_*.py'
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import HANGS, ROOT, nerf_environment
from nerfcli import backends
from nerfcli.backends.tcnn import TcnnBackend
from nerfcli.backends.triton import backend as triton_backend
from nerfcli.backends.triton import toolchain
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.core.devices import is_installed
from nerfcli.core.errors import BackendUnavailable

INTERPRETED = {**nerf_environment(), "TRITON_INTERPRET": "1"}
FOLDER = Path(__file__).parent / "triton"
# shared memory that a program may have, in bytes: CUDA C++ programming guide, compute capabilities
SHARED = {"80": 163 * 1024, "89": 99 * 1024, "90": 227 * 1024, "120": 99 * 1024}


def interpreter_missing() -> str:
    """The backend's reason why the kernels cannot be interpreted here, or nothing."""
    code = (
        "from nerfcli.backends.triton.backend import TritonBackend\n"
        "print(TritonBackend.why_unavailable('cpu') or '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=INTERPRETED, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def triton_here() -> None:
    if reason := interpreter_missing():
        pytest.skip(reason)


def interpret(*options: str, names: Sequence[str] = ("",)) -> None:
    """Run files of tests/triton, by default all; none of the tests may fail or be skipped."""
    files = [str(FOLDER / (f"interpreted_{name}.py" if name else "")) for name in names]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", *files, "--no-header", *options),
            *("-o", "python_files=interpreted_*.py", "-p", "no:cacheprovider", "-n", "0"),
        ],
        cwd=ROOT,
        env=INTERPRETED,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert "passed" in last and "skipped" not in last


@pytest.mark.parametrize(
    "names", [("batch", "encoding", "mlp", "sampling"), ("step",), ("training",)], ids=" ".join
)
def test_every_kernel_agrees_with_the_reference(names: tuple[str, ...], triton_here: None) -> None:
    interpret(names=names)


def test_no_interpreted_file_is_forgotten() -> None:
    known = {"batch", "encoding", "mlp", "sampling", "step", "training"}
    assert {path.stem for path in FOLDER.glob("interpreted_*.py")} == {
        f"interpreted_{name}" for name in known
    }


@pytest.mark.slow
def test_half_precision_learns_as_well_as_single(triton_here: None) -> None:
    interpret("-m", "slow")


def check_compilation(capability: str, layout: str, dots: str, adds: str, cache: Path) -> None:
    """Every kernel compiles, with these instructions for products and for adding gradients."""
    environment = {k: v for k, v in nerf_environment().items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "compile_kernels.py"), capability, layout],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert len(kernels) == 23
    # Triton 3.6 writes `atom`, later ones `red`: to the assembler the same, as nobody reads it
    assert all(f".global.gpu.relaxed.{adds} " in ptx for ptx, _ in kernels["_scatter"])
    for name in ("_forward", "_backward"):
        assert len(kernels[name]) >= 2
        assert all(dots in ptx for ptx, _ in kernels[name]), name
    for name, versions in kernels.items():
        assert max(shared for _, shared in versions) <= SHARED[capability], name


def test_every_kernel_compiles_for_hopper(triton_here: None, tmp_path: Path) -> None:
    """Tensor cores for the networks; one reduction for all features of an entry."""
    check_compilation("90", "pairs", "wgmma.mma_async", "add.v2.f32", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dots", "adds"),
    [
        ("80", "mma.sync", "add.f32"),
        ("89", "mma.sync", "add.f32"),
        ("90", "wgmma", "add.v4.f32"),
        ("120", "mma.sync", "add.v4.f32"),
    ],
)
def test_every_kernel_compiles_for_other_gpus(
    capability: str, dots: str, adds: str, triton_here: None, tmp_path: Path
) -> None:
    """Ampere has no reduction of several values at once."""
    check_compilation(capability, "quads", dots, adds, tmp_path)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with Triton and a new GPU, as far as `why_unavailable` can see."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_backend, "is_installed", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(toolchain, "why_unavailable", lambda: None)
    monkeypatch.setattr(toolchain, "why_interpreter_unavailable", lambda: None)
    return monkeypatch


def test_it_runs_where_there_is_a_gpu(a_gpu: pytest.MonkeyPatch) -> None:
    assert TritonBackend.why_unavailable("cuda") is None
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert TritonBackend.why_unavailable("cuda") is None


def test_an_old_gpu_is_refused(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert TritonBackend.why_unavailable("cuda") == (
        "the GPU has compute capability 7.5, Triton needs 8.0 or newer"
    )


def test_without_cuda_it_says_what_is_missing(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(torch.cuda, "is_available", lambda: False)
    a_gpu.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(TritonBackend.why_unavailable("cuda"))
    a_gpu.setattr(torch.version, "cuda", "12.8")
    assert "nvidia-smi" in str(TritonBackend.why_unavailable("cuda"))


def test_without_triton_it_says_so(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(triton_backend, "is_installed", lambda name: False)
    assert "pip install triton" in str(TritonBackend.why_unavailable("cuda"))


def test_without_a_compiler_each_way_of_asking_says_so(a_gpu: pytest.MonkeyPatch) -> None:
    """`nerf info`, auto, and the name itself."""
    reason = "Triton needs a C compiler"
    a_gpu.setattr(toolchain, "why_unavailable", lambda: reason)
    a_gpu.setattr(TcnnBackend, "why_unavailable", lambda device: "tinycudann is not installed")
    assert backends.why_unavailable("triton", "cuda") == reason
    assert f"; not triton: {reason};" in backends.select("auto", "cuda").line
    with pytest.raises(BackendUnavailable, match=f"'triton' cannot run on cuda: {reason}"):
        backends.select("triton", "cuda")


def test_on_a_cpu_only_the_interpreter_runs(a_gpu: pytest.MonkeyPatch) -> None:
    assert "TRITON_INTERPRET=1" in str(TritonBackend.why_unavailable("cpu"))
    a_gpu.setenv("TRITON_INTERPRET", "1")
    assert TritonBackend.why_unavailable("cpu") is None
    a_gpu.setattr(toolchain, "why_interpreter_unavailable", lambda: "it needs NumPy 2.3")
    assert TritonBackend.why_unavailable("cpu") == "it needs NumPy 2.3"
    assert "runs on cuda only" in str(backends.why_unavailable("triton", "cpu"))


def test_a_folder_in_the_way_is_not_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "folder_only").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("folder_only")
    assert not is_installed("no_such_package_at_all")
    assert is_installed("torch")
