"""Several processes that work as one: who takes which share, and how the parts become whole.

Each process is started with its number in the environment, by torchrun or by `--devices N`. All
draw the same random numbers and take a share of what these say, so that together they do what one
process would do alone, but for the order of sums.

torch is imported inside, so that the command line can ask without it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from nerfcli.core.errors import NerfError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # that processes wait for one another: one may read images
NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of torchrun
LOCAL_RANK = "LOCAL_RANK"  # of torchrun: among the processes of this machine


@dataclass(frozen=True)
class World:
    """The processes that work together.

    Attributes:
        rank: number of this process, from 0. size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """The part of n things that is this process's; sizes differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def portion(self, n: int) -> float:
        """This process's share of n things, as a part of 1."""
        mine = self.share(n)
        return (mine.stop - mine.start) / n

    @property
    def is_on_one_machine(self) -> bool:
        """Whether several processes work together, all on this machine."""
        return not self.is_alone and processes_here() == self.size

    def sum_in_place(self, values: Tensor) -> None:
        """Replace values by their sum over the processes."""
        if not self.is_alone:
            self._reduce(values, "SUM")

    def compute_shared(self, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """compute(inputs) [n], each process for its share of the rows of inputs [n, ...]."""
        if self.is_alone:
            return compute(inputs)
        own = self.share(len(inputs))
        values = inputs.new_full((len(inputs),), float("-inf"))
        values[own] = compute(inputs[own]).to(values.dtype)
        self._reduce(values, "MAX")
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all processes, in their order; n may differ."""
        if self.is_alone:
            return rows
        import torch

        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        self._reduce(counts, "SUM")
        ends = [0, *counts.cumsum(0).tolist()]
        whole = rows.new_zeros(ends[-1], *rows.shape[1:])
        whole[ends[self.rank] : ends[self.rank + 1]] = rows
        self._reduce(whole, "SUM")
        return whole

    def gather_objects(self, value: T) -> list[T]:
        """The values of all processes, in their order; for few and small ones."""
        if self.is_alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with lost_processes():
            dist.all_gather_object(found, value)
        return found

    def agree(self, lead: float, told: Sequence[int] = ()) -> tuple[float, list[int]]:
        """`lead` as the first process has it, and of each number of `told` the largest.

        lead: at least 0.
        """
        if self.is_alone:
            return lead, list(told)
        import torch

        both = [lead if self.is_first else -1.0, *told]
        numbers = torch.tensor(both, dtype=torch.float64)
        self._reduce(numbers, "MAX")
        return float(numbers[0]), [int(n) for n in numbers[1:].tolist()]

    def largest(self, value: float) -> float:
        """The largest value of any process."""
        return max(self.gather_objects(value))

    def wait(self) -> None:
        """Go on when every process has come here."""
        if not self.is_alone:
            self.agree(0.0)

    def _reduce(self, values: Tensor, how: str) -> None:
        """Replace values by what a reduction makes of those of all processes."""
        import torch.distributed as dist

        with lost_processes():
            dist.all_reduce(values, op=getattr(dist.ReduceOp, how))


ALONE = World()
_world = [ALONE]
_reports = [True]  # whether this process tells what went wrong


def world() -> World:
    """The processes that this one works with; by itself it is alone."""
    return _world[0]


def reports() -> bool:
    """Whether this process says what went wrong: of several that fail, the first one."""
    return _reports[0]


def _is_first_to_fail(store: Any) -> bool:
    try:
        return store.add("nerf/failed", 1) == 1
    except RuntimeError:  # the process that holds the store is gone, and has told why
        return False


def is_one_of_several() -> bool:
    """Whether this process was started as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def processes_here() -> int:
    """How many of the processes that work together run on this machine."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1) if is_one_of_several() else 1


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get(LOCAL_RANK, "0"))


@contextmanager
def joined() -> Iterator[World]:
    """Within the block, work with the other processes that the environment tells of.

    Raises:
        NerfError: the environment lacks something, or the others do not answer.
    """
    if not is_one_of_several():
        yield ALONE
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # it prints stack traces of its own
    import torch
    import torch.distributed as dist

    missing = [name for name in NAMES if not os.environ.get(name)]
    if missing:
        raise NerfError(
            f"{missing[0]} is not set, though WORLD_SIZE is: start the processes by torchrun, or "
            "by --devices N; or unset WORLD_SIZE."
        )
    try:
        own = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        kind = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store, *_ = next(dist.rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(
            kind, store=store, rank=own.rank, world_size=own.size, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise NerfError(
            f"the processes do not find each other (MASTER_ADDR={os.environ['MASTER_ADDR']}, "
            f"MASTER_PORT={os.environ['MASTER_PORT']}): {_first_line(error)}."
        ) from error
    _world[0] = own
    try:
        yield own
    except BaseException:  # before the others notice that this process is gone
        _reports[0] = _is_first_to_fail(store)
        raise
    finally:
        _world[0] = ALONE
        with suppress(RuntimeError):  # others may be gone
            dist.destroy_process_group()


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turn the report that another process is gone into a message."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcesses(
            f"another of the {world().size} processes has ended or does not answer "
            f"({_first_line(error)}). What was saved stays: the same command with --resume goes on."
        ) from error


def map_shared(values: Tensor) -> Tensor:
    """The values as a tensor in memory that all processes of this machine map.

    All have the same values. Nothing of it is left on the disk, whatever ends them.
    """
    import torch

    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="nerf-", dir=folder) as own:
        name = world().gather_objects(f"{own}/values")[0]
        if world().is_first:  # of its full size, and on disks that count what is not written
            values.contiguous().cpu().numpy().tofile(name)
        world().wait()
        shared = torch.from_file(name, shared=True, size=values.numel(), dtype=values.dtype)
        world().wait()  # till all have it, before the name goes
    return shared.view(values.shape)


class LostProcesses(NerfError):
    """Another process is gone; its own message says why."""


def _first_line(error: Exception) -> str:
    """The reason that torch gives, without its source files and its advice."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S*:\d+\]\s*", "", line).partition(". ")[0].rstrip(".")
