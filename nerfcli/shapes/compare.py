"""Compare two shapes (`nerf compare`): all measures in one JSON-ready value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note
from nerfcli.core.text import quantity
from nerfcli.shapes.align import align_similarity, scale_of
from nerfcli.shapes.distance import Surface
from nerfcli.shapes.iou import volumetric_iou
from nerfcli.shapes.shape_metrics import (
    bootstrap,
    chamfer,
    chamfer_squared,
    f_score,
    hausdorff,
    hausdorff_95,
    neighbours,
    normal_distance,
    summary,
    two_way_json,
)
from nerfcli.shapes.surface import surface_of
from nerfcli.shapes.surface_samples import SurfaceSamples, sample_shape
from nerfcli.shapes.types import (
    Mesh,
    PointCloud,
    SdfGrid,
    Shape,
    VoxelGrid,
    bounds,
    diagonal,
    transform_mesh,
)

RADIUS_SHARES = (0.005, 0.01, 0.02)  # of the diagonal of B's bounding box
DEFAULT_VOXELS = 128
MAX_VOXELS = 2048
MAX_SAMPLES = 20_000_000


@dataclass(frozen=True)
class CompareOptions:
    """Options of a comparison.

    samples: points on each surface.
    radii: for the F-score in the source's unit; empty takes RADIUS_SHARES of B's diagonal.
    align: "none" or "similarity".
    voxels: along the longest side for the IoU; 0 leaves it out; None: 128, if both are closed.
    bootstrap: redraws for the intervals; 0 leaves them out.
    """

    samples: int = 100_000
    seed: int = 0
    radii: tuple[float, ...] = ()
    align: str = "none"
    voxels: int | None = None
    bootstrap: int = 200

    def __post_init__(self) -> None:
        _ensure("samples", self.samples, 1, MAX_SAMPLES)
        _ensure("seed", self.seed, 0, 2**63 - 1)
        _ensure("bootstrap", self.bootstrap, 0, 100_000)
        if self.voxels:
            _ensure("voxels", self.voxels, 2, MAX_VOXELS)
        if self.align not in ("none", "similarity"):
            raise NerfError(f"--align: unknown {self.align!r}; known: none, similarity.")
        for radius in self.radii:
            if not (np.isfinite(radius) and radius > 0):
                raise NerfError(f"--radius: {radius} must be a positive number.")


def compare_shapes(
    a: Shape,
    b: Shape,
    options: CompareOptions,
    names: tuple[str, str] = ("A", "B"),
    note: Note = lambda text: None,
) -> dict[str, Any]:
    """Measure A against B, the truth; definitions in docs/geometry.md.

    Both surfaces are sampled with the same seed. Values are in the unit of the files.

    Raises:
        NerfError: an empty or degenerate shape; no inside where --voxels asks for a volume.
    """
    surface_a, surface_b = (
        surface_of(name, shape) for name, shape in zip(names, (a, b), strict=True)
    )
    matrix = None
    if options.align == "similarity":
        note("aligning A to B")
        matrix = align_similarity(surface_a, surface_b, np.random.default_rng(options.seed))
        surface_a = _move(surface_a, matrix)
        a = surface_a if isinstance(a, Mesh | PointCloud) else _ensure_mesh(surface_a)
    size = diagonal(bounds(surface_b))
    if not size > 0:
        raise NerfError(f"{names[1]} is degenerate: all its points are equal.")
    volume, volume_reason = _volume(a, b, options, names)  # first: the only part that may refuse
    p, q = (_sample(surface, options, 0) for surface in (surface_a, surface_b))
    note(f"nearest neighbours of {len(p.points)} and {quantity(len(q.points), 'point')}")
    found = neighbours(p, q)
    radii = options.radii or tuple(share * size for share in RADIUS_SHARES)
    value: dict[str, Any] = {
        "a": _describe(names[0], a, surface_a),
        "b": _describe(names[1], b, surface_b),
        "diagonal": size,
        "samples": {"a": len(p.points), "b": len(q.points), "seed": options.seed},
        "align": {
            "kind": options.align,
            "b_from_a": None if matrix is None else matrix.tolist(),
            "scale": None if matrix is None else scale_of(matrix),
        },
        "chamfer": two_way_json(chamfer(found)),
        "chamfer_squared": two_way_json(chamfer_squared(found)),
        "normal_distance": None,
        "normal_consistency": None,
        "f_scores": [asdict(f_score(found, radius)) for radius in radii],
        "hausdorff": _with_max(hausdorff(found)),
        "hausdorff_95": _with_max(hausdorff_95(found)),
    }
    turned = normal_distance(found)
    if turned is not None:
        value["normal_distance"] = two_way_json(turned)
        value["normal_consistency"] = -turned.mean
    note("exact distances to the surfaces")
    value["point_to_surface"] = _point_to_surface(p, q, surface_a, surface_b)
    value["noise_floor"] = _noise_floor(surface_b, q, options, radii)
    value |= {"volume": volume, "volume_reason": volume_reason}
    value["bootstrap"] = None
    if options.bootstrap:
        rng = np.random.default_rng([options.seed, 2])
        value["bootstrap"] = bootstrap(found, radii, options.bootstrap, rng)
    return value


def _sample(surface: Mesh | PointCloud, options: CompareOptions, stream: int) -> SurfaceSamples:
    rng = np.random.default_rng([options.seed, stream])
    return sample_shape(surface, options.samples, rng)


def _point_to_surface(
    p: SurfaceSamples, q: SurfaceSamples, a: Mesh | PointCloud, b: Mesh | PointCloud
) -> dict[str, Any]:
    """Measure exact distances of the samples to the other's faces; None if it has none."""
    return {
        "a_to_b": summary(Surface(b).closest(p.points)[0]) if isinstance(b, Mesh) else None,
        "b_to_a": summary(Surface(a).closest(q.points)[0]) if isinstance(a, Mesh) else None,
    }


def _noise_floor(
    b: Mesh | PointCloud, q: SurfaceSamples, options: CompareOptions, radii: tuple[float, ...]
) -> dict[str, Any] | None:
    """Score B against itself with two independent samples; None for a point cloud."""
    if isinstance(b, PointCloud):
        return None
    found = neighbours(_sample(b, options, 1), q)
    turned = normal_distance(found)
    return {
        "chamfer_sum": chamfer(found).sum,
        "chamfer_squared_sum": chamfer_squared(found).sum,
        "hausdorff": hausdorff(found).max,
        "normal_consistency": None if turned is None else -turned.mean,
        "f_scores": [f_score(found, radius).f_score for radius in radii],
    }


def _volume(
    a: Shape, b: Shape, options: CompareOptions, names: tuple[str, str]
) -> tuple[dict[str, Any] | None, str | None]:
    """Compute the IoU, or the reason why there is none; an error only if the user asked for it."""
    if options.voxels == 0:
        return None, "left out by --voxels 0"
    try:
        return asdict(volumetric_iou(a, b, options.voxels or DEFAULT_VOXELS, names)), None
    except NerfError as error:
        if options.voxels is not None:
            raise
        return None, str(error)


def _move(surface: Mesh | PointCloud, matrix: np.ndarray) -> Mesh | PointCloud:
    if isinstance(surface, Mesh):
        return transform_mesh(surface, matrix)
    rotation = matrix[:3, :3] / scale_of(matrix)
    normals = None if surface.normals is None else surface.normals @ rotation.T
    points = surface.points @ matrix[:3, :3].T + matrix[:3, 3]
    return replace(surface, points=points, normals=normals)


def _ensure_mesh(surface: Mesh | PointCloud) -> Mesh:
    assert isinstance(surface, Mesh)  # a grid's surface always is
    return surface


def _with_max(value: Any) -> dict[str, float]:
    return {"a_to_b": value.a_to_b, "b_to_a": value.b_to_a, "max": value.max}


def _describe(name: str, shape: Shape, surface: Mesh | PointCloud) -> dict[str, Any]:
    kinds = {Mesh: "mesh", PointCloud: "points", VoxelGrid: "voxels", SdfGrid: "sdf"}
    value: dict[str, Any] = {"name": name, "kind": kinds[type(shape)]}
    if isinstance(surface, Mesh):
        return value | {
            "vertices": len(surface.vertices),
            "faces": len(surface.faces),
            "area": surface.area,
        }
    return value | {"points": len(surface.points)}


def _ensure(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise NerfError(f"--{name}: {value} must lie between {low} and {high}.")
