"""Optional packages: which extra of ours brings each, and whether it is there."""

from __future__ import annotations

import sys

from nerfcli.core.devices import is_installed
from nerfcli.core.errors import NerfError

# by the name that is imported: the package, and the extra in pyproject.toml that brings it
EXTRAS = {
    "fast_simplification": ("fast-simplification", "mesh"),
    "xatlas": ("xatlas", "mesh"),
    "pycolmap": ("pycolmap", "prepare"),
    "pillow_heif": ("pillow-heif", "heic"),
    "rawpy": ("rawpy", "raw"),
    "gsply": ("gsply", "splats"),
    "OpenEXR": ("OpenEXR", "exr"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "viser": ("viser", "view"),
}


def how_to_install(module: str) -> str:
    """Name the command that installs a module with its extra."""
    return f"pip install 'nerfcli[{EXTRAS[module][1]}]'"


def is_there(module: str) -> bool:
    """Whether an optional module can be imported; imports nothing."""
    return sys.modules[module] is not None if module in sys.modules else is_installed(module)


def ensure_installed(module: str, what: str) -> None:
    """Raise NerfError, before any work, where the module that `what` needs is missing."""
    if not is_there(module):
        raise missing(module, what)


def missing(module: str, what: str) -> NerfError:
    """The error for a module that `what` needs and that is not installed."""
    return NerfError(
        f"{what} needs the package {EXTRAS[module][0]}, which is not installed: "
        f"{how_to_install(module)}."
    )
