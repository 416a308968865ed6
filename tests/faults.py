"""A disk and a machine that fail: kills, torn writes and refusals at a chosen file operation.

Nothing of this is in the program: a forked child patches the functions that write.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("kill", "kill", "torn", "torn", "refuse")
NAMES = ("replace", "rename", "fsync", "unlink", "remove", "mkdir", "rmdir")
FIRED = 99  # exit code where a fault fired and the child ended by itself with 0


class Fault:
    """Let one file operation fail, the `at`-th that this process makes from now on.

    kind: kill before it; tear a write and kill; refuse it as a full disk does.
    """

    def __init__(self, at: int, kind: str, seed: int) -> None:
        self.at, self.kind, self.random = at, kind, random.Random(seed)
        self.done, self.fired = 0, False

    def is_due(self) -> bool:
        self.done += 1
        if self.done != self.at:
            return False
        self.fired = True
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def refuse(self, path: object) -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def arm(self) -> None:
        """Patch what writes files."""
        from safetensors import torch as tensors

        os.fsync = lambda handle: None  # a kill, unlike a power cut, loses nothing that is written
        for name in NAMES:
            setattr(os, name, self.failing(getattr(os, name)))
        tensors.save_file = self.tearing(tensors.save_file)
        io.open = builtins.open = self.opening(io.open)  # type: ignore[assignment]

    def failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self.is_due():
                if self.kind == "torn":
                    call(*args, **kwargs)
                    os.kill(os.getpid(), signal.SIGKILL)
                raise self.refuse(args[0])
            return call(*args, **kwargs)

        return called

    def tearing(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def called(whole: Any, path: Path, **kwargs: Any) -> Any:
            from safetensors import SafetensorError

            due = self.is_due()
            if due and self.kind == "refuse":
                path.write_bytes(b"a part")
                raise SafetensorError("Error while serializing: No space left on device")
            save(whole, path, **kwargs)
            if due:
                os.truncate(path, self.random.randrange(path.stat().st_size))
                os.kill(os.getpid(), signal.SIGKILL)

        return called

    def opening(self, before: Callable[..., Any]) -> Callable[..., Any]:
        fault = self

        class Raw(io.FileIO):
            def write(self, data: Any, /) -> int:
                if fault.is_due():
                    super().write(bytes(data)[: fault.random.randrange(len(bytes(data)) + 1)])
                    if fault.kind == "torn":
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise fault.refuse(self.name)
                return super().write(data)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kw: Any) -> Any:
            writes = isinstance(file, str | Path) and set(mode) & set("wax+")
            if not writes or kw.get("opener"):
                return before(file, mode, buffering, *args, **kw)
            raw: Any = Raw(str(file), mode.replace("b", "").replace("t", ""))
            if "+" in mode:
                return io.BufferedRandom(raw)
            if "b" in mode:
                return raw if buffering == 0 else io.BufferedWriter(raw)
            encoding = kw.get("encoding") or (args[0] if args else None)
            return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding or "utf-8")

        return opened


def live(work: Callable[[], None], fault: Fault | None, log: Path) -> int:
    """Do `work` in a forked child; its exit code, or minus the signal that ended it.

    FIRED: it ended well, but for the fault. log: gets its stdout and stderr.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        with log.open("w") as stream:
            sys.stdout = sys.stderr = stream
            if fault is not None:
                fault.arm()
            try:
                work()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc(file=stream)
        if code == 0 and fault is not None and fault.fired:
            code = FIRED
    finally:
        os._exit(code)


def count_operations(work: Callable[[], None], log: Path) -> int:
    """How many file operations `work` makes."""
    counter = Fault(0, "none", 0)

    def counted() -> None:
        try:
            work()
        finally:
            log.with_suffix(".count").write_text(str(counter.done))

    assert live(counted, counter, log) == 0, log.read_text()
    return int(log.with_suffix(".count").read_text())
