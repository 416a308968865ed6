"""nerf bench --gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nerfcli.cli.output import NOT_MET, show, stop_code
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal

GO_ON = 75  # everything is saved; the same command goes on
GpuScene = Annotated[
    Path | None,
    typer.Option(
        "--gpu",
        metavar="SCENE",
        help="Everything a GPU has to show on a scene, in slots of ten minutes; --quick proves it.",
    ),
]
GpuOut = Annotated[
    Path, typer.Option(metavar="FOLDER", help="For --gpu: gpu.md, gpu.json and its runs.")
]


def bench_gpu(
    scene: Path, out: Path, wanted: tuple[str, ...], *, quick: bool, kind: str, as_json: bool
) -> int:
    """Go on with the benchmark in `out`; exit code 75 while sections are left for another slot."""
    if not scene.is_dir():
        raise NerfError(f"--gpu {scene}: no such folder; name a scene.")
    from nerfcli.bench.gpu import REPORT, failed, gpu_bench, left

    with Progress(kind, None, "section", "bench") as reporter, StopSignal() as stop:
        state = gpu_bench(scene, out, quick=quick, wanted=wanted, note=reporter.note, stop=stop)
    rest, wrong = left(state), failed(state)
    text = (out / REPORT).read_text(encoding="utf-8")
    if rest:
        text += f"\n{len(rest)} sections are left: run the same command again."
    show(text, {**state, "left": rest, "failed": wrong}, as_json)
    code = stop_code(stop.received)
    if code is not None:
        return code
    return GO_ON if rest else (NOT_MET if wrong else 0)
