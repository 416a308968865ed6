"""What nerfstudio and nerf-pytorch ask for, in what we write (tests/peers runs their loaders)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_convert import HEIGHT, WIDTH, capture

from conftest import sphere_c2w, write_blender_scene
from nerfcli.scenes import Source, load_scene, read_source
from nerfcli.scenes.images import read_image
from nerfcli.scenes.source import Depth
from nerfcli.scenes.writers.convert import WriteOptions, write_scene

SPLITS = ("train", "val", "test")


def written(source: Source, target: str, folder: Path) -> Path:
    folder.mkdir()
    write_scene(source, folder, WriteOptions(target))
    return folder


def with_splits(source: Source, *splits: str) -> Source:
    """The first views get these splits, the others are for training."""
    stated = [*splits, *["train"] * (len(source.frames) - len(splits))]
    frames = [replace(f, split=s) for f, s in zip(source.frames, stated, strict=True)]
    return replace(source, frames=tuple(frames))


def names_in(file: Path) -> list[str]:
    """Images of a Blender file: path + ".png", as both loaders open them."""
    table = json.loads(file.read_text())
    assert table["camera_angle_x"] > 0
    for frame in table["frames"]:
        assert np.shape(frame["transform_matrix"]) == (4, 4)
        with Image.open(file.parent / (frame["file_path"] + ".png")) as image:
            assert image.mode in ("RGB", "RGBA")
    return [frame["file_path"] for frame in table["frames"]]


# stated splits of the first views -> number of frames in each file
@pytest.mark.parametrize(
    ("stated", "counts", "held_out"),
    [
        ((), (7, 2, 2), {"./test/v_0", "./test/v_8"}),  # every eighth, as for all without splits
        (("train",), (7, 2, 2), {"./test/v_0", "./test/v_8"}),
        (("test",), (8, 1, 1), {"./test/v_0"}),
        (("val", "val"), (7, 2, 2), {"./val/v_0", "./val/v_1"}),
        (("test", "val", "val"), (6, 2, 1), {"./test/v_0"}),
    ],
)
def test_blender_scenes_have_views_in_all_three_files(
    tmp_path: Path, stated: tuple[str, ...], counts: tuple[int, ...], held_out: set[str]
) -> None:
    capture(tmp_path / "source")
    source = read_source(tmp_path / "source")
    source = with_splits(source, *stated) if stated else source
    folder = written(source, "blender", tmp_path / "new")
    lists = {split: names_in(folder / f"transforms_{split}.json") for split in SPLITS}
    assert tuple(len(names) for names in lists.values()) == counts
    assert set(lists["test"]) == held_out
    again, scene = read_source(folder), load_scene(folder)
    assert len(again.frames) == 9  # a view that val and test name is one view
    assert {"./" + scene.names[i].removesuffix(".png") for i in scene.splits["test"]} == held_out
    assert not any("training views too" in note for note in scene.notes)


def test_a_blender_scene_of_one_view_names_it_thrice(tmp_path: Path) -> None:
    write_blender_scene(tmp_path / "one", 1, 0)
    (tmp_path / "one/transforms_test.json").unlink()
    folder = written(read_source(tmp_path / "one"), "blender", tmp_path / "new")
    for split in SPLITS:
        assert names_in(folder / f"transforms_{split}.json") == ["./train/r_0"]


@pytest.mark.parametrize("stated", [("test", "test"), ("val", "val")])
def test_lists_name_views_for_val_and_test(tmp_path: Path, stated: tuple[str, ...]) -> None:
    capture(tmp_path / "source")
    source = read_source(tmp_path / "source")
    split = with_splits(source, *stated)
    table = json.loads(
        (written(split, "transforms", tmp_path / "t") / "transforms.json").read_text()
    )
    assert table["val_filenames"] == table["test_filenames"] == ["images/v_0.png", "images/v_1.png"]
    assert len(table["train_filenames"]) == 7
    folder = written(split, "colmap", tmp_path / "c")
    for name in (
        "test_list.txt",
        "validation_list.txt",
        "val_list.txt",
    ):  # nerfstudio reads the last
        assert (folder / name).read_text() == "v_0.png\nv_1.png\n"
    for folder in (tmp_path / "t", tmp_path / "c"):
        assert load_scene(folder).splits["test"] == (0, 1)
    # without splits, or with views for training alone, every program splits by its own rule
    for whole in (source, with_splits(source, "train")):
        folder = written(whole, "transforms", tmp_path / f"none-{whole.frames[0].split}")
        assert "filenames" not in (folder / "transforms.json").read_text()


def test_llff_and_blender_images_are_of_kinds_that_their_loaders_open(tmp_path: Path) -> None:
    """nerf-pytorch takes names that end in JPG, jpg or png, and counts channels from the last."""
    (tmp_path / "source").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    picture = Image.fromarray(pixels)
    kinds = {"a.jpeg": "RGB", "b.JPG": "RGB", "c.png": "L", "d.PNG": "RGB", "e.png": "P",
             "f.tif": "RGB", "g.jpg": "L"}  # fmt: skip
    frames = []
    for i, (name, mode) in enumerate(kinds.items()):
        picture.convert(mode).save(tmp_path / "source" / name)
        frames.append({"file_path": name, "transform_matrix": sphere_c2w(i, 7).tolist()})
    table = {"fl_x": 10.0, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (tmp_path / "source/transforms.json").write_text(json.dumps(table))
    source = read_source(tmp_path / "source")
    folder = written(source, "llff", tmp_path / "llff")
    files = sorted((folder / "images").iterdir())
    assert [f.name for f in files] == [
        *("a.jpg", "b.JPG", "c.png", "d.png", "e.png", "f.png", "g.png")
    ]
    assert files[0].read_bytes() == (tmp_path / "source/a.jpeg").read_bytes()  # no second JPEG
    for file, frame in zip(files, source.frames, strict=True):
        assert Image.open(file).mode == "RGB" and frame.image is not None
        assert read_image(file).equal(read_image(frame.image))
    folder = written(source, "blender", tmp_path / "blender")
    assert sum(len(names_in(folder / f"transforms_{s}.json")) for s in ("train", "test")) == 7
    # others open what Pillow opens, but for photos of phones and cameras
    assert (written(source, "colmap", tmp_path / "colmap") / "images/f.tif").is_file()


def test_depth_images_are_there_for_all_frames_or_none(tmp_path: Path) -> None:
    capture(tmp_path / "source", 3)
    Image.fromarray(np.full((HEIGHT, WIDTH), 1500, np.uint16)).save(tmp_path / "d.png")
    source = read_source(tmp_path / "source")
    first = replace(source.frames[0], depth=Depth(tmp_path / "d.png", 0.001, False))
    source = replace(source, frames=(first, *source.frames[1:]))
    folder = written(source, "transforms", tmp_path / "new")
    depths = [frame.depth for frame in read_source(folder).frames]
    values = [np.asarray(Image.open(depth.path)) for depth in depths if depth is not None]
    assert [value.max() for value in values] == [1500, 0, 0]  # 0 is unknown
    assert {value.shape for value in values} == {(HEIGHT, WIDTH)}
