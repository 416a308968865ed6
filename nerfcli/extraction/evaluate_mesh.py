"""Compare the mesh of a run with a true shape (`nerf eval --geometry`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note, Progress
from nerfcli.engine.runs import Run
from nerfcli.extraction.export import default_out, run_mesh, sidecar_of
from nerfcli.shapes.compare import CompareOptions, compare_shapes
from nerfcli.shapes.mesh_files import load_shape
from nerfcli.shapes.types import Shape

RADIUS_PLACE = 1  # of compare.RADIUS_SHARES: one percent of the diagonal of the truth's box


def load_truth(path: Path, note: Note) -> Shape:
    """Load the true shape; errors are those of `load_shape` and name --geometry."""
    try:
        return load_shape(path, note)
    except NerfError as error:
        raise NerfError(f"--geometry: {error}") from error


def mesh_files(run: Run, out: Path | None) -> list[Path]:
    """List the files that `evaluate_mesh` may write."""
    mesh = default_out(run, "mesh")
    place = mesh if out is None else out / mesh.name
    return [place, sidecar_of(place)]


def evaluate_mesh(
    run: Run, truth: Shape, name: str, out: Path | None, *, backend: str, progress: Progress
) -> dict[str, Any]:
    """Measure the run's mesh (default export) against the truth, in one frame and unit.

    out: a folder for the mesh, where it is not exported yet; None: the run's exports/.

    Returns:
        f_score at 1 % of the truth's diagonal, iou (None if the truth has no inside), chamfer
        (mean of both directions, not squared), chamfer_percent (of the diagonal), the result of
        `nerf compare` as `compare`, and the settings of the mesh as `mesh`.

    Raises:
        NerfError: an empty field, or a degenerate truth.
    """
    mesh, made = run_mesh(run, backend, progress, out)
    progress.note("measuring the mesh against the truth")
    found = compare_shapes(mesh, truth, CompareOptions(), ("the run's mesh", name), progress.note)
    volume = found["volume"]
    return {
        "truth": name,
        "f_score": found["f_scores"][RADIUS_PLACE]["f_score"],
        "iou": None if volume is None else volume["iou"],
        "chamfer": found["chamfer"]["mean"],
        "chamfer_percent": 100.0 * found["chamfer"]["mean"] / found["diagonal"],
        "normal_consistency": found["normal_consistency"],
        "mesh": {key: made.get(key) for key in ("threshold", "resolution", "vertices", "faces")},
        "compare": found,
    }
