"""The command line: one module per verb, and what they share.

A command returns its exit code. 0 done; 1 a bug of ours, with a traceback; 2 bad usage or bad
input; 3 finished, but what was asked for was not met; 75 stopped by SIGTERM, training saved and
nothing half-written; 130 stopped by Ctrl-C, likewise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from signal import SIG_IGN, SIGINT, Signals, signal
from typing import Annotated

import typer

from nerfcli.cli import (
    bench,
    check,
    compare,
    convert,
    eval,
    export,
    help,
    info,
    prepare,
    render,
    runs,
    split,
    train,
    view,
)
from nerfcli.cli.output import ensure_streams, fail, stop_code
from nerfcli.cli.usage import usage_message
from nerfcli.core.distributed import joined
from nerfcli.core.errors import NerfError
from nerfcli.core.files import refusal
from nerfcli.core.signals import STOPS, Interrupted, Interruption, interruptible

# its home differs between versions of typer
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
TEXTS = {"-h", "--help", "-V", "--version"}  # flags that print something and do nothing else

app = typer.Typer(
    name="nerf",
    help="Posed photos to radiance fields, and fields to videos and numbers.",
    epilog="Example: nerf train scene/ && nerf render && nerf eval. Results go to stdout, "
    "progress to stderr.",
    context_settings=HELP_NAMES,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text: the same on a terminal, in a file and in docs/cli.md
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from nerfcli import __version__

        print(f"nerf {__version__}", flush=True)
        raise typer.Exit()


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option(
            *("--version", "-V"),
            is_eager=True,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """The flags before the verb."""


COMMANDS = (
    train.train,
    render.render,
    eval.eval,
    view.view,
    export.export,
    compare.compare,
    prepare.prepare,
    check.check,
    convert.convert,
    split.split,
    runs.runs,
    info.info,
    bench.bench,
    help.help,
)
for command in COMMANDS:
    app.command(context_settings=HELP_NAMES)(command)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    ensure_streams()
    words = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in words
    interruption = Interruption()
    try:
        with interruptible() as interruption, joined():
            code = app(words, prog_name="nerf", standalone_mode=False, obj=words)
    except (Exception, Interrupted) as error:
        # whatever fails after a signal, fails because of it
        number = error.number if isinstance(error, Interrupted) else interruption.received
        if number is None:
            code = _explain(error, words)
        else:
            name = "Ctrl-C" if number == SIGINT else Signals(number).name
            fail(f"stopped by {name}; nothing half-written is left.", as_json)
            code = stop_code(number)
            if args is None:  # threads of a library may still work on what would be taken down
                os._exit(code or 1)
    if args is None:  # the work is done, and the code says how; a signal may not replace it now
        for number in STOPS:
            signal(number, SIG_IGN)
    sys.exit(code or 0)


def _explain(error: BaseException, words: Sequence[str]) -> int:
    """Say what is wrong with a command; give the exit code. Raises what is a bug of ours."""
    as_json = "--json" in words
    if isinstance(error, NerfError):
        return fail(str(error), as_json)
    if isinstance(error, UsageError):
        if words:
            return fail(usage_message(error, words), as_json)
        print(error)  # the help, for someone who typed just `nerf`
        return 2
    message = refusal(error) if isinstance(error, OSError) else None
    prints = words[:1] == ["help"] or not TEXTS.isdisjoint(words)
    if isinstance(error, OSError) and prints and error.filename is None:
        message = f"stdout cannot be written to: {error.strerror}."  # no file is written
    if message is None:
        raise error
    return fail(message, as_json)
