"""The compiled kernels as a ctypes library: structs, signatures, and why it may be missing."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nerfcli.core.errors import NerfError

HERE = Path(__file__).parent
LIBRARY = HERE / ("kernels.dll" if os.name == "nt" else "kernels.so")
REASON = HERE / "not_built.txt"  # written by the build where it could not compile
INTERFACE = 3  # of host.cpp; a library whose functions mean something else is refused
MAX_LEVELS = 32


class Grid(ctypes.Structure):
    _fields_ = [
        ("n_levels", c_int32),
        ("n_features", c_int32),
        ("scale", c_float * MAX_LEVELS),
        ("resolution", c_int32 * MAX_LEVELS),
        ("n_entries", c_int32 * MAX_LEVELS),
        ("hashed", c_int32 * MAX_LEVELS),
        ("offset", c_int64 * MAX_LEVELS),
    ]


class Net(ctypes.Structure):
    _fields_ = [
        ("grid", Grid),
        ("width", c_int32),
        ("n_geometry", c_int32),
        ("n_color_hidden", c_int32),
        ("n_ray_inputs", c_int32),
    ]


class Params(ctypes.Structure):
    _fields_ = [("table", c_void_p), ("density", c_void_p), ("color", c_void_p)]


class SpaceView(ctypes.Structure):
    _fields_ = [
        ("kind", c_int32),
        ("unit_length", c_float),
        ("origin", c_float * 3),
        ("size", c_float),
        ("rotation", c_float * 9),
        ("tan", c_float * 2),
    ]


class RaysView(ctypes.Structure):
    _fields_ = [
        ("origins", c_void_p),
        ("directions", c_void_p),
        ("ray_inputs", c_void_p),
        ("radii", c_void_p),
        ("n_rays", c_int64),
    ]


class SamplesView(ctypes.Structure):
    _fields_ = [("t_starts", c_void_p), ("t_ends", c_void_p), ("offsets", c_void_p)]


class StepLengths(ctypes.Structure):
    _fields_ = [("size", c_float), ("cone", c_float)]


class Occupancy(ctypes.Structure):
    _fields_ = [
        ("cells", c_void_p),
        ("n_cascades", c_int32),
        ("resolution", c_int32),
        ("center", c_float * 3),
        ("half_size", c_float),
    ]


class Proposals(ctypes.Structure):
    _fields_ = [
        ("fine", c_void_p),
        ("coarse", c_void_p),
        ("edges", c_void_p),
        ("resolution", c_int32),
        ("coarse_resolution", c_int32),
        ("n_bins", c_int32),
        ("n_samples", c_int32),
        ("prior", c_float),
        ("padding", c_float),
        ("annealing", c_float),
    ]


class BatchView(ctypes.Structure):
    _fields_ = [
        (name, c_void_p) for name in ("target", "background", "depth", "weight", "gain", "offset")
    ]


class ObjectiveView(ctypes.Structure):
    _fields_ = [
        ("photometric", c_int32),
        ("opacity", c_float),
        ("depth", c_float),
        ("distortion", c_float),
        ("scale", c_float),
        ("curve", c_float),
        ("min_transmittance", c_float),
        ("full_from", c_float),
    ]


class StepResult(ctypes.Structure):
    _fields_ = [
        ("photometric", c_float),
        ("opacity", c_float),
        ("depth", c_float),
        ("distortion", c_float),
        ("mse", c_float),
        ("n_kept", c_int64),
        ("weights", c_void_p),
        ("d_unit", c_void_p),
        ("d_ray_inputs", c_void_p),
        ("d_gain", c_void_p),
        ("d_offset", c_void_p),
    ]


class PixelsView(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("rgb", "opacity", "depth", "median_depth")]


class AdamOptions(ctypes.Structure):
    _fields_ = [
        (name, c_float)
        for name in (
            "lr",
            "beta1",
            "beta2",
            "eps",
            "weight_decay",
            "ema_decay",
            "correction1",
            "correction2",
        )
    ]


# by the names that host.h gives them
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "NerfGrid": Grid,
    "NerfNet": Net,
    "NerfParams": Params,
    "NerfSpace": SpaceView,
    "NerfRays": RaysView,
    "NerfSamples": SamplesView,
    "NerfSteps": StepLengths,
    "NerfOccupancy": Occupancy,
    "NerfProposals": Proposals,
    "NerfBatch": BatchView,
    "NerfObjective": ObjectiveView,
    "NerfStepOut": StepResult,
    "NerfPixels": PixelsView,
    "NerfAdam": AdamOptions,
}

_P, _N = c_void_p, c_int64
_FIELD = [POINTER(Net), POINTER(Params), POINTER(SpaceView)]
_VERSION = {"interface": (c_int, []), "layout": (c_char_p, [])}
_SETTINGS = {
    "instruction_set": (c_char_p, []),
    "use": (c_int, [c_char_p]),
    "set_threads": (None, [c_int]),
}
_SIGNATURES = {
    "hash_grid": (None, [POINTER(Grid), _P, _P, _N, _P]),
    "hash_grid_backward": (None, [POINTER(Grid), _P, _P, _P, _N, _P, _P]),
    "spherical_harmonics": (None, [_P, _N, _P]),
    "spherical_harmonics_backward": (None, [_P, _P, _N, _P]),
    "density": (None, [*_FIELD, _P, _N, _P]),
    "density_backward": (None, [*_FIELD, _P, _N, _P, POINTER(Params), _P]),
    "radiance": (None, [*_FIELD, _P, _P, _N, _P, _P]),
    "radiance_backward": (None, [*_FIELD, _P, _P, _N, _P, _P, POINTER(Params), _P, _P]),
    "composite": (
        None,
        [_P, _P, POINTER(SamplesView), _N, _P, c_int, POINTER(PixelsView)],
    ),
    "composite_backward": (
        None,
        [_P, _P, POINTER(SamplesView), _N, _P, c_int, POINTER(PixelsView), POINTER(PixelsView)]
        + [_P, _P],
    ),
    "step": (
        None,
        [POINTER(Net), POINTER(Params), POINTER(Params), POINTER(SpaceView), POINTER(RaysView)]
        + [POINTER(SamplesView), POINTER(BatchView), POINTER(ObjectiveView), POINTER(StepResult)],
    ),
    "adam": (None, [_P, _P, _P, _P, _P, _N, POINTER(AdamOptions)]),
    "render": (
        None,
        [*_FIELD, POINTER(RaysView), _P, _P, _P]
        + [POINTER(Occupancy), POINTER(StepLengths), POINTER(Proposals), _P, c_int, c_float]
        + [POINTER(PixelsView)],
    ),
    "propose": (
        None,
        [POINTER(Proposals), POINTER(SpaceView), POINTER(RaysView), _P, _P, _P],
    ),
    "learn": (
        None,
        [POINTER(Proposals), POINTER(SpaceView), POINTER(RaysView), POINTER(SamplesView)]
        + [_P, c_float],
    ),
    "march": (
        c_void_p,
        [POINTER(RaysView), _P, _P, _P, POINTER(Occupancy), POINTER(StepLengths), _P],
    ),
    "march_take": (None, [_P, _P, _P, _P]),
}
_LETTERS = {None: "v", c_int: "i", c_int64: "l", c_float: "f"}  # of layout.h; pointers: p


def missing() -> str | None:
    """Why the kernels cannot be used, in one line; None if they can."""
    if not LIBRARY.exists():
        why = REASON.read_text().strip() if REASON.exists() else "they were never built"
        return f"the compiled kernels are missing: {why}"
    try:
        _open()
    except OSError as error:
        return f"the compiled kernels do not load ({error}); reinstall nerfcli"
    except _OtherVersion as error:
        return f"the compiled kernels belong to another version ({error}); reinstall nerfcli"
    return None


class _OtherVersion(Exception):
    """The library and this file do not agree on what crosses between them."""


@cache
def _open() -> ctypes.CDLL:
    """Load the library and check that it was built for this file.

    Raises:
        OSError: it does not load.
        _OtherVersion: functions or structs are not those of this file.
    """
    library = ctypes.CDLL(str(LIBRARY))
    try:
        _declare(library, _VERSION)
        if (number := library.nerf_cpu_interface()) != INTERFACE:
            raise _OtherVersion(f"interface {number} instead of {INTERFACE}")
        _compare(library.nerf_cpu_layout().decode())
        _declare(library, _SETTINGS | _SIGNATURES)
    except AttributeError as error:  # a function is not there
        raise _OtherVersion(str(error).splitlines()[0]) from None
    return library


def _declare(library: ctypes.CDLL, signatures: dict[str, tuple[Any, list[Any]]]) -> None:
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"nerf_cpu_{name}")
        function.restype, function.argtypes = result, arguments


def _compare(layout: str) -> None:
    """Refuse a library whose structs or functions have another layout than those declared here.

    A field that one side lacks would shift all that follow it, and memory would be spoilt.
    """
    theirs = dict(line.split(" ", 1) for line in layout.splitlines())
    ours = {name: _describe(struct) for name, struct in STRUCTS.items()}
    for name, (result, arguments) in _SIGNATURES.items():
        # the library's handles are pointers, too
        ours[name] = "".join(_LETTERS.get(kind, "p") for kind in (result, *arguments))
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise _OtherVersion(f"the layout of {name} differs")


def _describe(struct: type[ctypes.Structure]) -> str:
    fields = [f"{name}:{getattr(struct, name).offset}" for name, *_ in struct._fields_]
    return " ".join([str(ctypes.sizeof(struct)), *fields])


def n_threads() -> int:
    """NERF_THREADS, or as many as torch uses.

    Raises:
        NerfError: NERF_THREADS is not a positive number.
    """
    value = os.environ.get("NERF_THREADS")
    if value is None:
        return torch.get_num_threads()
    if not value.isdigit() or int(value) == 0:
        raise NerfError(f"NERF_THREADS must be a positive number, got {value!r}.")
    return int(value)


_threads = [0]  # what the library was last told


def kernels() -> ctypes.CDLL:
    """The library, with its number of threads up to date."""
    library = _open()
    wanted = n_threads()
    if _threads[0] != wanted:
        library.nerf_cpu_set_threads(wanted)
        _threads[0] = wanted
    return library


def instruction_set() -> str:
    """Which kernels this processor runs: avx512, avx2 or base."""
    return _open().nerf_cpu_instruction_set().decode()
