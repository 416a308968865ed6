"""`--devices N`: the same command as several processes of this machine, one for each GPU."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from nerfcli.cli.output import fail
from nerfcli.core.distributed import is_one_of_several
from nerfcli.core.errors import NerfError
from nerfcli.core.signals import StopSignal

FLAG = "--devices"
MOST = 64
GRACE = 10.0  # seconds for the others to end by themselves when one has failed
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LOOK_EVERY = 0.05  # seconds between looks at the processes


def wants_several(devices: int | None) -> bool:
    """Whether the command is to be started as several processes, and is not yet one of them.

    Raises:
        NerfError: a number that cannot be.
    """
    if devices is None:
        return False
    if not 1 <= devices <= MOST:
        raise NerfError(f"{FLAG} must be from 1 to {MOST}, got {devices}.")
    if sys.platform == "win32" and devices > 1:
        raise NerfError(f"{FLAG} {devices}: several processes need Linux or macOS.")
    if is_one_of_several():
        raise NerfError(f"{FLAG} starts processes, and torchrun has started some: use one of both.")
    return devices > 1


def launch(words: Sequence[str], n: int) -> int:
    """Run `nerf words` as n processes that work together; give the exit code.

    Signals go to all of them. When one fails, the others end, too.

    Args:
        words: of the command line, with --devices among them.
    """
    command = [sys.executable, "-m", "nerfcli", *_without_flag(words)]
    common = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    if "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // n))
    processes: list[subprocess.Popen[bytes]] = []
    with StopSignal() as stop:
        try:
            for rank in range(n):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                own = os.environ | common | own
                # a session of its own: Ctrl-C comes once, from here
                processes.append(
                    subprocess.Popen(
                        command, env=own, start_new_session=True, preexec_fn=_end_with_parent
                    )
                )
            return _wait_for(processes, stop, "--json" in words)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], stop: StopSignal, as_json: bool) -> int:
    told, failed, deadline = False, None, float("inf")
    while any(process.poll() is None for process in processes):
        if stop.received is not None and not told:
            told = True
            _tell(processes, stop.received)
        codes = [process.poll() for process in processes]
        if failed is None and any(code is not None for code in codes):
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            deadline = time.monotonic() + GRACE  # the others end with it, or hang
        if time.monotonic() > deadline + GRACE:
            for process in processes:  # blocked where no signal is heard
                process.kill()
        elif time.monotonic() > deadline and not told:
            told = True
            _tell(processes, signal.SIGTERM)
        time.sleep(LOOK_EVERY)
    codes = [process.wait() for process in processes]
    killed = next((rank for rank, code in enumerate(codes) if code < 0), None)
    if killed is not None:
        name = signal.Signals(-codes[killed]).name
        fail(f"process {killed} of {len(codes)} was ended by {name}; --resume goes on.", as_json)
        return 1
    failed = 0 if failed is None else failed
    return codes[0] or codes[failed] or next((code for code in codes if code), 0)


def _end_with_parent() -> None:
    """Let a process get SIGTERM where the one that started it is killed; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _tell(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _without_flag(words: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip or word.startswith(f"{FLAG}="):
            skip = False
        elif word == FLAG:
            skip = True
        else:
            kept.append(word)
    return kept


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
