"""Posed photos to radiance fields, and fields to videos, numbers and shapes."""

import os
import typing

if typing.TYPE_CHECKING:
    from nerfcli.core.config import Config
    from nerfcli.core.errors import NerfError
    from nerfcli.core.settings import load_config

__version__ = "0.1.0"
__all__ = ["Config", "NerfError", "__version__", "load_config"]

# torch's idle OpenMP threads would spin on the cores that the compiled kernels' own threads
# use between torch's calls; it is read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {"Config": "config", "NerfError": "errors", "load_config": "settings"}  # in core


def __getattr__(name: str) -> typing.Any:
    """Import what is asked for only then: the program sets its signals before anything else."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"nerfcli.core.{_HOMES[name]}"), name)
