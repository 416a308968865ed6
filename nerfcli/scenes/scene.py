"""A scene: posed views, the box they look at, and how it relates to the source's own frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.upright import Upright, quarter_turns
from nerfcli.core.errors import NerfError

FORMAT = 1  # of the JSON; raised when an old reader would misread it


@dataclass(frozen=True)
class Similarity:
    """x_scene = scale * rotation @ x_source + translation.

    Attributes:
        scale: scene units per source unit.
        rotation: three rows of three.
        translation: in scene units.
    """

    scale: float = 1.0
    rotation: tuple[tuple[float, ...], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    translation: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def matrix(self) -> np.ndarray:
        """The same as [4, 4] float64."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * np.array(self.rotation)
        matrix[:3, 3] = self.translation
        return matrix

    def inverse(self) -> Similarity:
        """x_source from x_scene."""
        rotation = np.array(self.rotation).T
        translation = -(rotation @ np.array(self.translation)) / self.scale
        rows = tuple(tuple(row) for row in rotation.tolist())
        return Similarity(1.0 / self.scale, rows, tuple(translation.tolist()))

    def apply(self, points: Tensor) -> Tensor:
        """Transform points [..., 3]."""
        rotation = points.new_tensor(self.rotation)
        return self.scale * (points @ rotation.T) + points.new_tensor(self.translation)

    def apply_c2w(self, c2w: Tensor) -> Tensor:
        """Transform poses [..., 3, 4]; their rotations stay orthonormal."""
        turned = c2w.new_tensor(self.rotation) @ c2w[..., :3]
        return torch.cat([turned, self.apply(c2w[..., 3])[..., None]], dim=-1)


@dataclass(frozen=True)
class Scene:
    """A scene to train on. Images stay on disk until `load_views`.

    Attributes:
        name: of the folder.
        path: the folder; None for a scene read back from a run.
        kind: the format, such as "blender" or "colmap".
        names: per camera, its image relative to the folder, unique.
        cameras: all frames, scene space.
        image_paths: None for a camera without an image.
        mask_paths: None where all pixels may be used.
        alpha_paths: separate alpha images, as instant-ngp has them.
        masked_where: "black" or "nonzero": the mask values that are ignored.
        splits: "train", "val", "test" -> camera indices.
        box: where the field lives, scene space.
        near, far: first and last distance sampled along a ray, scene units.
        background: "white" or "black": what transparent pixels are shown on.
        has_alpha: whether the images have transparency.
        alpha_ignored: alpha is a mask; has_alpha is then false.
        points: [n, 3] float32 sparse points of the source, scene space; None without any, and for
            a scene read back from a run.
        log_gains: [n_cameras] how much brighter each photo is than their mean, as the natural log
            of a factor of its 8-bit values; None where nobody measured it.
        scene_from_source: the source is what the files state, in their units.
        box_source: how the box was found, for people.
        box_is_stated: by the files or the user, rather than found; false for a scene read back.
        downscale: images are read at 1/downscale of their size; cameras already are.
        crop_radius: pixels further than this from the image's middle are not used (fisheye
            circles); 0: all are.
        notes: what the user should know, a line each.
        upright: which way is up, of all cameras; None in runs of before.
    """

    name: str
    path: Path | None
    kind: str
    names: tuple[str, ...]
    cameras: Cameras
    image_paths: tuple[Path | None, ...]
    mask_paths: tuple[Path | None, ...]
    alpha_paths: tuple[Path | None, ...]
    masked_where: str
    splits: dict[str, tuple[int, ...]]
    box: Box
    near: float
    far: float
    background: str
    has_alpha: bool
    scene_from_source: Similarity
    box_source: str
    downscale: int = 1
    crop_radius: float = 0.0
    notes: tuple[str, ...] = ()
    alpha_ignored: bool = False
    points: Tensor | None = None
    log_gains: Tensor | None = None
    upright: Upright | None = None
    box_is_stated: bool = False

    @property
    def half_size_in_source(self) -> float:
        """Half size of the detail cube, source units."""
        return self.box.half_size / self.scene_from_source.scale

    def describe_box(self, *, is_unbounded: bool) -> str:
        """Say how large the box is, and where it comes from.

        is_unbounded: of the method, for which the outer cubes have no meaning.
        """
        text = f"half size {self.half_size_in_source:.4g} in source units"
        if self.box.n_cascades > 1 and not is_unbounded:
            text += f", {self.box.n_cascades} cascades (cubes around it, each twice as wide)"
        return f"{text} ({self.box_source})"

    def to_json(self) -> dict[str, Any]:
        """Return all that rendering needs as plain JSON values, without paths of this machine."""
        cameras = self.cameras
        frames = [
            {
                "name": self.names[i],
                "c2w": cameras.c2w[i].tolist(),
                "focal": cameras.focal[i].tolist(),
                "principal": cameras.principal[i].tolist(),
                "size": cameras.size[i].tolist(),
                "lens": cameras.lenses[i].model,
                "lens_params": list(cameras.lenses[i].params),
            }
            for i in range(len(cameras))
        ]
        similarity = self.scene_from_source
        return {
            "format": FORMAT,
            "name": self.name,
            "kind": self.kind,
            "camera_frame": "opencv",
            "frames": frames,
            "splits": {split: list(indices) for split, indices in self.splits.items()},
            "box": {
                "center": list(self.box.center),
                "half_size": self.box.half_size,
                "n_cascades": self.box.n_cascades,
                "source": self.box_source,
            },
            "near": self.near,
            "far": self.far,
            "background": self.background,
            "has_alpha": self.has_alpha,
            "alpha_ignored": self.alpha_ignored,
            "scene_from_source": {
                "scale": similarity.scale,
                "rotation": [list(row) for row in similarity.rotation],
                "translation": list(similarity.translation),
            },
            "downscale": self.downscale,
            "crop_radius": self.crop_radius,
            "notes": list(self.notes),
            "upright": None
            if self.upright is None
            else {
                "up": self.upright.up.tolist(),
                "is_certain": self.upright.is_certain,
                "reason": self.upright.reason,
            },
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Scene:
        """Restore a scene, without images, from the value of `to_json`.

        Raises:
            NerfError: written by a newer version, or not a scene.
        """
        if data.get("format") != FORMAT:
            raise NerfError(
                f"scene.json has format {data.get('format')!r}, this version reads {FORMAT}; "
                "use the version of nerf that wrote the run."
            )
        try:
            return _scene_from_json(data)
        except (KeyError, TypeError, ValueError) as error:
            raise NerfError(
                f"scene.json is damaged ({type(error).__name__}: {error}); train again."
            ) from error


def _scene_from_json(data: Mapping[str, Any]) -> Scene:
    frames, box, similarity = data["frames"], data["box"], data["scene_from_source"]
    nothing = (None,) * len(frames)
    c2w = torch.tensor([f["c2w"] for f in frames], dtype=torch.float64).reshape(-1, 3, 4)
    upright, known = None, data.get("upright")  # runs of before have none
    if known is not None:
        up = np.array(known["up"], dtype=np.float64).reshape(3)
        turns = quarter_turns(c2w.numpy(), up)
        upright = Upright(up, turns, bool(known["is_certain"]), str(known["reason"]))
    return Scene(
        name=data["name"],
        path=None,
        kind=data["kind"],
        names=tuple(frame["name"] for frame in frames),
        cameras=Cameras(
            c2w,
            torch.tensor([f["focal"] for f in frames], dtype=torch.float64).reshape(-1, 2),
            torch.tensor([f["principal"] for f in frames], dtype=torch.float64).reshape(-1, 2),
            torch.tensor([f["size"] for f in frames], dtype=torch.int64).reshape(-1, 2),
            tuple(Lens(f["lens"], tuple(f["lens_params"])) for f in frames),
        ),
        image_paths=nothing,
        mask_paths=nothing,
        alpha_paths=nothing,
        masked_where="black",
        splits={split: tuple(indices) for split, indices in data["splits"].items()},
        box=Box(tuple(box["center"]), box["half_size"], box["n_cascades"]),
        near=data["near"],
        far=data["far"],
        background=data["background"],
        has_alpha=data["has_alpha"],
        scene_from_source=Similarity(
            similarity["scale"],
            tuple(tuple(row) for row in similarity["rotation"]),
            tuple(similarity["translation"]),
        ),
        box_source=box["source"],
        downscale=data["downscale"],
        crop_radius=data["crop_radius"],
        notes=tuple(data["notes"]),
        alpha_ignored=data.get("alpha_ignored", False),  # runs of before have none
        upright=upright,
    )


def holdout_split(n_cameras: int, holdout: int) -> dict[str, tuple[int, ...]]:
    """Hold out every `holdout`-th camera for testing, the first included; 0 trains on all.

    Raises:
        NerfError: nothing would be left to train on.
    """
    test = tuple(range(0, n_cameras, holdout)) if holdout else ()
    train = tuple(sorted(set(range(n_cameras)) - set(test)))
    if not train:
        raise NerfError(
            f"Holding out every {holdout}. of {n_cameras} images leaves none to train on; "
            "use --holdout 0 or add images."
        )
    return {"train": train, "val": (), "test": test}
