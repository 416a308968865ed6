"""Several processes render one path: each a share of its frames, and the first the files."""

from __future__ import annotations

from dataclasses import replace

from nerfcli.cameras.cameras import Cameras
from nerfcli.core.distributed import World
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.engine.render import Model
from nerfcli.engine.render_files import Output, Shard
from nerfcli.engine.render_path import render_path
from nerfcli.engine.runs import Run


def render_together(
    run: Run,
    cameras: Cameras,
    output: Output,
    *,
    model: Model,
    remark: str = "",
    progress: Progress,
    stop: StopSignal,
    world: World,
) -> dict:
    """`render_path` by all processes of a world.

    Returns:
        As `render_path`, of all frames; of processes but the first only what they did.
    """
    if world.is_alone or output.shard is not None:
        return render_path(
            run, cameras, output, model=model, remark=remark, progress=progress, stop=stop
        )
    mine = replace(output, shard=Shard(world.rank + 1, world.size, finishes=False))
    part = render_path(run, cameras, mine, model=model, remark=remark, progress=progress, stop=stop)
    n_rendered = sum(world.gather_objects(part["n_frames"] - part["n_kept"]))
    stop.received = world.agree(0.0, [stop.received or 0])[1][0] or None
    if not world.is_first:
        return part
    whole = render_path(run, cameras, output, model=model, progress=progress, stop=stop)
    seconds = part["seconds"] + whole["seconds"]
    return whole | {
        "n_kept": max(whole["n_frames"] - n_rendered, 0),
        "seconds": round(seconds, 3),
        "seconds_per_frame": round(seconds / max(n_rendered, 1), 4),
        "expected_seconds": part["expected_seconds"],
    }
