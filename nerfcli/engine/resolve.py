"""The values of a config that are left to the scene and the device, and what will be trained."""

from __future__ import annotations

from dataclasses import replace

from nerfcli.core.config import Config, known
from nerfcli.core.devices import pick
from nerfcli.core.text import quantity
from nerfcli.methods import choose_method, method_of
from nerfcli.scenes import Scene

DEFAULT_MINUTES = 2.0  # of a run whose method needs no more


def resolve(config: Config, scene: Scene) -> Config:
    """Fill in every value that is None and is needed; a resolved config comes back as it is.

    What is known of the scene itself (box, near, far, background) stays in the scene alone.

    Raises:
        NerfError: an unknown method or device, or cuda where there is none.
    """
    device = pick(config.device)
    config = replace(config, method=choose_method(config, scene)[0])
    config = method_of(config).resolve(config, scene, device)
    train = config.train
    if train.steps is None and train.minutes is None:
        train = replace(train, minutes=method_of(config).length * DEFAULT_MINUTES)
    return replace(config, device=device, train=train)


def describe(scene: Scene, config: Config) -> str:
    """What will be trained, in a line: method, views, box and where it comes from."""
    n_train, n_test = (len(scene.splits.get(name, ())) for name in ("train", "test"))
    return (
        f"{config.method}: {quantity(n_train, 'view')} to train on, {n_test} held out; "
        f"{describe_box(scene, config)}; {_length(config)}"
    )


def describe_box(scene: Scene, config: Config) -> str:
    """Say what the box is to the method, how large it is, and where it comes from."""
    is_unbounded = method_of(config).is_unbounded
    name = "detail cube" if is_unbounded else "box"
    return f"{name} of {scene.describe_box(is_unbounded=is_unbounded)}"


def _length(config: Config) -> str:
    """How long the run is, and how to have it longer."""
    train = config.train
    if train.steps is not None:
        return quantity(train.steps, "step")
    minutes = quantity(known(train.minutes), "minute")
    return f"takes {minutes}, more (--minutes) bring more detail"
