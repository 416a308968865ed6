"""nerf convert: round trips over all pairs of formats, what is lost, and the command itself."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Nerf, sphere_c2w, write_blender_scene
from nerfcli.cameras.lenses import Lens
from nerfcli.cli import main
from nerfcli.scenes import Source, load_scene, load_views, read_source
from nerfcli.scenes.images import read_image
from nerfcli.scenes.source import Points
from nerfcli.scenes.writers.convert import WriteOptions, write_scene
from nerfcli.scenes.writers.pictures import image_names
from nerfcli.scenes.writers.unsupported import TARGETS, list_unsupported

WIDTH, HEIGHT = 12, 8


def capture(root: Path, n: int = 9, **top: Any) -> dict[str, Any]:
    """A transforms.json with pictures that tell the views apart."""
    (root / "images").mkdir(parents=True)
    frames = []
    for i in range(n):
        name = f"images/v_{i}.png"
        pixels = np.full((HEIGHT, WIDTH, 3), 20 * i, np.uint8)
        pixels[0, :, 1] = np.arange(WIDTH)
        Image.fromarray(pixels).save(root / name)
        frames.append({"file_path": name, "transform_matrix": sphere_c2w(i, n).tolist()})
    table = {"fl_x": 10.0, "fl_y": 10.0, "cx": 6.0, "cy": 4.0, "w": WIDTH, "h": HEIGHT}
    table = {**table, **top, "frames": frames}
    (root / "transforms.json").write_text(json.dumps(table))
    return table


def converted(source: Source, target: str, folder: Path, **choices: Any) -> Source:
    folder.mkdir()
    write_scene(source, folder, WriteOptions(target, **choices))
    return read_source(folder)


def assert_same_views(a: Source, b: Source, names: dict[str, str] | None = None) -> None:
    """Frame by frame: pose, intrinsics, lens, split and pixels; names: from those of a to b's."""
    assert len(a.frames) == len(b.frames)
    frames = b.frames
    if names is not None:
        by_name = {frame.name: frame for frame in b.frames}
        frames = [by_name[names[frame.name]] for frame in a.frames]
    for x, y in zip(a.frames, frames, strict=True):
        # angles and quaternions go through double precision once or twice
        np.testing.assert_allclose(y.c2w, x.c2w, rtol=0, atol=1e-12)
        np.testing.assert_allclose(y.focal, x.focal, rtol=1e-12)
        np.testing.assert_allclose(y.principal, x.principal, rtol=1e-12)
        assert (x.size, x.lens, x.split) == (y.size, y.lens, y.split)
        assert x.image is not None and y.image is not None
        assert torch.equal(read_image(x.image), read_image(y.image))


def shades(source: Source) -> list[int]:
    """The number of each view, from its picture."""
    return [int(read_image(f.image)[1, 0, 0]) // 20 for f in source.frames if f.image is not None]


def with_bounds(source: Source) -> Source:
    return replace(source, frames=tuple(replace(f, bounds=(2.5, 5.5)) for f in source.frames))


PAIRS = [*itertools.product(TARGETS[:4], repeat=2), (TARGETS[4], "colmap"), ("llff", TARGETS[4])]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_round_trip_of_what_all_formats_hold(tmp_path: Path, pair: tuple[str, str]) -> None:
    """A scene written as the first, read, written as the second, read, and as the first again."""
    capture(tmp_path / "source")
    source = read_source(tmp_path / "source")
    first = converted(source, pair[0], tmp_path / "first")
    second = converted(first, pair[1], tmp_path / "second")
    third = converted(second, pair[0], tmp_path / "third")
    for read in (first, second, third):  # Blender's files state what the others leave to a rule
        unsplit = [replace(read.frames[i], split=None) for i in np.argsort(shades(read))]
        assert_same_views(source, replace(read, frames=tuple(unsplit)))
        scene = load_scene(read.root)
        held_out = {shades(read)[i] for i in scene.splits["test"]}
        if set(pair) != {"blender", "llff"}:  # which cannot say it
            assert held_out == {0, 8}
    if "llff" in pair:
        assert all(f.bounds is not None for f in (first if pair[0] == "llff" else second).frames)


@pytest.mark.parametrize("target", ["colmap", "transforms"])
def test_lenses_splits_masks_and_points_survive(tmp_path: Path, target: str) -> None:
    table = capture(tmp_path / "source", k1=0.05, p2=-0.002, camera_model="OPENCV")
    for i, frame in enumerate(table["frames"]):
        frame["fl_x"], frame["cx"] = 10.0 + i, 5.5
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[:, : i + 1] = 0
        frame["mask_path"] = f"mask_{i}.png"
        Image.fromarray(mask).save(tmp_path / f"source/mask_{i}.png")
    names = [frame["file_path"] for frame in table["frames"]]
    table |= {"train_filenames": names[:6], "val_filenames": names[6:7]}
    table |= {"test_filenames": names[7:]}
    (tmp_path / "source/transforms.json").write_text(json.dumps(table))
    rng = np.random.default_rng(0)
    points = Points(
        *(rng.normal(size=(25, 3)), rng.integers(0, 255, (25, 3), np.uint8), rng.random(25)),
        *(np.array([0, 3, 3]), np.array([1, 1, 8]), rng.random((3, 2)) * 8),
    )
    source = replace(read_source(tmp_path / "source"), points=points)
    again = converted(source, target, tmp_path / "again")
    assert_same_views(source, again)
    assert again.frames[3].lens.named["k1"] == 0.05
    scene, back = load_scene(tmp_path / "source"), load_scene(tmp_path / "again")
    for i in range(9):
        a, b = load_views(scene, [i]), load_views(back, [i])
        assert a.usable is not None and b.usable is not None
        assert torch.equal(a.usable, b.usable)
    assert again.points is not None and again.points.rgb is not None
    np.testing.assert_array_equal(again.points.xyz, points.xyz)
    np.testing.assert_array_equal(again.points.rgb, points.rgb)
    lost = {item.what for item in list_unsupported(source, target)}
    if target == "colmap":
        assert lost == set()
        np.testing.assert_array_equal(again.points.error, points.error)
        for key in ("point", "frame", "xy"):
            np.testing.assert_array_equal(
                np.sort(getattr(again.points, key), 0), np.sort(getattr(points, key), 0)
            )
    else:
        assert lost == {"observations"}


def test_panoramas_survive(tmp_path: Path) -> None:
    capture(tmp_path / "source", camera_model="EQUIRECTANGULAR")
    source = read_source(tmp_path / "source")
    assert source.frames[0].lens.model == "equirectangular"
    for target in ("colmap", "transforms"):
        assert list_unsupported(source, target) == []
        assert_same_views(source, converted(source, target, tmp_path / target))
    assert "lens" in {item.what for item in list_unsupported(source, "llff")}
    mixed = list(source.frames)
    mixed[0] = replace(mixed[0], lens=Lens())
    assert (
        "8 images" in list_unsupported(replace(source, frames=tuple(mixed)), "transforms")[0].detail
    )


def test_a_box_goes_along_into_blenders_files(tmp_path: Path) -> None:
    """Its readers would take +-1.5 around the origin for cameras that are 4 units from it."""
    capture(tmp_path / "source")
    capture(tmp_path / "stated", aabb_scale=4, scale=0.25, offset=[0.5, 0.25, 0.5])
    for name in ("source", "stated"):
        scene = load_scene(tmp_path / name)
        converted(read_source(tmp_path / name), "blender", tmp_path / f"{name}-blender")
        again = load_scene(tmp_path / f"{name}-blender")
        assert again.scene_from_source.scale == pytest.approx(scene.scene_from_source.scale)
        np.testing.assert_allclose(
            again.scene_from_source.translation, scene.scene_from_source.translation, atol=1e-12
        )
        assert again.box.n_cascades == scene.box.n_cascades
    write_blender_scene(tmp_path / "ball")
    again = converted(read_source(tmp_path / "ball"), "blender", tmp_path / "ball-blender")
    assert again.keep_frame and again.bounds == (2.0, 6.0)


def test_text_and_binary_models_are_equal(tmp_path: Path) -> None:
    capture(tmp_path / "source", k1=0.1, k2=0.01)
    source = read_source(tmp_path / "source")
    text = converted(source, "colmap", tmp_path / "text", text=True)
    assert (tmp_path / "text/sparse/0/images.txt").is_file()
    assert not (tmp_path / "text/sparse/0/images.bin").exists()
    assert_same_views(converted(source, "colmap", tmp_path / "binary"), text)


def test_colmap_reads_what_is_written(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="the oracle, pycolmap, is not installed")
    capture(tmp_path / "source", k1=0.1, k2=0.01, p1=0.001)
    source = read_source(tmp_path / "source")
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(30, 3)) * 0.3
    seen = np.repeat(np.arange(30), 2), np.tile([0, 4], 30)
    source = replace(source, points=Points(xyz, None, None, *seen, rng.random((60, 2))))
    for kind in ("binary", "text"):
        converted(source, "colmap", tmp_path / kind, text=kind == "text")
        model = pycolmap.Reconstruction(tmp_path / kind / "sparse/0")
        assert (model.num_images(), model.num_cameras(), model.num_points3D()) == (9, 1, 30)
        by_name = {image.name: image for image in model.images.values()}
        for frame in source.frames:
            image = by_name[frame.name.removeprefix("images/")]
            want = image.cam_from_world().inverse().matrix()
            np.testing.assert_allclose(frame.c2w, want, atol=1e-12)
        assert {p.track.length() for p in model.points3D.values()} == {2}


def test_transparency_becomes_png_and_depth_is_kept(tmp_path: Path) -> None:
    table = capture(tmp_path / "source", n=4, integer_depth_scale=0.001)
    for i, frame in enumerate(table["frames"]):
        picture = Image.open(tmp_path / "source" / frame["file_path"])
        picture.save(tmp_path / f"source/images/v_{i}.jpg")
        (tmp_path / "source" / frame["file_path"]).unlink()
        alpha = Image.new("L", (WIDTH, HEIGHT), 200)
        alpha.save(tmp_path / f"source/images/v_{i}.alpha.jpg")
        frame["file_path"] = f"images/v_{i}.jpg"
        frame["depth_path"] = f"d_{i}.png"
        Image.fromarray(np.full((8, 12), 1500, np.uint16)).save(tmp_path / f"source/d_{i}.png")
    (tmp_path / "source/transforms.json").write_text(json.dumps(table))
    source, scene = read_source(tmp_path / "source"), load_scene(tmp_path / "source")
    for target in TARGETS:
        converted(source, target, tmp_path / target)
        again = load_scene(tmp_path / target)
        assert again.has_alpha
        order = [1, 2, 3, 0] if target == "blender" else range(4)  # view 0 is held out
        for i, j in enumerate(order):
            want = load_views(scene, [j]).pixels
            assert torch.equal(load_views(again, [i]).pixels, want)
    depth = read_source(tmp_path / "transforms").frames[2].depth
    assert depth is not None and (depth.scale, depth.is_euclidean) == (0.001, False)
    assert np.asarray(Image.open(depth.path))[0, 0] == 1500
    assert "depth" in {item.what for item in list_unsupported(source, "colmap")}


def test_names_keep_their_order_and_stay_unique(tmp_path: Path) -> None:
    capture(tmp_path, n=3)
    frame = read_source(tmp_path).frames[0]

    def names(stated: list[str], target: str) -> list[str]:
        return image_names([replace(frame, name=name) for name in stated], target)

    assert names(["a/1.png", "a/2.png"], "colmap") == ["images/1.png", "images/2.png"]
    assert names(["l/1.png", "r/1.png"], "colmap") == ["images/l/1.png", "images/r/1.png"]
    assert names(["l/1.png", "r/1.png"], "llff") == ["images/l_1.png", "images/r_1.png"]
    assert names(["../x/2.png", "../x/10.png"], "transforms") == ["images/2.png", "images/10.png"]
    # sorted by characters 10 comes before 2
    want = ["images/00000_2.png", "images/00001_10.png"]
    assert names(["2.png", "10.png"], "llff") == want
    assert names(["a/b.png", "a_b.png"], "llff") == [
        "images/00000_a_b.png",
        "images/00001_a_b.png",
    ]
    assert names(["1.png"], "blender") == ["train/1.png"]


def test_each_loss_is_told(tmp_path: Path) -> None:
    capture(tmp_path, camera_model="OPENCV_FISHEYE", k1=0.1, cx=5.0, fl_y=11.0, aabb_scale=2)
    source = with_bounds(read_source(tmp_path))
    source = replace(source, points=Points(np.zeros((5, 3))), crop_radius=3.0)
    lost = {target: {item.what for item in list_unsupported(source, target)} for target in TARGETS}
    shape = {"lens", "square pixels", "principal point"}
    assert lost["blender"] == shape | {"fisheye circle", "points", "bounds"}
    assert lost["llff"] == shape | {"fisheye circle", "points", "box"}
    assert lost["colmap"] == {"fisheye circle", "box", "bounds"}
    assert lost["transforms"] == {"bounds"}
    frames = list(source.frames)
    frames[2] = replace(frames[2], focal=(12.0, 12.0), split="val")
    varied = {
        item.what for item in list_unsupported(replace(source, frames=tuple(frames)), "blender")
    }
    assert "one focal length" in varied
    assert "splits" in {
        x.what for x in list_unsupported(replace(source, frames=tuple(frames)), "llff")
    }


def test_bounds_come_from_the_points_that_a_view_sees(tmp_path: Path) -> None:
    capture(tmp_path / "source")
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(500, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)  # the unit sphere, seen from 4 away
    source = replace(read_source(tmp_path / "source"), points=Points(xyz))
    again = converted(source, "llff", tmp_path / "llff")
    for frame in again.frames:
        assert frame.bounds == pytest.approx((3.0, 5.0), abs=0.05)  # 500 points: gaps of 0.1


def test_dataparser_transforms_follow_nerfstudios_formula(tmp_path: Path) -> None:
    applied = [[0.0, 2.0, 0.0, 1.0], [-2.0, 0.0, 0.0, 2.0], [0.0, 0.0, 2.0, 3.0]]
    capture(tmp_path / "source", applied_transform=applied, applied_scale=0.5)
    source = read_source(tmp_path / "source")
    again = converted(source, "transforms", tmp_path / "again", dataparser=True)
    np.testing.assert_array_equal(again.applied_transform, applied)
    assert again.applied_scale == 0.5
    table = json.loads((tmp_path / "again/dataparser_transforms.json").read_text())
    matrix = np.array(table["transform"])
    point = np.array([0.3, -0.2, 0.7])
    saved = 0.5 * (np.array(applied) @ [*point, 1.0])  # the frame of the poses
    want = load_scene(tmp_path / "source").scene_from_source.apply(torch.from_numpy(saved))
    np.testing.assert_allclose(table["scale"] * (matrix @ [*point, 1.0]), want, atol=1e-12)


def test_the_command_and_its_record(nerf: Nerf, tmp_path: Path) -> None:
    write_blender_scene(tmp_path / "ball")
    done = nerf("convert", "ball", "--to", "transforms", "--out", "new", "--json", "--quiet")
    value = json.loads(done.stdout)
    assert value["written"] and value["lost"] == [] and value["n_images"] == 10
    assert value["names"]["train/r_0.png"] == "images/train/r_0.png"
    assert json.loads((tmp_path / "new/conversion.json").read_text()) == value
    ball = read_source(tmp_path / "ball")
    assert_same_views(ball, read_source(tmp_path / "new"), value["names"])
    # strict: nothing is written, and the exit code says so
    done = nerf("convert", "ball", "--to", "llff", "--out", "l", "--strict", code=2)
    assert "cannot hold all: splits (which images are for test, train)." in done.stderr
    assert not (tmp_path / "l").exists()
    # links instead of copies
    nerf("convert", "new", "--to", "colmap", "--out", "linked", "--link", "--quiet")
    assert (tmp_path / "linked/images/train/r_0.png").is_symlink()
    linked = read_source(tmp_path / "linked")
    assert_same_views(ball, linked, {f.name: f.name for f in ball.frames})
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "obj", "--out", "x"), "--to: unknown format 'obj'; known: blender, llff"),
        (("--to", "colmap", "--out", "ball"), "is or holds the scene itself"),
        (("--to", "colmap", "--out", "."), "is or holds the scene itself"),
        (("--to", "colmap", "--out", "full"), "full is not empty; choose another"),
        (("--to", "colmap", "--out", "file"), "is a file"),
        (("--to", "colmap", "--out", "old"), "old exists; replace it by --overwrite"),
        (("--to", "colmap", "--out", "mixed", "--overwrite"), "mixed also holds mine.txt"),
        (("--to", "llff", "--text", "--out", "x"), "--text is for --to colmap"),
    ],
)
def test_bad_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    write_blender_scene(tmp_path / "ball", 2, 1)
    files = [("full", "mine.txt"), ("old", "conversion.json")]
    files += [("mixed", "conversion.json"), ("mixed", "mine.txt")]
    for name, file in files:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "ball", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
