"""nerf compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.compare_runs import (
    OF_RUNS,
    OF_SHAPES,
    are_runs,
    compare_two_runs,
    ensure_options,
)
from nerfcli.cli.options import Json, Overwrite, ProgressKind, Quiet, progress_kind
from nerfcli.cli.output import show
from nerfcli.core.progress import Progress


def compare(
    context: typer.Context,
    a: Annotated[
        Path, typer.Argument(metavar="A", help="The shape that is judged, or the first run.")
    ],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="The shape taken as the truth, or the second run.")
    ],
    samples: Annotated[
        int, typer.Option(metavar="N", help="Points on each surface, uniform by area.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the samples; the same for both.")] = 0,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            metavar="R",
            help="Of the F-score, in the files' unit; repeatable. [default: 0.5, 1 and 2 % of "
            "the diagonal of B's box]",
        ),
    ] = None,
    align: Annotated[
        str,
        typer.Option(metavar="none|similarity", help="Turn, shift and scale A onto B first."),
    ] = "none",
    voxels: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Along the longest side, for the IoU of volumes; 0: none. [default: 128 if both "
            "shapes are watertight]",
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", help="Redraws for the 95 % intervals; 0: none.")
    ] = 200,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Of two runs: test, train or val.")
    ] = "test",
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Of two runs: write a page of both.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="That page. [default: compare-<A>.html in run B]"),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Measure how close shape A is to shape B, or how run B scores against run A.

    Meshes (PLY, OBJ, GLB, STL), points (PLY), voxels and signed distances (NPZ), in any pairing
    and in one common frame and unit.

    Two runs, scored by nerf eval on the same views: the differences B - A over the views, with
    their standard error and 95 % interval, and a page that shows both beside the photos.

    \b
    Examples:
      nerf compare mesh.ply truth.obj
      nerf compare mesh.ply truth.obj --align similarity --radius 0.01 --json
      nerf compare runs/chair-1 runs/chair-2
    """
    if are_runs(a, b):
        ensure_options(context, "two runs", OF_SHAPES)
        return compare_two_runs(a, b, split, report, out, overwrite=overwrite, as_json=as_json)
    ensure_options(context, "two shapes", OF_RUNS)
    from nerfcli.shapes.compare import CompareOptions, compare_shapes
    from nerfcli.shapes.mesh_files import load_shape

    options = CompareOptions(samples, seed, tuple(radius or ()), align, voxels, bootstrap)
    with Progress(progress_kind(progress, quiet), None, "step", "compare") as reporter:
        shapes = [load_shape(path, reporter.note) for path in (a, b)]
        value = compare_shapes(shapes[0], shapes[1], options, (str(a), str(b)), reporter.note)
    show(_summary(value), value, as_json)
    return 0


def _summary(value: dict[str, Any]) -> str:
    return "\n".join(
        [
            _shape_line("A", value["a"]),
            _shape_line("B", value["b"]),
            *_setting_lines(value),
            f"{'':<22}{'A to B':>12}{'B to A':>12}{'sum':>12}{'mean':>12}",
            _row("Chamfer", value["chamfer"]),
            _row("Chamfer squared", value["chamfer_squared"]),
            _row("normal distance", value["normal_distance"]),
            f"{'':<22}{'A to B':>12}{'B to A':>12}{'max':>12}",
            _row("Hausdorff", value["hausdorff"]),
            _row("Hausdorff 95 %", value["hausdorff_95"]),
            f"{'point to surface':<22}{'mean':>12}{'rms':>12}{'95 %':>12}{'max':>12}",
            _row("  A to B", value["point_to_surface"]["a_to_b"]),
            _row("  B to A", value["point_to_surface"]["b_to_a"]),
            f"{'radius':<10}{'% of diagonal':>14}{'precision':>12}{'recall':>12}{'F':>12}",
            *(_radius_line(score, value["diagonal"]) for score in value["f_scores"]),
            *_closing_lines(value),
        ]
    )


def _shape_line(letter: str, shape: dict[str, Any]) -> str:
    if "faces" not in shape:
        return f"{letter}  {shape['name']}: {shape['points']:,} points"
    kind = "mesh" if shape["kind"] == "mesh" else f"{shape['kind']}, surface"
    return (
        f"{letter}  {shape['name']}: {kind} of {shape['vertices']:,} vertices, "
        f"{shape['faces']:,} faces"
    )


def _setting_lines(value: dict[str, Any]) -> list[str]:
    samples = value["samples"]
    lines = [
        f"samples {samples['a']:,} and {samples['b']:,}, seed {samples['seed']}; "
        f"diagonal of B {value['diagonal']:.6g}"
    ]
    if value["align"]["kind"] == "none":
        return [*lines, "not aligned"]
    return [*lines, f"A aligned to B by a similarity, scale {value['align']['scale']:.6g}"]


def _row(name: str, columns: dict[str, float] | None) -> str:
    if columns is None:
        return f"{name:<22}{'-':>12}"
    return f"{name:<22}" + "".join(f"{number:12.5g}" for number in columns.values())


def _radius_line(score: dict[str, float], diagonal: float) -> str:
    shares = "".join(f"{score[key]:12.4f}" for key in ("precision", "recall", "f_score"))
    return f"{score['radius']:<10.5g}{100 * score['radius'] / diagonal:>14.3g}{shares}"


def _closing_lines(value: dict[str, Any]) -> list[str]:
    lines = []
    if value["normal_consistency"] is not None:
        lines.append(f"normal consistency {value['normal_consistency']:.5f}")
    volume = value["volume"]
    if volume is None:
        lines.append(f"volumetric IoU: none ({value['volume_reason'].rstrip('.')})")
    else:
        size = " x ".join(map(str, volume["resolution"]))
        lines.append(
            f"volumetric IoU {volume['iou']:.5f} on {size} voxels; volumes "
            f"{volume['volume_a']:.5g} and {volume['volume_b']:.5g}"
        )
    floor = value["noise_floor"]
    if floor is not None:
        lines.append(
            f"noise floor of the sampling (B against itself, independent samples): Chamfer sum "
            f"{floor['chamfer_sum']:.4g}, Hausdorff {floor['hausdorff']:.4g}"
        )
    intervals = value["bootstrap"]
    if intervals is not None:
        low, high = intervals["chamfer_sum"]
        lines.append(
            f"95 % interval ({intervals['draws']} redraws): Chamfer sum {low:.5g} to {high:.5g}"
        )
    return lines
