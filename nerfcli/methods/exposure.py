"""Exposure codes: how each training photo shows the field's colours, learned beside the field.

A colour c of the field becomes exp(a) * c + b in a photo, a and b a value a channel. Photos may
be brighter or darker than each other, or have another white balance. The codes have zero mean over
the training photos, so that the field's own colours are those of their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nerfcli.cameras.rays import Batch, ColorMap
from nerfcli.core.distributed import world
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.reference.adam import AdamConfig, adam_step

LR_FACTOR = 0.1  # of the field's learning rate
PREFIX = "exposure."  # of the tensors in a checkpoint
CODES = PREFIX + "codes"
ADAM = AdamConfig()


def color_of(codes: Tensor) -> ColorMap:
    """The colour maps of codes [n, 6]."""
    log_gain, offset = codes.split(3, dim=1)
    return ColorMap(log_gain.exp(), offset.contiguous())


class ExposureCodes:
    """Log gain and offset of each training photo, and their own Adam.

    Args:
        n_cameras: of the scene. trained: indices of the cameras with a photo to train on.
    """

    def __init__(
        self, n_cameras: int, trained: tuple[int, ...], device: torch.device | str
    ) -> None:
        self.world = world()
        self.trained = torch.tensor(trained, device=device)
        self.codes, self.m, self.v = (torch.zeros(n_cameras, 6, device=device) for _ in range(3))

    def start_from(self, log_gains: Tensor) -> None:
        """Begin with these log gains of all channels, [n_cameras]."""
        self.codes[:, :3] = log_gains.to(self.codes)[:, None]
        self._center()

    def color(self, cameras: Tensor) -> ColorMap:
        """The colour maps of rays of these cameras, [n_rays]."""
        return color_of(self.codes[cameras.long()])

    def step(self, batch: Batch, grads: ColorMap, step: int, lr: float) -> None:
        """Take a step of Adam by the gradients in the batch's colour maps, and centre the codes."""
        assert batch.color is not None and batch.rays.cameras is not None
        of_rays = torch.cat([grads.gain * batch.color.gain, grads.offset], dim=1)
        total = torch.zeros_like(self.codes)
        total.index_add_(0, batch.rays.cameras.long(), of_rays)
        self.world.sum_in_place(total)
        adam_step(
            self.codes.view(-1),
            total.view(-1),
            self.m.view(-1),
            self.v.view(-1),
            ADAM,
            step=step,
            lr=LR_FACTOR * lr,
        )
        self._center()

    def _center(self) -> None:
        mean = self.codes[self.trained].mean(0)
        self.codes[self.trained] -= mean

    def state(self) -> dict[str, Tensor]:
        return {PREFIX + name: getattr(self, name) for name in ("codes", "m", "v")}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the tensors of `state` out of a checkpoint.

        Raises:
            NerfError: they have other names or shapes.
        """
        ensure_same_shapes(state, self.state())
        self.codes, self.m, self.v = (state[name] for name in self.state())
