"""List the usual mistakes in writing poses, as transforms that undo them.

Poses are OpenCV camera-to-world in the source's frame, as the reader understood the files. A
rotation or a scale of the whole world changes no image, so no convention consists of that alone.
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
class PoseConvention:
    """A convention in which the stated numbers may be written.

    Attributes:
        base: a key of BASES, undone first.
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
        """How unusual the mistake is: of several conventions that fit, report the least unusual."""
        if torch.equal(self.world, -AXES) and torch.equal(self.camera, AXES):
            return 1 + (self.base != "stated")
        order = [AXES.tolist(), FLIP.tolist()]
        camera, world = self.camera.tolist(), self.world.tolist()
        axes = order.index(camera) if camera in order else 2 + _is_mirrored(self.camera)
        moved = 0 if world == order[0] else 2 + 2 * _is_mirrored(self.world)
        return axes + moved + (0 if self.base == "stated" else 1)

    def apply(self, c2w: Tensor) -> Tensor:
        """Convert stated poses [..., 3, 4] of this convention to OpenCV camera-to-world."""
        rotation, position = c2w[..., :3], c2w[..., 3]
        transposed = rotation.transpose(-1, -2)
        if self.base == "inverted":
            rotation, position = transposed, -(transposed @ position[..., None])[..., 0]
        elif self.base == "transposed":
            rotation = transposed
        elif self.base == "inverse transposed":
            position = (transposed @ transposed @ position[..., None])[..., 0]
            rotation = transposed
        if _is_mirrored(self.world):
            position = position @ self.world.T
        else:  # equal up to a rotation of the whole world, which leaves positions as stated
            rotation = self.world.T @ rotation
        return torch.cat([rotation @ self.camera, position[..., None]], dim=-1)

    def describe(self) -> str:
        """Describe for people what is wrong with the files."""
        parts = [BASES[self.base]] if BASES[self.base] else []
        if torch.equal(self.camera, FLIP) and self.base in ("stated", "inverted"):
            parts.append("the camera's y and z axes are flipped (OpenCV and OpenGL confused)")
        elif not torch.equal(self.camera, AXES) and self.base in ("stated", "inverted"):
            what = "mirrored" if _is_mirrored(self.camera) else "exchanged"
            parts.append(
                f"the camera's axes are {what}: x, y, z are really {_name_axes(self.camera)}"
            )
        if torch.equal(self.world, -AXES):
            parts.append("the positions are mirrored: everything lies behind the cameras")
        elif not torch.equal(self.world, AXES) and self.base == "stated":
            what = "mirrored" if _is_mirrored(self.world) else "exchanged"
            parts.append(f"the positions' axes are {what}: {_name_axes(self.world.T)}")
        return "; ".join(parts)


STATED = PoseConvention("stated", AXES, AXES)


def _is_mirrored(matrix: Tensor) -> bool:
    return bool(torch.linalg.det(matrix) < 0)


def _name_axes(matrix: Tensor) -> str:
    """Name the columns of a signed permutation, such as "x, -y, -z"."""
    names = []
    for column in matrix.T:
        axis = int(column.abs().argmax())
        names.append(("-" if column[axis] < 0 else "") + "xyz"[axis])
    return ", ".join(names)


def list_signed_permutations() -> list[Tensor]:
    """List all 48 signed permutations, the identity first."""
    permutations = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            permutations.append(AXES[list(order)] * torch.tensor(signs, dtype=torch.float64))
    return permutations


def list_usual_conventions() -> list[PoseConvention]:
    """List the mistakes of practice, one fault in any camera axes; the stated reading first."""
    turns = list_signed_permutations()
    conventions = [
        PoseConvention(base, AXES, camera)
        for base in ("stated", "inverted")
        for camera in turns
        if base == "stated" or not _is_mirrored(camera)
    ]
    proper = [turn for turn in turns if not _is_mirrored(turn)]
    for base in ("transposed", "inverse transposed"):
        conventions += [PoseConvention(base, w, c) for w in (AXES, FLIP) for c in proper]
    conventions.append(PoseConvention("stated", -AXES, AXES))
    return sorted(conventions, key=lambda convention: convention.cost)


def generate_all_conventions() -> Iterator[PoseConvention]:
    """Yield every base with every exchange of the axes of cameras and of positions."""
    turns = list_signed_permutations()
    for base, world, camera in itertools.product(BASES, turns, turns):
        yield PoseConvention(base, world, camera)
