"""nerf bench --suite gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli.output import NOT_MET, show, stop_code
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal

GO_ON = 75  # everything is saved; the same command goes on
SLOT_MINUTES = 9.5  # of a slot of ten
GpuOut = Annotated[
    Path, typer.Option(metavar="FOLDER", help="For --suite gpu: gpu.md, gpu.json and its runs.")
]
Slot = Annotated[
    float,
    typer.Option(
        metavar="MINUTES", help="For --suite gpu: sections that would take longer are left."
    ),
]


def bench_gpu(
    scene: Path,
    out: Path,
    wanted: tuple[str, ...],
    *,
    slot: float,
    quick: bool,
    kind: str,
    as_json: bool,
) -> int:
    """Go on with the benchmark in `out`; exit code 75 while sections are left for another slot."""
    if not slot > 0:
        raise NerfError(f"--slot must be above 0 minutes, got {slot:g}.")
    if not scene.is_dir():
        raise NerfError(f"{scene}: no such folder; name a scene.")
    from nerfcli.bench.gpu import REPORT, failed, gpu_bench, left

    with Progress(kind, None, "section", "bench") as reporter, StopSignal() as stop:
        state = gpu_bench(
            scene, out, quick=quick, wanted=wanted, minutes=slot, note=reporter.note, stop=stop
        )
    rest, wrong = left(state), failed(state)
    text = (out / REPORT).read_text(encoding="utf-8")
    if rest:
        text += f"\n{len(rest)} sections are left: run the same command again."
    show(text, {**state, "left": rest, "failed": wrong}, as_json)
    code = stop_code(stop.received)
    if code is not None:
        return code
    return GO_ON if rest else (NOT_MET if wrong else 0)
