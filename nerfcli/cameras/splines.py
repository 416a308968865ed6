"""Smooth curves through given positions and rotations, [n, k] and [n, 3, 3]."""

from __future__ import annotations

import numpy as np

from nerfcli.cameras.rotations import least_rotation

Array = np.ndarray


def catmull_rom(knots: Array, points: Array, at: Array) -> Array:
    """Barry and Goldman's pyramid for uneven knots; end points are mirrored.

    knots [n], points [n, k], at [m] -> [m, k].
    """
    first, last = 2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1]
    p = np.concatenate([first, points, last])
    t = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    i = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)

    def blend(a: Array, b: Array, start: Array, end: Array) -> Array:
        share = ((at - t[start]) / (t[end] - t[start]))[:, None]
        return (1 - share) * a + share * b

    a1, a2, a3 = (blend(p[i + k], p[i + k + 1], i + k, i + k + 1) for k in range(3))
    b1, b2 = blend(a1, a2, i, i + 2), blend(a2, a3, i + 1, i + 3)
    return blend(b1, b2, i + 1, i + 2)


def b_spline(points: Array, at: Array, *, is_loop: bool, order: int = 3) -> Array:
    """Uniform B-spline with the control points [n, k] at 0, 1, ..., at `at` [m] -> [m, k].

    Its ends are repeated, or it goes round. The last four columns are quaternions of any sign.
    order: 1: straight lines; 3: cubic.
    """
    first = np.floor(at).astype(np.int64)
    t = (at - first)[:, None]
    if order == 1:
        weights = [0 * t, 1 - t, t, 0 * t]
    else:
        weights = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        weights = [w / 6 for w in weights]
    mixed, last = np.zeros((len(at), points.shape[1])), len(points) - 1
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        index = first + offset
        chosen = points[index % (last + 1) if is_loop else np.clip(index, 0, last)].copy()
        against = (chosen[:, -4:] * mixed[:, -4:]).sum(-1) < 0  # q and -q are the same rotation
        chosen[against, -4:] *= -1
        mixed += weight * chosen
    return mixed


def rotation_spline(knots: Array, rotations: Array, at: Array) -> Array:
    """Rotations [n, 3, 3] as quaternions on a Catmull-Rom spline -> [m, 3, 3]."""
    from scipy.spatial.transform import Rotation

    quaternions = Rotation.from_matrix(rotations).as_quat()
    for i in range(1, len(quaternions)):  # q and -q are the same rotation: take the nearer one
        if quaternions[i] @ quaternions[i - 1] < 0:
            quaternions[i] *= -1
    return Rotation.from_quat(catmull_rom(knots, quaternions, at)).as_matrix()


def local_directions(rotations: Array, vectors: Array) -> Array:
    """Unit directions of vectors [n, 3] in the frames of rotations [n, 3, 3]."""
    local = np.einsum("nji,nj->ni", rotations, vectors)
    return local / np.linalg.norm(local, axis=-1, keepdims=True)


def aim(rotations: Array, vectors: Array, wanted: Array) -> Array:
    """Turn rotations by the least angle so that `vectors` get the local directions `wanted`.

    rotations [n, 3, 3], vectors and wanted [n, 3] of any length -> [n, 3, 3].
    """
    now = local_directions(rotations, vectors)
    wanted = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True)
    return rotations @ least_rotation(wanted, now)


def smooth(poses: Array, width: float) -> Array:
    """Smooth poses [n, 3, 4] along their order by a Gaussian of `width` poses."""
    from scipy.ndimage import gaussian_filter1d

    return _orthonormal(gaussian_filter1d(poses, width, axis=0, mode="nearest"))


def between(poses: Array, at: Array) -> Array:
    """Poses at the shares `at` [m] in [0, 1] of close poses [n, 3, 4] -> [m, 3, 4]."""
    places = np.clip(at, 0.0, 1.0) * (len(poses) - 1)
    first = np.minimum(places.astype(np.int64), len(poses) - 2)
    share = (places - first)[:, None, None]
    return _orthonormal((1 - share) * poses[first] + share * poses[first + 1])


def _orthonormal(poses: Array) -> Array:
    """Put the nearest rotations into poses [n, 3, 4]."""
    u, _, vt = np.linalg.svd(poses[:, :, :3])
    u[:, :, 2] *= np.linalg.det(u @ vt)[:, None]
    return np.concatenate([u @ vt, poses[:, :, 3:]], axis=-1)
