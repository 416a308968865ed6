"""Names of images that differ from the files: case, extension, Unicode form, other machines."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_scenes_colmap as colmap
import test_scenes_llff as llff
from PIL import Image

from conftest import sphere_c2w
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Source, read_source
from nerfcli.scenes.readers import listings
from nerfcli.scenes.readers.pictures import Pictures, image_files, image_folders

SIZE = (12, 8)
TOP = {"fl_x": 10.0, "w": SIZE[0], "h": SIZE[1]}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path)


def write(root: Path, stated: list[str], name: str = "transforms.json", **more: Any) -> Path:
    """Write a transforms file with these names; `more`: keys of each frame."""
    frames = [
        {"file_path": path, "transform_matrix": sphere_c2w(i, len(stated)).tolist()}
        | {key: values[i] for key, values in more.items() if values[i] is not None}
        for i, path in enumerate(stated)
    ]
    (root / name).write_text(json.dumps({**TOP, "frames": frames}))
    return root


def read_names(source: Source) -> list[str]:
    return [
        frame.image.relative_to(source.root).as_posix() for frame in source.frames if frame.image
    ]


@pytest.mark.parametrize(
    ("stated", "there", "remark"),
    [
        ("images/{}.png", "images/{}.png", None),
        ("./images/{}.png", "images/{}.png", None),
        ("images\\{}.png", "images/{}.png", None),
        ("images/{}", "images/{}.PNG", None),
        ("images/{}.jpg", "images/{}.JPG", "12 images are named .jpg, their .JPG is read"),
        ("images/{}.JPG", "images/{}.jpg", "12 images are named .JPG, their .jpg is read"),
        ("images/{}.heic", "images/{}.jpg", "12 images are named .heic, their .jpg is read"),
        ("images/{}.png", "images/{}.jpeg", "12 images are named .png, their .jpeg is read"),
        ("images/IMG_{}.png", "Images/img_{}.png", "another letter case.*Images|img_0.png is read"),
        ("images/a%20{}.png", "images/a {}.png", "encoding.*a 0.png is read"),
        ("file:///home/me/s/images/a%20{}.png", "images/a {}.png", "not where they are stated"),
        ("/home/other/s/images/{}.png", "images/{}.png", "stated .*, images/0.png is read"),
        ("/home/other/s/images/{}.png", "{}.png", "stated .*, 0.png is read"),
        ("/home/other/s/images/{}.jpg", "images/{}.JPG", "12 images are named .jpg"),
        ("C:\\Users\\me\\spoon\\{}.png", "images/{}.png", "stated .*, images/0.png is read"),
        ("\\\\server\\share\\{}.png", "images/{}.png", "stated .*, images/0.png is read"),
        ("../../data/s/images/{}.png", "images/{}.png", "stated .*, images/0.png is read"),
        ("{}.png", "images/{}.png", "stated .*, images/0.png is read"),
        ("images/{}.png", "images_4/{}.png", "stated .*, images_4/0.png is read"),
        ("images/{}.png", "input/{}.png", "stated .*, input/0.png is read"),
    ],
)
def test_images_of_transforms_files_are_found(
    tmp_path: Path, stated: str, there: str, remark: str | None
) -> None:
    save(*(tmp_path / there.format(i) for i in range(12)))
    source = read_source(write(tmp_path, [stated.format(i) for i in range(12)]))
    assert read_names(source) == [there.format(i) for i in range(12)]
    if remark is None:
        assert source.notes == ()
    else:
        assert len(source.notes) <= 2
        assert any(re.search(remark, note) for note in source.notes), source.notes


@pytest.mark.parametrize(("stated", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_are_one_name(tmp_path: Path, stated: str, there: str) -> None:
    name = "Büste é {}.png"
    files = [unicodedata.normalize(there, name.format(i)) for i in range(3)]  # type: ignore[arg-type]
    save(*(tmp_path / "images" / file for file in files))
    names = [unicodedata.normalize(stated, f"images/{name.format(i)}") for i in range(3)]  # type: ignore[arg-type]
    assert len(read_source(write(tmp_path, names)).frames) == 3


def test_what_is_stated_exactly_wins_and_no_file_serves_two_names(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "b.JPG")
    pictures = Pictures(tmp_path)
    found = pictures.find_all(["a.tif", "a.jpg", "a.png", "b.png", "b.jpg"])
    assert found == {
        "a.jpg": tmp_path / "a.jpg",
        "a.png": tmp_path / "a.png",
        "b.png": tmp_path / "b.JPG",
    }


def test_two_files_that_are_alike_are_not_guessed_between(tmp_path: Path) -> None:
    touch(tmp_path / "Ab.png", tmp_path / "aB.png")
    assert Pictures(tmp_path).find("ab.png") is None


def test_all_names_are_cut_alike(tmp_path: Path) -> None:
    """Two cameras with the same file names keep their folders."""
    names = [f"/elsewhere/s/cam{c}/{i}.png" for c in (0, 1) for i in range(3)]
    touch(*(tmp_path / f"cam{c}/{i}.png" for c in (0, 1) for i in range(3)))
    touch(tmp_path / "0.png")
    found = Pictures(tmp_path).find_all(names)
    assert [found[name].parent.name for name in names] == ["cam0"] * 3 + ["cam1"] * 3
    # a relative name is never cut: test/ without images is not train/
    assert Pictures(tmp_path).find("test/0.png") is None


def test_two_cut_names_do_not_share_a_file(tmp_path: Path) -> None:
    touch(tmp_path / "images/0.png")
    found = Pictures(tmp_path, others=image_folders(tmp_path)).find_all(
        ["/x/cam0/0.png", "/x/cam1/0.png"]
    )
    assert list(found) == ["/x/cam0/0.png"]


def test_one_file_does_not_serve_two_poses(tmp_path: Path) -> None:
    """A folder given by the user that holds one of several folders, or all of them as one."""
    flat, blender, model = (tmp_path / name for name in ("flat", "blender", "colmap"))
    save(
        *(flat / f"{i}.png" for i in range(3)), *(blender / f"{s}/0.png" for s in ("train", "val"))
    )
    names = [f"cam{c}/{i}.png" for c in (0, 1) for i in range(3)]
    write(tmp_path, names)
    write(blender, ["train/0"], "transforms_train.json")
    write(blender, ["val/0"], "transforms_val.json")
    val = json.loads((blender / "transforms_val.json").read_text())
    val["frames"][0]["transform_matrix"][0][3] += 1
    (blender / "transforms_val.json").write_text(json.dumps(val))
    colmap.write_bin(colmap.model(names)[0], model / "sparse/0")
    for root, images in ((tmp_path, flat), (blender, blender / "val"), (model, flat)):
        with pytest.raises(NerfError, match="only file for two frames"):
            read_source(root, SceneConfig(images=str(images)))
    for i in range(3):  # another extension than stated
        (flat / f"{i}.png").rename(flat / f"{i}.JPG")
    with pytest.raises(NerfError, match="only file for two frames"):
        read_source(tmp_path, SceneConfig(images=str(flat)))
    # the same view in two splits is no mistake
    (blender / "transforms_val.json").write_text((blender / "transforms_train.json").read_text())
    assert len(read_source(blender).frames) == 2


def test_an_absolute_path_that_exists_is_used_and_said(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    scene = tmp_path / "scene"
    save(*(elsewhere / f"{i}.png" for i in range(3)), *(scene / f"{i}.png" for i in range(3)))
    source = read_source(write(scene, [str(elsewhere / f"{i}.png") for i in range(3)]))
    assert [frame.image for frame in source.frames] == [elsewhere / f"{i}.png" for i in range(3)]
    assert "3 images are read from outside of the scene" in source.notes[0]
    for ending in ("", ".jpg"):
        write(scene, [str(elsewhere / f"{i}{ending}") for i in range(3)])
        again = read_source(scene)
        assert [frame.image for frame in again.frames] == [f.image for f in source.frames]


def test_files_of_other_systems_are_no_pictures(tmp_path: Path) -> None:
    save(tmp_path / "0.png", tmp_path / "1.png")
    touch(tmp_path / "._0.png", tmp_path / ".DS_Store", tmp_path / "Thumbs.db")
    touch(tmp_path / "__MACOSX/._0.png", tmp_path / ".hidden.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert [path.name for path in image_files(tmp_path)] == ["0.png", "1.png"]
    assert Pictures(tmp_path).find("._0.jpg") is None


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many names do not mean many looks at the disk."""
    touch(*(tmp_path / f"images/{i}.JPG" for i in range(100)))
    listed = []
    scan = listings.os.scandir
    monkeypatch.setattr(listings.os, "scandir", lambda path: listed.append(path) or scan(path))
    assert len(Pictures(tmp_path).find_all(f"images/{i}.jpg" for i in range(100))) == 100
    assert sorted(map(str, listed)) == [str(tmp_path), str(tmp_path / "images")]


def test_masks_and_depth_images_are_found_alike(tmp_path: Path) -> None:
    save(*(tmp_path / f"images/{i}.png" for i in range(3)))
    for i in range(3):
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", SIZE, 255).save(tmp_path / f"masks/{i}.PNG")
        (tmp_path / "depth").mkdir(exist_ok=True)
        Image.fromarray(np.ones((8, 12), np.uint16)).save(tmp_path / f"depth/{i}.png")
    write(
        tmp_path,
        [f"images/{i}.png" for i in range(3)],
        mask_path=[f"C:\\s\\masks\\{i}.png" for i in range(3)],
        depth_file_path=[f"/home/x/depth/{i}.tiff" for i in range(3)],
    )
    source = read_source(tmp_path)
    assert [f.mask and f.mask.name for f in source.frames] == ["0.PNG", "1.PNG", "2.PNG"]
    assert [f.depth and f.depth.path.name for f in source.frames] == ["0.png", "1.png", "2.png"]
    assert any("3 masks are not where they are stated" in note for note in source.notes)
    assert any("3 depth images are named .tiff, their .png is read" in n for n in source.notes)


@pytest.mark.parametrize(
    ("stated", "there"),
    [
        ("{}.jpg", "images/{}.JPG"),
        ("{}", "images/{}.png"),
        ("images/{}.jpg", "input/{}.png"),
        ("D:\\photos\\{}.JPG", "images/{}.jpg"),
    ],
)
def test_images_of_colmap_models_are_found(tmp_path: Path, stated: str, there: str) -> None:
    names = [stated.format(i) for i in range(4)]
    made, _ = colmap.model(names)
    colmap.write_bin(made, tmp_path / "sparse/0")
    colmap.write_images(tmp_path, [there.format(i) for i in range(4)])
    touch(tmp_path / "images/._0.JPG")
    source = read_source(tmp_path)
    assert read_names(source) == [there.format(i) for i in range(4)]
    assert len(source.notes) <= 2


def test_masks_of_colmap_models_are_found_in_any_case(tmp_path: Path) -> None:
    colmap.capture(tmp_path)
    for i, name in enumerate(["0.png.PNG", "1.PNG", "2.jpg"]):
        save(tmp_path / "masks" / name)
        assert (read_source(tmp_path).frames[i].mask or Path()).name == name


def test_llff_counts_neither_hidden_files_nor_doubles(tmp_path: Path) -> None:
    llff.capture(tmp_path)
    touch(*(tmp_path / f"images/._IMG_{i:03d}.png" for i in range(10)))
    touch(tmp_path / "images/.DS_Store")
    assert read_source(tmp_path).notes == ()
    for i in range(10):
        Image.new("RGB", (24, 16)).save(tmp_path / f"images/IMG_{i:03d}.JPG")
    source = read_source(tmp_path)
    assert [frame.name[-4:] for frame in source.frames] == [".png"] * 10
    assert source.notes == ("images holds images in several formats; of each one is read (.png)",)


def test_what_is_not_there_is_still_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path, ["C:\\x\\0.png", "\0.png", "a" * 5000, "..", "/", "file://", "\udcff.png"])
    with pytest.raises(NerfError, match="none of the 7 images exists"):
        read_source(tmp_path)
