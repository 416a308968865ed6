"""Run `nerf bench --suite gpu`: all measurements of a GPU on one scene, in slots of minutes.

A benchmark is a list of sections. The state is saved after each, so a slot that runs out loses one
section at most, and the same command goes on with the next.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerfcli import __version__, backends
from nerfcli.backends import selfcheck_cache
from nerfcli.bench import gpu_measures as measures
from nerfcli.bench.gpu_classic import classic_rows
from nerfcli.bench.gpu_measures import FULL, QUICK, Bench, Row, Sizes
from nerfcli.bench.gpu_peers import nerfacc_missing, nerfacc_rows
from nerfcli.bench.gpu_report import markdown
from nerfcli.core.devices import pick
from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json, write_json, write_text
from nerfcli.core.signals import StopSignal

STATE, REPORT, RUNS = "gpu.json", "gpu.md", "runs"


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: its kind (one word) and its subject.
        seconds: expected duration.
        call: returns the rows of its table.
    """

    name: str
    seconds: float
    call: Callable[[], list[Row]]


def gpu_bench(
    scene: Path,
    out: Path,
    *,
    quick: bool,
    wanted: tuple[str, ...] = (),
    minutes: float = math.inf,
    note: Callable[[str], None],
    stop: StopSignal | None = None,
) -> dict[str, Any]:
    """Measure the sections missing in `out`, as many as the slot has time for.

    Args:
        scene: a scene folder; published figures are those of lego at 800 x 800.
        out: gets gpu.json, gpu.md and the trained runs.
        quick: tiny sizes, on a CPU as well: proves the command, measures nothing.
        wanted: backends; all that run here if there are none.

    Returns:
        The content of gpu.json: facts, plan and sections.

    Raises:
        NerfError: no GPU (and not `quick`), a wanted backend that cannot run here, a scene that
            cannot be read, or `out` that cannot be written.
    """
    begin = time.perf_counter()
    device = pick("auto" if quick else "cuda")
    for name in wanted:
        backends.select(name, device)  # raises where it cannot run
    state, again = _open_state(out, collect_facts(scene, device, quick))
    sections = plan(scene, out, device, QUICK if quick else FULL, wanted)
    done: dict[str, dict] = state["sections"]
    for section in sorted(sections, key=lambda section: section.name in again):
        if section.name in done:
            continue
        if stop is not None and stop.received:
            break
        if time.perf_counter() - begin + section.seconds > 60 * minutes and len(done):
            note(f"no time for {section.name} in this slot")
            break
        note(section.name)
        done[section.name] = _refuse(section, done) or _measure(section)
        _save(out, state, sections)
        if done[section.name].get("device lost"):
            note("the device answers no more in this process: the next one goes on")
            break
    _save(out, state, sections)
    return state


def plan(
    scene: Path, out: Path, device: str, sizes: Sizes, wanted: tuple[str, ...] = ()
) -> list[Section]:
    """List all sections, the most useful first."""
    usable = [n for n in backends.ORDER[device] if backends.why_unavailable(n, device) is None]
    usable = [name for name in usable if not wanted or name in wanted]
    bench = Bench(scene, out / RUNS, device, sizes)
    first, others = usable[0], usable[1:]
    *short, longest = sizes.quality
    sections = [
        Section("limits", 5, bench.limits),
        Section(f"parity {first}", 30, lambda: bench.parity(first)),
        Section(f"step {first}", 10, lambda: bench.step(first)),
        *(_quality(bench, first, seconds) for seconds in short),
        Section(f"frames {first}", 10, lambda: bench.frames(first, short[-1])),
        Section(f"kernels {first}", 5, lambda: bench.kernels(first)),
        Section("classic", 5, lambda: classic_rows(bench, sizes.classic_rays)),
        _quality(bench, first, longest),
    ]
    for name in others:
        sections += [
            Section(f"parity {name}", 30, lambda n=name: bench.parity(n)),
            Section(f"step {name}", 25, lambda n=name: bench.step(n)),
            Section(f"kernels {name}", 20, lambda n=name: bench.kernels(n)),
        ]
        if name != "torch" or device == "cpu":
            sections.append(_quality(bench, name, sizes.peer_seconds))
    if nerfacc_missing(device) is None:
        sections.append(Section("kernels nerfacc", 30, lambda: nerfacc_rows(device, sizes)))
    return sections


def _quality(bench: Bench, name: str, seconds: float) -> Section:
    call = lambda: bench.quality(name, seconds)  # noqa: E731
    return Section(f"quality {name} {seconds:g} s", seconds + 25, call)


def collect_facts(scene: Path, device: str, quick: bool) -> dict[str, Any]:
    """Collect the facts on which a figure depends."""
    return {
        "nerf": __version__,
        "commit": _commit(),
        "environment": selfcheck_cache.environment(device),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in ("triton", "tinycudann", "nerfacc")},
        "scene": str(scene.resolve()),
        "quick": quick,
    }


def left(state: dict[str, Any]) -> list[str]:
    """List the sections left for another slot."""
    return [name for name in state["plan"] if name not in state["sections"]]


def failed(state: dict[str, Any]) -> list[str]:
    """List the sections with an error, or with a backend that does not agree."""
    return [
        name
        for name, outcome in state["sections"].items()
        if "error" in outcome or any(row.get("agrees") is False for row in outcome["rows"])
    ]


def _open_state(out: Path, now: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Open the state in `out`, which must be of this scene, machine and code.

    The second value names the sections that ended in an error. They are tried again, after all
    others.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NerfError(f"cannot make {out}: {error.strerror}; choose another --out.") from error
    fresh = {"facts": now, "date": time.strftime("%Y-%m-%d"), "plan": [], "sections": {}}
    if not (out / STATE).is_file():
        return fresh, set()
    old = read_json(out / STATE)
    if not isinstance(old, dict) or "sections" not in old or "facts" not in old:
        raise NerfError(f"{out / STATE} is not of this command; choose another --out.")
    if old["facts"] != now:
        changed = [k for k in now if old["facts"].get(k) != now[k]]
        raise NerfError(
            f"{out / STATE} has figures of another {', '.join(changed)}; choose another --out."
        )
    kept = {name: v for name, v in old["sections"].items() if "error" not in v}
    return fresh | {"date": old["date"], "sections": kept}, old["sections"].keys() - kept.keys()


def _refuse(section: Section, done: dict[str, dict]) -> dict[str, Any] | None:
    """Return an error instead of figures for a backend without parity; None if it has it."""
    kind, _, about = section.name.partition(" ")
    gate = done.get(f"parity {about.partition(' ')[0]}")
    if kind == "parity" or gate is None:
        return None
    if "error" not in gate and all(row["agrees"] for row in gate["rows"]):
        return None
    return {"rows": [], "error": "not timed: the backend is not known to agree", "seconds": 0.0}


def _measure(section: Section) -> dict[str, Any]:
    """Measure a section; an error becomes its outcome, and the slot goes on."""
    begin = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"rows": section.call()}
    except NerfError as error:
        outcome = {"rows": [], "error": str(error)}
    except Exception as error:
        outcome = {"rows": [], "error": repr(error), "traceback": traceback.format_exc()}
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError as error:  # an illegal access, say: from then on every call fails
        outcome = {"rows": [], "error": str(error), **outcome, "device lost": True}
    return outcome | {"seconds": round(time.perf_counter() - begin, 2)}


def _save(out: Path, state: dict[str, Any], sections: list[Section]) -> None:
    state["plan"] = [section.name for section in sections]
    write_json(out / STATE, state)
    write_text(out / REPORT, markdown(state, left(state)))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Describe the commit of the checkout that holds this package, if it is one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(measures.__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
