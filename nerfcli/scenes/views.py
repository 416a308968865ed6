"""The pixels of training views in memory, addressed by one flat index.

A flat index counts the pixels of several images, image after image, row after row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def over_background(colors: Tensor, background: Tensor) -> Tensor:
    """Straight-alpha colours [n, 4] (or opaque [n, 3]) over [3] or [n, 3] -> [n, 3]."""
    if colors.shape[1] == 3:
        return colors
    alpha = colors[:, 3:]
    return colors[:, :3] * alpha + (1 - alpha) * background


@dataclass(frozen=True)
class Views:
    """Resident pixels of some cameras of a scene.

    Attributes:
        pixels: [total, 3 or 4] uint8, image after image, row-major; straight alpha.
        offsets: [n_views + 1] int64; view i owns the pixels offsets[i]:offsets[i + 1].
        cameras: [n_views] int64, index into the scene's cameras.
        widths: [n_views] int64.
        usable: flat indices of the pixels that are not masked out (int32 where that is enough);
            None: all.
    """

    pixels: Tensor
    offsets: Tensor
    cameras: Tensor
    widths: Tensor
    usable: Tensor | None = None

    def __len__(self) -> int:
        return self.cameras.shape[0]

    def to(self, device: str) -> Views:
        """Copy the views to a device, still 8 bits a channel."""
        return Views(
            self.pixels.to(device),
            self.offsets.to(device),
            self.cameras.to(device),
            self.widths.to(device),
            None if self.usable is None else self.usable.to(device),
        )

    @property
    def n_pixels(self) -> int:
        """How many pixels may be used."""
        return len(self.pixels) if self.usable is None else len(self.usable)

    @property
    def has_alpha(self) -> bool:
        return self.pixels.shape[1] == 4

    def draw(self, u: Tensor) -> Tensor:
        """Draw uniformly among the usable pixels. u [n] float64 in [0, 1) -> flat [n] int64."""
        index = (u * self.n_pixels).long().clamp_(max=self.n_pixels - 1)
        return index if self.usable is None else self.usable[index].long()

    def locate(self, flat: Tensor) -> Tensor:
        """Find scene camera, x and y of flat pixel indices. [n] -> [n, 3] int64."""
        if self._size is not None:
            width, area = self._size
            view = flat // area
            rest = flat - view * area
            y = rest // width
            return torch.stack([self.cameras[view], rest - y * width, y], dim=-1)
        view = torch.searchsorted(self.offsets, flat, right=True) - 1
        rest, width = flat - self.offsets[view], self.widths[view]
        y = rest // width
        return torch.stack([self.cameras[view], rest - y * width, y], dim=-1)

    def colors(self, flat: Tensor) -> Tensor:
        """Look up colours of flat pixel indices: [n, 3 or 4] float32 in [0, 1]."""
        return self.pixels[flat].to(torch.float32).mul_(1.0 / 255.0)

    def image(self, i: int) -> Tensor:
        """Return one view, [height, width, 3 or 4] uint8, without a copy."""
        start, end = int(self.offsets[i]), int(self.offsets[i + 1])
        return self.pixels[start:end].view(-1, int(self.widths[i]), self.pixels.shape[1])

    def usable_of(self, i: int) -> Tensor | None:
        """Whether each pixel of one view may be used, [height * width] bool; None: all may."""
        if self.usable is None:
            return None
        ends = self.offsets[i : i + 2].to(self.usable.dtype)
        first, last = torch.searchsorted(self.usable, ends).tolist()
        usable = torch.zeros(int(ends.diff()), dtype=torch.bool, device=self.usable.device)
        usable[self.usable[first:last].long() - ends[0]] = True
        return usable

    @cached_property
    def _size(self) -> tuple[int, int] | None:
        """Width and area if all views share them: `locate` then needs no search."""
        areas = self.offsets.diff()
        if len(self) and (areas == areas[0]).all() and (self.widths == self.widths[0]).all():
            return int(self.widths[0]), int(areas[0])
        return None
