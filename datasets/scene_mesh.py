"""The ground-truth mesh: marching cubes, then edge collapse, vertices on the exact surface.

Edge collapse with quadrics after Garland and Heckbert, "Surface simplification using quadric error
metrics" (1997), memoryless as in Lindstrom and Turk (1998); here many independent edges at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scene_paint import albedo
from scene_parts import BOUND_RADIUS
from scene_sdf import onto_surface, part_gradient, union_distance
from scene_trace import encode
from scipy.sparse import coo_matrix

Array = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]

RESOLUTION = 200  # marching cubes, cells along each side
TARGET_FACES = 19500


def dense_mesh(resolution: int = RESOLUTION) -> tuple[Array, Indices]:
    """Outer surface by marching cubes, vertices [v, 3] projected onto it, faces [f, 3] outward."""
    from scipy.ndimage import label
    from skimage.measure import marching_cubes

    ticks = np.linspace(-BOUND_RADIUS, BOUND_RADIUS, resolution + 1)
    volume = np.empty((ticks.size,) * 3)
    y, z = (g.ravel() for g in np.meshgrid(ticks, ticks, indexing="ij"))
    for i, x in enumerate(ticks):
        volume[i] = union_distance(np.stack([np.full(y.size, x), y, z], axis=1))[0].reshape(
            volume[i].shape
        )
    rooms = np.empty(volume.shape, dtype=np.int32)
    label(volume > 0, output=rooms)
    volume[
        (volume > 0) & (rooms != rooms[0, 0, 0])
    ] *= -1  # specks a narrow crease leaves in a lattice
    size = float(ticks[1] - ticks[0])
    vertices, faces = marching_cubes(
        volume, 0.0, spacing=(size,) * 3, gradient_direction="descent"
    )[:2]
    vertices = vertices.astype(np.float64) - BOUND_RADIUS
    moved = onto_surface(vertices)
    far = np.linalg.norm(moved - vertices, axis=1) > size
    moved[far] = vertices[far]
    return moved, faces.astype(np.int64)


def face_normals(vertices: Array, faces: Indices) -> Array:
    """Normals [f, 3] of length twice the area."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def quadrics(vertices: Array, faces: Indices) -> Array:
    """Sum of squared plane distances of the faces at each vertex, as [v, 4, 4], area weighted."""
    normal = face_normals(vertices, faces)
    double = np.linalg.norm(normal, axis=1, keepdims=True)
    unit = normal / np.maximum(double, 1e-30)
    plane = np.concatenate(
        [unit, -np.sum(unit * vertices[faces[:, 0]], axis=1, keepdims=True)], axis=1
    )
    each = (plane[:, :, None] * plane[:, None, :] * (double[:, :, None] / 6)).reshape(-1, 16)
    total = np.zeros((len(vertices), 16))
    for k in range(16):
        total[:, k] = np.bincount(faces.ravel(), np.repeat(each[:, k], 3), len(vertices))
    return total.reshape(-1, 4, 4)


def spoiled(vertices: Array, faces: Indices, edges: Indices, place: Array) -> NDArray[np.bool_]:
    """Which edges [e, 2], collapsed to place [e, 3], would flip a face or make it a needle."""
    order = np.argsort(faces.ravel(), kind="stable")
    counts = np.bincount(faces.ravel(), minlength=len(vertices))
    starts = np.cumsum(counts) - counts
    bad = np.zeros(len(edges), dtype=bool)
    for end in (0, 1):
        vertex, other = edges[:, end], edges[:, 1 - end]
        many = counts[vertex]
        owner = np.repeat(np.arange(len(edges)), many)
        slot = np.arange(owner.size) - np.repeat(np.cumsum(many) - many, many)
        flat = order[starts[vertex][owner] + slot]
        ring = faces[flat // 3]
        keep = np.all(ring != other[owner][:, None], axis=1)
        owner, flat, ring = owner[keep], flat[keep], ring[keep]
        corners = vertices[ring]
        normals, shapes = [], []
        for _ in range(2):
            sides = np.roll(corners, -1, axis=1) - corners
            normals.append(np.cross(sides[:, 0], sides[:, 1]))
            longest = np.max(np.sum(sides**2, axis=2), axis=1) + 1e-30
            shapes.append(np.linalg.norm(normals[-1], axis=1) / longest)
            corners = corners.copy()
            corners[np.arange(len(corners)), flat % 3] = place[owner]
        sizes = np.linalg.norm(normals[0], axis=1) * np.linalg.norm(normals[1], axis=1)
        flips = (np.sum(normals[0] * normals[1], axis=1) < 0.5 * sizes) & (shapes[0] > 1e-4)
        thin = (shapes[1] < 0.02) & (shapes[1] < 0.7 * shapes[0])
        bad[owner[flips | thin]] = True
    return bad


def collapse_round(vertices: Array, faces: Indices, most: int) -> tuple[Array, Indices]:
    """Collapse up to `most` independent cheap edges that keep a manifold and flip nothing."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges = np.unique(edges, axis=0)
    a, b = edges.T
    n = len(vertices)
    middle = (vertices[a] + vertices[b]) / 2
    length2 = np.sum((vertices[a] - vertices[b]) ** 2, axis=1)
    q = quadrics(vertices, faces)
    q = q[a] + q[b]
    pull = 1e-3 * np.trace(q[:, :3, :3], axis1=1, axis2=2)[:, None] + 1e-30
    system = q[:, :3, :3] + pull[:, :, None] * np.eye(3)
    place = np.linalg.solve(system, (pull * middle - q[:, :3, 3])[:, :, None])[:, :, 0]
    off = np.sum((place - middle) ** 2, axis=1) > length2
    place[off] = middle[off]
    h = np.concatenate([place, np.ones((len(place), 1))], axis=1)
    cost = np.einsum("ni,nij,nj->n", h, q, h) + 1e-5 * length2 * length2

    ones = np.ones(2 * len(edges), dtype=np.int32)
    links = coo_matrix(
        (ones, (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(n, n)
    ).tocsr()
    order = np.argsort(cost, kind="stable")[: max(12 * most, 256)]
    common = np.asarray(links[a[order]].multiply(links[b[order]]).sum(axis=1)).ravel()
    order = order[common == 2]
    order = order[~spoiled(vertices, faces, edges[order], place[order])]
    rank = np.full(len(edges), len(edges))
    rank[order] = np.arange(order.size)
    least = np.full(n, len(edges))
    np.minimum.at(least, a, rank)
    np.minimum.at(least, b, rank)
    around = least.copy()
    np.minimum.at(around, a, least[b])
    np.minimum.at(around, b, least[a])
    chosen = order[rank[order] <= np.minimum(around[a[order]], around[b[order]])][:most]

    target = np.arange(n)
    target[b[chosen]] = a[chosen]
    vertices = vertices.copy()
    vertices[a[chosen]] = place[chosen]
    faces = target[faces]
    faces = faces[
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    ]
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def ground_truth_mesh(target: int = TARGET_FACES) -> tuple[Array, Indices]:
    """Vertices [v, 3] on the exact surface and at most `target` outward faces [f, 3], closed."""
    vertices, faces = dense_mesh()
    for _ in range(400):
        if len(faces) <= target:
            break
        most = max(1, min(len(faces) // 24, (len(faces) - target + 1) // 2))
        vertices, faces = collapse_round(vertices, faces, most)
    else:
        raise RuntimeError(f"stuck at {len(faces)} faces, {target} wanted")
    moved = onto_surface(vertices, rounds=40)
    for _ in range(20):  # a vertex whose last step turned a face over goes back, by itself
        turned = np.sum(face_normals(vertices, faces) * face_normals(moved, faces), axis=1) <= 0
        if not turned.any():
            break
        rows = np.unique(faces[turned])
        moved[rows] = vertices[rows]
    return moved, faces


def write_ply(path: Path, vertices: Array, faces: Indices) -> None:
    """Binary little-endian PLY: float32 positions and normals, uchar sRGB colours, triangles."""
    index = union_distance(vertices)[1]
    names = ("x", "y", "z", "nx", "ny", "nz")
    row = [(name, "<f4") for name in names] + [(name, "u1") for name in ("red", "green", "blue")]
    table = np.zeros(len(vertices), dtype=row)
    values = np.concatenate([vertices, part_gradient(vertices, index)], axis=1)
    for k, name in enumerate(names):
        table[name] = values[:, k]
    colours = np.floor(encode(albedo(vertices, index)) * 255 + 0.5)
    for k, name in enumerate(("red", "green", "blue")):
        table[name] = colours[:, k]
    cells = np.zeros(len(faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
    cells["n"], cells["v"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property float {name}" for name in names]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    path.write_bytes("\n".join(header).encode() + b"\n" + table.tobytes() + cells.tobytes())
