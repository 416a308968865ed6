"""A GPU that is not there: tensors on the CPU that say they are on cuda, and are as strict.

Within `pretending`, what a device "cuda" is asked for is made on the CPU and marked. Mixing it with
what lies on the CPU raises as CUDA would, and so do NumPy and generators of the other device. Each
time the host would wait for the device, the place is noted.
"""

from __future__ import annotations

import collections
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import safetensors
import torch
from torch.overrides import TorchFunctionMode

from nerfcli.backends import base
from nerfcli.core import devices

CUDA = torch.device("cuda", 0)
_safe_open = safetensors.safe_open
WAITING = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "nonzero", "unique"}
WAITING |= {"cpu", "masked_select", "bincount", "equal", "allclose", "argwhere"}
# the first argument may be elsewhere than the others
CROSSING = {"copy_", "__getitem__", "__setitem__", "index", "__set__", "set_"}


class MixedDevices(RuntimeError):
    pass


def on_cuda(value: object) -> bool:
    return isinstance(value, torch.Tensor) and getattr(value, "_on_cuda", False)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def names_cuda(value: object) -> bool | None:
    """Whether a device, or a name of one, is cuda; None for anything else."""
    if isinstance(value, torch.device):
        return value.type == "cuda"
    if isinstance(value, str):
        return value.startswith("cuda") if value.split(":")[0] in ("cuda", "cpu") else None
    return None


class PretendCuda(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter[str] = collections.Counter()  # file:line -> how often

    def __torch_function__(self, func, types, args=(), kwargs=None):  # pyright: ignore
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and args:
            return self._attribute(func, args, kwargs)
        args, moved = self._destination(name, args, kwargs)
        given = [t for t in tensors([args, kwargs]) if t.dim()]
        cuda = [t for t in tensors([args, kwargs]) if on_cuda(t)]
        self._ensure_together(name, args, given, cuda, moved)
        if cuda and (name in WAITING or self._picks_by_mask(name, args) or moved is False):
            self.waits[here()] += 1
        if on_cuda(kwargs.get("generator")) or "generator" in kwargs:
            self._ensure_generator(kwargs, moved if moved is not None else bool(cuda))
        out = func(*args, **kwargs)
        mark = bool(cuda) if moved is None else moved
        if moved is not None and args and any(out is a for a in args):
            out = out.clone()  # another device is another tensor
        for tensor in tensors(out):
            tensor._on_cuda = mark  # pyright: ignore[reportAttributeAccessIssue]
        return out

    def _attribute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        out = func(*args, **kwargs)
        if on_cuda(args[0]):
            if isinstance(out, torch.device):
                return CUDA
            if func is torch.Tensor.is_cuda.__get__:  # pyright: ignore
                return True
            for tensor in tensors(out):
                tensor._on_cuda = True  # pyright: ignore[reportAttributeAccessIssue]
        return out

    def _destination(self, name: str, args: tuple, kwargs: dict) -> tuple[tuple, bool | None]:
        """Arguments with the device taken out, and whether they ask for cuda; None: for nothing."""
        moved = names_cuda(kwargs.get("device"))
        if moved is not None:
            kwargs["device"] = "cpu"
        if name == "cpu":
            moved = False
        if name == "cuda":
            raise AssertionError("use .to(device)")
        if name == "to":
            for i, arg in enumerate(args[1:], start=1):
                asked = names_cuda(arg)
                if asked is not None:
                    moved, args = asked, (*args[:i], "cpu", *args[i + 1 :])
                elif isinstance(arg, torch.Tensor):
                    moved, args = on_cuda(arg), (*args[:i], arg.dtype, *args[i + 1 :])
        if name == "numpy" and on_cuda(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        return args, moved

    def _ensure_together(
        self, name: str, args: tuple, given: list, cuda: list, moved: bool | None
    ) -> None:
        if not cuda or name in ("to", "cpu", "copy_") or name.startswith("__set"):
            return
        strangers = [t for t in given if not on_cuda(t)]
        if name == "__getitem__" and on_cuda(args[0]):
            if strangers:
                self.waits[here()] += 1  # indices are brought over
            return
        if strangers:
            raise MixedDevices(f"{name}: tensors on cuda and on the cpu at {here()}")

    def _picks_by_mask(self, name: str, args: tuple) -> bool:
        if name not in ("__getitem__", "__setitem__") or len(args) < 2:
            return False
        return any(t.dtype == torch.bool and t.dim() for t in tensors(args[1]))

    def _ensure_generator(self, kwargs: dict, cuda: bool) -> None:
        generator = kwargs["generator"]
        if generator is not None and isinstance(generator, CudaGenerator) != cuda:
            raise MixedDevices(f"generator of another device at {here()}")


class CudaGenerator(torch.Generator):
    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda")  # without a number, as it was asked for


class _OpenFile:
    """safetensors.safe_open, whose own code copies to a device."""

    def __init__(self, path: Any, framework: str, device: str = "cpu") -> None:
        self.file, self.device = _safe_open(path, framework), device

    def __enter__(self) -> _OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(name).to(self.device)


def here() -> str:
    """The innermost line of the package."""
    for frame in reversed(traceback.extract_stack()):
        if "nerfcli" in frame.filename.split("/"):
            return f"{frame.filename.split('/nerfcli/')[-1]}:{frame.lineno} {frame.line}"
    return "?"


@contextmanager
def pretending(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    """Device "cuda" works, slowly, and its faults show."""
    real = torch.Generator

    def generator(device: str = "cpu") -> torch.Generator:
        return CudaGenerator() if names_cuda(device) else real(device)

    monkeypatch.setattr(torch, "Generator", generator)
    monkeypatch.setattr(safetensors, "safe_open", _OpenFile)
    for module in (devices, base):
        monkeypatch.setattr(module, "cuda_missing", lambda: None)
    for name, value in (
        ("is_available", True),
        ("mem_get_info", (2**36, 2**36)),
        ("get_device_name", "a pretended GPU"),
        ("device_count", 2),
        ("max_memory_allocated", 0),
        ("reset_peak_memory_stats", None),
        ("empty_cache", None),
        ("synchronize", None),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    current = [0]
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: current.__setitem__(0, index))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors this small, more only wait for one another
    try:
        with PretendCuda() as mode:
            yield mode
    finally:
        torch.set_num_threads(threads)
