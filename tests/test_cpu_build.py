"""How the compiled kernels are built, found and loaded."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import HANGS, ROOT, nerf_environment
from nerfcli import backends
from nerfcli.backends.cpu import build_kernels, library
from nerfcli.backends.cpu.backend import CpuBackend
from nerfcli.core.errors import BackendUnavailable, NerfError


def test_the_kernels_were_built() -> None:
    """The build is optional for users; here a failure must not hide behind that."""
    assert CpuBackend.why_unavailable("cpu") is None
    assert backends.select("auto", "cpu").backend.name == "cpu"
    assert library.instruction_set() in ("avx512", "avx2", "base")


def test_it_does_not_run_on_a_gpu() -> None:
    assert "cuda" in str(CpuBackend.why_unavailable("cuda"))


def test_without_the_library_torch_is_taken_and_the_reason_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "kernels.so")
    monkeypatch.setattr(library, "REASON", tmp_path / "not_built.txt")
    assert "never built" in str(library.missing())
    library.REASON.write_text("no C++ compiler was found\n")
    choice = backends.select("auto", "cpu")
    assert choice.backend.name == "torch"
    assert "no C++ compiler was found" in choice.line and "\n" not in choice.line
    with pytest.raises(BackendUnavailable, match=r"'cpu'.*no C\+\+ compiler was found"):
        backends.select("cpu", "cpu")


@pytest.fixture
def reopened() -> Iterator[None]:
    """The library is opened again in this test, and by whoever is next."""
    library._open.cache_clear()
    yield
    library._open.cache_clear()


def test_a_library_that_does_not_load_is_a_reason(
    reopened: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "kernels.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "LIBRARY", broken)
    assert "do not load" in str(library.missing())


def test_a_library_of_another_meaning_is_refused(
    reopened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "INTERFACE", library.INTERFACE + 1)
    assert "another version" in str(library.missing())


def without_width(fields: list[Any]) -> list[Any]:
    return [f for f in fields if f[0] != "width"]


def swapped(fields: list[Any]) -> list[Any]:
    """Of the same size, but two fields in the place of each other."""
    return [fields[0], fields[2], fields[1], *fields[3:]]


@pytest.mark.parametrize("edit", [without_width, swapped])
def test_a_struct_of_another_layout_is_refused(
    reopened: None, monkeypatch: pytest.MonkeyPatch, edit: Callable[[list[Any]], list[Any]]
) -> None:
    """It would be memory that is read and written in the wrong places."""
    wrong = type("Net", (ctypes.Structure,), {"_fields_": edit(list(library.Net._fields_))})
    monkeypatch.setitem(library.STRUCTS, "NerfNet", wrong)
    assert "another version (the layout of NerfNet differs)" in str(library.missing())
    choice = backends.select("auto", "cpu")
    assert choice.backend.name == "torch" and "layout of NerfNet" in choice.line


def test_a_function_of_other_arguments_is_refused(
    reopened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, arguments = library._SIGNATURES["adam"]
    monkeypatch.setitem(library._SIGNATURES, "adam", (result, arguments[1:]))
    assert "the layout of adam differs" in str(library.missing())


def test_a_library_without_a_function_is_refused(
    reopened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(library._SETTINGS, "no_such", (None, []))
    assert "another version" in str(library.missing())


def test_every_struct_that_crosses_is_compared() -> None:
    found = {
        c
        for c in vars(library).values()
        if isinstance(c, type) and c.__module__ == library.__name__
    }
    structs = {c for c in found if issubclass(c, ctypes.Structure)}
    assert structs == set(library.STRUCTS.values())


def test_loading_the_library_leaves_subnormals_alone() -> None:
    """-ffast-math in a shared library would flush them to zero in the whole process."""
    code = (
        "import ctypes, sys\n"
        "lib = ctypes.CDLL(sys.argv[1])\n"
        "lib.nerf_cpu_set_threads(2)\n"
        "tiny = float(sys.argv[2])\n"
        "print(tiny * 0.5 > 0.0)"
    )
    command = [sys.executable, "-c", code, str(library.LIBRARY), "4.4e-308"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    value = torch.tensor([1e-38])
    assert (value * 0.01 > 0).all()


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NERF_THREADS", raising=False)
    assert library.n_threads() == torch.get_num_threads()
    monkeypatch.setenv("NERF_THREADS", "3")
    assert library.n_threads() == 3
    for wrong in ("0", "-1", "many"):
        monkeypatch.setenv("NERF_THREADS", wrong)
        with pytest.raises(NerfError, match="NERF_THREADS"):
            library.n_threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_compute() -> None:
    """The threads of the parent are not there in the child: it must start its own."""
    code = (
        "import os, torch\n"
        "from nerfcli.backends.cpu.backend import CpuBackend\n"
        "torch.set_num_threads(2)\n"
        "backend = CpuBackend()\n"
        "d = torch.nn.functional.normalize(torch.ones(50000, 3), dim=1)\n"
        "want = backend.spherical_harmonics(d).numpy()\n"
        "pid = os.fork()\n"
        # no torch operation in the child: torch's own OpenMP threads do not survive a fork
        "same = (backend.spherical_harmonics(d).numpy() == want).all()\n"
        "if pid == 0: os._exit(0 if same else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=nerf_environment(), timeout=HANGS, check=True
    )
    assert done.stdout.strip() == "0"


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the build's paths, so that the real library stays as it is."""
    monkeypatch.setattr(build_kernels, "LIBRARY", tmp_path / "kernels.so")
    monkeypatch.setattr(build_kernels, "REASON", tmp_path / "not_built.txt")
    return tmp_path


def test_no_compiler_is_told_in_one_line(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(sources))
    monkeypatch.setattr(build_kernels.importlib.util, "find_spec", lambda name: None)
    reason = build_kernels.build()
    assert reason is not None and "no C++ compiler" in reason and "\n" not in reason
    assert (sources / "not_built.txt").read_text().strip() == reason
    assert reason in capsys.readouterr().err
    assert "ziglang" in " ".join(build_kernels._requirements([]))


def test_a_compiler_that_fails_is_told_and_the_old_library_goes(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources / "kernels.so").write_bytes(b"old")
    monkeypatch.setenv("CXX", f"{sys.executable} -c \"raise SystemExit('error: no C++ here')\"")
    reason = build_kernels.build()
    assert reason is not None and "error: no C++ here" in reason
    assert not (sources / "kernels.so").exists()


def test_a_wheel_for_a_platform_is_not_made_without_kernels(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NERF_WHEEL_PLATFORM", "manylinux_2_17_x86_64")
    monkeypatch.setenv("CXX", str(sources / "no-such-compiler"))
    with pytest.raises(build_kernels.BuildError, match="did not start"):
        build_kernels.build()


def test_a_build_can_be_declined(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERF_KERNELS", "0")
    assert "NERF_KERNELS=0" in str(build_kernels.build())
    assert build_kernels._requirements(["x"]) == ["x"]


def test_the_wheel_is_of_a_platform_and_of_no_python(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_kernels._platform_settings(None) is None  # pure without the library
    (sources / "kernels.so").write_bytes(b"")
    monkeypatch.setenv("NERF_WHEEL_PLATFORM", "manylinux_2_17_x86_64")
    settings = build_kernels._platform_settings({"a": "b"})
    assert settings == {"a": "b", "--build-option": ["--plat-name", "manylinux_2_17_x86_64"]}


def test_no_fast_math_and_no_native_processor() -> None:
    text = (ROOT / "nerfcli/backends/cpu/build_kernels.py").read_text(encoding="utf-8")
    flags = [*build_kernels.FLAGS, *build_kernels.AVX2, *build_kernels.AVX512]
    assert not {"-ffast-math", "-Ofast", "-march=native"} & set(flags)
    assert "-march=" not in text
