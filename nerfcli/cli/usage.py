"""Messages on a command line that typer cannot read: what is wrong, and what was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_type_hints

from nerfcli.core.text import most_like

# flags of other programs, by what they are called here where a command has it
MEANT = {
    "--steps": "iters iterations num-iters num-iterations max-iters max-steps max-iterations epochs"
    " n-iters num-steps",
    "--minutes": "time duration budget max-minutes",
    "--device": "gpu gpus cuda cpu gpu-id",
    "--out": "output output-dir out-dir outdir output-path save-dir save-path exp-name destination",
    "--overwrite": "force clobber replace",
    "--quiet": "silent no-progress",
    "--downscale": "factor downsample downscale-factor downsample-factor res-scale",
    "--frames": "n-frames num-frames length",
    "--scale": "size width height resolution-scale",
    "--to": "format type kind target",
    "--resume": "continue restart load checkpoint ckpt load-dir",
    "--images": "image-dir image-path images-path photos",
    "--preset": "profile",
    "--config": "config-file conf cfg",
    "--method": "model network arch",
    "--target-psnr": "psnr target",
    "--path": "trajectory camera-path traj",
    "--faces": "decimate target-faces simplify",
    "--resolution": "res grid-resolution mc-resolution voxel-resolution",
    "--seed": "random-seed",
    "--set train.lr=RATE": "lr learning-rate",
}
KINDS = {"float": "a number", "int": "a whole number"}  # by what an annotation holds


def usage_message(error: Any, words: Sequence[str]) -> str:
    """The message, with the flag that was meant if there is one, and where help is."""
    context = error.ctx
    path = context.command_path if context else " ".join(["nerf", *_verb(words)])
    wrong = getattr(error, "option_name", None)
    if wrong and context is not None:
        message = f"{error.message.split(wrong)[0]}{wrong}"
        flags = [f for p in context.command.params for f in (*p.opts, *p.secondary_opts)]
        near = meant(wrong, [flag for flag in flags if flag.startswith("--")])
        message += f". Did you mean {near}?" if near else "."
    elif (missing := _missing_flag(error)) is not None:
        message = missing
    else:
        message = _wrong_type(error, words) or error.format_message().rstrip(".")
        message += "" if message.endswith("?") else "."
    return f"{message} See {path} --help."


def meant(wrong: str, flags: Sequence[str]) -> str | None:
    """The flag among these that `wrong` most likely stands for; None where none is like it."""
    synonyms = [flag for flag, others in MEANT.items() if wrong.lstrip("-") in others.split()]
    if here := [flag for flag in synonyms if flag.partition(" ")[0] in flags]:
        return here[0]
    bare = {flag.lstrip("-"): flag for flag in flags}
    word = wrong.lstrip("-")
    begun = next((name for name in bare if len(word) > 2 and name.startswith(word)), None)
    near = begun or most_like(word, bare)
    return bare[near] if near else None


def _verb(words: Sequence[str]) -> Sequence[str]:
    """The verb, before its flags; some of typer's errors do not name it."""
    return [] if not words or words[0].startswith("-") else words[:1]


def _missing_flag(error: Any) -> str | None:
    """Say which flag a command lacks, and what it is; None for errors of other kinds."""
    parameter = getattr(error, "param", None)
    if type(error).__name__ != "MissingParameter" or parameter is None:
        return None
    if not parameter.opts or not parameter.opts[0].startswith("-"):
        return None
    help_text = (getattr(parameter, "help", None) or "").rstrip(".")
    return f"{parameter.opts[0]} is missing: {help_text[:1].lower()}{help_text[1:]}."


def _wrong_type(error: Any, words: Sequence[str]) -> str | None:
    """Say which value of which flag is of the wrong type; None for errors of other kinds."""
    parameter, context = getattr(error, "param", None), error.ctx
    callback = context.command.callback if context else None
    if parameter is None or callback is None:
        return None
    hint = str(get_type_hints(callback).get(parameter.name, ""))
    kind = next((kind for name, kind in KINDS.items() if name in hint), None)
    if kind is None:
        return None
    for flag in parameter.opts:
        for word, value in zip(words, [*words[1:], ""], strict=True):
            if word.startswith(f"{flag}="):
                value = word.partition("=")[2]
            elif word != flag:
                continue
            if not _fits(value, kind):
                return f"{flag} must be {kind}, got {value!r}"
    return None


def _fits(value: str, kind: str) -> bool:
    try:
        int(value) if kind == "a whole number" else float(value)
    except ValueError:
        return False
    return True
