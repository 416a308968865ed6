"""Shape structs against closed forms, and files against what was written into them."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.shapes.mesh_files import load_shape, save_shape
from nerfcli.shapes.remesh import icosphere
from nerfcli.shapes.surface import surface_of
from nerfcli.shapes.types import (
    Mesh,
    PointCloud,
    SdfGrid,
    VoxelGrid,
    bounds,
    diagonal,
    merge_vertices,
    transform_mesh,
)


def box(low=(0.0, 0.0, 0.0), high=(1.0, 1.0, 1.0)) -> Mesh:
    """Twelve triangles, counter-clockwise from outside; vertex 4x + 2y + z."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    span = np.subtract(high, low)
    return Mesh(corners * span + np.array(low), np.array(faces, dtype=np.int64))


def test_a_box_has_the_area_volume_and_normals_of_a_box() -> None:
    mesh = box((1, 2, 3), (2, 4, 6))  # 1 x 2 x 3
    assert mesh.area == pytest.approx(2 * (2 + 3 + 6))
    assert mesh.volume == pytest.approx(6.0)
    assert np.allclose(bounds(mesh), [[1, 2, 3], [2, 4, 6]])
    assert diagonal(bounds(mesh)) == pytest.approx(14**0.5)
    outwards = mesh.triangles.mean(axis=1) - [1.5, 3, 4.5]
    assert np.all(np.sum(outwards * mesh.face_normals, axis=1) > 0)
    sphere = icosphere(3)
    # the normals of a fine sphere are its positions, up to the size of a face squared
    assert np.abs(sphere.vertex_normals - sphere.vertices).max() < 0.02
    flipped = Mesh(mesh.vertices, mesh.faces[:, ::-1])
    assert flipped.volume == pytest.approx(-6.0)


def test_a_similarity_scales_area_and_volume() -> None:
    matrix = np.hstack([2.0 * np.eye(3)[[1, 2, 0]], [[5.0], [6.0], [7.0]]])
    moved = transform_mesh(box(), matrix)
    assert moved.volume == pytest.approx(8.0)
    assert np.allclose(bounds(moved), [[5, 6, 7], [7, 8, 9]])


def test_grid_bounds_hold_half_a_voxel_more_than_the_samples() -> None:
    values = np.zeros((3, 4, 5), dtype=np.float32)
    origin, spacing = np.array([1.0, 0, 0]), np.array([0.5, 1, 1])
    assert np.allclose(bounds(SdfGrid(values, origin, spacing)), [[1, 0, 0], [2, 3, 4]])
    wide = [[0.75, -0.5, -0.5], [2.25, 3.5, 4.5]]
    assert np.allclose(bounds(VoxelGrid(values, origin, spacing)), wide)


def test_merging_joins_equal_positions_only_and_keeps_the_order() -> None:
    mesh = box()
    loose = Mesh(mesh.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3))
    merged, n_merged = merge_vertices(loose)
    assert n_merged == 28
    assert np.array_equal(merged.triangles, mesh.triangles)
    assert np.array_equal(merged.vertices[0], mesh.vertices[mesh.faces[0, 0]])
    nearly = Mesh(loose.vertices + np.linspace(0, 1e-9, 36)[:, None], loose.faces)
    assert merge_vertices(nearly)[1] == 0


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb", ".stl"])
def test_meshes_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    mesh = transform_mesh(icosphere(1), np.hstack([np.eye(3), [[100.1], [0.3], [-7.7]]]))
    path = tmp_path / f"ball{suffix}"
    notes: list[str] = []
    save_shape(mesh, path)
    back = load_shape(path, notes.append)
    assert isinstance(back, Mesh)
    # PLY holds float64; OBJ 10 digits; GLB and STL are float32 by definition
    tolerance = {".ply": 0.0, ".obj": 1e-7}.get(suffix, 1e-5)
    assert np.abs(back.triangles - mesh.triangles).max() <= tolerance
    assert len(back.vertices) == 42
    if suffix == ".stl":
        assert notes == [f"{path}: 198 repeated vertices at equal positions were merged"]
    else:
        assert notes == []


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_vertex_colours_survive(tmp_path: Path, suffix: str) -> None:
    mesh = box()
    colored = Mesh(mesh.vertices, mesh.faces, mesh.vertices.astype(np.float32))
    save_shape(colored, tmp_path / f"box{suffix}")
    back = load_shape(tmp_path / f"box{suffix}")
    assert isinstance(back, Mesh) and back.vertex_colors is not None
    assert np.array_equal(back.vertex_colors, mesh.vertices)


def test_a_glb_has_linear_colours_that_no_light_changes(tmp_path: Path) -> None:
    """Every sRGB byte comes back, the dark ones too; a viewer takes neither metal nor light."""
    ball = icosphere(3)
    grey = np.minimum(np.arange(len(ball.vertices)), 255).astype(np.float32) / np.float32(255)
    colored = Mesh(ball.vertices, ball.faces, np.repeat(grey[:, None], 3, axis=1))
    save_shape(colored, tmp_path / "ball.glb")
    scene = trimesh.load(tmp_path / "ball.glb", process=False)
    visual: Any = next(iter(scene.geometry.values())).visual  # pyright: ignore[reportAttributeAccessIssue]
    stored = visual.vertex_attributes["color"]
    assert stored.shape == (len(grey), 3) and stored[255].tolist() == [1.0, 1.0, 1.0]
    assert stored[128, 0] == pytest.approx(0.2158605, abs=1e-6)  # of IEC 61966-2-1
    assert (visual.material.metallicFactor, visual.material.roughnessFactor) == (0.0, 1.0)
    assert b'"KHR_materials_unlit":{}' in (tmp_path / "ball.glb").read_bytes()
    back = load_shape(tmp_path / "ball.glb")
    assert isinstance(back, Mesh) and back.vertex_colors is not None
    assert np.array_equal(back.vertex_colors, np.repeat(grey[:, None], 3, axis=1))
    save_shape(ball, tmp_path / "plain.glb")  # under light, or nothing of it could be seen
    assert b"unlit" not in (tmp_path / "plain.glb").read_bytes()


def test_colours_of_other_glbs(tmp_path: Path) -> None:
    """trimesh writes sRGB bytes without a material, and so did `nerf` before."""
    mesh = box()
    rgb = np.linspace(0, 255, 24).reshape(8, 3).round().astype(np.uint8)
    other = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=rgb, process=False)
    path = tmp_path / "box.glb"
    path.write_bytes(other.export(file_type="glb"))  # pyright: ignore[reportArgumentType]
    back = load_shape(path)
    assert isinstance(back, Mesh) and back.vertex_colors is not None
    assert np.array_equal(back.vertex_colors, rgb.astype(np.float32) / np.float32(255))
    generator = b"https://github.com/mikedh/trimesh"
    path.write_bytes(path.read_bytes().replace(generator, generator[::-1]))
    back = load_shape(path)  # as glTF has it
    assert isinstance(back, Mesh) and back.vertex_colors is not None
    assert back.vertex_colors[0, 1] == np.float32(59) / np.float32(255)  # of 11, linear


def test_points_come_back_with_normals_and_colours(tmp_path: Path) -> None:
    ball = icosphere(1)
    colors = np.round(255 * np.abs(ball.vertices)).astype(np.float32) / 255
    save_shape(PointCloud(ball.vertices * 3.3, ball.vertices, colors), tmp_path / "p.ply")
    back = load_shape(tmp_path / "p.ply")
    assert isinstance(back, PointCloud) and back.normals is not None and back.colors is not None
    assert np.array_equal(back.points, ball.vertices * 3.3)
    assert np.allclose(back.normals, ball.vertices, atol=1e-6)  # float32 in the file
    assert np.allclose(back.colors, colors, atol=1e-6)


def test_grids_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    origin, spacing = np.array([1.0, 2, 3]), np.array([0.1, 0.2, 0.3])
    save_shape(VoxelGrid(values, origin, spacing, 0.7, unit="m"), tmp_path / "v.npz")
    save_shape(SdfGrid(values, origin, spacing, frame="mine"), tmp_path / "s.npz")
    voxels, sdf = load_shape(tmp_path / "v.npz"), load_shape(tmp_path / "s.npz")
    assert isinstance(voxels, VoxelGrid) and isinstance(sdf, SdfGrid)
    assert np.array_equal(voxels.values, values) and np.array_equal(sdf.values, values)
    assert np.array_equal(voxels.origin, origin) and np.array_equal(sdf.spacing, spacing)
    assert (voxels.threshold, voxels.unit, sdf.frame) == (0.7, "m", "mine")
    keys = {"kind", "values", "values_at", "origin", "spacing", "frame", "unit"}
    assert keys <= set(np.load(tmp_path / "s.npz").files)


def test_a_textured_obj_reads_welded_and_coloured(tmp_path: Path) -> None:
    """Two triangles that share an edge but not its texture coordinates."""
    Image.new("RGB", (4, 4), (255, 0, 51)).save(tmp_path / "red.png")
    (tmp_path / "m.mtl").write_text("newmtl red\nmap_Kd red.png\n")
    (tmp_path / "m.obj").write_text(
        "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
        "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvt 0.5 0.5\nusemtl red\nf 1/1 2/2 3/3\nf 1/5 3/1 4/4\n"
    )
    notes: list[str] = []
    mesh = load_shape(tmp_path / "m.obj", notes.append)
    assert isinstance(mesh, Mesh)
    assert len(mesh.vertices) == 4 and len(mesh.faces) == 2
    assert "2 repeated vertices" in notes[0]
    assert mesh.vertex_colors is not None
    assert np.allclose(mesh.vertex_colors, [1.0, 0.0, 0.2], atol=1e-6)


def _raw_ply(
    vertices: list[tuple[float, float, float]], faces: list[tuple[int, int, int]]
) -> bytes:
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
    head += "property double x\nproperty double y\nproperty double z\n"
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    body = b"".join(struct.pack("<3d", *v) for v in vertices)
    return head.encode() + body + b"".join(struct.pack("<B3i", 3, *f) for f in faces)


SQUARE = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.ply", None, "cannot read"),
        ("empty.ply", b"", "empty file"),
        ("mesh.fbx", b"x", "not a shape file"),
        ("noise.ply", b"nothing of the kind", "not readable as PLY"),
        ("noise.glb", b"nothing of the kind", "not readable as GLB"),
        ("noise.npz", b"nothing of the kind", "not readable as NPZ"),
        ("short.ply", _raw_ply(SQUARE, [(0, 1, 2)])[:-5], "not readable as PLY"),
        ("nan.ply", _raw_ply([*SQUARE[:2], (float("nan"), 0, 0)], [(0, 1, 2)]), "NaN"),
        ("wide.ply", _raw_ply([*SQUARE[:2], (1e30, 0, 0)], [(0, 1, 2)]), "exceeds"),
        ("index.ply", _raw_ply(SQUARE, [(0, 1, 7)]), "vertex that the file does not have"),
        ("bare.obj", b"# nothing\n", "no points|not readable"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NerfError, match=message) as caught:
        load_shape(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": None}, "lacks kind"),
        ({"kind": "cloud"}, "'cloud' is unknown"),
        ({"values": np.zeros((3, 3))}, "values must be"),
        ({"values": np.full((2, 2, 2), np.nan)}, "NaN"),
        ({"spacing": 0.0}, "positive"),
        ({"origin": [np.inf, 0, 0]}, "finite"),
        ({"origin": [0.0, 0.0]}, "3 numbers"),
        ({"values": np.array([[["a", "b"]] * 2] * 2)}, "numbers"),
        ({"kind": "voxels", "threshold": np.array([1.0, 2.0])}, "threshold must be"),
        ({"kind": "voxels", "threshold": np.nan}, "threshold must be"),
        ({"kind": "voxels", "colors": np.zeros((2, 2))}, "colors must be"),
    ],
)
def test_bad_grids_are_named(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {"kind": "sdf", "values": np.zeros((2, 2, 2)), "origin": np.zeros(3), "spacing": 1.0}
    arrays = {key: value for key, value in (arrays | change).items() if value is not None}
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(NerfError, match=message):
        load_shape(tmp_path / "g.npz")


def test_damaged_grids_are_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((9, 9, 9), dtype=np.float32)
    path = tmp_path / "g.npz"
    save_shape(SdfGrid(values, np.zeros(3), np.ones(3)), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        stream = archive.getinfo("values.npy").header_offset + 30 + len("values.npy")
    # no deflate block begins with all ones; a flip in the midst fails the checksum; a cut, the list
    for damaged in (
        whole[:stream] + b"\xff" * 40 + whole[stream + 40 :],
        whole[: stream + 900] + bytes([whole[stream + 900] ^ 0xFF]) + whole[stream + 901 :],
        whole[:-100],
    ):
        path.write_bytes(damaged)
        with pytest.raises(NerfError, match="g.npz: not readable as NPZ"):
            load_shape(path)


def test_several_objects_in_one_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clouds = [trimesh.PointCloud(rng.random((n, 3))) for n in (5, 7)]
    trimesh.Scene(clouds).export(tmp_path / "points.glb")
    notes: list[str] = []
    both = load_shape(tmp_path / "points.glb", notes.append)
    assert isinstance(both, PointCloud) and len(both.points) == 12
    trimesh.Scene([clouds[0], trimesh.creation.box()]).export(tmp_path / "mixed.glb")
    assert isinstance(load_shape(tmp_path / "mixed.glb", notes.append), Mesh)
    assert "2 objects taken as one point cloud" in notes[0]
    assert "1 objects without faces were left out" in notes[1]


def test_an_obj_of_any_unit_keeps_its_digits(tmp_path: Path) -> None:
    for scale in (1e-9, 1.0, 1e9):
        ball = Mesh(icosphere(1).vertices * scale, icosphere(1).faces)
        save_shape(ball, tmp_path / "ball.obj")
        back = load_shape(tmp_path / "ball.obj")
        assert isinstance(back, Mesh)
        assert np.abs(back.vertices - ball.vertices).max() < 1e-9 * scale


def test_a_huge_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_shape(icosphere(2), tmp_path / "ball.ply")
    zeros = np.zeros((60, 60, 60), dtype=np.float32)  # packs to a few hundred bytes
    save_shape(SdfGrid(zeros, np.zeros(3), np.ones(3)), tmp_path / "zeros.npz")
    monkeypatch.setattr("nerfcli.shapes.mesh_files.MAX_BYTES", 5_000)
    monkeypatch.setattr("nerfcli.shapes.grid_files.MAX_BYTES", 5_000)
    for name in ("ball.ply", "zeros.npz"):
        with pytest.raises(NerfError, match="more than the"):
            load_shape(tmp_path / name)


def test_a_suffix_that_cannot_hold_the_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match=r"a point cloud cannot be written as '\.obj'"):
        save_shape(PointCloud(np.zeros((1, 3))), tmp_path / "p.obj")
    with pytest.raises(NerfError, match=r"choose .*\.stl"):
        save_shape(box(), tmp_path / "p.npz")


def test_the_surface_of_a_grid_is_closed_and_in_its_place() -> None:
    axis = np.linspace(-1.5, 1.5, 31)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    distance = (np.sqrt(x**2 + y**2 + z**2) - 1.0).astype(np.float32)
    origin, spacing = np.array([8.5, -1.5, -1.5]), np.full(3, 0.1)
    sdf = surface_of("s", SdfGrid(distance, origin, spacing))
    voxels = surface_of("v", VoxelGrid(-distance, origin, spacing, threshold=0.0))
    for mesh in (sdf, voxels):
        assert isinstance(mesh, Mesh)
        radii = np.linalg.norm(mesh.vertices - [10.0, 0, 0], axis=1)
        assert np.abs(radii - 1.0).max() < 0.003  # linear interpolation over 0.1
        assert mesh.volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    solid = VoxelGrid(np.ones((4, 4, 4), dtype=np.float32), np.zeros(3), np.ones(3))
    whole = surface_of("solid", solid)  # cut off by the border, and closed there
    assert isinstance(whole, Mesh) and 27 < whole.volume < 64
    with pytest.raises(NerfError, match="e.npz is empty"):
        surface_of("e.npz", SdfGrid(np.abs(distance), origin, spacing))
    with pytest.raises(NerfError, match="degenerate"):
        surface_of("flat", Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])))


def test_a_binvox_file_holds_long_runs(tmp_path: Path) -> None:
    full = np.zeros((9, 9, 9), dtype=np.float32)
    full[3:, :, :] = 1.0  # 243 and 486
    save_shape(VoxelGrid(full, np.zeros(3), np.ones(3)), tmp_path / "v.binvox")
    assert (tmp_path / "v.binvox").read_bytes().endswith(bytes([0, 243, 1, 255, 1, 231]))
    voxels: Any = trimesh.load(tmp_path / "v.binvox", force="voxel")
    assert np.array_equal(np.asarray(voxels.matrix), full > 0.5)


def test_voxels_as_binvox_are_where_they_were(tmp_path: Path) -> None:
    full = np.zeros((3, 5, 4), dtype=np.float32)
    full[1, 2:, 1], full[0, 0, 3] = 1.0, 0.7
    grid = VoxelGrid(full, np.array([1.0, -2.0, 0.5]), np.full(3, 0.25), threshold=0.6)
    save_shape(grid, tmp_path / "v.binvox")
    head, _, _ = (tmp_path / "v.binvox").read_bytes().partition(b"data\n")
    lines = [line.split() for line in head.decode().splitlines()]  # some readers go by number
    assert [line[0] for line in lines] == ["#binvox", "dim", "translate", "scale"]
    translate, scale = np.array(lines[2][1:], dtype=float), float(lines[3][1])
    voxels: Any = trimesh.load(tmp_path / "v.binvox", force="voxel")
    index = np.argwhere(np.asarray(voxels.matrix))  # trimesh takes the first and last centres for
    got = translate + scale * (index + 0.5) / 5  # the cube's corners, the specification does not
    want = grid.origin + grid.spacing * np.argwhere(full >= 0.6)
    got, want = (points[np.lexsort(points.round(3).T)] for points in (got, want))
    assert np.allclose(got, want, atol=1e-6)  # the header's numbers are text
    uneven = VoxelGrid(full, grid.origin, np.array([0.25, 0.25, 0.3]))
    with pytest.raises(NerfError, match="one spacing for all axes"):
        save_shape(uneven, tmp_path / "u.binvox")
    assert not (tmp_path / "u.binvox").exists()
