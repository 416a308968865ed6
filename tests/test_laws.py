"""Laws that the tree must keep; docs/architecture.md says why."""

from __future__ import annotations

import ast
import importlib
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, nerf_environment

PACKAGE = ROOT / "nerfcli"
MAX_LINES = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "nerfcli"


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_folders_are_floors() -> None:
    """The import contract in pyproject.toml; `lint-imports` says the same, with every path."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        env=nerf_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_core_knows_only_the_standard_library_and_msgspec() -> None:
    allowed = set(sys.stdlib_module_names) | {"nerfcli", "__future__", "msgspec"}
    for name, path in modules().items():
        if name.split(".")[0] != "core":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # lazy imports are free
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert (source or "").split(".")[0] in allowed, f"{name} imports {source}"


def test_no_relative_import() -> None:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}:{node}"


def test_no_file_above_400_lines() -> None:
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in modules().items()}
    assert {n: count for n, count in lengths.items() if count > MAX_LINES} == {}


def test_all_is_true() -> None:
    """Every name in an __all__ is there, and every public name of the top is in __all__."""
    for name in modules():
        if name in ("__main__", "nerfcli"):
            continue
        module = importlib.import_module(f"nerfcli.{name}")
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"nerfcli.{name}.__all__ names {public}"
    code = (
        "import nerfcli, types\n"
        "names = {n for n, v in vars(nerfcli).items() if not isinstance(v, types.ModuleType)}\n"
        "public = {n for n in names if not n.startswith('_')}\n"
        "assert public <= set(nerfcli.__all__), public - set(nerfcli.__all__)\n"
        "assert all(hasattr(nerfcli, n) for n in nerfcli.__all__)\n"
        "assert set(nerfcli._HOMES) | {'__version__'} == set(nerfcli.__all__)\n"
        "assert sorted(nerfcli.__all__) == nerfcli.__all__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=nerf_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_program_hears_signals_before_it_imports_itself() -> None:
    """Ctrl-C in the first moments of a command ends it without Python's traceback."""
    own = "[n for n in sys.modules if n.startswith('nerfcli.') and n != 'nerfcli.__main__']"
    code = f"import sys, nerfcli.__main__; sys.exit(len({own}))"
    assert subprocess.run([sys.executable, "-c", code], env=nerf_environment()).returncode == 0


@pytest.mark.parametrize("words", [["-c", "import nerfcli"], ["-m", "nerfcli", "--help"]])
def test_start_imports_no_heavy_library(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        env=nerf_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    tops = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "nerfcli" in tops
    assert not tops & {"torch", "numpy", "scipy", "PIL", "skimage", "trimesh", "imageio"}


def children_seconds() -> float:
    used = os.times()
    return used.children_user + used.children_system


def test_help_answers_in_half_a_second() -> None:
    """Median of five, warm; of the processor, as others may use it too."""
    seconds = []
    for _ in range(6):
        start = children_seconds()
        subprocess.run(
            [sys.executable, "-m", "nerfcli", "--help"],
            env=nerf_environment(),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds.append(children_seconds() - start)
    assert statistics.median(seconds[1:]) < 0.5


def asserts_something(function: ast.FunctionDef | ast.AsyncFunctionDef, helpers: set[str]) -> bool:
    """An assert statement, pytest.raises/fail, a numpy/torch assert_*, or a helper that has one."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Attribute) and (
            node.attr in ("raises", "fail") or node.attr.startswith("assert_")
        ):
            return True
        if isinstance(node, ast.Name) and (node.id in helpers or node.id.startswith("assert_")):
            return True
    return False


def functions_of(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda p: p.stem)
def test_every_test_asserts_something(path: Path) -> None:
    functions = functions_of(ast.parse(path.read_text(encoding="utf-8")))
    helpers = {
        f.name for f in functions if not f.name.startswith("test") and asserts_something(f, set())
    }
    idle = [
        f.name for f in functions if f.name.startswith("test") and not asserts_something(f, helpers)
    ]
    assert not idle
