"""COLMAP models, binary and text, with files made here byte by byte; COLMAP itself as an oracle."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from conftest import sphere_c2w
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Scene, Source, load_scene, load_views, read_source

WIDTH, HEIGHT = 24, 16


@dataclass
class Model:
    """What a COLMAP model holds, written below without the product's code."""

    cameras: list[tuple[int, int, str, int, int, Sequence[float]]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    points: list[tuple[int, Sequence[float], Sequence[int], float]] = field(default_factory=list)


def model(names: Sequence[str], *, one_camera_each: bool = False) -> tuple[Model, np.ndarray]:
    """Cameras on a sphere that look at points around its centre, and their OpenCV c2w."""
    rng = np.random.default_rng(3)
    made = Model()
    xyz = rng.normal(size=(40, 3)) * 0.4
    made.points = [(10 + 7 * i, p.tolist(), (i, 2 * i, 3 * i), 0.25) for i, p in enumerate(xyz)]
    poses = []
    for i, name in enumerate(names):
        c2w = sphere_c2w(i, len(names)) * np.array([1.0, -1.0, -1.0, 1.0])
        poses.append(c2w[:3])
        rotation, center = c2w[:3, :3].T, c2w[:3, 3]
        x, y, z, w = Rotation.from_matrix(rotation).as_quat()
        local = (xyz - center) @ rotation.T
        focal = 30.0 + i if one_camera_each else 30.0
        q = (local[:, :2] / local[:, 2:]) ** 2
        radial = 1 + 0.1 * q.sum(1, keepdims=True)
        pixels = focal * local[:, :2] / local[:, 2:] * radial + [WIDTH / 2, HEIGHT / 2]
        camera = i + 1 if one_camera_each else 1
        if camera > len(made.cameras):
            params = (focal, WIDTH / 2, HEIGHT / 2, 0.1)
            made.cameras.append((camera, 2, "SIMPLE_RADIAL", WIDTH, HEIGHT, params))
        made.images.append(
            {
                **{"id": i + 5, "camera": camera, "name": name, "q": (w, x, y, z)},
                "t": tuple((-rotation @ center).tolist()),
                "xy": pixels,
                "points": [p[0] if j % 3 else -1 for j, p in enumerate(made.points)],
            }
        )
    return made, np.stack(poses)


def write_bin(made: Model, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cameras = struct.pack("<Q", len(made.cameras))
    for id_, model_id, _, width, height, params in made.cameras:
        cameras += struct.pack("<iiQQ", id_, model_id, width, height)
        cameras += struct.pack(f"<{len(params)}d", *params)
    images = struct.pack("<Q", len(made.images))
    for image in made.images:
        images += struct.pack("<i7di", image["id"], *image["q"], *image["t"], image["camera"])
        images += image["name"].encode() + b"\0" + struct.pack("<Q", len(image["xy"]))
        for (x, y), point in zip(image["xy"], image["points"], strict=True):
            images += struct.pack("<ddq", x, y, point)
    points = struct.pack("<Q", len(made.points))
    for id_, xyz, rgb, error in made.points:
        points += struct.pack("<Q3d3Bd", id_, *xyz, *rgb, error)
        track = [(i["id"], i["points"].index(id_)) for i in made.images if id_ in i["points"]]
        points += struct.pack("<Q", len(track))
        points += b"".join(struct.pack("<ii", *entry) for entry in track)
    for name, data in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.bin").write_bytes(data)


def write_txt(made: Model, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cameras = ["# Camera list", ""]
    cameras += [" ".join(map(str, (c[0], *c[2:5], *c[5]))) for c in made.cameras]
    images = ["# Image list with two lines of data per image:"]
    for image in made.images:
        head = (image["id"], *image["q"], *image["t"], image["camera"], image["name"])
        pairs = zip(image["xy"], image["points"], strict=True)
        images += [" ".join(map(str, head)), " ".join(f"{x} {y} {p}" for (x, y), p in pairs)]
    points = ["# 3D point list"]
    for id_, xyz, rgb, error in made.points:
        points.append(" ".join(map(str, (id_, *xyz, *rgb, error, 5, 0, 6, 1))))
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_images(folder: Path, names: Sequence[str], scale: float = 1.0) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (round(WIDTH * scale), round(HEIGHT * scale))
        Image.new("RGB", size, (10 * i % 256, 50, 90)).save(path)


NAMES = [f"{i}.png" for i in range(10)]


def capture(root: Path, names: Sequence[str] = NAMES, **kinds: Any) -> tuple[Model, np.ndarray]:
    made, poses = model(names, **kinds)
    write_bin(made, root / "sparse/0")
    write_images(root / "images", names)
    return made, poses


def source_c2w(scene: Scene) -> torch.Tensor:
    return scene.scene_from_source.inverse().apply_c2w(scene.cameras.c2w)


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "."])
@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_poses_intrinsics_lens_and_points(tmp_path: Path, kind: str, place: str) -> None:
    made, poses = model(NAMES)
    (write_bin if kind == "bin" else write_txt)(made, tmp_path / place)
    write_images(tmp_path / "images", NAMES)
    scene = load_scene(tmp_path)
    assert scene.kind == "colmap" and scene.names == tuple(NAMES)
    np.testing.assert_allclose(source_c2w(scene).numpy(), poses, atol=1e-9)
    assert scene.cameras.focal[0].tolist() == [30.0, 30.0]
    assert scene.cameras.principal[0].tolist() == [12.0, 8.0]
    assert scene.cameras.lenses[0].model == "brown"
    assert scene.cameras.lenses[0].params[0] == 0.1
    assert scene.splits["test"] == (0, 8)
    points = read_source(tmp_path).points
    assert points is not None and points.rgb is not None and points.error is not None
    np.testing.assert_allclose(points.xyz, [p[1] for p in made.points], atol=1e-12)
    assert points.rgb[3].tolist() == [3, 6, 9] and points.error[0] == 0.25
    assert len(points.point) == 10 * 26  # each third keypoint of 40 sees no point
    assert scene.box_source == "40 points"


def test_observations_lie_where_the_lens_puts_their_points(tmp_path: Path) -> None:
    """Poses, lens, principal point and tracks in one closed loop."""
    capture(tmp_path, one_camera_each=True)
    source = read_source(tmp_path)
    scene = load_scene(tmp_path)
    points = source.points
    assert points is not None
    for i in range(len(source.frames)):
        mine = points.frame == i
        xyz = torch.from_numpy(points.xyz[points.point[mine]])
        xy, depth = scene.cameras.project(i, scene.scene_from_source.apply(xyz))
        assert (depth > 0).all()
        np.testing.assert_allclose(xy.numpy(), points.xy[mine], atol=1e-9)
    assert scene.cameras.focal[:, 0].tolist() == [30.0 + i for i in range(10)]


def test_names_with_spaces_folders_and_empty_keypoint_lines(tmp_path: Path) -> None:
    names = ["left cam/a b 1.png", "left cam/a b 2.png", "right/x  y.png", "z.png"]
    for kind, write in (("bin", write_bin), ("txt", write_txt)):
        root = tmp_path / kind
        made, poses = model(names)
        for image in made.images[1:3]:
            image["xy"], image["points"] = np.zeros((0, 2)), []
        write(made, root / "sparse/0")
        write_images(root / "images", names)
        source = read_source(root)
        assert [frame.name for frame in source.frames] == names
        np.testing.assert_allclose([frame.c2w for frame in source.frames], poses, atol=1e-9)
        assert source.points is not None
        assert set(source.points.frame.tolist()) == {0, 3}


def test_a_missing_keypoint_line_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    made, _ = model(NAMES)
    write_txt(made, tmp_path / "sparse/0")
    write_images(tmp_path / "images", NAMES)
    path = tmp_path / "sparse/0/images.txt"
    lines = path.read_text().split("\n")
    del lines[2]  # the first image's keypoints
    path.write_text("\n".join(lines))
    with pytest.raises(NerfError, match=r"images.txt, line 3: expected keypoints"):
        load_scene(tmp_path)
    lines[2] = "1.0 2.0 -1 4.0"
    path.write_text("\n".join(lines))
    with pytest.raises(NerfError, match=r"line 3: expected keypoints .* got '1.0 2.0 -1 4.0'"):
        load_scene(tmp_path)


def test_images_of_another_size_scale_all_that_is_in_pixels(tmp_path: Path) -> None:
    made, _ = model(NAMES)
    write_bin(made, tmp_path / "sparse/0")
    write_images(tmp_path / "images_4", NAMES, 0.25)
    write_images(tmp_path / "images_2", NAMES, 0.5)
    source = read_source(tmp_path)
    frame = source.frames[0]
    assert frame.image is not None and frame.image.parent.name == "images_2"  # the larger ones
    assert (frame.size, frame.focal, frame.principal) == ((12, 8), (15.0, 15.0), (6.0, 4.0))
    assert source.points is not None
    np.testing.assert_allclose(source.points.xy[0], made.images[0]["xy"][1] / 2)
    assert source.points.error is not None
    np.testing.assert_allclose(source.points.error, 0.25 / 2)
    assert "another size than stated in 10 images (12x8 instead of 24x16)" in source.notes[0]
    write_images(tmp_path / "images", NAMES)
    assert read_source(tmp_path).frames[0].size == (24, 16)
    Image.new("RGB", (16, 24)).save(tmp_path / "images/3.png")
    with pytest.raises(NerfError, match="image '3.png': the image has 16x24 pixels"):
        load_scene(tmp_path)


def test_images_without_a_file_are_left_out_and_another_format_counts(tmp_path: Path) -> None:
    capture(tmp_path)
    (tmp_path / "images/4.png").unlink()
    (tmp_path / "images/5.png").rename(tmp_path / "images/5.jpg")
    Image.open(tmp_path / "images/6.png").save(tmp_path / "images/5.jpg", format="JPEG")
    source = read_source(tmp_path)
    assert [f.name for f in source.frames] == [n for n in NAMES if n != "4.png"]
    assert "1 of 10 images of the model have no file in" in source.notes[0]
    assert source.points is not None and source.points.frame.max() == 8
    for name in NAMES:
        (tmp_path / "images" / name).unlink(missing_ok=True)
    (tmp_path / "images/5.jpg").unlink()
    with pytest.raises(NerfError, match=r"none of the 10 images .* Looked in: images, "):
        load_scene(tmp_path)


def test_binary_is_read_and_a_text_that_disagrees_is_named(tmp_path: Path) -> None:
    made, poses = capture(tmp_path)
    write_txt(made, tmp_path / "sparse/0")
    assert read_source(tmp_path).notes == ()  # they agree
    made.images[4]["t"] = (0.0, 0.0, 9.0)
    write_txt(made, tmp_path / "sparse/0")
    source = read_source(tmp_path)
    assert "binary is read, and the text has another pose of 4.png" in source.notes[0]
    np.testing.assert_allclose(source.frames[4].c2w, poses[4], atol=1e-9)
    (tmp_path / "sparse/0/images.txt").write_text("1 2 3\n")
    assert "the text cannot be read" in read_source(tmp_path).notes[0]


def test_a_reconstruction_in_pieces_is_told(tmp_path: Path) -> None:
    made, _ = capture(tmp_path)
    write_bin(made, tmp_path / "sparse/1")
    assert "sparse holds 2 models" in read_source(tmp_path).notes[0]


def test_masks_and_split_lists(tmp_path: Path) -> None:
    capture(tmp_path)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :6] = 255
    for i, name in enumerate(NAMES):  # COLMAP's way, and the other one
        Image.fromarray(mask).save(tmp_path / "masks" / (f"{name}.png" if i % 2 else name))
    (tmp_path / "train_list.txt").write_text("\n".join(NAMES[:6]))
    (tmp_path / "test_list.txt").write_text("\n".join(NAMES[6:9]) + "\n\n")
    scene = load_scene(tmp_path)
    assert scene.splits["train"] == (0, 1, 2, 3, 4, 5) and scene.splits["test"] == (6, 7, 8)
    assert "left out are images that no list names: 9.png" in scene.notes[0]
    for i in (0, 1):
        views = load_views(scene, [i])
        assert views.n_pixels == 6 * HEIGHT
    (tmp_path / "images").rename(tmp_path / "input")  # the masks do not follow that name
    assert load_views(load_scene(tmp_path), [0]).n_pixels == 6 * HEIGHT
    (tmp_path / "test_list.txt").write_text(NAMES[2])
    with pytest.raises(NerfError, match="2.png is listed for training and for test"):
        load_scene(tmp_path)


@pytest.mark.parametrize("is_given", [True, False])
def test_masks_of_full_size_serve_reduced_images(tmp_path: Path, is_given: bool) -> None:
    capture(tmp_path)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :8] = 255
    for folder in ("images_2", "masks", "masks_2"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        reduced = Image.open(tmp_path / "images" / name).resize((WIDTH // 2, HEIGHT // 2))
        reduced.save(tmp_path / "images_2" / name)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    if not is_given:
        (tmp_path / "images").rename(tmp_path / "originals")
    wanted = SceneConfig(images=str(tmp_path / "images_2") if is_given else None)
    scene = load_scene(tmp_path, wanted)
    assert scene.cameras.size[0, 0] == WIDTH // 2
    assert load_views(scene, [0]).n_pixels == 4 * HEIGHT // 2
    Image.fromarray(mask[::2, ::2]).save(tmp_path / "masks_2" / f"{NAMES[0]}.png")
    masks = [frame.mask for frame in read_source(tmp_path, wanted).frames]
    assert masks[:2] == [tmp_path / "masks_2" / f"{NAMES[0]}.png", None]


def test_colmap_wins_over_llff_and_says_so(tmp_path: Path) -> None:
    capture(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.zeros((3, 17)))
    source = read_source(tmp_path)
    assert source.kind == "colmap"
    assert source.notes[0] == (
        "the folder also holds poses_bounds.npy, which is not used: "
        "a COLMAP model in sparse/0 is read"
    )


def test_the_box_holds_the_points_and_what_the_cameras_look_at(tmp_path: Path) -> None:
    """Cameras 4 from their focus: half of that, where the points' own cube is smaller."""
    made, _ = capture(tmp_path)
    scene = load_scene(tmp_path)
    assert 1 / scene.scene_from_source.scale == pytest.approx(2.0, rel=1e-3)
    assert scene.box.outer_half_size / scene.scene_from_source.scale >= 2.0
    far = [(i, (np.array(p) * 20).tolist(), rgb, e) for i, p, rgb, e in made.points]
    made.points = far
    write_bin(made, tmp_path / "sparse/0")
    scene = load_scene(tmp_path)
    xyz = np.array([p[1] for p in far])
    center = np.median(xyz, axis=0)
    inside = np.abs(xyz - center).max(-1) <= 1 / scene.scene_from_source.scale + 1e-9
    assert inside.mean() == pytest.approx(0.75, abs=0.03)  # one of 40 points


def test_panoramas_train_on_the_whole_sphere(tmp_path: Path) -> None:
    made, _ = model(NAMES)
    made.cameras = [(1, 17, "EQUIRECTANGULAR", WIDTH, HEIGHT, (WIDTH, HEIGHT))]
    write_bin(made, tmp_path / "sparse/0")
    write_images(tmp_path / "images", NAMES)
    scene = load_scene(tmp_path)
    directions = scene.cameras.image_rays(3).directions.double()
    assert scene.cameras.valid_pixels(3).all()
    # pixels by the area that they cover: the mean over the sphere vanishes
    y = torch.arange(HEIGHT).repeat_interleave(WIDTH) + 0.5
    weight = torch.sin(torch.pi * y / HEIGHT)[:, None]
    assert (directions * weight).mean(0).abs().max() < 1e-6


def bin_with(made: Model, tmp_path: Path) -> Path:
    write_bin(made, tmp_path / "sparse/0")
    write_images(tmp_path / "images", NAMES)
    return tmp_path


def test_faults_are_named(tmp_path: Path) -> None:
    made, _ = model(NAMES)
    root = bin_with(made, tmp_path)
    cameras = root / "sparse/0/cameras.bin"
    whole = cameras.read_bytes()
    cameras.write_bytes(whole[:-3])
    with pytest.raises(NerfError, match=r"cameras.bin is truncated or damaged: .* at byte 32"):
        load_scene(root)
    cameras.write_bytes(whole + b"1")
    with pytest.raises(NerfError, match="1 bytes follow"):
        load_scene(root)
    cameras.write_bytes(struct.pack("<Q", 2**60) + whole[8:])
    with pytest.raises(NerfError, match="1152921504606846976 cameras"):
        load_scene(root)
    cameras.write_bytes(whole[:12] + struct.pack("<i", 99) + whole[16:])
    with pytest.raises(NerfError, match="camera 1 has model 99; known are 0 to 17"):
        load_scene(root)
    cameras.unlink()
    (root / "sparse/0/cameras.txt").write_text("")
    with pytest.raises(NerfError, match="no complete COLMAP model"):
        load_scene(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.images[0].update(q=(1.0, 1.0, 0.0, 0.0)), "quaternion has length 1.414"),
        (lambda m: m.images[0].update(t=(float("nan"), 0.0, 0.0)), "pose is not finite"),
        (lambda m: m.images[0].update(camera=7), "camera 7, which the cameras file"),
        (lambda m: m.images[0].update(name="1.png"), "same image more than once: 1.png"),
        (lambda m: m.images.clear(), "no registered image"),
        (
            lambda m: m.cameras.__setitem__(0, (1, 0, "", WIDTH, HEIGHT, (-3.0, 1.0, 1.0))),
            "the focal length -3",
        ),
        (lambda m: m.cameras.__setitem__(0, (1, 0, "", 0, 9, (3.0, 1.0, 1.0))), "0x9 pixels"),
    ],
)
def test_models_that_cannot_be_meant(tmp_path: Path, spoil: Any, message: str) -> None:
    made, _ = model(NAMES)
    spoil(made)
    with pytest.raises(NerfError, match=message):
        load_scene(bin_with(made, tmp_path))


def test_colmaps_own_files_with_rigs_and_frames(tmp_path: Path) -> None:
    """A model of two-camera rigs as COLMAP writes it; every image's pose comes out right."""
    pycolmap = pytest.importorskip("pycolmap", reason="the oracle, pycolmap, is not installed")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 2, 5
    options.num_points3D = 60
    pycolmap.set_random_seed(1)
    made = pycolmap.synthesize_dataset(options)
    for kind in ("bin", "txt"):
        root = tmp_path / kind
        (root / "sparse/0").mkdir(parents=True)
        (made.write_binary if kind == "bin" else made.write_text)(root / "sparse/0")
        assert (root / f"sparse/0/rigs.{kind}").is_file()
        for image in made.images.values():
            size = (made.cameras[image.camera_id].width, made.cameras[image.camera_id].height)
            path = root / "images" / image.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", size).save(path)
        source = read_source(root)
        assert len(source.frames) == len(made.images) == 10
        by_name = {image.name: image for image in made.images.values()}
        for frame in source.frames:
            want = by_name[frame.name].cam_from_world().inverse().matrix()
            np.testing.assert_allclose(frame.c2w, want, atol=1e-9)
        assert source.points is not None and len(source.points) == len(made.points3D)
        assert len(source.points.point) == sum(p.track.length() for p in made.points3D.values())


@pytest.mark.skipif("NERF_DATA" not in os.environ, reason="NERF_DATA names no folder of scenes")
def test_the_can() -> None:
    """A capture with a camera for each image, images at half size, and an LLFF file beside it."""
    root = Path(os.environ["NERF_DATA"]) / "can"
    source: Source = read_source(root)
    assert source.kind == "colmap" and len(source.frames) == 71
    assert any("poses_bounds.npy" in note for note in source.notes)
    scene, points = load_scene(root), source.points
    assert points is not None and len(points) == 4414
    errors = []
    for i in range(71):
        mine = points.frame == i
        xyz = torch.from_numpy(points.xyz[points.point[mine]])
        xy, _ = scene.cameras.project(i, scene.scene_from_source.apply(xyz))
        errors.append((xy - torch.from_numpy(points.xy[mine])).norm(dim=-1))
    # the model's own errors are about 0.7 pixels of 720x1280
    assert float(torch.cat(errors).median()) < 0.5
