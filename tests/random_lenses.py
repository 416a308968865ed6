"""Lenses at random, of every camera model that COLMAP has, inverted by COLMAP and by us.

COLMAP inverts a pixel here if its direction, projected by COLMAP, comes back to the pixel to 1e-6
pixels, and lies on the first branch: on the whole straight way from the axis to it the image is
nowhere turned over, neither by the lens nor by its radial terms alone. What lies beyond is a
second image of something that the lens has shown already, by a polynomial that folds back, and no
solution. Only COLMAP's own projection decides this.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from nerfcli.scenes.readers.colmap_cameras import CameraModel, intrinsics_of

WIDTH, HEIGHT = 640, 480
RETURNS = 1e-6  # pixels within which COLMAP's direction must come back to be its solution
TOLERANCE = 1e-4  # pixels within which ours must come back
SAME = 0.1  # pixels between the directions; beside a fold 1e-6 of the image are many of these
WAY = (np.arange(48) + 1) / 48  # from the axis to a solution
SIZES = {  # of the terms; a lens takes all times one factor from 0.03 to 2
    **{"k1": 0.3, "k2": 0.2, "k3": 0.1, "k4": 0.05, "k5": 0.03, "k6": 0.02, "k": 0.4},
    **{"d1": 0.3, "d2": 0.2, "d3": 0.1},
    **{"p1": 0.02, "p2": 0.02, "s1": 0.02, "s2": 0.01, "s3": 0.02, "s4": 0.01},
}


def random_params(model: CameraModel, rng: np.random.Generator) -> list[float]:
    """Draw the parameters of a camera in COLMAP's order, from slightly to absurdly distorted."""
    if model.n_focal == 0:
        return [float(WIDTH), float(HEIGHT)]
    focal = np.exp(rng.uniform(np.log(180), np.log(900))) * rng.uniform(0.9, 1.1, model.n_focal)
    center = rng.normal((WIDTH / 2, HEIGHT / 2), 20)
    scale = np.exp(rng.uniform(np.log(0.03), np.log(2)))
    terms = [rng.normal(0, SIZES.get(name, 0.0)) * scale for name in model.names]
    if model.lens == "fov":
        terms = [rng.uniform(0.01, 3.0)]
    if model.lens == "eucm":
        terms = [rng.uniform(0.0, 1.0), rng.uniform(0.2, 3.0)]
    return [float(value) for value in (*focal, *center, *terms)]


def compare_with_colmap(model: CameraModel, seed: int, n_lenses: int, step: int) -> Counter[str]:
    """Count lenses and pixels that COLMAP inverts, and those of them that we do not.

    step: pixels between those that are asked for.
    """
    import pycolmap

    rng = np.random.default_rng([seed, model.id])
    x, y = np.meshgrid(np.arange(0.5, WIDTH, step), np.arange(0.5, HEIGHT, step))
    pixels = np.stack([x.ravel(), y.ravel()], axis=-1)
    counts = Counter[str]()
    for _ in range(n_lenses):
        params = random_params(model, rng)
        theirs = pycolmap.Camera(model=model.name, width=WIDTH, height=HEIGHT, params=params)
        first = len(params) - len(model.names)
        radial = params[:first] + [
            0.0 if name[0] in "ps" else value
            for name, value in zip(model.names, params[first:], strict=True)
        ]
        straight = pycolmap.Camera(model=model.name, width=WIDTH, height=HEIGHT, params=radial)
        rays = np.asarray(theirs.cam_ray_from_img(pixels), dtype=float)
        rays[~np.isfinite(rays).all(1)] = (0.0, 0.0, -1.0)
        inverts = distance(theirs, rays, pixels) < RETURNS
        if model.n_focal:  # a panorama has no fold
            inverts[inverts] &= is_on_first_branch(theirs, rays[inverts])
            inverts[inverts] &= is_on_first_branch(straight, rays[inverts])
        mine = intrinsics_of(model, (WIDTH, HEIGHT), tuple(params), "here")
        plane = (torch.from_numpy(pixels) - torch.tensor(mine.principal)) / torch.tensor(mine.focal)
        directions, valid = (found.numpy() for found in mine.lens.directions(plane))
        agrees = valid & (distance(theirs, directions, pixels) < TOLERANCE)
        # the same image nearer to the axis: then theirs is beyond a fold between points of WAY
        is_nearer = directions[:, 2] > rays[:, 2]
        agrees &= (np.abs(directions - rays).max(1) * max(mine.focal) < SAME) | is_nearer
        missed = inverts & ~agrees
        counts += Counter(
            lenses=int(inverts.any()),
            lenses_missed=int(missed.any()),
            lenses_lost=int(inverts.any() and not (inverts & agrees).any()),
            pixels=int(inverts.sum()),
            pixels_missed=int(missed.sum()),
        )
    return counts


def distance(camera: Any, rays: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """How far from the pixels COLMAP projects directions, [n]; infinite where it does not."""
    off = np.abs(np.asarray(camera.img_from_cam(rays)) - pixels).max(axis=1)
    return np.where(np.isfinite(off), off, np.inf)


def is_on_first_branch(camera: Any, rays: np.ndarray) -> np.ndarray:
    """Whether COLMAP's projection turns the image over nowhere between the axis and rays, [n]."""
    theta = np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2])[:, None] * WAY
    phi, tiny = np.arctan2(rays[:, 1], rays[:, 0])[:, None], 1e-5

    def project(theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        across = np.sin(theta)
        xyz = np.stack([across * np.cos(phi), across * np.sin(phi), np.cos(theta)], axis=-1)
        return np.asarray(camera.img_from_cam(xyz.reshape(-1, 3))).reshape(*theta.shape, 2)

    outwards = project(theta, phi) - project(theta - tiny, phi)
    around = project(theta, phi + tiny) - project(theta, phi - tiny)
    turn = outwards[..., 0] * around[..., 1] - outwards[..., 1] * around[..., 0]
    return np.asarray((turn > 0).all(axis=1))
