"""nerf bench."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nerfcli.cli.bench_gpu import SLOT_MINUTES, GpuOut, Slot, bench_gpu
from nerfcli.cli.info import machine
from nerfcli.cli.options import Json, ProgressKind, Quiet, open_run, progress_kind
from nerfcli.cli.output import NOT_MET, remark, show
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed
from nerfcli.core.progress import Progress

if TYPE_CHECKING:
    from nerfcli.backends.base import Backend
    from nerfcli.bench.clock import Effort
    from nerfcli.bench.kernels import KernelRow
    from nerfcli.bench.parity import ParityRow
    from nerfcli.bench.training import TrainingRow

DEVICE = "cpu"
WIDTH = 100  # of the tables where the output is no terminal


@dataclass
class Report:
    """What was compared and timed on one device."""

    device: str
    peak_gflops: float = 0.0
    threads: int = 0
    unavailable: dict[str, str] = field(default_factory=dict)
    parity: list[ParityRow] = field(default_factory=list)
    kernels: list[KernelRow] = field(default_factory=list)
    training: list[TrainingRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        rows = {
            name: [row.as_dict() for row in getattr(self, name)]
            for name in ("parity", "kernels", "training")
        }
        return {
            "device": self.device,
            "threads": self.threads,
            "peak_gflops": self.peak_gflops,
            "unavailable": self.unavailable,
            **rows,
        }


SUITES = ("kernels", "view", "gpu")


def bench(
    subject: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            help="For --suite view a run, for gpu a scene.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            metavar="|".join(SUITES),
            help="Backends one by one; the viewer; or all that a GPU has to show on a scene.",
        ),
    ] = "kernels",
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="One of `nerf info`; repeatable. [default: all that run here]"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One size, few repeats: a minute instead of two.")
    ] = False,
    out: GpuOut = Path("bench"),
    slot: Slot = SLOT_MINUTES,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Measure how fast the backends are on this machine.

    First each backend's outputs and gradients are compared with the reference; one that differs
    is not timed, and the exit code is 3. Then its operations are timed one by one, then whole
    training steps. Close other programs: they share the cores.

    With --suite view: pictures a second of the viewer's page while its camera moves, and how soon
    it is sharp. With --suite gpu: parity, steps, quality by seconds and frames on a GPU, in slots
    of minutes; exit code 75 says that sections are left for the next one.

    \b
    Examples:
      nerf bench --quick
      nerf bench --backend cpu --json
      nerf bench --suite view runs/chair-1
      nerf bench --suite gpu nerf_synthetic/lego --slot 8
    """
    kind = progress_kind(progress, quiet)
    if suite not in SUITES:
        raise NerfError(f"--suite {suite!r} is not known; one of {', '.join(SUITES)}.")
    if suite != "gpu" and (out != Path("bench") or slot != SLOT_MINUTES):
        raise NerfError("--out and --slot belong to --suite gpu.")
    if suite == "gpu":
        if subject is None:
            raise NerfError("--suite gpu needs a scene: nerf bench --suite gpu SCENE.")
        wanted = tuple(backend or ())
        return bench_gpu(subject, out, wanted, slot=slot, quick=quick, kind=kind, as_json=as_json)
    if suite == "view":
        return _bench_view(subject, backend or [], quick=quick, quiet=quiet, as_json=as_json)
    if subject is not None:
        raise NerfError(f"{subject}: --suite kernels takes no path; did you mean --suite view?")
    with Progress(kind, None, "timing", "bench") as reporter:
        report = measured(tuple(backend or ()), quick, reporter)
    value = {"machine": machine(), "quick": quick, **report.as_dict()}
    if as_json:
        show("", value, as_json)
    else:
        _print(report)
    return 0 if all(row.agrees for row in report.parity) else NOT_MET


def _bench_view(
    subject: Path | None, backend: list[str], *, quick: bool, quiet: bool, as_json: bool
) -> int:
    ensure_installed("viser", "nerf bench --suite view")
    if len(backend) > 1:
        raise NerfError("--suite view takes one --backend.")
    run = open_run(subject, quiet=quiet)
    from nerfcli.bench.view import view_bench

    note = (lambda _: None) if quiet else remark
    value = view_bench(run.path, backend=(backend or ["auto"])[0], quick=quick, note=note)
    (width, height), (sharp_width, sharp_height) = value["canvas"], value["sharp_size"]
    text = (
        f"{value['backend']}; a page of {width}x{height}, medians of {value['rounds']} rounds\n"
        f"moving: {value['frames_per_second']:g} pictures a second of {value['pixels']} pixels, "
        f"the first after {value['first_picture_ms']:.0f} ms\n"
        f"at rest: sharp ({sharp_width}x{sharp_height}) after {value['sharp_seconds']:.2f} s"
    )
    show(text, value, as_json)
    return 0


def measured(wanted: tuple[str, ...], quick: bool, progress: Progress) -> Report:
    """Compare, then time, the wanted backends, or all that run here.

    Raises:
        BackendUnavailable: a backend asked for by name cannot run here.
    """
    import torch

    from nerfcli.bench.clock import FULL, QUICK, measure_peak
    from nerfcli.bench.parity import parity

    report = Report(DEVICE, threads=torch.get_num_threads())
    chosen = _chosen(wanted, report)
    for name, ops in chosen:
        progress.note(f"comparing {name} with the reference")
        report.parity.append(parity(name, ops, DEVICE))
    right = {row.backend for row in report.parity if row.agrees}
    chosen = [(name, ops) for name, ops in chosen if name in right]
    if chosen:
        report.peak_gflops = measure_peak(DEVICE)
        _time(chosen, QUICK if quick else FULL, report, progress)
    return report


def _chosen(wanted: tuple[str, ...], report: Report) -> list[tuple[str, Backend]]:
    """The backends to look at, fastest first."""
    from nerfcli import backends

    for name in wanted:
        backends.select(name, DEVICE)  # raises where it cannot run
    chosen = []
    for name in backends.ORDER[DEVICE]:
        if wanted and name not in wanted:
            continue
        if reason := backends.why_unavailable(name, DEVICE):
            report.unavailable[name] = reason
        else:
            chosen.append((name, backends.select(name, DEVICE).backend))
    return chosen


def _time(
    chosen: list[tuple[str, Backend]], effort: Effort, report: Report, progress: Progress
) -> None:
    from nerfcli.bench.kernels import N_OPERATIONS, kernel_rows
    from nerfcli.bench.training import SHAPES, training_rows

    total = len(chosen) * (N_OPERATIONS * len(effort.sizes) + len(SHAPES))
    done = 0
    for name, ops in chosen:
        for row in kernel_rows(name, ops, DEVICE, effort, report.peak_gflops):
            report.kernels.append(row)
            progress.update(done := done + 1, total=total)
    progress.note("timing whole training steps")
    for row in training_rows(chosen, DEVICE, effort, report.peak_gflops):
        report.training.append(row)
        progress.update(done := done + 1, total=total)


def _print(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(
        f"{report.device}, {report.threads} threads; a float32 matrix product reaches "
        f"{report.peak_gflops:.0f} GFLOP/s"
    )
    for name, reason in report.unavailable.items():
        console.print(f"backend {name} does not run here: {reason}")
    for row in report.parity:
        verdict = "agrees with" if row.agrees else "DIFFERS from"
        console.print(
            f"backend {row.backend} {verdict} the reference: {row.compared} outputs and "
            f"gradients, relative error at most {row.error:.1e} ({row.operation}), "
            f"allowed {row.limit:.0e}",
            style=None if row.agrees else "bold red",
        )
    if report.kernels:
        console.print(_kernel_table(report.kernels))
    if report.training:
        console.print(_training_table(report.training))


def _kernel_table(rows: list[KernelRow]) -> Any:
    table = _table("operations", ("backend", "operation"))
    for name in ("samples", "ms", "spread", "M samples/s", "GFLOP/s", "of peak"):
        table.add_column(name, justify="right")
    for _, group in groupby(rows, lambda row: row.backend):
        for row in group:
            table.add_row(
                row.backend,
                row.operation,
                str(row.samples),
                f"{1e3 * row.seconds:.2f}",
                f"{row.spread:.0%}",
                f"{row.samples_per_second / 1e6:.2f}",
                "" if row.gflops is None else f"{row.gflops:.0f}",
                "" if row.peak_share is None else f"{row.peak_share:.0%}",
            )
        table.add_section()
    return table


def _training_table(rows: list[TrainingRow]) -> Any:
    table = _table("whole training steps", ("backend", "grid"))
    for name in ("rays", "samples", "ms", "spread", "M samples/s", "of peak", "x torch"):
        table.add_column(name, justify="right")
    for _, group in groupby(rows, lambda row: (row.levels, row.features)):
        for row in group:
            table.add_row(
                row.backend,
                f"{row.levels}x{row.features}, 2^{row.log2_table_size}",
                str(row.rays),
                str(row.samples),
                f"{1e3 * row.seconds:.1f}",
                f"{row.spread:.0%}",
                f"{row.samples_per_second / 1e6:.3f}",
                f"{row.peak_share:.0%}",
                "" if row.ratio_to_torch is None else f"{row.ratio_to_torch:.1f}",
            )
        table.add_section()
    return table


def _table(title: str, names: tuple[str, ...]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in names:
        table.add_column(name)
    return table
