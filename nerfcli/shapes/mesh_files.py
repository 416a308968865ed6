"""Read and write shapes: meshes as PLY, OBJ, GLB, STL; points as PLY; voxels and SDF as NPZ.

Meshes are read through trimesh. Formats that repeat a vertex along seams (STL always; OBJ and
GLB where texture coordinates differ) are welded by bit-equal position, and the reader says so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing
from nerfcli.core.progress import Note
from nerfcli.core.text import command
from nerfcli.shapes.glb import RAW_COLORS, glb_bytes, open_glb, srgb_of
from nerfcli.shapes.grid_files import MAX_BYTES, binvox_bytes, load_grid, save_grid
from nerfcli.shapes.types import Mesh, PointCloud, SdfGrid, Shape, VoxelGrid, merge_vertices

MESH_SUFFIXES = (".ply", ".obj", ".glb", ".stl")
SHAPE_SUFFIXES = (*MESH_SUFFIXES, ".npz")
MAX_COORDINATE = 1e12  # beyond, squares of differences lose every digit that matters


def load_shape(path: Path, note: Note | None = None) -> Shape:
    """Read a shape file; its content decides the struct.

    note: called with one sentence for each change that the reading made (vertices merged).

    Raises:
        NerfError: missing, unknown, unreadable, empty or huge file; coordinates that are not
            finite; faces that name missing vertices.
    """
    if (path / "config.toml").is_file():
        made = command("nerf export", path)
        raise NerfError(f"{path} is a run; give a shape file, as `{made}` writes.")
    if path.is_dir():
        raise NerfError(f"{path} is a folder; give a shape file: {_known()}.")
    suffix = path.suffix.lower()
    if suffix not in SHAPE_SUFFIXES:
        if not path.exists():
            raise NerfError(f"{path}: no such file.")
        raise NerfError(f"{path}: not a shape file that is known here: {_known()}.")
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        raise NerfError(f"cannot read {path}: {error.strerror or error}.") from error
    if n_bytes == 0:
        raise NerfError(f"{path} is an empty file. Write it again.")
    _ensure_size(path, n_bytes)
    if suffix == ".npz":
        return load_grid(path)
    shape = _load_triangles(path, suffix, note or (lambda text: None))
    _check_points(path, shape.vertices if isinstance(shape, Mesh) else shape.points)
    return shape


def save_shape(shape: Shape, path: Path) -> None:
    """Write a shape; the suffix decides the format.

    PLY and NPZ keep float64 coordinates; GLB and STL hold float32 by their definition; OBJ is
    text with 10 digits of the shape's size.

    Raises:
        NerfError: the suffix cannot hold this kind of shape, or the path cannot be written.
    """
    suffix = path.suffix.lower()
    wanted = {Mesh: MESH_SUFFIXES, PointCloud: (".ply",), VoxelGrid: (".npz", ".binvox")}.get(
        type(shape), (".npz",)
    )
    if suffix not in wanted:
        raise NerfError(f"{path}: {_kind(shape)} cannot be written as {suffix or 'this'!r}; "
                        f"choose {' or '.join(wanted)}.")  # fmt: skip
    with replacing(path) as aside:
        if suffix == ".binvox" and isinstance(shape, VoxelGrid):
            aside.write_bytes(binvox_bytes(shape))
        elif isinstance(shape, VoxelGrid | SdfGrid):
            save_grid(shape, aside)
        elif suffix == ".ply":
            aside.write_bytes(_ply_bytes(shape))
        elif isinstance(shape, Mesh) and suffix == ".glb":
            aside.write_bytes(glb_bytes(shape))
        elif isinstance(shape, Mesh):
            options = {"digits": _digits(shape.vertices)} if suffix == ".obj" else {}
            _to_trimesh(shape).export(aside, file_type=suffix[1:], **options)


def _load_triangles(path: Path, suffix: str, note: Note) -> Mesh | PointCloud:
    import trimesh  # slow to import, and needed only for these formats
    from trimesh.resolvers import FilePathResolver

    try:
        source: Any = path
        extra: dict[str, Any] = {}
        linear = False
        if suffix == ".glb":
            source, linear = open_glb(path)
            extra = {"resolver": FilePathResolver(str(path))}
        scene: Any = trimesh.load(
            source, file_type=suffix[1:], force="scene", process=False, **extra
        )
        parts = [
            (scene.geometry[name], matrix)
            for matrix, name in (scene.graph[node] for node in scene.graph.nodes_geometry)
        ]
        meshes = [_from_trimesh(part, matrix, linear) for part, matrix in parts if _n_faces(part)]
        if meshes:
            if len(meshes) < len(parts):
                note(f"{path}: {len(parts) - len(meshes)} objects without faces were left out")
            return _join(path, meshes, note)
        clouds = [
            _points_of(part, matrix, linear) for part, matrix in parts if hasattr(part, "vertices")
        ]
    except NerfError:
        raise
    except Exception as error:  # any error of the reader means a damaged file
        reason = str(error) or type(error).__name__
        raise NerfError(
            f"{path}: not readable as {suffix[1:].upper()} ({reason}). Export it again."
        ) from error
    clouds = [cloud for cloud in clouds if len(cloud.points)]
    if not clouds:
        raise NerfError(f"{path}: holds no faces and no points. Check what wrote it.")
    if len(clouds) == 1:
        return clouds[0]
    note(f"{path}: {len(clouds)} objects taken as one point cloud, without normals and colours")
    return PointCloud(np.concatenate([cloud.points for cloud in clouds]))


def _join(path: Path, meshes: list[Mesh], note: Note) -> Mesh:
    if len(meshes) > 1:
        note(f"{path}: {len(meshes)} objects taken as one mesh")
    colored = all(mesh.vertex_colors is not None for mesh in meshes)
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    joined = Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.vertex_colors for mesh in meshes]) if colored else None,  # pyright: ignore[reportArgumentType, reportCallIssue]
    )
    if joined.faces.min() < 0 or joined.faces.max() >= len(joined.vertices):
        raise NerfError(f"{path}: a face names a vertex that the file does not have. Repair it.")
    merged, n_merged = merge_vertices(joined)
    if n_merged:
        note(f"{path}: {n_merged} repeated vertices at equal positions were merged")
    return merged


def _from_trimesh(part: Any, matrix: np.ndarray, linear: bool) -> Mesh:
    vertices = _move(np.array(part.vertices, dtype=np.float64), matrix)
    visual, colors = part.visual, None
    material = getattr(visual, "material", None)
    textured = material is not None and getattr(visual, "uv", None) is not None
    raw = part.vertex_attributes.get(RAW_COLORS)
    if raw is not None and getattr(material, "baseColorTexture", None) is None:
        colors = srgb_of(raw, linear, getattr(material, "baseColorFactor", None))
    elif textured:
        colors = srgb_of(visual.to_color().vertex_colors, False)
    elif getattr(visual, "kind", None) == "vertex":
        colors = srgb_of(visual.vertex_colors, False)
    if colors is not None and len(colors) != len(vertices):
        colors = None
    faces = np.array(part.faces, dtype=np.int64)
    if np.linalg.det(matrix[:3, :3]) < 0:
        faces = faces[:, ::-1]  # a mirrored object keeps its outside outside
    return Mesh(vertices, np.ascontiguousarray(faces), colors)


def _points_of(part: Any, matrix: np.ndarray, linear: bool) -> PointCloud:
    points = _move(np.array(part.vertices, dtype=np.float64), matrix)
    raw = part.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    normals = None
    if raw is not None and all(key in _fields(raw) for key in ("nx", "ny", "nz")):
        columns = [np.asarray(raw[key], dtype=np.float64).ravel() for key in ("nx", "ny", "nz")]
        normals = np.stack(columns, axis=-1) @ matrix[:3, :3].T
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = normals / length if np.all(length > 0) else None  # zeros stand for "unknown"
    colors = getattr(part, "colors", None)
    is_whole = colors is not None and len(points) and np.shape(colors)[0] == len(points)
    colors = srgb_of(np.asarray(colors), linear) if is_whole else None
    return PointCloud(points, normals, colors)


def _fields(raw: Any) -> Any:
    return raw if isinstance(raw, dict) else raw.dtype.names or ()


def _move(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    if np.array_equal(matrix, np.eye(4)):
        return points  # bit for bit as stored
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _n_faces(part: Any) -> int:
    return len(getattr(part, "faces", ()))


def _to_trimesh(mesh: Mesh) -> Any:
    import trimesh

    colors = None if mesh.vertex_colors is None else _bytes(mesh.vertex_colors)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colors, process=False)


def _digits(points: np.ndarray) -> int:
    """Digits after the point that state positions to 1e-10 of their size, or better."""
    size = float(np.ptp(points, axis=0).max()) if len(points) else 0.0
    return int(max(0, 10 - math.floor(math.log10(size)))) if size > 0 else 10


def _bytes(colors: np.ndarray) -> np.ndarray:
    return np.round(np.clip(colors, 0.0, 1.0) * 255.0).astype(np.uint8)


def _ply_bytes(shape: Shape) -> bytes:
    """Binary little-endian PLY with float64 positions: trimesh's own writer rounds to float32."""
    is_mesh = isinstance(shape, Mesh)
    points = shape.vertices if is_mesh else shape.points  # pyright: ignore[reportAttributeAccessIssue]
    colors = shape.vertex_colors if is_mesh else shape.colors  # pyright: ignore[reportAttributeAccessIssue]
    normals = None if is_mesh else shape.normals  # pyright: ignore[reportAttributeAccessIssue]
    columns = [("double", "<f8", name, points[:, i]) for i, name in enumerate("xyz")]
    if normals is not None:
        names = ("nx", "ny", "nz")
        columns += [("float", "<f4", name, normals[:, i]) for i, name in enumerate(names)]
    if colors is not None:
        rgb = _bytes(colors)
        names = ("red", "green", "blue")
        columns += [("uchar", "<u1", name, rgb[:, i]) for i, name in enumerate(names)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {kind} {name}" for kind, _, name, _ in columns]
    table = np.empty(len(points), dtype=[(name, code) for _, code, name, _ in columns])
    for _, _, name, values in columns:
        table[name] = values
    body = table.tobytes()
    if isinstance(shape, Mesh):
        header += [f"element face {len(shape.faces)}", "property list uchar int vertex_indices"]
        rows = np.empty(len(shape.faces), dtype=[("n", "<u1"), ("corners", "<i4", 3)])
        rows["n"], rows["corners"] = 3, shape.faces
        body += rows.tobytes()
    return "\n".join([*header, "end_header", ""]).encode("ascii") + body


def _check_points(path: Path, points: np.ndarray) -> None:
    if not np.all(np.isfinite(points)):
        raise NerfError(f"{path}: a coordinate is NaN or infinite. Repair the file.")
    if np.abs(points).max() > MAX_COORDINATE:
        raise NerfError(f"{path}: a coordinate exceeds {MAX_COORDINATE:g}. Choose a larger unit.")


def _ensure_size(path: Path, n_bytes: int) -> None:
    if n_bytes > MAX_BYTES:
        raise NerfError(f"{path}: {n_bytes / 1e9:.1f} GB is more than the {MAX_BYTES / 1e9:g} GB "
                        "that are read. Decimate or crop the shape.")  # fmt: skip


def _kind(shape: Shape) -> str:
    names = {Mesh: "a mesh", PointCloud: "a point cloud", VoxelGrid: "a voxel grid"}
    return names.get(type(shape), "a signed distance grid")


def _known() -> str:
    return ", ".join(suffix[1:].upper() for suffix in SHAPE_SUFFIXES)
