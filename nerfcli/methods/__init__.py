"""Fields and how they are trained; `METHODS` holds what there is, by name."""

from __future__ import annotations

from nerfcli.core.config import DEFAULT_METHOD, Config
from nerfcli.core.errors import NerfError
from nerfcli.methods.base import Field, Method, StepResult, Trainer
from nerfcli.methods.classic_trainer import CLASSIC
from nerfcli.methods.hashgrid_method import HASHGRID
from nerfcli.methods.unbounded_trainer import UNBOUNDED

__all__ = ["METHODS", "Field", "Method", "StepResult", "Trainer", "method_of"]

METHODS = {method.name: method for method in (HASHGRID, UNBOUNDED, CLASSIC)}


def method_of(config: Config) -> Method:
    """The method that a config names, or the default.

    Raises:
        NerfError: there is no such method.
    """
    name = config.method or DEFAULT_METHOD
    if name not in METHODS:
        raise NerfError(f"method: unknown method {name!r}; known: {', '.join(METHODS)}.")
    return METHODS[name]
