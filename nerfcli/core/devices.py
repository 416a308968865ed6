"""Devices: which one is meant, what is missing for it, its randomness and its memory.

torch is imported inside, so that the command line can ask for the names without it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nerfcli.core.distributed import is_one_of_several, local_rank
from nerfcli.core.errors import NerfError

if TYPE_CHECKING:
    import torch

NAMES = "auto, cpu, cuda, cuda:N"
KNOWN = re.compile(r"auto|cpu|cuda(:\d{1,2})?")


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Matrix products of float32 numbers on a GPU with their 10 leading bits ("tf32"), or all."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of that name does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def cuda_missing() -> str | None:
    """The reason why torch has no CUDA device, or None."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this torch is built without CUDA (see https://pytorch.org/get-started/locally)"
    return "torch finds no CUDA device (does nvidia-smi list one?)"


def pick(name: str) -> str:
    """The kind of device that `name` means here: "auto" is the GPU if there is one.

    "cuda:1" becomes torch's current device, which is what "cuda" then means everywhere.

    Raises:
        NerfError: an unknown name, or cuda where there is none.
    """
    if not KNOWN.fullmatch(name):
        raise NerfError(f"device: unknown device {name!r}; use {NAMES}.")
    if name == "cpu":
        return name
    missing = cuda_missing()
    if name == "auto":
        if missing:
            return "cpu"
        name = "cuda"
    if missing:
        raise NerfError(f"device {name}: {missing}. Use --device cpu, or auto.")
    kind, _, index = name.partition(":")
    if not index and is_one_of_several():
        index = str(local_rank())
    if index:
        import torch

        there = torch.cuda.device_count()
        if int(index) >= there:
            names = ", ".join(f"cuda:{i}" for i in range(there))
            raise NerfError(f"device {name}: there is no such GPU here, only {names}.")
        torch.cuda.set_device(int(index))
        _picked.append(int(index))
    return kind


_picked: list[int] = []  # indices of GPUs, the last one holds


def use_picked() -> None:
    """Work in this thread on the GPU that `pick` chose in another one: each has its own."""
    import torch

    if _picked and torch.cuda.is_available():
        torch.cuda.set_device(_picked[-1])


def with_index(device: str) -> str:
    """Name a device for libraries that take "cuda" for the first one, not the current."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device


def random_generator(device: str, seed: int) -> torch.Generator:
    import torch

    return torch.Generator(device).manual_seed(seed)


def restore_generator(
    generator: torch.Generator, state: torch.Tensor, seed: int, step: int
) -> bool:
    """Go on with the random numbers of a checkpoint; whether they are the very same.

    The states of a CPU and of a GPU have nothing in common. One from the other kind of device is
    replaced by a seed of its own for this step.

    state: what `generator.get_state()` gave, uint8 [n] on the CPU.
    """
    if len(state) == generator.get_state().numel():
        generator.set_state(state)
        return True
    generator.manual_seed((seed + 1_000_003 * step) % 2**63)
    return False


def ensure_room(needed: int, device: str, what: str, way_out: str) -> None:
    """Raise NerfError where `needed` bytes for `what` are more than the GPU has free."""
    import torch

    if device != "cuda":
        return
    free, _ = torch.cuda.mem_get_info()
    if needed > free:
        raise NerfError(
            f"{what} need {needed / 1e9:.1f} GB, the GPU has {free / 1e9:.1f} GB free; {way_out}."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's report, or Python's, that there is no memory for a tensor."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def memory_errors(doing: str, way_out: str) -> Iterator[None]:
    """Turn the report that the memory is full into one that says what to do."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        whose = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "the memory"
        raise NerfError(f"{doing}: {whose} is full; {way_out}.") from error
