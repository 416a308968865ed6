"""The compiled kernels as a ctypes library: structs, signatures, and why it may be missing."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from nerfcli.core.errors import NerfError

HERE = Path(__file__).parent
LIBRARY = HERE / ("kernels.dll" if os.name == "nt" else "kernels.so")
REASON = HERE / "not_built.txt"  # written by the build where it could not compile
INTERFACE = 1  # of host.cpp; a library built from other sources is refused
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
    ]


class Params(ctypes.Structure):
    _fields_ = [("table", c_void_p), ("density", c_void_p), ("color", c_void_p)]


class RaysView(ctypes.Structure):
    _fields_ = [("origins", c_void_p), ("directions", c_void_p), ("n_rays", c_int64)]


class SamplesView(ctypes.Structure):
    _fields_ = [("t_starts", c_void_p), ("t_ends", c_void_p), ("offsets", c_void_p)]


class UnitBox(ctypes.Structure):
    _fields_ = [("low", c_float * 3), ("side", c_float)]


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


class Terms(ctypes.Structure):
    _fields_ = [("loss", c_float), ("mse", c_float), ("n_kept", c_int64)]


class PixelsView(ctypes.Structure):
    _fields_ = [
        ("rgb", c_void_p),
        ("opacity", c_void_p),
        ("depth", c_void_p),
        ("median_depth", c_void_p),
    ]


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


_P, _N = c_void_p, c_int64
_SIGNATURES = {
    "interface": (c_int, []),
    "instruction_set": (c_char_p, []),
    "use": (c_int, [c_char_p]),
    "set_threads": (None, [c_int]),
    "hash_grid": (None, [POINTER(Grid), _P, _P, _N, _P]),
    "hash_grid_backward": (None, [POINTER(Grid), _P, _P, _N, _P]),
    "spherical_harmonics": (None, [_P, _N, _P]),
    "density": (None, [POINTER(Net), POINTER(Params), _P, _N, _P]),
    "radiance": (None, [POINTER(Net), POINTER(Params), _P, _P, _N, _P, _P]),
    "radiance_backward": (
        None,
        [POINTER(Net), POINTER(Params), _P, _P, _N, _P, _P, POINTER(Params)],
    ),
    "composite": (
        None,
        [_P, _P, POINTER(SamplesView), _N, _P, c_int, POINTER(PixelsView)],
    ),
    "composite_backward": (
        None,
        [_P, _P, POINTER(SamplesView), _N, _P, c_int, POINTER(PixelsView), POINTER(PixelsView)]
        + [_P, _P],
    ),
    "photometric": (
        None,
        [POINTER(Net), POINTER(Params), POINTER(Params), POINTER(UnitBox), POINTER(RaysView)]
        + [POINTER(SamplesView), _P, _P, c_int, c_float, POINTER(Terms)],
    ),
    "adam": (None, [_P, _P, _P, _P, _P, _N, POINTER(AdamOptions)]),
    "render": (
        None,
        [POINTER(Net), POINTER(Params), POINTER(UnitBox), POINTER(RaysView), _P, _P, _P]
        + [POINTER(Occupancy), POINTER(StepLengths), _P, c_int, c_float, POINTER(PixelsView)],
    ),
    "march": (
        c_void_p,
        [POINTER(RaysView), _P, _P, _P, POINTER(Occupancy), POINTER(StepLengths), _P],
    ),
    "march_take": (None, [_P, _P, _P, _P]),
}


def missing() -> str | None:
    """Why the kernels cannot be used, in one line; None if they can."""
    if not LIBRARY.exists():
        why = REASON.read_text().strip() if REASON.exists() else "they were never built"
        return f"the compiled kernels are missing: {why}"
    try:
        library = _open()
    except OSError as error:
        return f"the compiled kernels do not load ({error}); reinstall nerfcli"
    if library.nerf_cpu_interface() != INTERFACE:
        return "the compiled kernels belong to another version; reinstall nerfcli"
    return None


@cache
def _open() -> ctypes.CDLL:
    library = ctypes.CDLL(str(LIBRARY))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"nerf_cpu_{name}")
        function.restype, function.argtypes = result, arguments
    return library


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
