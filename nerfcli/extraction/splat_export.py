"""Export Gaussian splats of a run (`nerf export --to splats`): make, fit, write, and score them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.extraction.point_cloud import ALL_VIEWS_POINTS
from nerfcli.extraction.source_field import SourceField
from nerfcli.extraction.splat_fit import describe_score, fit_splats, score_splats
from nerfcli.extraction.splats import field_splats
from nerfcli.extraction.visibility import compute_visibility
from nerfcli.scenes.scene import Scene
from nerfcli.shapes.convert_shape import ExportOptions, finish
from nerfcli.shapes.splat_files import load_splats, save_splats


def export_splats(
    source: SourceField,
    out: Path,
    options: ExportOptions,
    base: dict[str, Any],
    progress: Progress,
    photos: Scene | None,
) -> dict[str, Any]:
    """Write splats and their sidecar; return the JSON value of the command.

    What is scored is the file as it was written.

    Raises:
        NerfError: the field is empty.
    """
    model, n, seed = source.model, options.n_points, options.seed
    photos = photos if options.crop is None else None  # they show more than the crop
    with progress.another(None, "view", "look") as reporter:
        visibility = compute_visibility(source, reporter, min(1.0, n / ALL_VIEWS_POINTS))
    splats = field_splats(source, visibility, n, seed, progress)
    if options.fit_steps:
        with progress.another(options.fit_steps, "step", "fit") as reporter:
            splats = fit_splats(model, splats, options.fit_steps, seed, reporter)
    splats = splats.visible
    if not len(splats):
        raise NerfError("no splat is visible. Train longer, or look at the run with nerf render.")
    save_splats(splats, out)
    with progress.another(None, "view", "score") as reporter:
        score = score_splats(model, load_splats(out), photos, reporter)
    value = {
        "splats": len(splats),
        "bytes": out.stat().st_size,
        "box": [splats.positions.min(axis=0).tolist(), splats.positions.max(axis=0).tolist()],
        "fit_steps": options.fit_steps,
        "seed": seed,
        **score,
    }
    return finish([out], base | value | {"score": describe_score(score)})
