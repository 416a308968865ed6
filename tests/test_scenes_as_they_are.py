"""Scenes as other programs write them: models in pieces, empty splits, nulls, comments, lenses."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_scenes_colmap as colmap
import test_scenes_llff as llff
import torch
from PIL import Image
from typer.testing import CliRunner

from conftest import sphere_c2w
from nerfcli.cameras.lenses import Lens
from nerfcli.cli import app
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Source, load_scene, load_views, read_source
from nerfcli.scenes.readers.colmap_cameras import CAMERA_MODELS
from nerfcli.scenes.readers.intrinsics import COLMAP_KEYS

SIZE = (12, 8)
TOP: dict[str, Any] = {"fl_x": 10.0, "w": SIZE[0], "h": SIZE[1]}
N = 12
SKIP = SceneConfig(skip_bad_frames=True)


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (90, 50, 10)).save(path)


def table(folder: str = "images", n: int = N, **top: Any) -> dict[str, Any]:
    frames = [
        {"file_path": f"{folder}/{i:04}.png", "transform_matrix": sphere_c2w(i, n).tolist()}
        for i in range(n)
    ]
    return {**TOP, **top, "frames": frames}


def write(root: Path, made: dict[str, Any], name: str = "transforms.json") -> Path:
    (root / name).write_text(json.dumps(made))
    return root


def capture(root: Path, **top: Any) -> dict[str, Any]:
    for i in range(N):
        save(root / f"images/{i:04}.png")
    return table(**top)


# COLMAP


def piece(folder: Path, numbers: range, as_text: bool = False) -> None:
    made, _ = colmap.model([f"{i}.png" for i in numbers])
    (colmap.write_txt if as_text else colmap.write_bin)(made, folder)


@pytest.mark.parametrize("as_text", [False, True])
def test_the_model_with_most_images_is_read(tmp_path: Path, as_text: bool) -> None:
    piece(tmp_path / "sparse/0", range(3), as_text)
    piece(tmp_path / "sparse/1", range(3, 10), as_text)
    piece(tmp_path / "sparse/2", range(2), as_text)
    colmap.write_images(tmp_path / "images", colmap.NAMES)
    source = read_source(tmp_path)
    assert [frame.name for frame in source.frames] == [f"{i}.png" for i in range(3, 10)]
    assert source.notes == (
        "sparse holds 3 models, which means that images were not connected; 1 with 7 images is "
        "read, not 0 (3), 2 (2)",
    )
    # what the user chose needs no remark
    chosen = read_source(tmp_path / "sparse/0")
    assert (len(chosen.frames), chosen.notes, chosen.name) == (3, (), tmp_path.name)
    assert read_source(tmp_path / "sparse").frames[0].name == "3.png"


def test_a_damaged_count_does_not_win(tmp_path: Path) -> None:
    piece(tmp_path / "sparse/0", range(5))
    (tmp_path / "sparse/1").mkdir()
    (tmp_path / "sparse/1/cameras.bin").write_bytes(bytes(8))
    (tmp_path / "sparse/1/images.bin").write_bytes(struct.pack("<Q", 10**9))
    colmap.write_images(tmp_path / "images", colmap.NAMES)
    assert len(read_source(tmp_path).frames) == 5


@pytest.mark.parametrize(
    ("model", "images", "scene"),
    [
        ("sparse/1", "images", "."),  # the first piece was deleted
        ("sparse/0", "images", "sparse/0"),  # SCENE is the model
        ("sparse/0", "images", "sparse"),
        ("colmap/sparse/0", "images", "colmap/sparse/0"),
        ("colmap/sparse/0", "colmap/images", "."),
        ("sparse/0", "Images", "."),
        ("distorted/sparse/0", "input", "."),  # 3DGS's convert.py, stopped half-way
        ("distorted/sparse/0", "input", "distorted/sparse/0"),
        ("dense/sparse", "dense/images", "."),
        ("dense/0/sparse", "dense/0/images", "."),
        ("dense/0/sparse", "dense/0/images", "dense/0"),
        ("0", "images", "."),
        ("my_model", "images", "my_model"),
        ("sparse/0", ".", "sparse/0"),
    ],
)
def test_models_and_images_are_found_in_the_usual_folders(
    tmp_path: Path, model: str, images: str, scene: str
) -> None:
    root = tmp_path / "spoon"
    piece(root / model, range(4))
    colmap.write_images(root / images, colmap.NAMES[:4])
    source = read_source(root / scene)
    assert [frame.image for frame in source.frames] == [
        root / images / f"{i}.png" for i in range(4)
    ]
    assert source.notes == ()


def test_a_distorted_model_takes_the_photos_and_not_the_undistorted_images(tmp_path: Path) -> None:
    piece(tmp_path / "distorted/sparse/0", range(4))
    for folder in ("images", "input"):
        colmap.write_images(tmp_path / folder, colmap.NAMES[:4])
    assert read_source(tmp_path).frames[0].image == tmp_path / "input/0.png"


def test_a_scene_that_is_named_by_a_number_keeps_its_name(tmp_path: Path) -> None:
    piece(tmp_path / "scenes/12/sparse/0", range(4))
    colmap.write_images(tmp_path / "scenes/12/images", colmap.NAMES[:4])
    assert read_source(tmp_path / "scenes/12").name == "12"


def test_masks_and_lists_lie_beside_the_images_of_a_model(tmp_path: Path) -> None:
    piece(tmp_path / "sparse/1", range(4))
    colmap.write_images(tmp_path / "images", colmap.NAMES[:4])
    Image.new("L", (colmap.WIDTH, colmap.HEIGHT), 255).save(tmp_path / "mask.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "mask.png").rename(tmp_path / "masks/1.png")
    (tmp_path / "train_list.txt").write_text("0.png\n1.png\n2.png\n")
    source = read_source(tmp_path / "sparse/1")
    assert [frame.mask is not None for frame in source.frames] == [False, True, False]
    assert source.notes[0] == "2 of 3 images have no mask, all of their pixels count: 0.png, 2.png"


def test_the_user_says_where_images_are(tmp_path: Path) -> None:
    photos = tmp_path / "elsewhere/photos"
    root = tmp_path / "scene"
    piece(root / "sparse/0", range(4))
    colmap.write_images(root / "images", colmap.NAMES[:4])
    colmap.write_images(photos, ["0.JPG", *colmap.NAMES[1:4]])
    source = read_source(root, SceneConfig(images=str(photos)))
    assert [frame.image and frame.image.parent for frame in source.frames] == [photos] * 4
    assert source.notes == ("1 image is named .png, their .JPG is read",)
    with pytest.raises(NerfError, match=r"photosz \(scene\.images\) does not exist"):
        read_source(root, SceneConfig(images=f"{photos}z"))
    shutil.rmtree(root / "images")
    with pytest.raises(NerfError, match=r"Looked in: the folder itself\. --images DIR says"):
        read_source(root)


def test_the_user_says_where_images_are_in_every_format(tmp_path: Path) -> None:
    photos = SceneConfig(images=str(tmp_path / "photos"))
    for i in range(N):
        save(tmp_path / f"photos/{i:04}.png")
    (tmp_path / "a").mkdir()
    source = read_source(write(tmp_path / "a", table("images")), photos)
    assert (len(source.frames), source.notes) == (N, ())
    (tmp_path / "b").mkdir()
    source = read_source(write(tmp_path / "b", table("./train"), "transforms_train.json"), photos)
    assert (len(source.frames), source.notes) == (N, ())
    (tmp_path / "c").mkdir()
    llff.capture(tmp_path / "c")
    (tmp_path / "c/images").rename(tmp_path / "c/elsewhere")
    source = read_source(tmp_path / "c", SceneConfig(images=str(tmp_path / "c/elsewhere")))
    assert len(source.frames) == 10


def test_commands_take_the_folder_of_images_and_a_run_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {**capture(tmp_path), "aabb_scale": 1})
    (tmp_path / "images").rename(tmp_path / "photos")
    bad = json.loads((tmp_path / "transforms.json").read_text())
    bad["frames"][3]["transform_matrix"] = None
    write(tmp_path, bad)
    flags = ["--images", "photos", "--skip-bad-frames", "--json", "--quiet"]

    def call(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*words])
        assert result.exit_code in (0, 3), result.output
        return json.loads(result.stdout)

    assert call("convert", ".", "--to", "colmap", "--out", "made", *flags)["n_images"] == N - 1
    seen: list[Source] = []

    def check_source(source: Source, *_: object, **__: object) -> None:  # seconds, if it is run
        seen.append(source)
        raise NerfError("enough")

    monkeypatch.setattr("nerfcli.check.check_source", check_source)
    assert isinstance(CliRunner().invoke(app, ["check", ".", *flags]).exception, NerfError)
    assert [len(source.frames) for source in seen] == [N - 1]
    call("train", ".", "--out", "run", "--steps", "2", "--set", "hashgrid.n_samples=64", *flags)
    text = (tmp_path / "run/config.toml").read_text()
    assert str(tmp_path / "photos") in text
    assert call("eval", "run", "--json", "--quiet")["n_views"] == 2
    # the photos move, and the run goes on with them
    (tmp_path / "photos").rename(tmp_path / "moved")
    flags[1] = "moved"
    call("train", ".", "--out", "run", "--resume", "--steps", "3", *flags)


# transforms.json


def test_a_split_without_images_is_left_out(tmp_path: Path) -> None:
    """BlenderNeRF's export: the test file holds a camera path."""
    for i in range(N):
        save(tmp_path / f"train/{i:04}.png")
    write(tmp_path, table("train", aabb_scale=4), "transforms_train.json")
    write(tmp_path, table("test"), "transforms_test.json")
    source = read_source(tmp_path)
    assert len(source.frames) == N
    note = "transforms_test.json names 12 images that do not exist: its cameras are left out"
    assert note in source.notes
    assert load_scene(tmp_path).splits["test"] == (0, 8)
    write(tmp_path, table("gone"), "transforms_train.json")
    with pytest.raises(NerfError, match=r"transforms_train\.json: none of the 12 images exists"):
        read_source(tmp_path)
    (tmp_path / "transforms_train.json").unlink()
    with pytest.raises(NerfError, match=r"transforms_test\.json: none of the 12 images exists"):
        read_source(tmp_path)


@pytest.mark.parametrize("stated", ["/home/me/spoon/{}", "C:\\spoon\\{}"])
def test_a_path_of_cameras_never_takes_the_training_images(tmp_path: Path, stated: str) -> None:
    for i in range(N):
        save(tmp_path / f"{i:04}.png")
    for split in ("train", "test"):
        write(tmp_path, table(stated.format(split)), f"transforms_{split}.json")
    source = read_source(tmp_path)
    assert [frame.split for frame in source.frames] == ["train"] * N


def test_empty_splits_count_as_none(tmp_path: Path) -> None:
    for i in range(N):
        save(tmp_path / f"train/{i:04}.png")
    write(tmp_path, table("train"), "transforms_train.json")
    write(tmp_path, {"frames": []}, "transforms_test.json")
    write(tmp_path, {"frames": []}, "transforms_val.json")
    source = read_source(tmp_path)
    assert len(source.frames) == N
    assert source.notes[:2] == (
        "transforms_val.json is empty, and left out",
        "transforms_test.json is empty, and left out",
    )


def test_null_counts_as_absent(tmp_path: Path) -> None:
    made = capture(
        tmp_path,
        **dict.fromkeys(("camera_model", "cx", "k1", "distortion_params", "aabb_scale")),
        **dict.fromkeys(("applied_transform", "applied_scale", "ply_file_path")),
        **dict.fromkeys(("train_filenames", "fl_y", "fisheye_crop_radius", "scale")),
    )
    for frame in made["frames"]:
        frame |= {"mask_path": None, "depth_file_path": None, "fl_x": None, "w": None, "k2": None}
    source = read_source(write(tmp_path, made))
    assert (source.notes, source.kind) == ((), "instant-ngp")
    assert source.frames[0].focal == (10.0, 10.0)


def test_comments_trailing_commas_and_byte_order_marks_are_taken(tmp_path: Path) -> None:
    plain = json.dumps(capture(tmp_path))
    text = "// made by hand\n" + plain.replace(
        '"fl_x"', '/* the "focal\n length" */ "note": "http://a/*b*/,]",\n "fl_x"'
    ).replace("]}]", "],},]")
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        (tmp_path / "transforms.json").write_bytes(data)
        source = read_source(tmp_path)
        assert len(source.frames) == N
        assert source.notes == ("unknown keys in transforms.json are ignored: note",)
    (tmp_path / "transforms.json").write_text(text.replace("10.0", "10.0 //\n oops"))
    with pytest.raises(NerfError, match=r"line 5, column 2: broken JSON"):
        read_source(tmp_path)


def test_a_key_that_is_stated_twice_is_said(tmp_path: Path) -> None:
    text = json.dumps(capture(tmp_path))
    (tmp_path / "transforms.json").write_text('{"fl_x": 99.0, ' + text[1:])
    source = read_source(tmp_path)
    assert source.frames[0].focal[0] == 10.0
    note = "transforms.json states a key more than once, the last value counts: fl_x"
    assert source.notes == (note,)


VALUES = {"omega": 0.9, "alpha": 0.6, "beta": 1.1, "k": -0.05}


@pytest.mark.parametrize("model", CAMERA_MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("as_list", [False, True])
def test_every_colmap_model_is_the_lens_of_the_colmap_file(
    tmp_path: Path, model: Any, as_list: bool
) -> None:
    names = COLMAP_KEYS.get(model.name, model.names)
    params = [VALUES.get(name, 0.01 * (i + 1)) for i, name in enumerate(names)]
    made = capture(tmp_path, camera_model=model.name.lower())
    usual = ("k1", "k2", "k3", "k4", "p1", "p2")
    if as_list and model.name not in COLMAP_KEYS:
        stated = dict(zip(names, params, strict=True))
        made["distortion_params"] = [stated.get(name, 0.0) for name in usual]
    elif as_list:
        made["distortion_params"] = params
    else:
        made |= dict(zip(names, params, strict=True))
    source = read_source(write(tmp_path, made))
    want = Lens.of(model.lens, **dict(zip(model.names, params, strict=True)))
    assert source.frames[0].lens in (want, Lens() if want.is_pinhole else want)
    assert source.notes == ()
    assert source.beyond == ()


def fisheye624(point: np.ndarray, params: list[float]) -> tuple[float, float]:
    """Project Aria's definition: f, c, six radial, two tangential, four thin prism terms."""
    f, cx, cy, *rest = params
    k, (p0, p1), s = rest[:6], rest[6:8], rest[8:]
    x, y, z = point
    r = np.hypot(x, y)
    theta = np.arctan2(r, z)
    radial = theta * (1 + sum(c * theta ** (2 * i + 2) for i, c in enumerate(k)))
    u, v = radial * x / r, radial * y / r
    q = u * u + v * v
    mixed = 2 * (u * p0 + v * p1)
    across = u + u * mixed + q * p0 + s[0] * q + s[1] * q * q
    down = v + v * mixed + q * p1 + s[2] * q + s[3] * q * q
    return f * across + cx, f * down + cy


def test_aria_cameras_are_read(tmp_path: Path) -> None:
    params = [10.0, 6.2, 3.9, -0.02, 0.09, -0.07, 0.014, 0.001, -0.0004]
    params += [0.0008, -0.0005, 0.0011, -0.0003, 0.0007, 0.0002]
    made = capture(tmp_path, camera_model="FISHEYE624", fisheye_crop_radius=5.9)
    for frame in made["frames"]:
        frame |= {"fl_x": 10.0, "fl_y": 10.0, "cx": 6.2, "cy": 3.9, "distortion_params": params[3:]}
    source = read_source(write(tmp_path, made))
    frame = source.frames[0]
    assert frame.lens.model == "rad_tan_thin_prism_fisheye"
    for point in np.random.default_rng(0).normal(size=(20, 3)) * [1, 1, 0.3] + [0, 0, 0.9]:
        xy = frame.lens.project(torch.from_numpy(point)).numpy()
        got = xy * frame.focal + frame.principal
        np.testing.assert_allclose(got, fisheye624(point, params), atol=1e-9)


def test_lens_parameters_that_a_model_lacks_are_named(tmp_path: Path) -> None:
    write(tmp_path, capture(tmp_path, camera_model="FISHEYE624", k6=0.1))
    with pytest.raises(NerfError, match="k6 is no parameter of camera_model RAD_TAN"):
        read_source(tmp_path)
    write(tmp_path, table(camera_model="FOV"))
    with pytest.raises(NerfError, match="FOV needs omega"):
        read_source(tmp_path)
    write(tmp_path, table(camera_model="FISHEYE624", distortion_params=[0.1] * 6))
    with pytest.raises(NerfError, match="distortion_params must list k0, k1"):
        read_source(tmp_path)


# bad frames


def skew() -> list[list[float]]:
    matrix = sphere_c2w(0, N)
    matrix[0, 0] += 0.5
    return matrix.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform_matrix": None}, r"0003\.png has no transform_matrix\."),
        ({"transform_matrix": [[float("nan")] * 4] * 4}, "not finite"),
        ({"transform_matrix": [[float("-inf")] * 4] * 4}, "not finite"),
        ({"transform_matrix": skew()}, "not orthonormal"),
        ({"transform_matrix": 7}, "must be 4x4 or 3x4"),
        ({"fl_x": 1e9}, "absurd"),
        ({"file_path": None}, "frame 3 has no file_path"),
        ({"mask_path": "gone.png"}, "mask gone.png does not exist"),
        ({"w": 80}, "shapes differ"),
    ],
)
def test_one_bad_frame_is_left_out_if_the_user_says_so(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    made = capture(tmp_path)
    made["frames"][3] |= change
    write(tmp_path, made)
    hint = r" Of 12 frames 1 cannot be used; --skip-bad-frames leaves it out\."
    with pytest.raises(NerfError, match=f"{message}.*{hint}"):
        read_source(tmp_path)
    source = read_source(tmp_path, SKIP)
    assert len(source.frames) == N - 1
    assert source.notes[0].startswith("left out: ")
    assert load_scene(tmp_path, SKIP).splits["test"] == (0, 8)


@pytest.mark.parametrize("data", [b"", b"no image", b"half"])
def test_unreadable_images_are_left_out_in_every_format(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, capture(tmp_path))
    (tmp_path / "colmap").mkdir()
    colmap.capture(tmp_path / "colmap")
    (tmp_path / "llff").mkdir()
    llff.capture(tmp_path / "llff")
    (tmp_path / "blender").mkdir()
    for i in range(N):
        save(tmp_path / f"blender/train/{i:04}.png")
    write(tmp_path / "blender", table("train"), "transforms_train.json")
    for file, n in (
        ("images/0003.png", N),
        ("colmap/images/3.png", 10),
        ("llff/images/IMG_003.png", 10),
        ("blender/train/0003.png", N),
    ):
        path = tmp_path / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if data == b"half" else data)
        root = path.parent.parent
        if data != b"half":  # the header of half an image can be read
            with pytest.raises(NerfError, match=f"{path.name}.*--skip-bad-frames leaves it out"):
                read_source(root)
        source = read_source(root, SKIP)
        assert len(source.frames) == n - 1
        assert any("left out: " in note and path.name in note for note in source.notes)
        assert load_views(load_scene(root, SKIP), range(n - 1)).cameras.shape == (n - 1,)


def test_bad_poses_of_colmap_and_llff_are_left_out(tmp_path: Path) -> None:
    made, _ = colmap.capture(tmp_path)
    made.images[4]["q"] = (3.0, 0.0, 0.0, 0.0)
    colmap.write_bin(made, tmp_path / "sparse/0")
    with pytest.raises(NerfError, match=r"4\.png.*quaternion.*--skip-bad-frames leaves it out"):
        read_source(tmp_path)
    source = read_source(tmp_path, SKIP)
    assert [frame.name for frame in source.frames] == [f"{i}.png" for i in range(10) if i != 4]
    assert source.points is not None
    assert int(source.points.frame.max()) == 8
    root = tmp_path / "llff"
    root.mkdir()
    llff.capture(root)
    rows = np.load(root / "poses_bounds.npy")
    rows[2, 3] = np.nan
    np.save(root / "poses_bounds.npy", rows)
    with pytest.raises(NerfError, match=r"row 2 .*--skip-bad-frames leaves it out"):
        read_source(root)
    assert len(read_source(root, SKIP).frames) == 9


def test_a_scene_of_bad_frames_only_is_an_error_all_the_same(tmp_path: Path) -> None:
    made = capture(tmp_path)
    for frame in made["frames"]:
        del frame["transform_matrix"]
    write(tmp_path, made)
    for wanted in (None, SKIP):
        with pytest.raises(NerfError, match=r"0000\.png has no transform_matrix\.$"):
            read_source(tmp_path, wanted)


def test_many_bad_frames_take_few_lines(tmp_path: Path) -> None:
    made = table(n=40)
    for i in range(40):
        save(tmp_path / f"images/{i:04}.png")
    for frame in made["frames"][:30]:
        del frame["transform_matrix"]
    notes = read_source(write(tmp_path, made), SKIP).notes
    assert len(notes) == 11
    assert notes[-1] == "left out: 20 more frames of 40"


@pytest.mark.parametrize("name", ["transforms.json", "poses_bounds.npy", "sparse/0/images.bin"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "sparse/0").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images/0.png")
    if name.startswith("sparse"):
        (tmp_path / "sparse/0/cameras.bin").write_bytes(bytes(8))
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(NerfError, match="Git LFS pointer.*git lfs pull"):
        read_source(tmp_path)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").touch()
    with pytest.raises(NerfError, match=r"transforms.json is empty \(0 bytes\)"):
        read_source(tmp_path)


def test_one_file_of_a_blender_scene_says_what_it_leaves_out(ball: Path) -> None:
    (note,) = [n for n in read_source(ball / "transforms_train.json").notes if "only" in n]
    assert "transforms_train.json is read, not transforms_test.json" in note
