"""What is known of GPU backends: the self-check in a process of its own, and its verdict kept.

A broken kernel may take the CUDA context, or the process, with it; hence a process of its own.
Its verdict is remembered in the user's cache folder for this GPU, driver, libraries and state of
our sources, if it is one about numbers, or about code that does not compile for this GPU. What
another day may mend (memory that is full, a compiler that hangs) is reported and tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from nerfcli.backends import selfcheck
from nerfcli.core.errors import NerfError
from nerfcli.core.files import cache_folder, read_json, write_json
from nerfcli.core.progress import Note

SECONDS = 300  # after which the check counts as hanging; most of it is for the compiler
_of_this_process: dict[str, str | None] = {}  # verdicts, whether worth remembering or not


@dataclass(frozen=True)
class Verdict:
    """Why a backend is not to be trusted, None if it is; and whether that is worth remembering."""

    reason: str | None
    lasting: bool


def verdict(
    name: str, device: str, note: Note | None = None, path: Path | None = None
) -> str | None:
    """The reason why backend `name` cannot be trusted on `device`, or None.

    Args:
        note: told when the check really runs, which takes a while.
        path: of the remembered verdicts; in the user's cache folder unless given.
    """
    path = path or cache_folder() / "selfcheck.json"
    key = f"{name} | {environment(device)}"
    known = _remembered(path) | _of_this_process
    if key in known:
        return known[key]
    if note is not None:
        note(f"backend {name}: first use on this machine, compiling and checking its kernels")
    found = examine(name, device)
    _of_this_process[key] = found.reason
    if found.lasting:
        try:
            # read again: another process may have come to verdicts meanwhile
            write_json(path, {**_remembered(path), key: found.reason})
        except NerfError as error:
            if note is not None:
                note(f"the verdict on backend {name} is not remembered: {error}")
    return found.reason


def _remembered(path: Path) -> dict[str, str | None]:
    """The verdicts in `path`, none if it is not there or not ours."""
    try:
        known = read_json(path)
    except NerfError:
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str | None)}


def examine(name: str, device: str, command: Sequence[str] = ()) -> Verdict:
    """The self-check of a backend by name, in a process of its own."""
    code = f"from nerfcli.backends.selfcheck_cache import report; report({name!r}, {device!r})"
    try:
        status, out, err = _run(command or [sys.executable, "-P", "-c", code])
    except subprocess.TimeoutExpired:
        return Verdict(f"its self-check was not done after {SECONDS} s", False)
    except OSError as error:
        return Verdict(f"its self-check did not start ({error.strerror or error})", False)
    try:
        return Verdict(**json.loads(out.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):  # it died before it said anything
        last = (err.strip().splitlines() or [f"exit status {status}"])[-1]
        return Verdict(f"its self-check failed ({_tidy(last)})", False)


def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; compilers that it has started end with it.

    The same modules are found as here and (given -P) none beside them, such as those of the folder
    that the user happens to be in. A process group of its own: a Ctrl-C that stops a training is
    not to be read as a fault.
    """
    pipe = subprocess.PIPE
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    with subprocess.Popen(
        command, env=environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=SECONDS)
        except BaseException:
            if sys.platform == "win32":
                child.kill()
            else:
                os.killpg(child.pid, signal.SIGKILL)
            raise
    return child.returncode, out, err


def report(name: str, device: str) -> None:
    """Print the verdict on a backend as JSON; what `examine` runs."""
    from nerfcli import backends  # which imports this module

    try:
        backend = backends.backend_class(name)()
        found = Verdict(selfcheck.find_fault(backend, device), True)
    except Exception as error:
        text = _tidy((str(error).strip().splitlines() or [""])[-1])
        reason = f"its self-check failed ({type(error).__name__}: {text})"
        found = Verdict(reason, _does_not_compile(error))
    print(json.dumps(asdict(found)))


def _does_not_compile(error: Exception) -> bool:
    """Whether Triton refuses the code itself, or the GPU has not the room that a kernel needs."""
    triton: Any = sys.modules.get("triton")
    if triton is None:
        return False
    return isinstance(error, triton.errors.TritonError) or "PassManager" in str(error)


def _tidy(line: str) -> str:
    return line.strip().rstrip(".")


def environment(device: str) -> str:
    """What a verdict holds for: GPU, driver, libraries, and our own sources."""
    gpu = "cpu"
    if device == "cuda":
        gpu = f"{torch.cuda.get_device_name()} | driver {driver()}"
    libraries = [f"torch {torch.__version__}"]
    for name in ("triton", "tinycudann"):
        version = next((d.version for d in metadata.distributions(name=name)), "none")
        libraries.append(f"{name} {version}")
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return " | ".join([gpu, *libraries, digest.hexdigest()[:16]])


def driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:  # not Linux, or a driver that keeps no such file
        return "unknown"
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found.group() if found else "unknown"
