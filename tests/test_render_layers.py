"""The layers of a render: what they hold, what files make of them, and shards of a path."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from analytic_field import analytic_model, ball, density_of, sphere_cameras
from PIL import Image
from torch import Tensor

from nerfcli.cli.render_output import make_output, parse_shard
from nerfcli.core.errors import NerfError
from nerfcli.core.extras import is_there
from nerfcli.core.files import locked
from nerfcli.core.progress import Progress
from nerfcli.engine import render_path as rendering
from nerfcli.engine.frame_files import from_linear, read_layer, to_linear
from nerfcli.engine.kept_frames import PREFIX
from nerfcli.engine.layers import DepthScale, depth_scale, layers_of
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.pictures import draw_layer, draw_legend
from nerfcli.engine.render import Model, render_image, render_rays
from nerfcli.engine.render_files import Output, RenderFiles, Shard
from nerfcli.engine.render_path import render_path
from nerfcli.engine.video import VideoWriter
from nerfcli.reference.samples import Pixels
from nerfcli.scenes.scene import Similarity

QUARTER = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
SIMILARITY = Similarity(0.5, QUARTER, (0.0, 0.0, 0.0))  # the source's ball has radius 1
CAMERAS = sphere_cameras(5, size=24)


def soft(points: Tensor) -> Tensor:
    """A ball with a rim that lets light through."""
    return 6.0 * (0.6 - points.norm(dim=-1)).clamp(min=0.0) + density_of(ball(points, 0.3))


def hard(points: Tensor) -> Tensor:
    return density_of(ball(points))


@cache
def model_of(sigma: Any = soft) -> Model:
    return analytic_model(sigma, similarity=SIMILARITY)


def rendered(out: Path, layers: str, model: Model, cameras: Any = CAMERAS, **how: Any) -> dict:
    run: Any = SimpleNamespace(path=out.parent / "run", step=3, scene_json=model.scene.to_json())
    format_ = how.pop("format", "png")
    output = Output(RenderFiles(out, tuple(layers.split(",")), format_), **how)
    quiet = Progress("quiet", None, "frame", "render")
    return render_path(run, cameras, output, model=model, progress=quiet)


def test_alpha_over_grey_is_the_render_over_grey(tmp_path: Path) -> None:
    """Within a step of 8 bits, also through linear, premultiplied EXR."""
    model, grey = model_of(), torch.full((3,), 0.5)
    rendered(tmp_path / "png", "rgba", model)
    rays = CAMERAS.image_rays(0)
    truth = render_rays(model, rays, background=grey).rgb.reshape(24, 24, 3).numpy()
    with Image.open(tmp_path / "png" / "rgba_0000.png") as image:
        rgba = np.asarray(image) / 255.0
    assert rgba[12, 12, 3] > 0.4 and len(np.unique(rgba[..., 3])) > 12
    over = rgba[..., :3] * rgba[..., 3:] + 0.5 * (1.0 - rgba[..., 3:])
    assert np.abs(over - truth).max() <= 1.001 / 255.0
    pytest.importorskip("OpenEXR")
    rendered(tmp_path / "exr", "rgba", model, format="exr")
    linear = read_layer(tmp_path / "exr" / "rgba_0000.exr", "rgba", "exr", (24, 24))
    assert linear.dtype == np.float32
    half = np.argmin(np.abs(linear[..., 3] - 0.5))
    color, alpha = linear.reshape(-1, 4)[half, :3], linear.reshape(-1, 4)[half, 3]
    assert (color <= alpha).all()  # multiplied by it
    rgba = from_linear(linear)
    over = rgba[..., :3] * rgba[..., 3:] + 0.5 * (1.0 - rgba[..., 3:])
    assert np.abs(over - truth).max() <= 1.0 / 255.0


@pytest.mark.parametrize("kind", ["distance", "z"])
def test_depth_is_in_the_units_of_the_source_in_every_file(kind: str, tmp_path: Path) -> None:
    """Of a hard ball of radius 1 that is 8 away, against its exact surface."""
    model = model_of(hard)
    rays = CAMERAS.image_rays(0)
    b = (rays.origins * rays.directions).sum(-1)
    root = b * b - rays.origins.square().sum(-1) + 0.25
    assert rays.z_scale is not None
    t = torch.where(root > 0.01, -b - root.clamp(min=0.0).sqrt(), torch.nan)
    truth = 2.0 * (t * (rays.z_scale if kind == "z" else 1.0)).reshape(24, 24).numpy()
    formats = ["png", "npy"]
    formats += ["exr"] if is_there("OpenEXR") else []
    for name in formats:
        folder = tmp_path / name
        rendered(folder, "depth,median-depth", model, CAMERAS[:1], format=name, depth=kind)
        for layer, estimator in (("depth", "expected"), ("median-depth", "median")):
            record = json.loads((folder / f"{layer}.json").read_text())
            assert record["kind"] == ("z" if kind == "z" else "euclidean")
            assert (record["estimator"], record["invalid"]) == (estimator, 0)
            for suffix, how in record["files"].items():
                path = folder / f"{layer}_0000{suffix}"
                values = read_layer(path, layer, name, (24, 24))
                assert str(values.dtype) == how["dtype"]
                depth = values * how["scale"]
                hit = np.isfinite(truth)
                assert hit.sum() > 40 and np.abs(depth - truth)[hit].max() < 0.06
                assert (depth[0, 0], depth[-1, -1]) == (0.0, 0.0)  # nothing is there


def test_sixteen_bits_reach_as_far_as_depth_does() -> None:
    scale = depth_scale(model_of(), CAMERAS)
    assert scale.step * 65535 >= scale.limits[1]
    assert f"{scale.step:.0e}"[0] in "125"
    assert scale.to_uint16(np.array([0.0, scale.step, 1e9])).tolist() == [0, 1, 65535]
    with pytest.raises(NerfError, match="--depth: unknown kind 'w'"):
        depth_scale(model_of(), CAMERAS, "w")


def test_normals_point_outwards_in_the_axes_of_the_source() -> None:
    model, cameras = model_of(hard), sphere_cameras(5, size=96)
    pixels, scale = render_image(model, cameras, 1), depth_scale(model_of(hard), cameras)
    view = layers_of(model, cameras, 1, pixels, ("normal",), scale, exact=True)
    rays = cameras.image_rays(1)
    points = rays.origins + pixels.median_depth[:, None] * rays.directions
    scene = torch.nn.functional.normalize(points, dim=-1)
    truth = (scene @ torch.tensor(QUARTER)).reshape(96, 96, 3).numpy()  # R^T n
    solid = (pixels.opacity > 0.99).reshape(96, 96).numpy()
    assert solid.sum() > 40
    cosine = (view["normal"] * truth).sum(-1)[solid]
    assert cosine.min() > 0.95 and cosine.mean() > 0.985
    picture = draw_layer(view, "normal", scale)
    assert picture[0, 0].tolist() == [128, 128, 128]  # nothing
    assert np.abs(picture[solid] / 255.0 - (truth[solid] + 1.0) / 2.0).max() < 0.15


def test_a_legend_is_drawn_where_there_is_room() -> None:
    scale = DepthScale("distance", (1.0, 3.0), 0.001)
    small, large = (np.zeros((side, side, 3), np.uint8) for side in (64, 400))
    assert draw_legend(small, scale) is small
    drawn = draw_legend(large, scale)
    assert drawn.shape == large.shape and drawn[:200].max() == 0 < drawn[300:].max()


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *(("rgb", "jpg"), ("rgba", "jpg"), ("rgba", "exr"), ("depth", "png"), ("depth", "jpg")),
        *(("depth", "exr"), ("normal", "npy"), ("opacity", "png"), ("opacity", "exr")),
    ],
)
def test_a_torn_frame_is_noticed(layer: str, name: str, tmp_path: Path) -> None:
    if name == "exr":
        pytest.importorskip("OpenEXR")
    if (layer, name) == ("rgba", "jpg"):
        with pytest.raises(NerfError, match="holds no transparency"):
            rendered(tmp_path / "o", layer, model_of(), format=name)
        return
    folder = tmp_path / "o"
    first = rendered(folder, layer, model_of(), format=name, overwrite=False)
    assert (first["n_frames"], first["n_kept"]) == (5, 0)
    path = next(folder.glob(f"{layer}_0002.*"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = rendered(folder, layer, model_of(), format=name, overwrite=False)
    assert (again["n_frames"], again["n_kept"]) == (5, 4)
    assert path.read_bytes() == whole


def test_linear_colours_come_back() -> None:
    colors = np.random.default_rng(0).random((6, 6, 4)).astype(np.float32)
    colors[..., 3] = colors[..., 3] * 0.9 + 0.1
    assert np.abs(from_linear(to_linear(colors)) - colors).max() < 1e-5
    assert to_linear(np.full((1, 1, 3), 0.5))[0, 0, 0] == pytest.approx(0.2140, abs=1e-4)


@pytest.mark.parametrize("name", ["a.mov", "a.webm", "a.webp"])
def test_videos_with_alpha_keep_it(name: str, tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / name, 10, tmp_path, has_alpha=True)
    frame = np.full((32, 48, 4), 200, np.uint8)
    frame[:, :24, 3] = 0
    for _ in range(3):
        writer.add(frame)
    path = writer.close()
    if name == "a.webp":
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) in (1, 3)
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
    else:
        decoder = ["-c:v", "libvpx-vp9"] if name == "a.webm" else []
        reader = imageio_ffmpeg.read_frames(
            str(path), pix_fmt="rgba", bits_per_pixel=32, input_params=decoder
        )
        meta = next(reader)
        assert meta["codec"].startswith("vp9" if decoder else "prores")
        alpha = np.frombuffer(next(reader), np.uint8).reshape(32, 48, 4)[..., 3]
        reader.close()
    assert alpha[16, 8] < 8 and abs(int(alpha[16, 40]) - 200) < 8


def test_h265_is_written_on_demand(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 10, tmp_path, "h265")
    for i in range(2):
        writer.add(np.full((32, 32, 3), 90 * i, np.uint8))
    assert next(imageio_ffmpeg.read_frames(str(writer.close())))["codec"].startswith("hevc")


@pytest.mark.parametrize("name", ["a.gif", "frames"])
def test_shards_of_a_path_make_the_same_as_one_render(name: str, tmp_path: Path) -> None:
    model = model_of()
    rendered(tmp_path / "one" / name, "rgb", model)
    out = tmp_path / "parts" / name
    for number in (2, 3):
        result = rendered(out, "rgb", model, shard=Shard(number, 3), overwrite=False)
        assert (result["files"], result["shard"]) == ([], f"{number}/3")
    assert result["n_there"] == 3
    again = rendered(out, "rgb", model, shard=Shard(3, 3), overwrite=False)
    assert (again["n_frames"], again["n_kept"]) == (1, 1)
    last = rendered(out, "rgb", model, shard=Shard(1, 3), overwrite=False)
    assert last["n_frames"] == 2 and last["files"]
    one, parts = (
        {path.name: path.read_bytes() for path in (tmp_path / side).rglob("*") if path.is_file()}
        for side in ("one", "parts")
    )
    for files in (one, parts):  # they name different runs
        files.pop("frames.json", None)
    assert parts == one


def test_a_shard_leaves_what_others_are_writing(tmp_path: Path) -> None:
    model, out = model_of(), tmp_path / "a.gif"
    rendered(out, "rgb", model, shard=Shard(1, 5))
    (folder,) = tmp_path.glob(f"{PREFIX}*")
    (folder / ".rgb_0003.77.png").touch()  # of another machine
    with locked(folder, "busy", shared=True):  # another shard is at work
        rendered(out, "rgb", model, shard=Shard(2, 5))
        assert (folder / ".rgb_0003.77.png").exists()
        with pytest.raises(NerfError, match="another process renders the same frames"):
            rendered(out, "rgb", model)
    mine = next(folder.glob(".shard-2-5"))
    with locked(mine, "busy"), pytest.raises(NerfError, match="renders shard 2/5"):
        rendered(out, "rgb", model, shard=Shard(2, 5))
    result = rendered(out, "rgb", model)  # a plain command finishes
    assert (result["n_kept"], result["files"]) == (2, [str(out)])
    assert os.listdir(tmp_path) == ["a.gif"]


def test_frames_of_another_render_are_not_mixed_in(tmp_path: Path) -> None:
    model, out = model_of(), tmp_path / "o"
    rendered(out, "rgb", model)
    with pytest.raises(NerfError, match="is a frame of another render"):
        rendered(out, "rgb", model, CAMERAS[:3], overwrite=False)
    result = rendered(out, "rgb", model, CAMERAS[:3])
    assert {path.name for path in out.iterdir()} == {
        *("frames.json", "rgb_0000.png", "rgb_0001.png", "rgb_0002.png")
    }
    assert result["n_kept"] == 0
    assert rendered(out, "rgb", model, CAMERAS[:3], overwrite=False)["n_kept"] == 3


def test_frames_appear_as_they_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(model: Any, cameras: Any, index: int) -> Pixels:
        seen.append(len(list((tmp_path / "o").glob("rgb_*.png"))))
        return render_image(model, cameras, index)

    monkeypatch.setattr(rendering, "render_image", look)
    monkeypatch.setattr(rendering, "ENCODING", 0)
    rendered(tmp_path / "o", "rgb", model_of())
    assert seen == [0, 1, 2, 3, 4]


def test_a_sheet_shows_frames_in_a_grid(tmp_path: Path) -> None:
    for layers, name in (("rgba", "png"), ("depth", "npy")):
        sheet = tmp_path / f"{layers}.png"
        rendered(tmp_path / layers, layers, model_of(), sheet=sheet, format=name)
        with Image.open(sheet) as image:
            assert image.size == (3 * 28 - 4, 2 * 28 - 4)
            first = np.asarray(image)
        sheet.unlink()
        result = rendered(
            tmp_path / layers, layers, model_of(), sheet=sheet, format=name, overwrite=False
        )
        assert (result["n_kept"], result["files"][-1]) == (5, str(sheet))
        with Image.open(sheet) as image:
            difference = np.abs(np.asarray(image).astype(int) - first)
        assert np.median(difference) == 0 and difference.mean() < 12


def test_memory_that_is_full_is_told_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    notes: list[str] = []

    def render(self: object, rays: Any, background: Tensor) -> Pixels:
        asked.append(len(rays))
        if len(rays) > 2048:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        n = len(rays)
        return Pixels(torch.zeros(n, 3), *(torch.zeros(n) for _ in range(3)))

    from dataclasses import replace

    model = replace(model_of(), note=notes.append)
    monkeypatch.setattr(type(model.field), "render_rays", render)
    rays = sphere_cameras(1, size=64).image_rays(0)
    render_rays(model, rays)
    assert (max(asked), asked[-1], len(notes)) == (4096, 2048, 1)
    assert "going on with 2048 rays" in notes[0]
    asked.clear()
    render_rays(model, rays)
    assert asked == [2048, 2048]


@pytest.mark.parametrize(
    ("out", "changed", "message"),
    [
        ("a.mp4", {"save": "rgba"}, "holds no transparency"),
        ("a.mp4", {"save": "rgb,deep"}, "unknown layer"),
        ("a.avi", {}, "unknown suffix"),
        ("o", {"folder_format": "tga"}, "--format: unknown"),
        ("a.png", {"folder_format": "png"}, "says it by its suffix"),
        ("a.mp4", {"codec": "av1"}, "--codec: unknown"),
        ("a.webm", {"codec": "h265"}, "--codec is of an .mp4"),
        ("o", {"depth": "z"}, "is of the layers"),
        ("o", {"request": PathRequest(fps=30)}, "--fps is of a video"),
        ("o", {"sheet": Path("a.gif")}, "--sheet"),
        ("o", {"shard": "0/4"}, "--shard"),
        ("o", {"shard": "5/4"}, "--shard"),
    ],
)
def test_what_does_not_fit_is_told(out: str, changed: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {
        **{"save": "rgb", "folder_format": None, "fps": 30, "codec": None, "depth": "distance"},
        **{"request": PathRequest(), "sheet": None, "shard": None, "overwrite": False},
    }
    with pytest.raises(NerfError, match=message):
        make_output(Path(out), **(usual | changed))
    assert parse_shard("3/16").frames(40) == [2, 18, 34]
