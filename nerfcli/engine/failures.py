"""Errors that end a training run."""

from __future__ import annotations

from nerfcli.core.config import known
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.engine.runs import Run


def nothing_met(step: int) -> NerfError:
    return NerfError(
        f"nothing to learn from: no ray meets an occupied cell (by step {step}). Do box, near and "
        "far hold what the cameras see? Ask `nerf check`, or state another half size of the box, "
        "--set scene.box=2."
    )


def not_saved(run: Run, error: CannotWrite) -> NerfError:
    if not run.has_checkpoint:
        return NerfError(f"{error} Nothing is saved of this run.")
    return NerfError(
        f"{error} The checkpoint of step {run.step} is intact; make room and go on with --resume."
    )


def diverged(run: Run, step: int, how: str) -> NerfError:
    kept = "The last checkpoint is kept in" if run.has_checkpoint else "Nothing is saved in"
    return NerfError(
        f"training diverged again by step {step}: {how}. {kept} {run.path}; "
        f"try a lower rate, e.g. --set train.lr={known(run.config.train.lr) / 3:.2g}."
    )
