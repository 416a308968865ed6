"""What a longer run would gain, and the command for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nerfcli.core.config import Config
from nerfcli.core.text import command, duration, quantity

LONGER_MINUTES = 10  # of the command that is named after a run of the default length
GOOD_DB = 30.0  # PSNR from which a short run says nothing of more time
# A test holds docs/benchmarks.md to these.
LEGO_DB = ((1, 30.85), (3, 33.39))  # minutes, dB: an object
BONSAI_DB = ((1600, 24.17), (3000, 24.72))  # steps, dB: a place


def more_time(value: dict[str, Any], config: Config, *, default_length: bool) -> str:
    """Say what a longer run gains and name the command; "" where it gains little.

    A run that is shorter than the default length of its method is likely poor, unless its PSNR
    shows otherwise.

    Args:
        value: the summary of the run.
        default_length: the user left the length to us.
    """
    from nerfcli.engine.resolve import DEFAULT_MINUTES
    from nerfcli.methods import method_of

    method = method_of(config)
    usual = method.length * DEFAULT_MINUTES
    if default_length:
        gain = _place_gain() if method.is_unbounded else _object_gain()
        return f"more time gives a sharper field: {gain}\n{_go_on(value, LONGER_MINUTES)}"
    measured = (value["held_out"] or {}).get("psnr") or value["psnr"]
    if value["seconds"] >= 60 * usual or measured >= GOOD_DB:
        return ""
    what = "a place" if method.is_unbounded else "an object"
    return (
        f"a short run: it had {duration(value['seconds'])} of the {quantity(usual, 'minute')} that "
        f"{what} gets by default,\nso pictures may be smeared. {_go_on(value, usual)}"
    )


def _object_gain() -> str:
    (short, before), (long, after) = LEGO_DB
    return (
        f"on the 400x400 lego of docs/benchmarks.md, {long} minutes\nreached "
        f"{after - before:.1f} dB more than {short}."
    )


def _place_gain() -> str:
    (short, before), (long, after) = BONSAI_DB
    return (
        f"on the bonsai of docs/benchmarks.md, {long} steps\nreached {after - before:.2g} dB more "
        f"than {short}, and details show first."
    )


def _go_on(value: dict[str, Any], minutes: float) -> str:
    words = command("nerf train --resume", Path(value["run"]), f"--minutes {minutes:g}")
    return f"Go on to {quantity(minutes, 'minute')} in all: {words}"
