"""A camera path while it is edited: key frames, and the film that flies through them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.key_frames import fly_through
from nerfcli.cameras.lenses import Lens
from nerfcli.core.errors import NerfError
from nerfcli.scenes.own_path import MARK, own_path_text, read_own_path
from nerfcli.scenes.path_frames import move_cameras
from nerfcli.scenes.scene import Similarity

LEAST_SECONDS, MOST_SECONDS, MOST_FPS = 0.1, 600.0, 120.0
MOST_PIXELS = 8192  # of a side of the film


@dataclass(frozen=True, eq=False)
class Key:
    """A key frame.

    Attributes:
        c2w: [3, 4] float64, camera to scene. fov: from top to bottom, radians.
    """

    c2w: Tensor
    fov: float


@dataclass
class CameraPath:
    """Key frames in scene space, and what the film through them is like.

    Attributes:
        scene_from_source: of the scene; files are in its source's frame.
        chosen: index of the key frame that is worked on. size: of the film, width and height.
    """

    scene_from_source: Similarity
    keys: list[Key] = field(default_factory=list)
    chosen: int = 0
    is_loop: bool = False
    seconds: float = 5.0
    fps: float = 30.0
    size: tuple[int, int] = (1280, 720)

    @property
    def n_frames(self) -> int:
        return max(round(self.seconds * self.fps), 1)

    def add(self, key: Key) -> None:
        """Add a key frame after the chosen one, and choose it."""
        self.chosen = min(self.chosen + 1, len(self.keys))
        self.keys.insert(self.chosen, key)

    def replace(self, key: Key) -> None:
        """Put another one in the place of the chosen key frame."""
        if self.keys:
            self.keys[self.chosen] = key

    def move(self, by: int) -> None:
        """Let the chosen key frame change places with the one before (-1) or after it (1)."""
        other = self.chosen + by
        if self.keys and 0 <= other < len(self.keys):
            keys = self.keys
            keys[self.chosen], keys[other] = keys[other], keys[self.chosen]
            self.chosen = other

    def delete(self) -> None:
        """Take the chosen key frame away."""
        if self.keys:
            del self.keys[self.chosen]
            self.chosen = max(min(self.chosen, len(self.keys) - 1), 0)

    def clear(self) -> None:
        self.keys, self.chosen = [], 0

    def key_cameras(self) -> Cameras:
        """The key frames as cameras of the film's size, scene space."""
        width, height = self.size
        focal = [[0.5 * height / math.tan(0.5 * key.fov)] * 2 for key in self.keys]
        n, double = len(self.keys), torch.float64
        return Cameras(
            torch.stack([key.c2w for key in self.keys]).to(double),
            torch.tensor(focal, dtype=double),
            torch.tensor([[width / 2, height / 2]] * n, dtype=double),
            torch.tensor([[width, height]] * n),
            (Lens(),) * n,
        )

    def film(self, n_frames: int | None = None) -> Cameras:
        """The cameras of the film, scene space, as `nerf render` makes them of the saved file.

        Args:
            n_frames: None: those of the film.
        """
        keys = move_cameras(self.key_cameras(), self.scene_from_source.inverse())
        flight = fly_through(keys, n_frames or self.n_frames, is_loop=self.is_loop)
        return move_cameras(flight, self.scene_from_source)

    def text(self) -> str:
        """The path as JSON in the source's frame, for `nerf render --path`.

        Raises:
            NerfError: there is no key frame.
        """
        if not self.keys:
            raise NerfError("The path has no key frame yet. Add one first.")
        return own_path_text(
            move_cameras(self.key_cameras(), self.scene_from_source.inverse()),
            fps=self.fps,
            is_loop=self.is_loop,
            n_frames=self.n_frames,
        )

    def take(self, name: str, content: bytes) -> None:
        """Take the key frames of a file over.

        Raises:
            NerfError: it is no path of this program, has a fault, or cannot be edited here.
        """
        try:
            data = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise NerfError(f"{name} is no JSON: {error}.") from error
        if not isinstance(data, dict) or data.get("format") != MARK:
            raise NerfError(f'{name} is no path of this program ("format": "{MARK}").')
        found = read_own_path(Path(name), data)
        if found.are != "keys":
            raise NerfError(
                f"{name} lists frames, not key frames; `nerf render --save-path FILE "
                "--key-frames 8` writes those."
            )
        cameras = move_cameras(found.cameras, self.scene_from_source)
        middle, focal = cameras.size.double() / 2, cameras.focal
        is_plain = torch.allclose(cameras.principal, middle, atol=0.01) and torch.allclose(
            focal[:, 0], focal[:, 1], rtol=1e-4
        )
        if not is_plain or not all(lens.is_pinhole for lens in cameras.lenses):
            raise NerfError(
                f"{name}: only cameras without distortion whose axis is in the middle of the "
                "picture can be edited here. `nerf render --path` takes this file as it is."
            )
        angles = 2.0 * torch.atan(middle[:, 1] / focal[:, 1])
        self.keys = [Key(c2w, fov) for c2w, fov in zip(cameras.c2w, angles.tolist(), strict=True)]
        self.chosen, self.is_loop = 0, found.is_loop
        width, height = cameras.size[0].tolist()
        self.size = min(width, MOST_PIXELS), min(height, MOST_PIXELS)
        self.fps = min(found.fps or self.fps, MOST_FPS)
        if found.n_frames is not None:
            self.seconds = min(found.n_frames / self.fps, MOST_SECONDS)

    def set_fov(self, fov: float) -> None:
        """Give the chosen key frame another field of view, radians."""
        if self.keys:
            self.keys[self.chosen] = replace(self.keys[self.chosen], fov=fov)
