"""The runs of a capture that was cut into blocks, rendered as one.

A ray belongs to the blocks near the camera that it comes from: the colours of each are blended by
how near its cameras stand, as in Block-NeRF (2022, section 4.3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.errors import NerfError
from nerfcli.core.files import read_json
from nerfcli.core.progress import Note
from nerfcli.engine.crop import moved
from nerfcli.engine.render import Model, load_model
from nerfcli.engine.runs import Run
from nerfcli.methods import Field
from nerfcli.reference.samples import Pixels
from nerfcli.scenes import Scene
from nerfcli.scenes.scene import Similarity

RECORD, RUNS = "blocks.json", "runs"  # `nerf split` makes them
FORMAT = 1
POWER = 4.0  # of the inverse distance by which blocks are weighed
SOFT = 0.1  # added to distances, as a share of that between the nearest two blocks
LEAST_WEIGHT = 0.02  # of a block that is rendered at all


@dataclass(frozen=True)
class Part:
    """One block.

    Attributes:
        field: its own. from_whole: its scene space from that of the blended field.
        core: [n, 3] float64, where the cameras of its core stand, in the blended field's space.
    """

    field: Field
    from_whole: Similarity
    core: Tensor


@dataclass(frozen=True)
class BlendedField:
    """The fields of several blocks, in the scene space of the first; it can only be rendered."""

    parts: tuple[Part, ...]
    soft: float

    @property
    def box(self) -> Box:
        return self.parts[0].field.box

    @property
    def near(self) -> float:
        return min(part.field.near / part.from_whole.scale for part in self.parts)

    @property
    def far(self) -> float:
        return max(part.field.far / part.from_whole.scale for part in self.parts)

    @property
    def ops(self) -> Backend:
        return self.parts[0].field.ops

    @property
    def rays_per_chunk(self) -> int:
        return min(part.field.rays_per_chunk for part in self.parts)

    @property
    def needs_radii(self) -> bool:
        return any(part.field.needs_radii for part in self.parts)

    def weights(self, origins: Tensor) -> Tensor:
        """Weights of the blocks at origins [n, 3] -> [n, n_parts], each row adding up to 1.

        The inverse distance to the nearest camera of a block's core, to the power of POWER.
        """
        distances = [
            torch.cdist(origins.double(), part.core.to(origins.device)).amin(1)
            for part in self.parts
        ]
        weights = (torch.stack(distances, 1) + self.soft) ** -POWER
        weights = weights / weights.sum(1, keepdim=True)
        # from 0, so that nothing jumps where a block comes in
        weights = (weights - LEAST_WEIGHT).clamp(min=0.0)
        return (weights / weights.sum(1, keepdim=True)).to(origins.dtype)

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of rays, without gradients. background [3]."""
        weights = self.weights(rays.origins)
        total: dict[str, Tensor] = {}
        for part, weight in zip(self.parts, weights.unbind(1), strict=True):
            seen = weight > 0
            if not seen.any():
                continue
            pixels = part.field.render_rays(_moved(rays[seen], part.from_whole), background)
            for item in fields(Pixels):
                values = getattr(pixels, item.name)
                if "depth" in item.name:
                    values = values / part.from_whole.scale
                share = weight[seen] if values.dim() == 1 else weight[seen, None]
                whole = total.setdefault(item.name, values.new_zeros(len(rays), *values.shape[1:]))
                whole[seen] += share * values
        return Pixels(**total)

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] -> sigmas [n] per scene unit, without gradients."""
        weights = self.weights(positions)
        total = torch.zeros(len(positions), device=positions.device)
        for part, weight in zip(self.parts, weights.unbind(1), strict=True):
            places = part.from_whole.apply(positions.double()).float()
            total += weight * part.field.density(places) * part.from_whole.scale
        return total

    def within(self, crop: Crop) -> BlendedField:
        """The same, and nothing outside of the crop, which is in scene space."""
        parts = (
            replace(part, field=part.field.within(moved(crop, part.from_whole)))
            for part in self.parts
        )
        return replace(self, parts=tuple(parts))

    def bounds(self, rays: Rays) -> Bounds:
        return self.parts[0].field.bounds(_moved(rays, self.parts[0].from_whole))

    def state(self) -> dict[str, Tensor]:
        """Every tensor of every block."""
        return {
            f"{i}.{name}": tensor
            for i, part in enumerate(self.parts)
            for name, tensor in part.field.state().items()
        }


def _moved(rays: Rays, similarity: Similarity) -> Rays:
    turn = rays.directions.new_tensor(similarity.rotation)
    radii = rays.radii  # an angle: the same at any scale
    return replace(
        rays,
        origins=similarity.apply(rays.origins.double()).float(),
        directions=rays.directions @ turn.T,
        radii=radii,
    )


class WholeRun(Run):
    """What stands for the runs of all blocks: it has all cameras, and no checkpoint of its own.

    steps: of the blocks together.
    """

    steps: int = 0

    @property
    def step(self) -> int:
        return self.steps


def open_blocks(folder: Path) -> tuple[WholeRun, list[Run]]:
    """The runs of all blocks, and one that stands for the whole.

    Raises:
        NerfError: not a folder that `nerf split` made, or a block is not trained yet.
    """
    record = _record(folder)
    runs = []
    for block in record["blocks"]:
        path = folder / RUNS / block["name"]
        if not (path / "state.json").is_file():
            raise NerfError(
                f"--blocks {folder}: {block['name']} is not trained yet: "
                f"nerf train {folder / block['name']} --out {path}"
            )
        runs.append(Run.open(path))
    scenes = [Scene.from_json(run.scene_json) for run in runs]
    whole = WholeRun(folder, runs[0].config, _united(scenes, record["scene"]).to_json())
    whole.steps = sum(run.step for run in runs)
    return whole, runs


def load_blocks(
    folder: Path, backend: str = "auto", device: str = "cpu", note: Note | None = None
) -> Model:
    """The blended field of a folder of blocks.

    Raises:
        NerfError: as `open_blocks` and `load_model`.
    """
    whole, runs = open_blocks(folder)
    models = [load_model(run, backend, device, note) for run in runs]
    base = models[0].scene.scene_from_source
    parts = []
    for model, block in zip(models, _record(folder)["blocks"], strict=True):
        core = base.apply(torch.tensor(block["core"], dtype=torch.float64).reshape(-1, 3))
        from_whole = chain(base.inverse(), model.scene.scene_from_source)
        parts.append(Part(model.field, from_whole, core))
    centers = torch.stack([part.core.mean(0) for part in parts])
    apart = torch.cdist(centers, centers)[~torch.eye(len(parts), dtype=torch.bool)]
    field = BlendedField(tuple(parts), SOFT * float(apart.min()))
    return Model(field, Scene.from_json(whole.scene_json), models[0].backend, models[0].device)


def chain(first: Similarity, second: Similarity) -> Similarity:
    """The similarity that applies `first`, then `second`."""
    rotation = np.array(second.rotation) @ np.array(first.rotation)
    translation = second.apply(torch.tensor(first.translation, dtype=torch.float64))
    return Similarity(
        first.scale * second.scale,
        tuple(tuple(row) for row in rotation.tolist()),
        tuple(translation.tolist()),
    )


def _united(scenes: Sequence[Scene], name: str) -> Scene:
    """The first scene with the cameras of all; views of an overlap come once."""
    base = scenes[0].scene_from_source
    poses: list[Tensor] = []
    owners: list[tuple[Scene, int]] = []
    splits: dict[str, list[int]] = {}
    for scene in scenes:
        moved = chain(scene.scene_from_source.inverse(), base).apply_c2w(scene.cameras.c2w)
        for split, indices in scene.splits.items():
            for i in indices:
                if not _is_among(scene.names[i], moved[i], owners, poses):
                    splits.setdefault(split, []).append(len(poses))
                    poses.append(moved[i])
                    owners.append((scene, i))
    nothing = (None,) * len(poses)
    joined = Cameras(
        torch.stack(poses),
        torch.stack([scene.cameras.focal[i] for scene, i in owners]),
        torch.stack([scene.cameras.principal[i] for scene, i in owners]),
        torch.stack([scene.cameras.size[i] for scene, i in owners]),
        tuple(scene.cameras.lenses[i] for scene, i in owners),
    )
    return replace(
        scenes[0],
        name=name,
        names=tuple(scene.names[i] for scene, i in owners),
        cameras=joined,
        image_paths=nothing,
        mask_paths=nothing,
        alpha_paths=nothing,
        splits={split: tuple(indices) for split, indices in splits.items()},
        upright=None,
        log_gains=None,
    )


def _is_among(
    name: str, pose: Tensor, owners: Sequence[tuple[Scene, int]], poses: Sequence[Tensor]
) -> bool:
    """Whether a view is there already: two folders of a capture may have equal names."""
    return any(
        scene.names[i] == name and torch.allclose(pose, other, atol=1e-5)
        for (scene, i), other in zip(owners, poses, strict=True)
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise NerfError(f"--blocks {folder}: there is no {RECORD} in it; `nerf split` makes one.")
    record = read_json(path)
    try:
        if record["format"] != FORMAT:
            raise NerfError(f"{path}: format {record['format']!r}, this version reads {FORMAT}.")
        for block in record["blocks"]:
            str(block["name"]), np.asarray(block["core"], dtype=np.float64).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise NerfError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    return record
