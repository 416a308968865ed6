"""nerf help."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def help(
    context: typer.Context,
    verb: Annotated[
        str | None, typer.Argument(metavar="VERB", help="A command; all of them if left out.")
    ] = None,
) -> int:
    """Show the help of a command, as --help does.

    \b
    Example:
      nerf help train
    """
    top: Any = context.parent
    words = ["--help"] if verb is None else [verb, "--help"]
    top.command.main(words, prog_name=top.info_name, standalone_mode=False)
    return 0
