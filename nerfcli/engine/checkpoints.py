"""Tensor files of a checkpoint: safetensors that carry their step and were read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfcli.core.devices import with_index
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.core.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

GENERATOR = "generator"  # its state, among the tensors of the optimiser


def write_tensors(path: Path, tensors: dict[str, Tensor], step: int) -> None:
    """Write aside, flush to the disk, read back, compare every byte, then rename.

    Raises:
        CannotWrite: the disk refuses, or gives back something else.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as aside:
        try:
            # one key only: the library writes several in an order of chance
            save_file(whole, aside, metadata={"step": str(step)})
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            with safe_open(aside, framework="pt") as file:
                for name, tensor in whole.items():
                    back = file.get_tensor(name).reshape(-1).view(torch.uint8)
                    if not torch.equal(back, tensor.reshape(-1).view(torch.uint8)):
                        raise CannotWrite(f"{path}: {name} came back changed: is the disk healthy?")
        except SafetensorError as error:
            raise CannotWrite(f"cannot write {path}: {error}.") from error


def read_tensors(path: Path, step: int, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors in `path`, on `device`.

    Raises:
        NerfError: missing, truncated or damaged, or not of `step`.
    """
    return _read(path, step, lambda file: file.keys(), framework="pt", device=with_index(device))


def ensure_whole(path: Path, step: int) -> None:
    """Raise NerfError as `read_tensors` does, from the file's head and length alone."""
    _read(path, step, lambda file: (), framework="np")


def _read(path: Path, step: int, wanted: Callable[[Any], Iterable[str]], **how: str) -> dict:
    from safetensors import SafetensorError, safe_open

    try:
        path.open("rb").close()  # the library calls every refusal a missing file
        with safe_open(path, **how) as file:
            got = (file.metadata() or {}).get("step")
            tensors = {name: file.get_tensor(name) for name in wanted(file)}
    except FileNotFoundError as error:
        raise NerfError(
            f"{path} is missing, though state.json names it. Take an intact copy."
        ) from error
    except OSError as error:
        raise NerfError(f"cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise NerfError(
            f"{path} is truncated or damaged ({error}). Copy the run again, or train it again."
        ) from error
    if got != str(step):
        raise NerfError(
            f"{path} is of step {got}, state.json of step {step}: "
            "the folder was mixed from two checkpoints. Take an intact copy."
        )
    return tensors


def generator_state(optimizer: dict[str, Tensor], state: dict) -> Tensor:
    """Take the generator's state out of a checkpoint: uint8 [n], on the CPU.

    Run folders of format 1 have it as a list in state.json.
    """
    if GENERATOR in optimizer:
        return optimizer.pop(GENERATOR).cpu()
    import torch

    return torch.tensor(state["generator"], dtype=torch.uint8, device="cpu")
