"""The values of a config that are left to the scene and the device."""

from __future__ import annotations

from dataclasses import replace

from nerfcli.core.config import Config
from nerfcli.core.devices import pick
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
