"""Write the figures of `bench --suite gpu` as Markdown."""

from __future__ import annotations

from itertools import groupby
from typing import Any

TITLES = {
    "limits": "What the card reaches",
    "parity": "Agreement with the reference",
    "kernels": "Operations",
    "step": "Training steps",
    "classic": "Method classic",
    "quality": "Time to quality",
    "frames": "Rendering",
}
REMARKS = {
    "step": "The limit is the time of the step's bytes and arithmetic at the rates above.",
    "classic": "Loss and gradients of one batch; the gradients are compared with those in float32.",
    "quality": "Wall-clock of the steps, kernels compiled and images on the device. Set-up: "
    "reading the images, their box and hull, the field. Trained on the training views alone.",
}


def markdown(state: dict[str, Any], left: list[str]) -> str:
    """Format the whole report; name the sections that are left or failed."""
    facts = state["facts"]
    lines = [f"# nerf bench --suite gpu, {state['date']}", ""]
    if facts["quick"]:
        lines += ["**Tiny sizes (--quick): these figures measure nothing.**", ""]
    packages = ", ".join(f"{name} {v}" for name, v in facts["packages"].items() if v)
    lines += [
        f"- nerf {facts['nerf']}, commit {facts['commit'] or 'unknown'}, Python {facts['python']}",
        f"- {facts['environment']}",
        f"- CUDA {facts['cuda'] or 'none'}; {packages or 'neither triton nor tinycudann'}",
        f"- scene {facts['scene']}",
        "",
    ]
    order = {kind: i for i, kind in enumerate(TITLES)}
    names = sorted(state["sections"], key=lambda name: order[_kind(name)])
    for kind, group in groupby(names, _kind):
        rows = [row for name in group for row in state["sections"][name]["rows"]]
        lines += [f"## {TITLES[kind]}", ""]
        lines += [REMARKS[kind], ""] if kind in REMARKS else []
        lines += [*table(rows), ""]
    errors = [(n, v["error"]) for n, v in state["sections"].items() if "error" in v]
    if errors:
        lines += ["## Went wrong", "", *(f"- {name}: {error}" for name, error in errors), ""]
    if left:
        lines += ["## Not yet measured", "", *(f"- {name}" for name in left), ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format rows as lines of a Markdown table, with a column for every key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ["nothing"]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return "–" if value is None else str(value)


def _kind(name: str) -> str:
    return name.partition(" ")[0]
