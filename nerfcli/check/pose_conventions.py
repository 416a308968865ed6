"""The ways in which poses are usually written wrongly, as transforms that undo them.

Poses are OpenCV camera-to-world in the source's frame, as the reader understood the files. A turn
or a scale of the whole world changes no image, so no alternative consists of that alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

AXES = torch.eye(3, dtype=torch.float64)
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
BASES = {
    "stated": "",
    "inverted": "the poses are world-to-camera, where the format has camera-to-world",
    "transposed": "the rotations are transposed (rows and columns exchanged)",
    "inverse transposed": "the rotations of the world-to-camera poses are transposed",
}


@dataclass(frozen=True)
class Alternative:
    """Another reading of the same numbers.

    Attributes:
        base: a key of BASES: what is done first.
        world: [3, 3] signed permutation, applied to positions only.
        camera: [3, 3] signed permutation of the camera's axes, applied from the right.
    """

    base: str
    world: Tensor
    camera: Tensor

    @property
    def is_stated(self) -> bool:
        return self.base == "stated" and self.cost == 0

    @property
    def cost(self) -> int:
        """How far-fetched it is: of several that fit, the least is named."""
        if torch.equal(self.world, -AXES) and torch.equal(self.camera, AXES):
            return 1 + (self.base != "stated")
        order = [AXES.tolist(), FLIP.tolist()]
        camera, world = self.camera.tolist(), self.world.tolist()
        axes = order.index(camera) if camera in order else 2 + _mirrored(self.camera)
        moved = 0 if world == order[0] else 2 + 2 * _mirrored(self.world)
        return axes + moved + (0 if self.base == "stated" else 1)

    def apply(self, c2w: Tensor) -> Tensor:
        """Poses [n, 3, 4] -> [n, 3, 4]."""
        rotation, position = c2w[..., :3], c2w[..., 3]
        turned = rotation.transpose(-1, -2)
        if self.base == "inverted":
            rotation, position = turned, -(turned @ position[..., None])[..., 0]
        elif self.base == "transposed":
            rotation = turned
        elif self.base == "inverse transposed":
            rotation, position = turned, (turned @ turned @ position[..., None])[..., 0]
        if _mirrored(self.world):
            position = position @ self.world.T
        else:  # the same but for a turn of the whole, and then positions stay as they are stated
            rotation = self.world.T @ rotation
        return torch.cat([rotation @ self.camera, position[..., None]], dim=-1)

    def words(self) -> str:
        """What is wrong with the files, for people."""
        parts = [BASES[self.base]] if BASES[self.base] else []
        if torch.equal(self.camera, FLIP) and self.base in ("stated", "inverted"):
            parts.append("the camera's y and z axes are flipped (OpenCV and OpenGL confused)")
        elif not torch.equal(self.camera, AXES) and self.base in ("stated", "inverted"):
            what = "mirrored" if _mirrored(self.camera) else "exchanged"
            parts.append(f"the camera's axes are {what}: x, y, z are really {_named(self.camera)}")
        if torch.equal(self.world, -AXES):
            parts.append("the positions are mirrored: everything lies behind the cameras")
        elif not torch.equal(self.world, AXES) and self.base == "stated":
            what = "mirrored" if _mirrored(self.world) else "exchanged"
            parts.append(f"the positions' axes are {what}: {_named(self.world.T)}")
        return "; ".join(parts)


STATED = Alternative("stated", AXES, AXES)


def _mirrored(matrix: Tensor) -> bool:
    return bool(torch.linalg.det(matrix) < 0)


def _named(matrix: Tensor) -> str:
    """The columns of a signed permutation, such as "x, -y, -z"."""
    names = []
    for column in matrix.T:
        axis = int(column.abs().argmax())
        names.append(("-" if column[axis] < 0 else "") + "xyz"[axis])
    return ", ".join(names)


def signed_permutations() -> list[Tensor]:
    """All 48, the identity first."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            found.append(AXES[list(order)] * torch.tensor(signs, dtype=torch.float64))
    return found


def usual_alternatives() -> list[Alternative]:
    """What happens in practice: one fault, in any camera axes; the stated reading first."""
    turns = signed_permutations()
    found = [
        Alternative(base, AXES, camera)
        for base in ("stated", "inverted")
        for camera in turns
        if base == "stated" or not _mirrored(camera)
    ]
    proper = [turn for turn in turns if not _mirrored(turn)]
    for base in ("transposed", "inverse transposed"):
        found += [Alternative(base, w, c) for w in (AXES, FLIP) for c in proper]
    found.append(Alternative("stated", -AXES, AXES))
    return sorted(found, key=lambda a: a.cost)


def all_alternatives() -> Iterator[Alternative]:
    """Every base with every exchange of the axes of cameras and of positions."""
    turns = signed_permutations()
    for base, world, camera in itertools.product(BASES, turns, turns):
        yield Alternative(base, world, camera)
