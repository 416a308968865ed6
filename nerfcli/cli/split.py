"""nerf split."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from nerfcli.cli.hints import ensure_scene
from nerfcli.cli.options import (
    Images,
    Json,
    ProgressKind,
    Quiet,
    SkipBadFrames,
    progress_kind,
    scene_config,
)
from nerfcli.cli.output import show
from nerfcli.cli.output_paths import ensure_new_folder
from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing_folder, write_json
from nerfcli.core.progress import Progress
from nerfcli.core.text import quantity

RECORD = "blocks.json"  # in the new folder; engine/blocks.py reads it
FORMAT = 1  # of that file


def split(
    scene: Annotated[
        Path, typer.Argument(metavar="SCENE", help="A folder of posed photos in any format.")
    ],
    blocks: Annotated[int, typer.Option(metavar="N", help="How many blocks to cut it into.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    overlap: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="Share of each side's cameras, those nearest to a cut, that the other side has "
            "too.",
        ),
    ] = 0.2,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the images, in place of symbolic links.")
    ] = False,
    images: Images = None,
    skip_bad_frames: SkipBadFrames = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier split made.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    progress: ProgressKind = "auto",
) -> int:
    """Cut a large capture into overlapping blocks, to be trained one by one or on many machines.

    The blocks are cut by where the cameras stand, and are scenes of their own: train each as a run
    in DIR/runs, then `nerf render --blocks DIR` shows them as one. A view that one block holds out
    is held out by all.

    \b
    Examples:
      nerf split campus/ --blocks 4 --out campus-blocks/
      nerf train campus-blocks/block-1 --out campus-blocks/runs/block-1
      nerf render --blocks campus-blocks/
    """
    import numpy as np

    from nerfcli.scenes import read_source
    from nerfcli.scenes.blocks import cut_by_cameras, source_of_block
    from nerfcli.scenes.writers.convert import WriteOptions, plan_scene, write_scene

    kind = progress_kind(progress, quiet)
    ensure_scene(scene, "split")
    ensure_new_folder(out, scene, [RECORD], overwrite=overwrite)
    if (out / "runs").is_dir() and any((out / "runs").iterdir()):
        raise NerfError(
            f"--overwrite: {out / 'runs'} holds runs of the blocks that were there; move them "
            "away, or choose another --out."
        )
    source = read_source(scene, scene_config(images, skip_bad_frames))
    centers = np.array([frame.c2w[:, 3] for frame in source.frames])
    cut = cut_by_cameras(centers, blocks, overlap)
    options = WriteOptions("transforms", link=not copy)
    rows, notes = [], set(source.notes)
    with (
        Progress(kind, sum(len(b.frames) for b in cut), "image", "split") as told,
        replacing_folder(out) as aside,
    ):
        done = 0
        for number, block in enumerate(cut, start=1):
            name = f"block-{number}"
            part = source_of_block(source, block, name)
            plan = plan_scene(part, options)
            notes.update(f"lost: {item.what}: {item.detail}" for item in plan.lost)
            (aside / name).mkdir()
            before = done
            write_scene(part, aside / name, options, lambda n, b=before: told.update(b + n), plan)
            done += len(part.frames)
            held_out = sum((f.split or "train") != "train" for f in part.frames)
            rows.append(
                {
                    "name": name,
                    "views": len(part.frames) - held_out,
                    "held_out": held_out,
                    "core": centers[list(block.core)].tolist(),
                }
            )
        (aside / "runs").mkdir()
        write_json(aside / RECORD, {"format": FORMAT, "scene": source.name, "blocks": rows})
    listed = [{key: row[key] for key in ("name", "views", "held_out")} for row in rows]
    value: dict[str, Any] = {"scene": str(scene), "out": str(out), "blocks": listed}
    value["notes"] = sorted(notes)
    show(_summary(value), value, as_json)
    return 0


def _summary(value: dict[str, Any]) -> str:
    out = shlex.quote(value["out"])
    lines = [f"{value['out']}: {quantity(len(value['blocks']), 'block')} of {value['scene']}"]
    for row in value["blocks"]:
        views = f"{row['views']} views to train on, {row['held_out']} held out"
        lines.append(f"{row['name']}: {views}")
    lines += value["notes"]
    lines.append(
        f"next: for each block nerf train {out}/block-1 --out {out}/runs/block-1\n"
        f"then: nerf render --blocks {out}"
    )
    return "\n".join(lines)
