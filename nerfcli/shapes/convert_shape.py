"""Convert a shape file to another representation, with a sidecar JSON (`nerf export FILE`).

The table POSSIBLE states which conversions exist; docs/representations.md says what each loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_json
from nerfcli.core.progress import Progress
from nerfcli.core.text import choose_from
from nerfcli.shapes.fit import fit_mesh
from nerfcli.shapes.grid_files import VALUES_AT
from nerfcli.shapes.grids import MAX_RESOLUTION, ensure_resolution, sdf_of, voxels_of
from nerfcli.shapes.manifold import count_nonmanifold_edges, split_nonmanifold_edges
from nerfcli.shapes.mesh_files import load_shape, save_shape
from nerfcli.shapes.simplify import simplify_mesh
from nerfcli.shapes.splat_files import SPLAT_SUFFIXES
from nerfcli.shapes.surface import surface_of
from nerfcli.shapes.surface_samples import sample_surface
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, Shape, VoxelGrid, bounds

KINDS = ("mesh", "points", "voxels", "sdf", "splats", "mpi", "views", "cameras")
FOLDERS = ("mpi", "views", "cameras")
SUFFIXES = {
    "mesh": (".ply", ".obj", ".glb", ".stl"),
    "points": (".ply",),
    "voxels": (".npz", ".binvox"),
    "sdf": (".npz",),
    "splats": SPLAT_SUFFIXES,
}
# source -> targets; a run converts to everything
POSSIBLE = {
    "mesh": ("mesh", "points", "voxels", "sdf"),
    "points": ("points", "voxels"),
    "voxels": ("mesh", "points", "voxels", "sdf"),
    "sdf": ("mesh", "points", "voxels", "sdf"),
}
MESH_RESOLUTION, GRID_RESOLUTION = 256, 128
MAX_MESH_RESOLUTION = 2048
N_POINTS, N_SPLATS = 500_000, 100_000
SIDECAR = "export.json"  # in a folder; beside a file it is the file's name with .json added


@dataclass(frozen=True)
class ExportOptions:
    """Options of `nerf export`; None: the default of the kind.

    threshold: density per source unit. fill: what no light reaches counts as inside.
    faces: about how many of a mesh. texture: side of a baked texture in texels; 0: vertex colours.
    points: how many, also of splats. fit_steps: of splats, 0: none.
    view: name or number of the camera of an MPI. planes: of an MPI. views: on the sphere.
    scale: of the width and height of rendered views. crop: of a run, a box as --crop takes it.
    """

    to: str = "mesh"
    resolution: int | None = None
    threshold: float | None = None
    fill: bool = True
    faces: int | None = None
    texture: int = 0
    fit: bool = False
    points: int | None = None
    view: str | None = None
    planes: int = 32
    views: int = 64
    scale: float = 1.0
    seed: int = 0
    fit_steps: int = 120
    crop: str | None = None

    def __post_init__(self) -> None:
        if self.to not in KINDS:
            raise NerfError(f"--to: unknown {self.to!r}; {choose_from(self.to, KINDS)}.")
        most = MAX_MESH_RESOLUTION if self.to == "mesh" else MAX_RESOLUTION
        ensure_resolution(self.grid_resolution, most)
        if self.threshold is not None and not 0.0 < self.threshold < float("inf"):
            raise NerfError(f"--threshold {self.threshold:g}: a density must be above 0.")
        for name, low, high in (
            ("n_points", 1, 50_000_000),
            ("fit_steps", 0, 100_000),
            ("planes", 2, 256),
            ("views", 1, 10_000),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                flag = name.removeprefix("n_").replace("_", "-")
                raise NerfError(f"--{flag} {value}: must lie between {low} and {high}.")
        if self.faces is not None and self.faces < 4:
            raise NerfError(f"--faces {self.faces}: a closed mesh has at least 4.")
        if self.texture and not 64 <= self.texture <= 16384:
            raise NerfError(f"--texture {self.texture}: must lie between 64 and 16384.")
        if self.texture and self.to != "mesh":
            raise NerfError("--texture belongs to --to mesh.")
        if not 0.0 < self.scale <= 16.0:
            raise NerfError(f"--scale {self.scale:g}: must be above 0 and at most 16.")

    @property
    def n_points(self) -> int:
        if self.points is not None:
            return self.points
        return N_SPLATS if self.to == "splats" else N_POINTS

    @property
    def grid_resolution(self) -> int:
        if self.resolution is not None:
            return self.resolution
        return MESH_RESOLUTION if self.to == "mesh" else GRID_RESOLUTION


def kind_of(shape: Shape) -> str:
    kinds = {Mesh: "mesh", PointCloud: "points", VoxelGrid: "voxels", SdfGrid: "sdf"}
    return kinds[type(shape)]


def export_file(
    path: Path, out: Path, options: ExportOptions, progress: Progress
) -> dict[str, Any]:
    """Convert a shape file; return the JSON value of the command.

    Raises:
        NerfError: a conversion that does not exist, or a shape without what it needs.
    """
    shape = load_shape(path, progress.note)
    made = convert_shape(str(path), shape, options, progress)
    save_shape(made, out)
    value = {"source": str(path), "from": kind_of(shape), "to": options.to, **describe_shape(made)}
    if options.to in ("voxels", "sdf"):
        value["resolution"] = options.grid_resolution
    return finish([out], value)


def convert_shape(name: str, shape: Shape, options: ExportOptions, progress: Progress) -> Shape:
    """Convert a shape to another representation. Errors as for `export_file`."""
    kind, to = kind_of(shape), options.to
    if options.fit and to == "mesh":
        target = shape if isinstance(shape, PointCloud) else surface_of(name, shape)
        return fit_shape(target, progress)
    if to not in POSSIBLE[kind]:
        possible = ", ".join(POSSIBLE[kind])
        hint = "; a mesh by --fit, if they have normals" if kind == "points" else ""
        raise NerfError(
            f"--to {to}: {name} holds {kind}, from which there are {possible}{hint}. "
            f"{'See docs/representations.md' if to in SUFFIXES else 'A run gives everything'}."
        )
    if options.texture:
        raise NerfError("--texture is baked from a field: name a run, not a shape file.")
    if to == "voxels":
        return shape if kind == to and not options.resolution else voxels_of(
            name, shape, options.grid_resolution)  # fmt: skip
    if to == "sdf":
        return shape if kind == to and not options.resolution else sdf_of(
            name, shape, options.grid_resolution, progress)  # fmt: skip
    surface = surface_of(name, shape)
    if to == "mesh":
        assert isinstance(surface, Mesh)  # POSSIBLE keeps points away
        return surface if options.faces is None else simplify_mesh(surface, options.faces)
    return surface if isinstance(surface, PointCloud) else _sample(surface, options)


def fit_shape(target: Mesh | PointCloud, progress: Progress, start: Mesh | None = None) -> Mesh:
    """Move a mesh of even triangles onto the target, from `start` or else from a sphere."""
    steps = 200
    with progress.another(steps, "step", "fit") as reporter:

        def note(step: int, terms: dict[str, float]) -> None:
            reporter.update(step, chamfer=terms["chamfer"])

        return split_nonmanifold_edges(fit_mesh(target, start, steps=steps, note=note))


def describe_shape(shape: Shape) -> dict[str, Any]:
    """Describe the size and place of a shape, for the sidecar."""
    box = bounds(shape).tolist()
    if isinstance(shape, Mesh):
        return {"vertices": len(shape.vertices), "faces": len(shape.faces), "box": box,
                "colors": shape.vertex_colors is not None,
                "non_manifold_edges": count_nonmanifold_edges(shape)}  # fmt: skip
    if isinstance(shape, PointCloud):
        return {"points": len(shape.points), "box": box, "colors": shape.colors is not None,
                "normals": shape.normals is not None}  # fmt: skip
    value = {"shape": list(shape.values.shape), "origin": shape.origin.tolist(),
             "spacing": shape.spacing.tolist(), "box": box,
             "values_at": VALUES_AT[kind_of(shape)]}  # fmt: skip
    if isinstance(shape, VoxelGrid):
        value |= {"threshold": shape.threshold, "colors": shape.colors is not None}
    return value


def sidecar_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def finish(files: list[Path], value: dict[str, Any]) -> dict[str, Any]:
    """Write the sidecar beside the first file, or into its folder; return the JSON value."""
    first = files[0]
    in_folder = value["to"] in FOLDERS
    sidecar = first.parent / SIDECAR if in_folder else sidecar_of(first)
    value = {
        "frame": "source",
        "unit": "that of the source's camera positions" if "run" in value else "that of the source",
        **value,
        "files": [file.name if file.parent == first.parent else str(file) for file in files],
    }
    write_json(sidecar, value)
    return value | {"files": [str(file) for file in (*files, sidecar)]}


def _sample(mesh: Mesh, options: ExportOptions) -> PointCloud:
    import numpy as np

    rng = np.random.default_rng(options.seed)
    found = sample_surface(mesh, options.n_points, rng)
    if mesh.vertex_colors is None:
        return PointCloud(found.points, found.normals)
    from scipy.spatial import KDTree

    _, nearest = KDTree(mesh.vertices).query(found.points, workers=-1)
    return PointCloud(found.points, found.normals, mesh.vertex_colors[nearest])
