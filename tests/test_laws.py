"""Laws that the tree must keep; docs/architecture.md says why."""

from __future__ import annotations

import ast
import importlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, nerf_environment

PACKAGE = ROOT / "nerfcli"
MAX_LINES = 300

# A file may import only files above it. "nerfcli" and "x" of a package x/ are their __init__.py.
FLOORS = {
    "words": "errors files memory progress config settings nerfcli",
    "things": """
        devices rays lens_models lens_inverse lenses boxes cameras images
        scenes.scene scenes.keys scenes.source scenes.folders scenes.intrinsics scenes.ngp_box
        scenes.points scenes.extent scenes.build scenes.views scenes.held_out
        scenes.colmap_cameras scenes.colmap_model scenes.colmap_binary scenes.colmap_text
        scenes.losses scenes.transforms scenes.blender scenes.colmap scenes.llff scenes
        scenes.transforms_export scenes.colmap_export scenes.convert scenes.hull
        splines paths""",
    "the mathematics": "encoding mlp radiance sampling volume losses step adam",
    "the same, faster": """
        backends.ops backends.hosted backends.ops_torch
        backends.cpu backends.cpu.build_kernels backends.cpu.library backends.cpu.views
        backends.cpu.autograd backends.ops_cpu
        backends.triton.launch backends.triton.triton_adam backends.triton.triton_encoding
        backends.triton.triton_harmonics backends.triton.triton_mlp
        backends.triton.triton_radiance backends.triton.triton_packed
        backends.triton.triton_sampling backends.triton.triton_volume backends.triton.triton_losses
        backends.triton.triton_step backends.triton.triton_render backends.triton.triton_batch
        backends.triton
        backends.triton_host backends.ops_triton backends.ops_tcnn backends.selfcheck
        backends.verdicts backends""",
    "what is learned": "occupancy classic field checkpoints runs",
    "what is done with it": """
        metrics video schedule resolve trainers graph_trainer train render evaluate
        geometry.shapes geometry.topology geometry.sampling geometry.surface geometry.grid_files
        geometry.files geometry.distance geometry.align geometry.inside geometry.volume
        geometry.metrics geometry.compare geometry.losses geometry.remesh geometry.targets
        geometry.fit
        geometry.field_source geometry.visibility geometry.extract geometry.cubes geometry.clean
        geometry.raster geometry.bake geometry.textured_files geometry.simplify
        geometry.grids geometry.cloud geometry.mpi geometry.mpi_page geometry.multiview
        geometry.export geometry.export_run geometry.judge geometry
        check.features check.witness check.epipolar check.alternatives check.report check.poses
        check.strays check.gather check.verdict check.photos check.space check.scene_check
        check.picture check.correct check.quick check
        prepare.photos prepare.frames prepare.motion prepare.place prepare.wish prepare.capture
        prepare""",
    "doors": """
        bench.clock bench.parity bench.kernels bench.training bench.gpu_report bench.gpu_measures
        bench.gpu_classic bench.gpu_peers bench.gpu bench
        cli.output cli.options cli.sources cli.jobs cli.work cli.train cli.render cli.eval
        cli.export cli.compare cli.convert cli.check cli.prepare cli.info cli.bench_gpu
        cli.bench cli
        __main__""",
}
ORDER: list[str] = [name for names in FLOORS.values() for name in names.split()]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "nerfcli"


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file names in any import statement, lazy ones included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import"
            source = node.module or ""
            submodules = [f"{source}.{a.name}".removeprefix("nerfcli.") for a in node.names]
            inner = [f"nerfcli.{name}" for name in submodules if name in known]
            names = inner if len(inner) == len(node.names) else [source, *inner]
        else:
            continue
        ours = [name for name in names if name.split(".")[0] == "nerfcli"]
        found |= {name.removeprefix("nerfcli.") for name in ours}
    return found


def test_the_order_lists_the_tree_and_nothing_else() -> None:
    assert len(set(ORDER)) == len(ORDER)
    missing, gone = set(modules()) - set(ORDER), set(ORDER) - set(modules())
    assert not missing and not gone, f"FLOORS lacks {sorted(missing)}, lists {sorted(gone)} in vain"


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_file_imports_only_files_above_it(name: str) -> None:
    assert name in ORDER, f"{name} has no place in FLOORS yet"
    above = set(ORDER[: ORDER.index(name)])
    below = imported(modules()[name], set(ORDER)) - above - {name}
    assert not below, f"{name} imports {sorted(below)}, which the order puts below it"


def test_the_first_floor_knows_only_the_standard_library() -> None:
    floor = ORDER[: ORDER.index("nerfcli") + 1]
    allowed = set(sys.stdlib_module_names) | {"nerfcli", "__future__"}
    lazy = {("settings", "tomli_w"), ("progress", "tqdm")}  # inside the function that needs it
    for name in floor:
        for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                top = (source or "").split(".")[0]
                assert top in allowed or (name, top) in lazy, f"{name} imports {top}"


def test_no_file_above_300_lines() -> None:
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
        "public = {n for n in names if not n.startswith('_')} | {'__version__'}\n"
        "assert public == set(nerfcli.__all__), public ^ set(nerfcli.__all__)\n"
        "assert sorted(nerfcli.__all__) == nerfcli.__all__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=nerf_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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


def test_help_answers_in_half_a_second() -> None:
    """Median of five, warm."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "nerfcli", "--help"],
            env=nerf_environment(),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds.append(time.perf_counter() - start)
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


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=lambda p: p.stem)
def test_every_test_asserts_something(path: Path) -> None:
    functions = functions_of(ast.parse(path.read_text(encoding="utf-8")))
    helpers = {
        f.name for f in functions if not f.name.startswith("test") and asserts_something(f, set())
    }
    idle = [
        f.name for f in functions if f.name.startswith("test") and not asserts_something(f, helpers)
    ]
    assert not idle
