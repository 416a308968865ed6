"""What Triton needs beside a GPU: found, made up for, or named as missing.

No GPU is needed: the stub that Triton compiles for the driver is compiled and loaded for real,
with a stand-in for libcuda that has its functions' names.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import nerf_environment
from nerfcli.backends.triton import toolchain

# Says what the backend says on a machine with a GPU; HEADERS names the folder of Python.h
ASK = """
import ctypes, os, sys, sysconfig
ctypes.CDLL(os.environ["LIBCUDA"])  # as torch has done where there is a GPU
import torch
torch.cuda.is_available = lambda: True
torch.cuda.get_device_capability = lambda: (9, 0)
if "HEADERS" in os.environ:
    known = sysconfig.get_paths
    sysconfig.get_paths = lambda *a, **o: known(*a, **o) | {"include": os.environ["HEADERS"]}
if "NO_ZIG" in os.environ:
    sys.modules["ziglang"] = None
from nerfcli.backends.triton.backend import TritonBackend
print(TritonBackend.why_unavailable("cuda"))
print(os.environ.get("CC"), os.environ.get("TRITON_CACHE_DIR"))
"""


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with every function of the driver that Triton's stub calls; none is called."""
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("triton is not installed")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc, which makes the stand-in for libcuda")
    folder = tmp_path_factory.mktemp("driver")
    nvidia = Path(spec.submodule_search_locations[0], "backends", "nvidia")
    text = (nvidia / "driver.c").read_text() + (nvidia / "driver.py").read_text()
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", text)))
    versions = [n for name in names for n in (name, f"{name}_v2", f"{name}_v3")]
    source, library = folder / "libcuda.c", folder / "libcuda.so.1"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in dict.fromkeys(versions)))
    command = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


def ask(libcuda: Path, home: Path, **environment: str) -> list[str]:
    """What the backend says, and CC and TRITON_CACHE_DIR after that."""
    own = {**nerf_environment(), "HOME": str(home), "LIBCUDA": str(libcuda), "TMPDIR": str(home)}
    for name in ("CC", "TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_INTERPRET", "XDG_CACHE_HOME"):
        own.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=own | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""  # what the compiler says is part of the reason
    return done.stdout.splitlines()


def stubs(folder: Path) -> list[Path]:
    return list(folder.rglob("cuda_utils*.so"))


def test_triton_compiles_its_stub_and_then_needs_no_compiler(libcuda: Path, tmp_path: Path) -> None:
    """libcuda is not where ldconfig would have it, so it is found by what is loaded."""
    assert ask(libcuda, tmp_path) == ["None", "None None"]
    assert len(stubs(tmp_path / ".triton" / "cache")) == 1
    bare = tmp_path / "bare"
    bare.mkdir()
    if file := shutil.which("file"):  # platform.architecture asks it, a part of the cache's key
        (bare / "file").symlink_to(file)
    reason, _ = ask(libcuda, tmp_path, PATH=str(bare), NO_ZIG="1")
    if per_kernel():
        assert "needs a C compiler" in reason
    else:
        assert reason == "None"


def per_kernel() -> bool:
    """Whether this Triton compiles a stub for each kernel, too."""
    from triton.backends.nvidia import driver  # pyright: ignore[reportMissingImports]

    return hasattr(driver, "make_launcher")


def test_without_a_compiler_it_says_so(libcuda: Path, tmp_path: Path) -> None:
    reason, _ = ask(libcuda, tmp_path, PATH=str(tmp_path / "nothing"), NO_ZIG="1")
    assert reason == (
        "Triton needs a C compiler for its launcher "
        "(apt install gcc libc6-dev, or pip install ziglang)"
    )


def test_the_compiler_of_ziglang_will_do(libcuda: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    home = tmp_path / "home"
    home.write_text("nor does zig need it")
    bare = {"PATH": str(tmp_path / "nothing"), "TMPDIR": str(tmp_path)}
    reason, variables = ask(libcuda, home, **bare)
    assert reason == "None"
    folder = f"{tmp_path}/nerfcli-{os.getuid()}"
    assert variables == f"{folder}/cc {folder}/triton"
    assert len(stubs(tmp_path)) == 1


def test_without_pythons_headers_it_says_where_they_are_missing(
    libcuda: Path, tmp_path: Path
) -> None:
    reason, _ = ask(libcuda, tmp_path, HEADERS=str(tmp_path))
    assert reason == (
        f"Triton needs Python's headers, and {tmp_path} has no Python.h "
        "(apt install python3-dev, or dnf install python3-devel)"
    )


def test_a_compiler_that_fails_is_quoted(libcuda: Path, tmp_path: Path) -> None:
    """A gcc without the C library's headers, as in slim containers, say."""
    broken = tmp_path / "broken"
    broken.write_text(
        "#!/bin/sh\necho 'x.c:1:10: fatal error: stdlib.h: No such file' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    reason, _ = ask(libcuda, tmp_path, CC=str(broken))
    assert reason == (
        "Triton's launcher does not compile: x.c:1:10: fatal error: stdlib.h: No such file"
    )


def test_a_home_that_takes_no_files_is_done_without(libcuda: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("not a folder, so that even root cannot write there")
    reason, variables = ask(libcuda, home, TMPDIR=str(tmp_path))
    assert reason == "None"
    assert variables == f"None {tmp_path}/nerfcli-{os.getuid()}/triton"
    assert len(stubs(tmp_path)) == 1


@pytest.mark.parametrize(
    ("version", "numpy_version", "runs"),
    [("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.10.1+git", "2.10.0", True)],
)
def test_old_interpreters_need_an_old_numpy(
    version: str, numpy_version: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", SimpleNamespace(__version__=numpy_version))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    want = f"the interpreter of Triton {version} needs NumPy 2.3 or older"
    assert toolchain.why_interpreter_unavailable() == (None if runs else want)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH of one empty folder, a home of one's own, no ziglang."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CC", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_LIBCUDA_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def program(path: Path, text: str = "") -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_gcc_comes_first_and_any_c_compiler_will_do(tools: Path) -> None:
    for name in ("cc", "clang", "gcc"):
        program(tools / name)
        assert toolchain.compiler() == [name]


def test_what_triton_finds_itself_needs_no_variable(tools: Path) -> None:
    toolchain.show_compiler(["gcc"])
    toolchain.show_compiler(["clang"])
    assert "CC" not in os.environ
    toolchain.show_compiler(["cc"])
    assert os.environ["CC"] == "cc"


def test_an_empty_cc_is_as_good_as_none(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton would take it for the name of a program."""
    monkeypatch.setenv("CC", "")
    program(tools / "gcc")
    assert toolchain.compiler() == ["gcc"]
    toolchain.show_compiler(["gcc"])
    assert os.environ["CC"] == "gcc"


def test_a_cc_with_options_becomes_a_program(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton takes the whole of $CC for a program's name."""
    program(tools / "ccache", 'printf "%s|" "$@"')
    monkeypatch.setenv("CC", "ccache gcc -m64")
    assert toolchain.compiler() == ["ccache", "gcc", "-m64"]
    toolchain.show_compiler(["ccache", "gcc", "-m64"])
    done = subprocess.run([os.environ["CC"], "a file.c", "-O3"], capture_output=True, text=True)
    assert done.stdout == "gcc|-m64|a file.c|-O3|"


def test_a_cc_that_is_no_program_is_refused_by_name(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tools / "gcc")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert toolchain.compiler() is None
    reason = toolchain._explain(RuntimeError("whatever"), "", None)
    assert reason == (
        "Triton needs a C compiler, and $CC is 'no-such-compiler', which is none (unset it)"
    )


@pytest.mark.parametrize("per_kernel", [True, False])
def test_a_stub_in_the_cache_is_enough_where_it_is_the_only_one(
    per_kernel: bool, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to Triton 3.6 each kernel needs the compiler again."""
    monkeypatch.setattr(toolchain, "_build_stub", lambda command: per_kernel)
    reason = toolchain.why_unavailable.__wrapped__()
    assert ("needs a C compiler" in str(reason)) == per_kernel
    program(tools / "gcc")
    assert toolchain.why_unavailable.__wrapped__() is None


def driver_of(version: str, *folders: Path) -> SimpleNamespace:
    """What is looked at of triton.backends.nvidia.driver."""

    def libcuda_dirs() -> list[str]:
        assert folders, "libcuda.so cannot found!"
        return [str(folder) for folder in folders]

    cleared: list[str] = []
    libcuda_dirs.cache_clear = lambda: cleared.append("libcuda_dirs")
    library_dirs = SimpleNamespace(cache_clear=lambda: cleared.append("library_dirs"))
    libraries = ["cuda"] if version < "3.6" else ["libcuda.so.1"]
    return SimpleNamespace(
        libcuda_dirs=libcuda_dirs, library_dirs=library_dirs, libraries=libraries, cleared=cleared
    )


def test_libcuda_is_linked_to_by_the_name_that_triton_links_to(
    tools: Path, libcuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to Triton 3.5 that is libcuda.so, which only developers have."""
    monkeypatch.setattr(toolchain, "_loaded_libcuda", lambda: str(libcuda))
    toolchain.show_libcuda(driver_of("3.6", libcuda.parent))
    assert "TRITON_LIBCUDA_PATH" not in os.environ
    for driver in (driver_of("3.5", libcuda.parent), driver_of("3.6")):
        toolchain.show_libcuda(driver)
        folder = Path(os.environ.pop("TRITON_LIBCUDA_PATH"))
        assert sorted(driver.cleared) == ["libcuda_dirs", "library_dirs"]
        for name in ("libcuda.so", "libcuda.so.1"):
            assert (folder / name).resolve() == libcuda.resolve()
    complete = driver_of("3.5", folder)
    toolchain.show_libcuda(complete)
    assert "TRITON_LIBCUDA_PATH" not in os.environ and not complete.cleared


def test_triton_keeps_the_cache_that_the_user_chose(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["HOME"])
    toolchain.show_cache()
    assert "TRITON_CACHE_DIR" not in os.environ  # Triton's own choice will do
    monkeypatch.setenv("TRITON_HOME", "/proc/nowhere")
    toolchain.show_cache()
    assert os.environ["TRITON_CACHE_DIR"] == str(home / ".cache" / "nerfcli" / "triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/chosen")
    toolchain.show_cache()
    assert os.environ["TRITON_CACHE_DIR"] == "/proc/chosen"
