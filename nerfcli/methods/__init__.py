"""Fields and how they are trained; `METHODS` holds what there is, by name."""

from __future__ import annotations

from nerfcli.core.config import Config, stated_method
from nerfcli.core.errors import NerfError
from nerfcli.methods.base import Field, Method, StepResult, Trainer
from nerfcli.methods.classic_trainer import CLASSIC
from nerfcli.methods.hashgrid_method import HASHGRID
from nerfcli.methods.unbounded_trainer import UNBOUNDED
from nerfcli.scenes import Scene
from nerfcli.scenes.capture import capture_of

__all__ = [
    "METHODS",
    "Field",
    "Method",
    "StepResult",
    "Trainer",
    "choose_method",
    "method_of",
]

METHODS = {method.name: method for method in (HASHGRID, UNBOUNDED, CLASSIC)}
FOR_OBJECTS = HASHGRID.name


def method_of(config: Config) -> Method:
    """The method that a resolved config names.

    Raises:
        NerfError: there is no such method.
    """
    if config.method not in METHODS:
        known = ", ".join(METHODS)
        raise NerfError(f"method: unknown method {config.method!r}; known: {known}.")
    return METHODS[config.method]


def choose_method(config: Config, scene: Scene) -> tuple[str, str]:
    """Choose the method of a scene: the stated one, or by what the scene shows.

    Objects take the hash grid in their box, places the first method without a box.

    Returns:
        Its name, and the reason in one line for the user; "" where the config states it.
    """
    if stated := stated_method(config):
        return stated, ""
    if config.scene.cascades is not None:
        return FOR_OBJECTS, "scene.cascades says how far the box reaches"
    capture = capture_of(scene)
    unbounded = [name for name, method in METHODS.items() if method.is_unbounded]
    name = FOR_OBJECTS if capture.kind == "object" or not unbounded else unbounded[0]
    return name, capture.reason
