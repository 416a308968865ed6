"""Compiles the CPU kernels; by itself, or as the project's PEP 517 build backend.

    python -m nerfcli.backends.cpu.build_kernels      builds in place

As a backend it is setuptools' with one step in front. The kernels are optional: where they do
not compile the wheel is pure Python, and not_built.txt inside it says why. A machine without a
compiler gets one from PyPI (ziglang) for the time of the build.
Environment: CXX, the compiler, with arguments if need be; NERF_KERNELS=0, do without;
NERF_WHEEL_PLATFORM, the platform tag of the wheel, when it is not this machine's.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / ("kernels.dll" if os.name == "nt" else "kernels.so")
REASON = HERE / "not_built.txt"

# No -ffast-math: some compilers then link code that sets flush-to-zero for the whole process.
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-function"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
# GCC's own intrinsics trip this warning (bug 105593)
AVX512 += ["-Wno-uninitialized"]


class BuildError(Exception):
    """The kernels cannot be built; the text is one line for `nerf info`."""


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def find_compiler() -> list[str] | None:
    """$CXX, else a compiler in PATH, else the one of the ziglang package; None if there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        # zig compiles for the processor at hand unless told otherwise
        return [sys.executable, "-m", "ziglang", "c++", "-mcpu=baseline"]
    return None


def run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"the compiler did not start: {error}") from error
    if done.returncode:
        sys.stderr.write(f"{shlex.join(command)}\n{done.stderr}")
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        first = (lines or done.stderr.splitlines() or ["no message"])[0].strip()
        raise BuildError(f"the C++ compiler {command[0]} failed: {first[:200]}")


def compile_all(compiler: list[str], folder: Path) -> Path:
    """Every source to an object, in parallel, and the objects to one library in `folder`."""
    shared = [] if os.name == "nt" else ["-fPIC"]
    isas = {"base": []} | ({"avx2": AVX2, "avx512": AVX512} if is_x86() else {})
    jobs: list[list[str]] = []
    for isa, flags in isas.items():
        names = [f"-DNERF_TABLE=nerf_kernels_{isa}", f'-DNERF_ISA="{isa}"', "-ffp-contract=fast"]
        jobs.append([*flags, *names, "-c", str(HERE / "kernels.cpp"), "-o", f"kernels_{isa}.o"])
    x86 = ["-DNERF_X86"] if is_x86() else []
    for stem in ("march", "host"):
        plain = [*x86, "-ffp-contract=off"]
        jobs.append([*plain, "-c", str(HERE / f"{stem}.cpp"), "-o", f"{stem}.o"])
    objects = []
    for job in jobs:
        job[-1] = str(folder / job[-1])
        objects.append(job[-1])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: run([*compiler, *FLAGS, *shared, *job]), jobs))
    library = folder / LIBRARY.name
    link = ["-shared", *([] if os.name == "nt" else ["-pthread"])]
    if sys.platform == "linux":
        link.append("-Wl,-s")  # no symbols: a tenth of the size with zig
    if is_gcc(compiler):  # an old libstdc++ on the user's machine must not matter
        link += ["-static-libstdc++", "-static-libgcc"]
    run([*compiler, *link, "-o", str(library), *objects])
    return library


def is_gcc(compiler: list[str]) -> bool:
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True)
    return "Free Software Foundation" in done.stdout


def build() -> str | None:
    """Build in place; the reason where that fails, also left in not_built.txt.

    Raises:
        BuildError: it fails though NERF_WHEEL_PLATFORM asks for a wheel with kernels.
    """
    REASON.unlink(missing_ok=True)
    try:
        if os.environ.get("NERF_KERNELS") == "0":
            raise BuildError("NERF_KERNELS=0 was set when nerfcli was installed")
        compiler = find_compiler()
        if compiler is None:
            raise BuildError(
                "no C++ compiler was found when nerfcli was installed; "
                "install g++ or clang++ and reinstall"
            )
        with tempfile.TemporaryDirectory() as folder:
            library = compile_all(compiler, Path(folder))
            if "NERF_WHEEL_PLATFORM" not in os.environ:  # it may be for another machine
                check_loads(library)
            fresh = LIBRARY.with_suffix(".new")
            shutil.copyfile(library, fresh)
            os.replace(fresh, LIBRARY)  # never half a library
    except BuildError as error:
        LIBRARY.unlink(missing_ok=True)  # of older sources
        REASON.write_text(f"{error}\n", encoding="utf-8")
        if "NERF_WHEEL_PLATFORM" in os.environ:
            raise
        sys.stderr.write(f"nerfcli: without compiled CPU kernels: {error}\n")
        return str(error)
    return None


def check_loads(library: Path) -> None:
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).nerf_cpu_interface()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
        raise BuildError(f"the compiled library does not load: {last[:200]}")


# --- PEP 517 and 660 hooks -------------------------------------------------------------------


def _requirements(base: list[str]) -> list[str]:
    wanted = os.environ.get("NERF_KERNELS") != "0" and find_compiler() is None
    known = platform.machine().lower() in ("x86_64", "amd64", "aarch64", "arm64")
    return [*base, "ziglang>=0.13"] if wanted and known else base


def _setuptools():  # noqa: ANN202 - imported here: building in place must not need it
    from setuptools import build_meta

    return build_meta


def _platform_settings(settings: dict | None) -> dict | None:
    """Tag py3-none-<platform>: the library is of a platform but of no Python version."""
    if not LIBRARY.exists():
        return settings
    tag = os.environ.get("NERF_WHEEL_PLATFORM") or sysconfig.get_platform()
    tag = tag.replace("-", "_").replace(".", "_")
    return {**(settings or {}), "--build-option": ["--plat-name", tag]}


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return _requirements(_setuptools().get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return _requirements(_setuptools().get_requires_for_build_editable(config_settings))


def get_requires_for_build_sdist(config_settings: dict | None = None) -> list[str]:
    return _setuptools().get_requires_for_build_sdist(config_settings)


def prepare_metadata_for_build_wheel(folder: str, config_settings: dict | None = None) -> str:
    return _setuptools().prepare_metadata_for_build_wheel(folder, config_settings)


def prepare_metadata_for_build_editable(folder: str, config_settings: dict | None = None) -> str:
    return _setuptools().prepare_metadata_for_build_editable(folder, config_settings)


def build_wheel(
    folder: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    build()
    for stale in Path("build").glob("lib*/nerfcli/backends/cpu/*"):
        if stale.name in (LIBRARY.name, REASON.name):  # setuptools would pack the last build's
            stale.unlink()
    settings = _platform_settings(config_settings)
    return _setuptools().build_wheel(folder, settings, metadata_directory)


def build_editable(
    folder: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    build()
    return _setuptools().build_editable(folder, config_settings, metadata_directory)


def build_sdist(folder: str, config_settings: dict | None = None) -> str:
    return _setuptools().build_sdist(folder, config_settings)


if __name__ == "__main__":
    sys.exit(1 if build() else 0)
