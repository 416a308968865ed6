"""nerf convert --to instant-ngp, held against the rules of instant-ngp's own loader.

They are restated here from its src/nerf_loader.cu, so that nothing of our readers is asked.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import sphere_c2w
from nerfcli.cameras.lenses import Lens
from nerfcli.scenes import Source, load_scene, read_source
from nerfcli.scenes.build import box_in_source
from nerfcli.scenes.source import Depth, Frame, Points
from nerfcli.scenes.writers.convert import WriteOptions, write_scene

SIZE, FOCAL = (24, 16), (20.0, 21.0)
STB = ("PNG", "JPEG", "BMP", "GIF", "TGA", "PSD")  # Pillow's names of what stb_image decodes


def scene(root: Path, *lenses: Lens, suffix: str = ".png", **of_frame: Any) -> Source:
    """A source around the origin, a frame for each lens."""
    root.mkdir()
    frames = []
    for i, lens in enumerate(lenses):
        image = root / f"{i}{suffix}"
        pixels = np.random.default_rng(i).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
        Image.fromarray(pixels).save(image)
        c2w = sphere_c2w(i, len(lenses))[:3] * [1, -1, -1, 1]
        middle = (SIZE[0] / 2, SIZE[1] / 2)
        frames.append(Frame(image.name, c2w, FOCAL, middle, SIZE, lens, image, **of_frame))
    return Source("test", root, "colmap", tuple(frames))


def convert(source: Source, folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir()
    write_scene(source, folder, WriteOptions("instant-ngp", **options))
    return load(folder)


def load(folder: Path) -> dict[str, Any]:
    """What load_nerf makes of the folder; fails where it would throw."""
    table = json.loads((folder / "transforms.json").read_text())
    frames = []
    for frame in table["frames"]:
        path = folder / frame["file_path"]
        with Image.open(path) as image:
            assert image.format in STB, path
            size = image.size
        alpha = folder / f"{frame['file_path']}.alpha.{path.suffix[1:]}"
        mask = path.with_name(f"dynamic_mask_{path.stem}.png")
        found = {"file": path, "size": size}
        for name, other in (("alpha", alpha), ("mask", mask)):
            if other.exists():
                with Image.open(other) as image:
                    assert image.format in STB and image.size == size, other
                found[name] = other
        if table.get("integer_depth_scale", -1) > 0 and "depth_path" in frame:
            with Image.open(folder / frame["depth_path"]) as image:
                assert image.format in STB and image.size == size, "wrong resolution"
                # stb_image widens 8 bits to 16 by shifting
                assert image.mode == "I;16"
                found["depth"] = np.array(image)
        stated = {**table, **frame}
        assert "fl_x" in stated and ("cx" not in stated or "w" in stated)
        assert {"cx", "w"} <= frame.keys() or not {"cx", "w"} & frame.keys()
        found["lens"] = read_lens(frame, read_lens(table, "perspective"))
        frames.append(found)
    scale, offset = table.get("scale", 0.33), table.get("offset", [0.5] * 3)
    assert table.get("aabb_scale", 1) in [2**i for i in range(8)]
    center, half = [(0.5 - o) / scale for o in offset], 0.5 / scale
    return {"table": table, "frames": frames, "center": center, "half": half}


def read_lens(table: dict[str, Any], before: str) -> str:
    kind = "fisheye" if table.get("is_fisheye") else "opencv"
    terms = ("k1", "k2", "k3", "k4", "p1", "p2")
    return kind if any(np.float32(table.get(name, 0)) != 0 for name in terms) else before


@pytest.mark.parametrize("undistort", [False, True])
def test_alpha_files_are_named_as_it_looks_for_them(tmp_path: Path, undistort: bool) -> None:
    source = scene(tmp_path / "s", Lens.of("brown", k1=0.1), suffix=".jpg")
    alpha = tmp_path / "s/0.alpha.jpg"
    Image.new("L", SIZE, 128).save(alpha)
    frame = replace(source.frames[0], alpha=alpha, has_alpha=True)
    source = replace(source, frames=(frame,))
    (found,) = convert(source, tmp_path / "new", undistort=undistort)["frames"]
    if undistort:  # merged
        assert Image.open(found["file"]).mode == "RGBA"
    else:
        assert found["alpha"] == tmp_path / "new/images/0.jpg.alpha.jpg"
        again = read_source(tmp_path / "new").frames[0]
        assert again.alpha == found["alpha"]


def test_nerfstudio_gets_alpha_within_the_image(tmp_path: Path) -> None:
    """It reads no alpha files."""
    source = scene(tmp_path / "s", Lens(), suffix=".jpg")
    alpha = tmp_path / "s/0.alpha.jpg"
    Image.new("L", SIZE, 128).save(alpha)
    source = replace(source, frames=(replace(source.frames[0], alpha=alpha, has_alpha=True),))
    (tmp_path / "new").mkdir()
    write_scene(source, tmp_path / "new", WriteOptions("transforms"))
    assert [p.name for p in (tmp_path / "new/images").iterdir()] == ["0.png"]
    assert Image.open(tmp_path / "new/images/0.png").mode == "RGBA"


@pytest.mark.parametrize("known_by", ["points", "bounds", "cameras", "itself"])
def test_the_box_is_stated(tmp_path: Path, known_by: str) -> None:
    source = scene(tmp_path / "s", *[Lens()] * 4)
    far = [replace(f, c2w=f.c2w + [0, 0, 0, 30.0]) for f in source.frames]  # its box sees nothing
    if known_by == "bounds":
        far = [replace(f, bounds=(2.0, 6.0)) for f in far]
    source = replace(source, frames=tuple(far))
    if known_by == "points":
        xyz = np.random.default_rng(0).normal(size=(100, 3)) + 30.0
        source = replace(source, points=Points(xyz))
    if known_by == "itself":
        table = {"aabb_scale": 4, "scale": 0.1, "offset": [0.1, 0.2, 0.3]}
        found = convert(source, tmp_path / "first")["table"]
        path = tmp_path / "first/transforms.json"
        path.write_text(json.dumps({**found, **table}))
        source = read_source(tmp_path / "first")
    found = convert(source, tmp_path / "new")
    want = box_in_source(load_scene(tmp_path / "new"))
    assert {"scale", "offset", "aabb_scale"} <= found["table"].keys()
    np.testing.assert_allclose(found["center"], want.center)
    assert found["half"] == pytest.approx(want.half_size)
    assert found["table"]["aabb_scale"] == 2 ** (want.n_cascades - 1)
    if known_by == "itself":
        assert found["half"] == pytest.approx(5.0)
    else:
        assert math.dist(found["center"], (30, 30, 30)) < found["half"]


@pytest.mark.parametrize(
    ("lenses", "modes"),
    [
        ([Lens.of("fisheye")] * 2, ["fisheye"] * 2),
        ([Lens.of("fisheye"), Lens()], ["fisheye", "perspective"]),
        ([Lens.of("fisheye", k2=0.01), Lens.of("fisheye")], ["fisheye"] * 2),
        ([Lens.of("brown", p2=0.01), Lens()], ["opencv", "perspective"]),
        ([Lens()] * 2, ["perspective"] * 2),
    ],
)
def test_it_takes_each_lens_for_what_it_is(
    tmp_path: Path, lenses: list[Lens], modes: list[str]
) -> None:
    found = convert(scene(tmp_path / "s", *lenses), tmp_path / "new")
    assert [frame["lens"] for frame in found["frames"]] == modes


@pytest.mark.parametrize("undistort", [False, True])
@pytest.mark.parametrize(("size", "bits"), [(SIZE, 8), (SIZE, 16), ((12, 8), 16), ((48, 33), 16)])
def test_depth_has_the_size_of_the_image(
    tmp_path: Path, size: tuple[int, int], undistort: bool, bits: int
) -> None:
    source = scene(tmp_path / "s", Lens.of("brown", k1=0.1))
    values = 10 + np.arange(size[0], dtype=f"uint{bits}")[None] * np.ones((size[1], 1), bool)
    Image.fromarray(values.astype(f"uint{bits}")).save(tmp_path / "s/d.png")
    depth = Depth(tmp_path / "s/d.png", 0.01)
    source = replace(source, frames=(replace(source.frames[0], depth=depth),))
    (found,) = convert(source, tmp_path / "new", undistort=undistort)["frames"]
    assert set(found["depth"].ravel().tolist()) <= set(values.ravel().tolist())
    row = found["depth"][found["depth"].shape[0] // 2].astype(int)
    assert (np.diff(row) >= 0).all()
    if not undistort:
        at = (np.arange(SIZE[0]) + 0.5) * size[0] / SIZE[0]
        np.testing.assert_array_equal(row, values[0, at.astype(int)])


@pytest.mark.parametrize("suffix", [".tif", ".webp", ".avif", ".jpg", ".bmp", ".gif", ".tga"])
def test_images_are_of_kinds_that_it_decodes(tmp_path: Path, suffix: str) -> None:
    try:
        source = scene(tmp_path / "s", Lens(), suffix=suffix)
    except (KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {suffix}")
    (found,) = convert(source, tmp_path / "new")["frames"]
    assert found["file"].suffix == (".png" if suffix in (".tif", ".webp", ".avif") else suffix)


def test_a_suffix_that_lies_is_seen_through(tmp_path: Path) -> None:
    source = scene(tmp_path / "s", Lens(), suffix=".webp")
    image = (tmp_path / "s/0.webp").rename(tmp_path / "s/0.jpg")
    source = replace(source, frames=(replace(source.frames[0], image=image, name="0.jpg"),))
    (found,) = convert(source, tmp_path / "new", link=True)["frames"]
    assert found["file"].name == "0.png"


@pytest.mark.parametrize("target", ["instant-ngp", "transforms"])
def test_equal_stems_keep_their_own_masks_and_depth(tmp_path: Path, target: str) -> None:
    source = scene(tmp_path / "s", Lens(), Lens())
    frames = source.frames
    Image.open(tmp_path / "s/1.png").save(tmp_path / "s/0.jpg")
    frames = [replace(frames[1], name="0.jpg", image=tmp_path / "s/0.jpg"), frames[0]]
    for i, frame in enumerate(frames):
        path = tmp_path / f"s/d{i}.png"
        Image.fromarray(np.full(SIZE[::-1], 100 + i, np.uint16)).save(path)
        Image.new("L", SIZE, 255 * i).save(tmp_path / f"s/m{i}.png")
        mask = tmp_path / f"s/m{i}.png"
        frames[i] = replace(frame, depth=Depth(path, 0.01), mask=mask)
    (tmp_path / "new").mkdir()
    write_scene(replace(source, frames=tuple(frames)), tmp_path / "new", WriteOptions(target))
    again = read_source(tmp_path / "new").frames
    for i, frame in enumerate(again):
        assert frame.depth is not None and frame.mask is not None
        assert np.asarray(Image.open(frame.depth.path))[0, 0] == 100 + i
    assert len({frame.mask for frame in again}) == 2


def test_photos_that_fit_only_turned_are_written_upright(tmp_path: Path) -> None:
    """No other program turns them."""
    source = scene(tmp_path / "s", Lens())
    image = tmp_path / "s/t.jpg"
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (SIZE[1], SIZE[0])).save(image, exif=tags)
    source = replace(source, frames=(replace(source.frames[0], image=image, name="t.jpg"),))
    for target in ("instant-ngp", "colmap"):
        (tmp_path / target).mkdir()
        write_scene(source, tmp_path / target, WriteOptions(target))
        with Image.open(tmp_path / target / "images/t.png") as written:
            assert written.size == SIZE and written.getexif().get(0x0112, 1) == 1
