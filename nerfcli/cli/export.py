"""nerf export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.export_options import ensure_useful
from nerfcli.cli.hints import SHAPES
from nerfcli.cli.options import (
    Backend,
    CropText,
    Device,
    Json,
    Overwrite,
    ProgressKind,
    Quiet,
    ensure_device,
    open_run,
    progress_kind,
)
from nerfcli.cli.output import show
from nerfcli.cli.output_paths import (
    NAME_ANOTHER,
    ensure_absent,
    ensure_own_folder,
    first_free,
)
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.files import ensure_writable
from nerfcli.core.progress import Progress
from nerfcli.core.text import quantity


def export(
    thing: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run folder, or a shape file; the newest run under runs/ if left out.",
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="mesh, points, voxels, sdf, splats, mpi, views or cameras."
        ),
    ] = "mesh",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Meshes .ply .obj .glb .stl, points .ply, voxels .npz .binvox, sdf .npz, "
            "splats .ply .splat .spz; a folder for mpi, views and cameras. "
            "[default: <run>/exports/<kind>]",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Cells along the longest side. [default: 256 for a mesh, else 128]"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SIGMA",
            help="Density of the surface, per unit of the source. [default: from the opacity of "
            "the training views]",
        ),
    ] = None,
    fill: Annotated[
        bool,
        typer.Option("--fill/--no-fill", help="Fill hollows that no light reaches."),
    ] = True,
    faces: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Thin the mesh to about N faces; needs pip install 'nerfcli[mesh]'."
        ),
    ] = None,
    texture: Annotated[
        int,
        typer.Option(
            metavar="N", help="Bake a texture of N x N; needs nerfcli[mesh]. 0: vertex colours."
        ),
    ] = 0,
    fit: Annotated[
        bool, typer.Option("--fit", help="Move even triangles onto the surface (mesh only).")
    ] = False,
    points: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many points, or splats. [default: 500000 points, 100000 splats]"
        ),
    ] = None,
    fit_steps: Annotated[
        int, typer.Option(metavar="N", help="Of splats, towards the field's views. 0: none.")
    ] = 120,
    view: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|N", help="Camera of an mpi: an image's name, or a training view's number."
        ),
    ] = None,
    planes: Annotated[int, typer.Option(metavar="N", help="Planes of an mpi.")] = 32,
    views: Annotated[int, typer.Option(metavar="N", help="Views on the sphere.")] = 64,
    scale: Annotated[
        float, typer.Option(metavar="S", help="Of width and height, for mpi and views.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the choice of points.")] = 0,
    crop: CropText = None,
    backend: Backend = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Turn a run, or a shape file, into another representation.

    Everything is in the source's own frame and units; a JSON beside it says how it was made.

    \b
    Examples:
      nerf export
      nerf export runs/chair-1 --to mesh --faces 50000 --texture 2048 --out chair.glb
      nerf export --to points --crop=-2,-2,0,2,2,3 --out room.ply
      nerf export mesh.ply --to sdf --resolution 64 --out sdf.npz
    """
    from nerfcli.shapes.convert_shape import ExportOptions

    options = ExportOptions(
        to,
        resolution,
        threshold,
        fill,
        faces,
        texture,
        fit,
        points,
        view,
        planes,
        views,
        scale,
        seed,
        fit_steps,
        crop,
    )
    ensure_device(device)
    ensure_useful(options, of_file=thing is not None and thing.is_file())
    kind = progress_kind(progress, quiet)
    with Progress(kind, None, "step", "export") as reporter:
        if thing is not None and thing.is_file():
            value = _file(thing, out, options, overwrite, reporter)
        else:
            value = _run(thing, out, options, backend, device, overwrite, quiet, reporter)
    show(_summary(value), value, as_json)
    return 0


def _file(
    path: Path, out: Path | None, options: Any, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    from nerfcli.shapes.convert_shape import FOLDERS, export_file

    if out is None:
        raise NerfError(f"--out is missing: where should the {options.to} made from {path} go?")
    if options.to not in FOLDERS:  # which a file cannot give: the message names what it can
        ensure_free_place(out, options.to, overwrite=overwrite)
    return export_file(path, out, options, progress)


def _run(
    path: Path | None,
    out: Path | None,
    options: Any,
    backend: str,
    device: str,
    overwrite: bool,
    quiet: bool,
    progress: Progress,
) -> dict[str, Any]:
    if path is not None and not path.exists() and path.suffix.lower() in (*SHAPES, ".npz"):
        raise NerfError(f"no such shape file: {path}.")
    run = open_run(path, quiet=quiet).using(backend=backend, device=device)
    from nerfcli.extraction.export import default_out, export_run

    textured = options.texture > 0
    if out is not None:
        ensure_free_place(out, options.to, textured=textured, overwrite=overwrite)
    else:
        out = default_out(run, options.to)
        if not overwrite:
            out = first_free(
                out, lambda path: any(p.exists() for p in _places(path, options.to, textured))
            )
        ensure_writable(out, NAME_ANOTHER)
    photos = _photos(run, progress) if options.to == "splats" else None
    return export_run(run, out, options, backend, progress, photos)


def _photos(run: Any, progress: Progress) -> Any:
    """The run's scene with its photos; None where they are not found."""
    from nerfcli.cli.image_source import recorded_path, scene_of_run

    try:
        return scene_of_run(run, recorded_path(run))
    except NerfError as error:
        progress.note(f"splats are compared with the field's renderings: {error}")
        return None


def ensure_free_place(out: Path, to: str, *, textured: bool = False, overwrite: bool) -> None:
    """Raise NerfError where --out cannot hold that kind, or would replace what is there."""
    from nerfcli.shapes.convert_shape import FOLDERS, SIDECAR, SUFFIXES

    ensure_writable(out)
    if to in FOLDERS:
        if out.is_file() or out.suffix:
            raise NerfError(f"--out {out}: {to} needs a folder.")
        ensure_own_folder(out, [SIDECAR])
    elif out.suffix.lower() not in SUFFIXES[to]:
        known = " or ".join(SUFFIXES[to])
        raise NerfError(
            f"--out {out}: {to} cannot be written as {out.suffix or 'that'!r}; choose {known}."
        )
    if out.suffix.lower() == ".spz":
        ensure_installed("gsply", "a .spz file")
    ensure_absent(_places(out, to, textured), overwrite=overwrite)


def _places(out: Path, to: str, textured: bool) -> list[Path]:
    """The files by which an export to `out` is known, each of which it would replace."""
    from nerfcli.shapes.convert_shape import FOLDERS, SIDECAR, sidecar_of

    if to in FOLDERS:
        return [out / SIDECAR]
    beside = [out.with_suffix(s) for s in (".mtl", ".png")] if textured else []
    return [out, sidecar_of(out), *(beside if out.suffix.lower() == ".obj" else [])]


def _summary(value: dict[str, Any]) -> str:
    keys = ("vertices", "faces", "points", "splats", "shape", "views", "planes", "cameras")
    parts = []
    for key in keys:
        if key in value and not isinstance(value[key], bool):
            number = value[key]
            text = " x ".join(map(str, number)) if isinstance(number, list) else f"{number:,}"
            parts.append(text if key == "shape" else f"{text} {key}")
    lines = [f"{value['to']}: {', '.join(parts)}"]
    if value["to"] == "splats":
        lines.append(f"{value['score']}; {value['bytes'] / 1e6:.1f} MB")
    if value.get("threshold") is not None:
        lines.append(f"surface at density {value['threshold']:.4g} per unit of the source")
    lines += [f"warning: {doubt}" for doubt in value.get("doubts", ())]
    if value.get("non_manifold_edges"):
        edges = quantity(value["non_manifold_edges"], "edge")
        lines.append(f"not watertight for every program: more than two faces meet at {edges}")
    lines += [f"lost: {lost['what']}: {lost['detail']}" for lost in value.get("lost", ())]
    files = value["files"]
    lines += files if len(files) <= 4 else [files[0], f"and {len(files) - 1} more files beside it"]
    return "\n".join(lines)
