"""nerf convert: lenses in the models of another format, exact, fitted or resampled away."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.cli import main
from nerfcli.scenes import Source, read_source
from nerfcli.scenes.images import read_image, read_mask
from nerfcli.scenes.readers.colmap_cameras import BY_NAME, camera_model_of, intrinsics_of
from nerfcli.scenes.source import Depth, Frame, Points
from nerfcli.scenes.writers.convert import WriteOptions, write_scene
from nerfcli.scenes.writers.lenses import intrinsics_of_frame, state_lenses
from nerfcli.scenes.writers.undistort import plan_undistorted
from nerfcli.scenes.writers.unsupported import TARGETS, list_unsupported

SIZE, FOCAL, PRINCIPAL = (60, 44), (40.0, 41.0), (31.0, 21.5)
K3 = Lens.of("brown", k1=0.1, k2=-0.05, k3=0.02, p1=0.002, p2=-0.003)
PRISM = Lens.of("rad_tan_thin_prism_fisheye", k1=0.05, k6=0.001, p1=0.002, s1=0.003, s4=0.001)
BARREL = Lens.of("brown", k1=-0.15, k2=0.02, p1=0.002)


def picture(directions: torch.Tensor) -> np.ndarray:
    """Smooth colours of directions, [..., 3] uint8."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    waves = torch.sin(unit @ torch.tensor([[7.0, 2, 1], [1, 6, 3], [2, 1, 5]]).double())
    return (127.5 + 120 * waves).round().to(torch.uint8).numpy()


def pixel_centres(size: tuple[int, int]) -> torch.Tensor:
    x, y = (torch.arange(side, dtype=torch.float64) + 0.5 for side in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def scene(root: Path, *lenses: Lens, crop: float = 0.0, **other: Any) -> Source:
    """A frame for each lens; its image shows `picture` through the lens."""
    root.mkdir()
    frames = []
    for i, lens in enumerate(lenses):
        focal, principal = (FOCAL, PRINCIPAL)
        if lens.model == "equirectangular":
            focal, principal = panorama(SIZE)
        camera = Intrinsics(SIZE, focal, principal, lens)
        Image.fromarray(picture(camera.directions(pixel_centres(SIZE))[0])).save(root / f"{i}.png")
        c2w = np.concatenate([np.eye(3), [[float(i)], [0.0], [-3.0]]], axis=1)
        image = root / f"{i}.png"
        frames.append(Frame(f"{i}.png", c2w, focal, principal, SIZE, lens, image, **other))
    return Source("test", root, "nerfstudio", tuple(frames), crop_radius=crop)


def converted(source: Source, target: str, folder: Path, **choices: Any) -> Source:
    folder.mkdir()
    write_scene(source, folder, WriteOptions(target, **choices))
    return read_source(folder)


def lost(source: Source, target: str) -> dict[str, str]:
    return {item.what: item.detail for item in list_unsupported(source, target)}


@pytest.mark.parametrize(
    ("stored", "values", "smallest"),
    [
        ("FULL_OPENCV", (0.1, 0.2, 0.01, 0.02, 0.0, 0.0, 0.0, 0.0), "OPENCV"),
        ("FULL_OPENCV", (0.1, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), "OPENCV"),
        ("FULL_OPENCV", (0.1, 0.2, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0), "FULL_OPENCV"),
        ("FULL_OPENCV", (0.0,) * 8, "PINHOLE"),
        ("OPENCV", (0.0,) * 4, "PINHOLE"),
        ("THIN_PRISM_FISHEYE", (0.1, 0.2, 0.0, 0.0, 0.3, 0.4, 0.0, 0.0), "OPENCV_FISHEYE"),
        ("THIN_PRISM_FISHEYE", (0.0,) * 8, "FISHEYE"),
        ("RAD_TAN_THIN_PRISM_FISHEYE", (0.1, *(0.0,) * 11), "OPENCV_FISHEYE"),
        (
            *("RAD_TAN_THIN_PRISM_FISHEYE", (*(0.0,) * 6, 0.1, 0.2, 0.3, 0.0, 0.4, 0.0)),
            "THIN_PRISM_FISHEYE",
        ),
        ("EUCM", (0.0, 1.2), "PINHOLE"),
        ("FOV", (0.0,), "PINHOLE"),
        ("EUCM", (0.5, 1.2), "EUCM"),
    ],
)
def test_the_smallest_model_that_says_a_lens_exactly(
    stored: str, values: tuple[float, ...], smallest: str
) -> None:
    camera = intrinsics_of(BY_NAME[stored], SIZE, (*FOCAL, *PRINCIPAL, *values), "a test")
    found = camera_model_of(camera)
    assert found is not None and found[0].name == smallest
    again = intrinsics_of(found[0], SIZE, found[1], "a test")
    directions, valid = camera.directions(pixel_centres(SIZE))
    torch.testing.assert_close(
        again.project(directions)[valid], camera.project(directions)[valid], rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    "lenses",
    [
        (K3, K3, K3),
        (K3, BARREL, Lens()),
        (replace(K3, params=(0.1, 0.0, 0.01, 0.02, 0.0, 0.0)),) * 2,  # r^8 only in transforms
        (Lens.of("fisheye", k1=0.1), Lens.of("fisheye", k4=0.01)),
        (PRISM, Lens.of("fisheye", k1=0.1)),
        (PRISM, K3),
        (Lens("equirectangular"),) * 2,
    ],
    ids=["k3", "each its own", "r8", "fisheye", "prism", "mixed", "panorama"],
)
def test_lenses_come_back_from_the_other_format(lenses: tuple[Lens, ...], tmp_path: Path) -> None:
    source = scene(tmp_path / "source", *lenses)
    first = converted(source, "transforms", tmp_path / "first")
    assert lost(source, "transforms") == {}
    assert [f.lens for f in state_lenses(first.frames, "transforms")[0]] == [
        f.lens for f in state_lenses(source.frames, "transforms")[0]
    ]
    if any(lens.named.get("k4") and lens.model == "brown" for lens in lenses):
        return
    between = converted(first, "colmap", tmp_path / "between")
    assert lost(first, "colmap") == {} and "lens" not in lost(between, "transforms")
    last = converted(between, "transforms", tmp_path / "last")
    for old, new in zip(first.frames, last.frames, strict=True):
        assert new.lens == old.lens
        assert new.focal == old.focal and new.principal == old.principal


def test_a_mixture_that_nerfstudio_does_not_read_is_noted(tmp_path: Path) -> None:
    source = scene(tmp_path / "source", BARREL, Lens.of("fisheye", k1=0.1))
    (tmp_path / "new").mkdir()
    written = write_scene(source, tmp_path / "new", WriteOptions("transforms"))
    assert "each image states its own camera model" in written.notes[0]


def test_nerfstudio_gets_one_camera_model_where_one_says_all(tmp_path: Path) -> None:
    """It reads one for the whole file."""
    source = scene(tmp_path / "source", PRISM, Lens.of("fisheye", k1=0.1))
    converted(source, "transforms", tmp_path / "new")
    table = json.loads((tmp_path / "new/transforms.json").read_text())
    assert table["camera_model"] == "FISHEYE624"
    assert table["frames"][1]["distortion_params"] == [0.1, *[0.0] * 11]


@pytest.mark.parametrize(
    ("lens", "target", "model"),
    [
        (Lens.of("brown", k1=-0.1, k2=0.02, k4=0.01), "colmap", "rational"),
        (Lens.of("rational", k1=0.2, d1=0.1, p1=0.003), "transforms", "brown"),
        (Lens.of("rational", k1=0.2, d1=0.1, p1=0.003), "instant-ngp", "brown"),
        (Lens.of("fov", omega=0.9), "transforms", "brown"),
        (Lens.of("eucm", alpha=0.6, beta=1.1), "instant-ngp", "fisheye"),
        (Lens.of("thin_prism_fisheye", k1=0.05, p1=0.01, s1=0.01), "transforms",
         "rad_tan_thin_prism_fisheye"),
        (BARREL, "llff", "pinhole"),
        (K3, "instant-ngp", "brown"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model,
)  # fmt: skip
def test_a_lens_that_cannot_be_said_is_fitted(
    lens: Lens, target: str, model: str, tmp_path: Path
) -> None:
    source = scene(tmp_path / "source", lens, lens)
    (frame, _), (fit, _) = state_lenses(source.frames, target)
    assert fit is not None and frame.lens.model == model
    detail = lost(source, target)["lens"]
    assert detail.startswith(f"2 images have a lens ({lens.model}) that {target} lacks; ")
    assert f"off by up to {fit.worst:.2g} pixels ({fit.rms:.2g} RMS)" in detail
    old, new = intrinsics_of_frame(source.frames[0]), intrinsics_of_frame(frame)
    pixels = pixel_centres(SIZE).reshape(-1, 2)
    directions, _ = old.directions(pixels)
    off = torch.linalg.vector_norm(new.project(directions) - pixels, dim=-1)
    assert float(off.max()) <= fit.worst * 1.05 + 1e-9
    assert float(off.square().mean().sqrt()) == pytest.approx(fit.rms, rel=0.3)
    ignored = Intrinsics(old.size, old.focal, old.principal, Lens()).project(directions) - pixels
    assert fit.rms < 0.8 * float(ignored.square().sum(-1).mean().sqrt())
    assert fit.missed == 0 and "beyond" not in detail


def test_what_a_pinhole_cannot_show_is_reported(tmp_path: Path) -> None:
    source = scene(tmp_path / "source", Lens("equirectangular"))
    assert "of the pixels lie beyond what it can show" in lost(source, "blender")["lens"]
    mixed = scene(tmp_path / "mixed", Lens("equirectangular"), Lens())
    assert "1 image has a lens (equirectangular)" in lost(mixed, "transforms")["lens"]
    assert lost(mixed, "colmap") == {}


@pytest.mark.parametrize("target", TARGETS)
def test_undistorted_images_are_those_of_pinholes(target: str, tmp_path: Path) -> None:
    lenses = (BARREL, Lens.of("fisheye", k1=0.02), Lens.of("brown", k1=0.2), Lens())
    source = scene(tmp_path / "source", *lenses, split="train")
    again = converted(source, target, tmp_path / "new", undistort=True)
    assert {"lens", "square pixels", "principal point", "one focal length"}.isdisjoint(
        lost(plan_undistorted(source, target), target)
    )
    for old, frame in zip(source.frames, again.frames, strict=True):
        assert frame.lens == Lens() and frame.image is not None
        pixels = read_image(frame.image).numpy()
        assert pixels.shape[1::-1] == frame.size
        want = picture(intrinsics_of_frame(frame).directions(pixel_centres(frame.size))[0])
        difference = np.abs(pixels.astype(int) - want)
        assert difference.max() <= 12 and difference.mean() < 1  # borders have half of the taps
        if target in ("blender", "llff") or not old.lens.is_pinhole:
            assert frame.focal[0] == pytest.approx(frame.focal[1])
            assert frame.principal == (frame.size[0] / 2, frame.size[1] / 2)
            assert min(frame.size) > 30  # most of the photo is kept
    if target in ("colmap", "transforms", "instant-ngp"):  # a pinhole stays as it is
        assert again.frames[3].focal == FOCAL and again.frames[3].size == SIZE


def test_masks_alpha_depth_and_observations_are_resampled(tmp_path: Path) -> None:
    root = tmp_path / "source"
    source = scene(root, BARREL)
    frame = source.frames[0]
    assert frame.image is not None
    pixels = np.asarray(Image.open(frame.image))
    left = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    left[:, : SIZE[0] // 2] = 255
    dirty = np.where(left[..., None] > 0, pixels, 255 - pixels)  # colours where nothing is
    Image.fromarray(np.dstack([dirty, left])).save(frame.image)
    Image.fromarray(left).save(root / "mask.png")
    ahead = 1000 + np.arange(SIZE[0], dtype=np.uint16)[None, ::2] * np.ones((22, 1), np.uint16)
    Image.fromarray(ahead).save(root / "depth.png")
    seen = Points(
        *(np.zeros((2, 3)), None, None, np.arange(2), np.zeros(2, np.int64)),
        xy=np.array([[20.0, 20.0], [0.1, 0.1]]),
    )
    depth = Depth(root / "depth.png", 0.001)
    frame = replace(frame, has_alpha=True, mask=root / "mask.png", depth=depth)
    source = replace(source, frames=(frame,), points=seen)
    again = converted(source, "transforms", tmp_path / "new", undistort=True)
    (new,) = again.frames
    assert new.image is not None and new.mask is not None and new.depth is not None
    old_camera, new_camera = intrinsics_of_frame(frame), intrinsics_of_frame(new)
    places = old_camera.project(new_camera.directions(pixel_centres(new.size))[0])
    inside = (places[..., 0] < SIZE[0] / 2 - 2).numpy()
    outside = (places[..., 0] > SIZE[0] / 2 + 2).numpy()
    rgba = read_image(new.image).numpy().astype(int)
    assert (rgba[inside][:, 3] == 255).all() and (rgba[outside][:, 3] == 0).all()
    want = picture(new_camera.directions(pixel_centres(new.size))[0])
    opaque = rgba[..., 3] > 100  # colours of what is not there do not bleed in
    assert np.abs(rgba[..., :3] - want)[opaque].max() <= 8
    usable = read_mask(new.mask, new.size, "black").numpy()
    assert usable[inside].all() and not usable[outside].any()
    stored = np.asarray(Image.open(new.depth.path))
    assert stored.dtype == np.uint16 and stored.shape[0] < new.size[1]
    stored = stored.astype(float)  # whose differences may be negative
    middle = stored[stored.shape[0] // 2]
    assert set(stored.ravel()) <= set(ahead.ravel()) and (np.diff(middle) >= 0).all()
    planned = plan_undistorted(source, "colmap").points
    assert planned is not None and planned.point.tolist() == [0]
    direction = old_camera.directions(torch.tensor([[20.0, 20.0]]).double())[0]
    np.testing.assert_allclose(planned.xy, new_camera.project(direction), atol=1e-9)


def test_the_view_is_the_largest_that_the_photo_covers(tmp_path: Path) -> None:
    """With a fisheye's circle, and beyond 90 degrees."""
    wide = replace(Lens.of("fisheye"))
    for crop in (0.0, 18.0):
        source = scene(tmp_path / f"{crop}", wide, crop=crop)
        (frame,) = plan_undistorted(source, "transforms").frames
        rim = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.0], [0.0, 0.5]])
        seen = intrinsics_of_frame(source.frames[0]).project(
            intrinsics_of_frame(frame).directions(rim.double() * torch.tensor(frame.size))[0]
        )
        away = seen - torch.tensor(SIZE) / 2
        assert bool((away.abs() <= torch.tensor(SIZE) / 2 + 1e-3).all())
        if crop:
            reached = float(torch.linalg.vector_norm(away, dim=-1).max())
            assert crop - 1.5 < reached <= crop + 1e-3
    panoramic = scene(tmp_path / "panorama", Lens("equirectangular"))
    (frame,) = plan_undistorted(panoramic, "llff").frames
    across = math.degrees(2 * math.atan(frame.size[0] / 2 / frame.focal[0]))
    assert across == pytest.approx(120, abs=3)


def test_instant_ngps_file_has_what_it_reads(tmp_path: Path) -> None:
    source = scene(tmp_path / "source", BARREL, BARREL, split="train")
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(tmp_path / "source/mask.png")
    Image.fromarray(np.full((44, 60), 1500, np.uint16)).save(tmp_path / "source/depth.png")
    depth = Depth(tmp_path / "source/depth.png", 0.002)
    frames = [replace(f, mask=tmp_path / "source/mask.png", depth=depth) for f in source.frames]
    frames[1] = replace(frames[1], depth=replace(depth, is_euclidean=True))
    source = replace(source, frames=tuple(frames), points=Points(np.zeros((3, 3))))
    again = converted(source, "instant-ngp", tmp_path / "new")
    assert again.kind == "instant-ngp" and again.frames[0].lens == BARREL
    for frame in again.frames:
        assert frame.mask is not None and frame.split is None
        usable = read_mask(frame.mask, SIZE, again.masked_where).numpy()
        assert usable[:5].all() and not usable[5:].any()
    assert again.frames[0].depth is not None and again.frames[0].depth.scale == 0.002
    assert again.frames[1].depth is None
    assert set(lost(source, "instant-ngp")) == {"splits", "points", "depth"}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *map(str, words)])
    assert isinstance(stopped.value.code, int)
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    converted(scene(tmp_path / "s", BARREL, BARREL), "transforms", tmp_path / "scene")
    given = (tmp_path / "scene", "--quiet", "--out")
    code, out, err = run(capsys, *given, tmp_path / "a", "--to", "llff", "--strict")
    assert code == 2 and not (tmp_path / "a").exists() and out == ""
    assert err.startswith("nerf: --strict: nothing is written, since llff cannot hold all: lens (2")
    code, out, _ = run(capsys, *given, tmp_path / "a", "--to", "llff")
    assert code == 0 and "the nearest pinhole is written, off by up to" in out
    assert out.splitlines()[-1].startswith("--undistort resamples")
    options = ("--to", "llff", "--undistort", "--strict", "--json")
    code, out, err = run(capsys, *given, tmp_path / "b", *options)
    value = json.loads(out)
    assert (code, value["lost"]) == (0, [])
    assert value["notes"][0].startswith("resampled into pinhole cameras: 2 images (the first ")
    assert read_source(tmp_path / "b").frames[0].lens == Lens()
    code, out, _ = run(capsys, *given, tmp_path / "c", "--to", "nerfstudio")
    assert code == 0 and read_source(tmp_path / "c").kind == "nerfstudio"
    code, out, _ = run(capsys, *given, tmp_path / "d", "--to", "instant-ngp")
    assert code == 0 and read_source(tmp_path / "d").kind == "instant-ngp"


def test_an_axis_outside_of_the_image_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = scene(tmp_path / "s", BARREL)
    frames = tuple(replace(frame, principal=(-5.0, 20.0)) for frame in source.frames)
    converted(replace(source, frames=frames), "transforms", tmp_path / "scene")
    given = (tmp_path / "scene", "--to", "llff", "--out", tmp_path / "a", "--undistort")
    code, _, err = run(capsys, *given)
    assert code == 2 and "0.png cannot be undistorted: its optical axis, at (-5.0, 20.0), is" in err
