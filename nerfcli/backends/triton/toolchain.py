"""What Triton needs of a machine beside its GPU, and why it cannot run where that is missing.

Triton speaks to the driver through stubs in C that it compiles at first use and keeps in its
cache: one for the driver and, up to Triton 3.6, one for each kernel. That takes a C compiler
(Triton looks for $CC, gcc and clang), Python's headers, libcuda and a folder to write in. Where its
own search fails, the environment variables that it reads point it at what else there is.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nerfcli.core.errors import NerfError
from nerfcli.core.files import cache_folder, ensure_writable, replacing

GET_COMPILER = "apt install gcc libc6-dev, or pip install ziglang"
GET_HEADERS = "apt install python3-dev, or dnf install python3-devel"


@functools.cache
def why_unavailable() -> str | None:
    """The reason why Triton cannot launch kernels here, or None. Needs a GPU.

    The way to know is to compile the driver's stub: half a second the first time, later it comes
    from Triton's cache.
    """
    command = compiler()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            with _stderr_in(log):
                per_kernel = _build_stub(command)
        except Exception as error:  # of Triton, of the compiler, of the loader
            log.seek(0)
            return _explain(error, log.read(), command)
    return _no_compiler() if per_kernel and command is None else None


def _build_stub(command: Sequence[str] | None) -> bool:
    """Have Triton compile the driver's stub; whether it will do so again for every kernel."""
    show_cache()
    if command is not None:
        show_compiler(command)
    from triton.backends.nvidia import driver as nvidia  # pyright: ignore[reportMissingImports]
    from triton.runtime import driver  # pyright: ignore[reportMissingImports]

    show_libcuda(nvidia)
    assert driver.active.utils  # pyright: ignore[reportAttributeAccessIssue]
    return hasattr(nvidia, "make_launcher")


def _explain(error: Exception, log: str, command: Sequence[str] | None) -> str:
    """What was missing, from the compiler's output or else the exception."""
    if command is None:
        return _no_compiler()
    headers = sysconfig.get_paths(scheme=_scheme())["include"]
    if re.search(r"Python\.h['\": ]", log):
        return f"Triton needs Python's headers, and {headers} has no Python.h ({GET_HEADERS})"
    found = re.search(r"^.*(?:error:|cannot find).*$", log, re.MULTILINE)
    if found:
        return f"Triton's launcher does not compile: {found.group().strip().rstrip('.')}"
    text = (str(error).strip().splitlines() or [""])[-1].rstrip(".")
    return f"Triton's launcher cannot be made ({type(error).__name__}: {text})"


def _scheme() -> str:
    """Where Triton looks for headers: Debian's scheme for local packages has none."""
    scheme = sysconfig.get_default_scheme()
    return "posix_prefix" if scheme == "posix_local" else scheme


def _no_compiler() -> str:
    if cc := os.environ.get("CC", "").strip():
        return f"Triton needs a C compiler, and $CC is {cc!r}, which is none (unset it)"
    return f"Triton needs a C compiler for its launcher ({GET_COMPILER})"


def compiler() -> list[str] | None:
    """$CC, else a C compiler in PATH, else that of the ziglang package; None if there is none."""
    if cc := os.environ.get("CC", "").strip():
        words = [cc] if shutil.which(cc) else cc.split()
        return words if shutil.which(words[0]) else None
    for name in ("gcc", "clang", "cc"):
        if shutil.which(name):
            return [name]
    zig = importlib.util.find_spec("ziglang")
    if zig is not None and zig.origin is not None:  # and not a mere folder of that name
        # zig compiles for the processor at hand unless told otherwise
        return [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]
    return None


def show_compiler(command: Sequence[str]) -> None:
    """Name the compiler in $CC, unless Triton finds it; it takes a program without options."""
    if "CC" not in os.environ and command[0] in ("gcc", "clang"):
        return
    if len(command) == 1:
        os.environ["CC"] = command[0]
        return
    script = cache_folder() / "cc"
    with replacing(script) as aside:
        aside.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
        aside.chmod(0o755)
    os.environ["CC"] = str(script)
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache_folder() / "zig"))


def show_cache() -> None:
    """Give Triton a folder for what it compiles where the user's home takes no files."""
    if os.environ.get("TRITON_CACHE_DIR", "").strip():
        return
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    try:
        if not os.path.isabs(home):  # nobody's home: the name was not to be expanded
            raise NerfError(home)
        ensure_writable(Path(home, ".triton", "cache"))
    except NerfError:
        os.environ["TRITON_CACHE_DIR"] = str(cache_folder() / "triton")


def show_libcuda(nvidia: Any) -> None:
    """Where the linker would not find libcuda, point Triton at the one that torch has loaded.

    Triton asks ldconfig for libcuda.so.1 and, up to 3.5, links to libcuda.so beside it, which a
    machine without the developer's files does not have.

    Args:
        nvidia: the module triton.backends.nvidia.driver.
    """
    if sys.platform != "linux":
        return
    wanted = "libcuda.so" if nvidia.libraries == ["cuda"] else "libcuda.so.1"
    try:
        if any(Path(folder, wanted).exists() for folder in nvidia.libcuda_dirs()):
            return
    except (AssertionError, OSError, subprocess.SubprocessError):  # not found; no ldconfig
        pass
    loaded = _loaded_libcuda()
    if loaded is None:
        return
    folder = cache_folder() / "libcuda"
    for name in ("libcuda.so", "libcuda.so.1"):
        with replacing(folder / name) as aside:
            aside.symlink_to(loaded)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    for search in (nvidia.libcuda_dirs, nvidia.library_dirs):
        search.cache_clear()


def why_interpreter_unavailable() -> str | None:
    """The reason why Triton's interpreter does not run here, or None."""
    import numpy
    import triton  # pyright: ignore[reportMissingImports]

    # its loops made numbers of arrays of one entry, which NumPy 2.4 refuses
    if _version(triton.__version__) >= (3, 7) or _version(numpy.__version__) < (2, 4):
        return None
    return f"the interpreter of Triton {triton.__version__} needs NumPy 2.3 or older"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _loaded_libcuda() -> str | None:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"/\S*/libcuda\.so\S*", maps)
    return found.group() if found else None


@contextmanager
def _stderr_in(log: IO[str]) -> Iterator[None]:
    """Send what this process and its children write to stderr into `log`."""
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
