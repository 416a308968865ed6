"""Read the layout of IDR and NeuS: cameras_sphere.npz or cameras.npz, image/, mask/.

world_mat_i is a projection matrix P = K [R | t] from the source's frame to pixels, scale_mat_i maps
the unit sphere to the region of the object. The programs look up pixels by whole numbers at their
centres, so half a pixel is added; a principal point in the very middle shows that the file's writer
counted from the corner, as COLMAP does.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from nerfcli.cameras.boxes import Box
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes.extent import REACH, cascades_for
from nerfcli.scenes.readers.arrays import read_npz
from nerfcli.scenes.readers.collector import Collector, Pinhole, list_images
from nerfcli.scenes.readers.pictures import image_files
from nerfcli.scenes.source import NoFrames, Source, check_box

FILES = ("cameras_sphere.npz", "cameras.npz")
IMAGE_FOLDERS = ("image", "images", "rgb")  # MonoSDF has 000000_rgb.png beside the file
MASK_FOLDERS = ("mask", "masks")
KEYS = re.compile(r"(world|scale)_mat_(\d{1,6})")
MIDDLE = 0.02  # pixels between a principal point and the middle that is meant to be it


def find_neus(root: Path) -> Path | None:
    """Find the file of cameras in a folder."""
    return next((root / name for name in FILES if (root / name).is_file()), None)


def read_neus(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read the cameras in `path` and the images beside it.

    Raises:
        NerfError: a fault in the matrices or the images; names matrix and file.
    """
    matrices = read_npz(path, KEYS, 4)
    worlds = {int(name[10:]): m for name, m in matrices.items() if name.startswith("world")}
    if not worlds:
        raise NoFrames(f"{path} holds no world_mat_0, world_mat_1, ...; it is no NeuS scene.")
    images = _images(root, sorted(worlds), path, wanted)
    collector = Collector(root, path, wanted)
    collector.missing += [f"that of world_mat_{i}" for i in sorted(worlds) if i not in images]
    masks = _masks(root, list(images.values()), collector)
    cameras: dict[int, tuple[Pinhole, np.ndarray]] = {}
    for i, image in images.items():
        with collector.faults.collect():
            size = collector.header(image)[:2]
            camera, pose = _decompose(worlds[i], f"{path}: world_mat_{i}")
            cameras[i] = replace(camera, size=size), pose
    shift = _shift([camera for camera, _ in cameras.values()], collector)
    for i, (camera, pose) in cameras.items():
        with collector.faults.collect():
            image = images[i]
            where = f"{path}: world_mat_{i} ({image.name})"
            cx, cy = camera.principal or (0.0, 0.0)
            camera = replace(camera, principal=(cx + shift, cy + shift))
            collector.add(image.name, image, pose, camera, where, alpha=masks.get(image))
    box = _box(matrices, collector, path, masked=bool(masks))
    source = "" if box is None else f"the unit sphere of {path.name}"
    return collector.finish("neus", box=box, box_source=source)


def _decompose(matrix: np.ndarray, where: str) -> tuple[Pinhole, np.ndarray]:
    """Split P [3 or 4, 4] = K [R | t] into the intrinsics and c2w [3, 4]."""
    if len(matrix) not in (3, 4):
        raise NerfError(f"{where} must be a 4x4 matrix, got {matrix.shape}.")
    p = matrix[:3]
    largest = float(np.abs(p[:, :3]).max())
    if not np.isfinite(p).all():
        raise NerfError(f"{where} has values that are not finite.")
    if not 1e-12 < largest < 1e12:
        raise NerfError(f"{where} is no projection matrix: its largest entry is {largest:.3g}.")
    p = p / largest * np.where(np.linalg.det(p[:, :3] / largest) < 0, -1.0, 1.0)
    # RQ, by the QR of the matrix turned by half a circle; K's diagonal is positive
    q, r = np.linalg.qr(p[::-1, :3].T)
    r, q = r.T[::-1, ::-1], q.T[::-1]
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)
    k, rotation = r * signs, signs[:, None] * q
    if np.diag(k).min() < 1e-9:
        raise NerfError(f"{where} is no projection matrix: it is singular.")
    center = -np.linalg.solve(p[:, :3], p[:, 3])
    return Pinhole.of(k / k[2, 2], where), np.concatenate([rotation.T, center[:, None]], axis=1)


def _shift(cameras: list[Pinhole], collector: Collector) -> float:
    """Find what to add to pixel coordinates, so that the first pixel's centre is 0.5."""
    for camera in cameras:
        center, size = camera.principal or (0.0, 0.0), camera.size or (0, 0)
        if max(abs(c - n / 2) for c, n in zip(center, size, strict=True)) >= MIDDLE:
            return 0.5
    collector.notes.append(
        "the principal points are the images' middles, so pixels are counted from the corner"
    )
    return 0.0


def _images(root: Path, indices: list[int], path: Path, wanted: SceneConfig) -> dict[int, Path]:
    """Find the image of each matrix: by order, or by the number in its name if some are absent.

    Names count from 0 or from 1. Where both would fit, neither is taken.
    """
    files = [f for f in image_files(root) if f.stem.endswith("_rgb")] if not wanted.images else []
    files = files or list_images(root, IMAGE_FOLDERS, wanted)
    if len(files) == len(indices):
        return dict(zip(indices, files, strict=True))
    numbered = {int(m[0]): f for f in files if (m := re.search(r"\d{1,9}", f.stem))}
    firsts = [first for first in (0, 1) if {n - first for n in numbered} <= set(indices)]
    if len(numbered) == len(files) and len(firsts) == 1:
        return {n - firsts[0]: file for n, file in sorted(numbered.items())}
    raise NerfError(
        f"{path} has {len(indices)} cameras, one for each image in the order of their names; "
        f"{files[0].parent} holds {len(files)} images, whose numbers do not tell which are absent. "
        "Put the absent ones back, or remove their matrices too."
    )


def _masks(root: Path, images: list[Path], collector: Collector) -> dict[Path, Path]:
    """Pair images with the outlines of the object: by name, or by order; none unless all have."""
    folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    files = [] if folder is None else image_files(folder)
    if folder is None or not files:
        return {}
    by_stem = {file.stem: file for file in files}
    pairs = {image: by_stem[image.stem] for image in images if image.stem in by_stem}
    if len(pairs) < len(images) and len(files) == len(images):
        pairs = dict(zip(sorted(images), files, strict=True))
    if len(pairs) < len(images):
        collector.notes.append(
            f"{folder.name} has masks of {len(pairs)} of {len(images)} images and is not used"
        )
        return {}
    collector.notes.append(
        f"{folder.name} holds the object's outlines: what is black there is transparent"
    )
    return pairs


def _box(
    matrices: dict[str, np.ndarray], collector: Collector, path: Path, *, masked: bool
) -> Box | None:
    """Find the cube around the image of the unit sphere; without masks, its surroundings too."""
    scales = [matrix for name, matrix in matrices.items() if name.startswith("scale")]
    if not scales or not collector.frames:
        return None
    if len(scales[0]) not in (3, 4) or not np.isfinite(scales[0]).all():
        raise NerfError(f"{path}: scale_mat must be a 4x4 matrix of finite numbers.")
    half = max(float(np.linalg.norm(scales[0][:3, i])) for i in range(3))
    center = scales[0][:3, 3]
    box = check_box(Box(tuple(center.tolist()), half), f"{path}: scale_mat_0")
    positions = np.stack([frame.c2w[:, 3] for frame in collector.frames])
    axes = np.stack([frame.c2w[:, 2] for frame in collector.frames])
    if (((center - positions) * axes).sum(-1) < -half).all():
        raise NerfError(
            f"{path}: all cameras look away from the unit sphere; the matrices are mirrored, or "
            "not of this form (world_mat_i: from the scene to pixels, y down)."
        )
    if any(
        scale.shape != scales[0].shape or not np.allclose(scale, scales[0], rtol=1e-3)
        for scale in scales
    ):
        collector.notes.append("the views' scale_mat differ; the first one makes the box")
    distance = float(np.linalg.norm(positions - center, axis=-1).max())
    return replace(box, n_cascades=1 if masked else cascades_for(REACH * distance, half))
