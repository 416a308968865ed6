"""Files of all kinds to pixels, and pixels of many images as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerfcli.core.errors import NerfError
from nerfcli.scenes.images import image_header, read_image, read_mask, write_png
from nerfcli.scenes.views import Views

RGBA = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)


def test_png_round_trip(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RGBA)
    assert np.array_equal(read_image(tmp_path / "a.png").numpy(), RGBA)
    deep = (np.arange(54).reshape(6, 9) * 1000).astype(np.uint16)
    write_png(tmp_path / "d.png", torch.from_numpy(deep))
    assert np.array_equal(np.array(Image.open(tmp_path / "d.png")), deep)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "d.png"]  # nothing aside


def test_unwritable_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NerfError, match=r"cannot write .*file/a\.png"):
        write_png(tmp_path / "file" / "a.png", RGBA)


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", 3), ("RGBA", 4), ("L", 3), ("LA", 4), ("P", 3), ("1", 3)]
)
def test_modes_become_rgb_or_rgba(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.fromarray(RGBA[..., :3]).convert(mode)
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (6, 9, channels)
    assert pixels.dtype == torch.uint8
    want = np.array(image.convert("RGBA" if channels == 4 else "RGB"))
    assert np.array_equal(pixels.numpy(), want)


def test_cmyk_and_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    red = read_image(tmp_path / "c.jpg")[0, 0]
    assert red[0] > 240
    assert int(red[1:].max()) < 15
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "p.png", transparency=1)
    assert image_header(tmp_path / "p.png")[2]
    assert read_image(tmp_path / "p.png").tolist() == [[[255, 0, 0, 255], [0, 255, 0, 0]]]


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "g.png")
    assert read_image(tmp_path / "g.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_downscaling_weighs_colours_by_alpha_and_cuts_the_remainder(tmp_path: Path) -> None:
    block = np.zeros((3, 5, 4), dtype=np.uint8)
    block[0, 0] = (200, 100, 50, 255)  # the only visible pixel of the first block
    block[0, 1] = (0, 0, 255, 0)
    block[:2, 2:4] = (10, 20, 30, 128)
    Image.fromarray(block).save(tmp_path / "a.png")
    small = read_image(tmp_path / "a.png", downscale=2)
    assert small.tolist() == [[[200, 100, 50, 64], [10, 20, 30, 128]]]
    Image.fromarray(block[..., :3]).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png", downscale=2)[0, 0].tolist() == [50, 25, 76]
    with pytest.raises(NerfError, match="5x3 pixels cannot be downscaled by 4"):
        read_image(tmp_path / "b.png", downscale=4)


def test_exif_orientation_counts_only_for_the_stated_size(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright; rows run from the top of the right side
    gradient = np.zeros((8, 16, 3), dtype=np.uint8)
    gradient[:, 8:] = 255
    Image.fromarray(gradient).save(path, exif=exif)
    assert image_header(path) == (16, 8, False, True)
    assert read_image(path).shape == (8, 16, 3)
    assert read_image(path, size=(16, 8)).shape == (8, 16, 3)
    upright = read_image(path, size=(8, 16))
    assert upright.shape == (16, 8, 3)
    assert int(upright[2, 4, 0]) < 50 < 200 < int(upright[13, 4, 0])
    assert read_image(path, 2, (4, 8)).shape == (8, 4, 3)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.tile(RGBA[..., :3], (20, 20, 1))).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(NerfError, match=r"cut\.jpg is corrupt or truncated"):
        read_image(cut)
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"no image at all")
    with pytest.raises(NerfError, match=r"junk\.png is corrupt, or not an image"):
        image_header(junk)
    with pytest.raises(NerfError, match=r"none\.png does not exist"):
        read_image(tmp_path / "none.png")


def test_masks_of_both_polarities(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[:2, :2] = 1  # any value but zero counts
    Image.fromarray(mask).save(tmp_path / "m.png")
    usable = read_mask(tmp_path / "m.png", (4, 4), "black")
    assert torch.equal(usable, torch.from_numpy(mask > 0))
    assert torch.equal(read_mask(tmp_path / "m.png", (4, 4), "nonzero"), ~usable)
    assert read_mask(tmp_path / "m.png", (2, 2), "black", 2).tolist() == [
        [True, False],
        [False, False],
    ]
    assert read_mask(tmp_path / "m.png", (8, 8), "black").sum() == 16  # resampled
    assert read_mask(tmp_path / "m.png", (1, 1), "nonzero", 3).tolist() == [[False]]


def views(widths: list[int], heights: list[int], usable: torch.Tensor | None = None) -> Views:
    areas = [w * h for w, h in zip(widths, heights, strict=True)]
    offsets = torch.tensor([0, *areas]).cumsum(0)
    pixels = torch.randint(0, 256, (sum(areas), 4), dtype=torch.uint8)
    cameras = torch.arange(len(widths)) * 10 + 5
    return Views(pixels, offsets, cameras, torch.tensor(widths), usable)


@pytest.mark.parametrize("sizes", [([3, 3], [2, 2]), ([3, 4, 2], [2, 3, 5])])
def test_flat_indices_find_their_pixel(sizes: tuple[list[int], list[int]]) -> None:
    some = views(*sizes)
    flat = torch.arange(len(some.pixels))
    located = some.locate(flat)
    for index, (camera, x, y) in enumerate(located.tolist()):
        view = (camera - 5) // 10
        assert torch.equal(some.image(view)[y, x], some.pixels[index])
    assert torch.allclose(some.colors(flat), some.pixels / 255, atol=1e-7)


def test_drawing_is_uniform_over_the_usable_pixels() -> None:
    usable = torch.tensor([1, 4, 5, 11], dtype=torch.int32)
    some = views([3, 3], [2, 2], usable)
    assert some.n_pixels == 4
    u = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.99, 1 - 2**-53], dtype=torch.float64)
    drawn = some.draw(u)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == [1, 1, 4, 5, 11, 11]
    everything = views([3, 3], [2, 2])
    counts = everything.draw((torch.arange(1200).double() + 0.5) / 1200).bincount()
    assert counts.tolist() == [100] * 12


@pytest.mark.parametrize("value", ["upright", b"\x06", b"?", (1, 0), (0, 0), 99])
def test_an_orientation_that_is_none_counts_as_upright(tmp_path: Path, value: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(exif.tobytes())
    at = data.index(b"\x12\x01" if data[6:8] == b"II" else b"\x01\x12")
    order = "little" if data[6:8] == b"II" else "big"
    kinds = {str: 2, bytes: 7, tuple: 5, int: 3}
    data[at + 2 : at + 4] = kinds[type(value)].to_bytes(2, order)
    if isinstance(value, tuple):  # a rational number, behind the table
        data[at + 8 : at + 12] = (len(data) - 6).to_bytes(4, order)
        data += b"".join(part.to_bytes(4, order) for part in value)
    elif isinstance(value, int):
        data[at + 8 : at + 10] = value.to_bytes(2, order)
    else:
        text = value.encode()[:4] if isinstance(value, str) else value
        data[at + 4 : at + 8] = len(text).to_bytes(4, order)
        data[at + 8 : at + 12] = text.ljust(4, b"\0")
    path = tmp_path / "a.jpg"
    Image.new("RGB", (12, 8)).save(path, exif=bytes(data))
    assert image_header(path) == (12, 8, False, False)
    assert read_image(path, size=(12, 8)).shape == (8, 12, 3)
