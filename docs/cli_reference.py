"""Writes docs/cli.md from the program itself: python docs/cli_reference.py"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from pathlib import Path

os.environ["COLUMNS"] = "80"  # the width of every help text, wherever this runs

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from nerfcli.cli import app  # noqa: E402
from nerfcli.core import config, settings  # noqa: E402

HEAD = """\
# The command line

Written by `python docs/cli_reference.py`; a test compares it with the program.

`nerf VERB [THING] [--flags in any order]`. Results go to stdout: a summary, or exactly one JSON
object with `--json`. Progress and remarks go to stderr: a bar on a terminal, lines elsewhere,
JSON lines with `--progress json`, nothing with `--quiet`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug of ours, with a traceback |
| 2 | bad usage or bad input: one message says what, where, and what to do |
| 3 | finished, but not met: a target, a sound scene, enough registered views |
| 75 | SIGTERM, nothing half-written: `train --resume`, `prepare`, `render` go on, `eval` anew |
| 130 | stopped by Ctrl-C, likewise |

With `--json` an error is also an object on stdout, `{"error": "..."}`. The keys of each
result are in [scripting.md](scripting.md).

`nerf train SCENE --out RUN --resume` begins the run if there is none and goes on with it if there
is, so that a script may repeat it until its exit code is 0; a line says which. Another length than
the run's is taken for its new one; where that is reached, there is nothing to do (in JSON
`nothing_to_do`, and the rates are null). Another backend,
device or time between checkpoints is taken as well; any other setting than the run's is refused.

A signal before the first step of a run ends `train` at once and leaves no folder. Its summary, in
JSON `held_out`, names the mean PSNR of up to 8 held-out views, from up to 4096 pixels of each: an
estimate of what `nerf eval` measures, which takes less than 5 % of the training time. It is null
where no view is held out, and where the run was stopped. `psnr` is that of the training rays of the
last 20 steps. `box_half_size`, also among the `measures` of `nerf check`, is in source units.

Nothing is replaced without `--overwrite`, but for a run's own scores and pages: `nerf eval` writes
newer ones over `eval.json` and `report.html` (of another split, `eval-<split>.json` and
`report-<split>.html`), `nerf compare RUN RUN` over `compare-<A>.html` in the second run.
Default names count up (`orbit-2.mp4`, `mesh-2.ply`). A folder with a data set, or anything else
that `nerf` has not made there, is never written into.

Every file has the permissions that the umask gives. A run that may only be read can be rendered,
exported and evaluated with `--out`; whether a place can be written is asked before the work.
"""
SETTINGS_HEAD = """\
## Settings

For `--set table.key=value` and for TOML files (`--config`). Order: defaults, `--preset`,
`--config`, `--set`, flags; later ones win. `auto` (in a file: leave the key out) is filled in from
the scene and the device. A run's `scene.json` holds what was taken from the scene, its
`config.toml` all else. Each method has a table of its name; keys of another method are refused.
Runs and files with the tables of before (`[model]`, `[sampling]`, `[occupancy]`) are still read.

| key | default | meaning |
|---|---|---|
"""


def help_text(words: list[str]) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="nerf")
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def field_comments(table: type) -> dict[str, str]:
    """The comment behind each field of a config table, from its source."""
    found = {}
    for line in inspect.getsource(table).splitlines():
        if match := re.match(r"    (\w+): [^=]+ = [^#]+(?:# (.*))?$", line):
            found[match[1]] = match[2] or ""
    return found


def settings_table() -> str:
    comments = {"": field_comments(config.Config)}
    for name, value in vars(config.Config()).items():
        if dataclasses.is_dataclass(value):
            comments[name] = field_comments(type(value))
    rows = []
    for key, default in settings.config_values(config.Config()).items():
        table, _, leaf = key.rpartition(".")
        shown = "auto" if default is None else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        rows.append(f"| `{key}` | {shown} | {comments[table][leaf].replace('|', '/')} |")
    return SETTINGS_HEAD + "\n".join(rows) + "\n"


def presets() -> str:
    parts = ["## Presets\n"]
    for name in settings.preset_names():
        text = (settings.PRESETS / f"{name}.toml").read_text(encoding="utf-8").strip()
        parts.append(f"`--preset {name}`\n\n```toml\n{text}\n```\n")
    return "\n".join(parts)


def reference() -> str:
    verbs = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    parts = [HEAD, f"## nerf\n\n```text\n{help_text([])}\n```\n"]
    parts += [f"## nerf {verb}\n\n```text\n{help_text([verb])}\n```\n" for verb in verbs]
    return "\n".join([*parts, presets(), settings_table()])


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")
