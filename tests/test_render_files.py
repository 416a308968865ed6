"""What a render writes, keeps and replaces; and who may remove frames that are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from analytic_field import analytic_model, ball, density_of, sphere_cameras
from torch import Tensor

from nerfcli.cli.output_paths import ensure_own_folder
from nerfcli.cli.render_output import OURS, ensure_free_output, free_output
from nerfcli.core import files
from nerfcli.core.errors import NerfError
from nerfcli.core.files import BusyError, folders_above, locked
from nerfcli.core.progress import Progress
from nerfcli.engine import cost
from nerfcli.engine.estimate import estimate_held_out
from nerfcli.engine.kept_frames import KeptFrames, describe_frames, keeping_frames
from nerfcli.engine.layers import DepthScale, depth_scale
from nerfcli.engine.path_request import PathRequest
from nerfcli.engine.render_files import Output, RenderFiles, Shard
from nerfcli.engine.render_path import render_path
from nerfcli.reference.samples import Pixels

CAMERAS = sphere_cameras(3, size=4)
SCALE = DepthScale("distance", (1.0, 2.0), 0.001)


def described(run: Path, **changed: Any) -> dict[str, Any]:
    return {"run": str(run), "field": "a", "n_frames": 3} | changed


def keeping(place: Path, what: dict[str, Any]) -> Any:
    return keeping_frames(RenderFiles(place / "a.mp4", ("rgb", "depth")), what, CAMERAS, SCALE)


def save_all(kept: KeptFrames) -> None:
    view = {"rgb": np.zeros((4, 4, 3), np.uint8), "depth": np.zeros((4, 4), np.float32)}
    for index in range(len(kept.sizes)):
        kept.save(index, view)


def test_frames_that_another_process_renders_are_not_removed(tmp_path: Path) -> None:
    place = tmp_path / "run" / "renders"
    before = described(place.parent)
    with keeping(place, before) as kept:
        save_all(kept)
        with keeping(place, described(place.parent, field="b")):
            assert len(kept.there()) == 3
    with keeping(place, described(place.parent, field="b")):
        assert not kept.folder.exists()  # nobody can complete it
    assert os.listdir(place) == []


def test_a_shard_does_not_join_another_render_that_has_no_frame_yet(tmp_path: Path) -> None:
    """Its frames would pass for those of the other; alone, it takes the folder over."""
    files = RenderFiles(tmp_path / "frames", ("rgb", "depth"))
    first, other = described(tmp_path / "run"), described(tmp_path / "run", field="b")
    part = Shard(1, 2)
    with keeping_frames(files, first, CAMERAS, SCALE, in_place=True, shard=part):
        pass  # killed before its first frame: only the record is there
    with (
        pytest.raises(BusyError, match="of another render"),
        keeping_frames(files, other, CAMERAS, SCALE, in_place=True, shard=part),
    ):
        pass
    with keeping_frames(files, first, CAMERAS, SCALE, in_place=True, shard=Shard(2, 2)):
        pass
    with keeping_frames(files, other, CAMERAS, SCALE, in_place=True) as kept:
        save_all(kept)
    assert json.loads((files.out / "frames.json").read_text())["field"] == "b"


def test_a_folder_that_is_removed_meanwhile_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    with pytest.raises(NerfError, match="wait"), locked(folder, "wait"):
        pass
    opened = os.open

    def open_and_remove(path: Any, *how: Any) -> int:
        handle = opened(path, *how)
        Path(path).rmdir()
        return handle

    folder.mkdir()
    monkeypatch.setattr(files.os, "open", open_and_remove)
    with pytest.raises(NerfError, match="wait"), locked(folder, "wait"):
        pass


def test_folders_that_stay_empty_go_away(tmp_path: Path) -> None:
    with folders_above(tmp_path / "a" / "b" / "c"):
        pass
    assert os.listdir(tmp_path) == []


def test_frames_are_of_the_model_that_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the checkpoint that the run has by then."""
    model = analytic_model(lambda points: density_of(ball(points)))
    run: Any = SimpleNamespace(path=Path("gone"), step=3, scene_json={}, state={})
    files = RenderFiles(Path("a.mp4"), ("rgb",))
    first = describe_frames(run, model, CAMERAS, files, SCALE)
    assert describe_frames(run, model, CAMERAS, files, SCALE) == first
    state = model.field.state()
    name = next(name for name, tensor in state.items() if tensor.numel())
    changed = state | {name: torch.full_like(state[name], 7)}
    monkeypatch.setattr(type(model.field), "state", lambda self: changed)
    assert describe_frames(run, model, CAMERAS, files, SCALE)["field"] != first["field"]


@pytest.mark.parametrize(
    ("out", "layers", "there", "is_free"),
    [
        ("one.png", "depth", "one.npy", False),
        ("one.png", "rgb,depth", "one_depth.npy", False),
        ("one.png", "rgb", "one.npy", True),
        ("a.gif", "rgb,depth", "a_depth.gif", False),
        ("a.gif", "depth", "a.npy", True),
        ("f", "depth", "f/depth_0000.npy", False),
        ("f", "depth", "f/depth.json", False),
        ("one.png", "rgb,depth", "one_depth.json", False),
        ("one.exr", "depth", "one.json", False),
        ("one.jpg", "depth", "one.json", True),
        ("f", "median-depth", "f/depth_0000.png", True),
        ("f", "rgb", "f/depth.json", True),
        ("f", "rgb", "f/rgb_0119.png", False),
        ("f", "rgb", "f/rgb_mine.png", True),
    ],
)
def test_every_file_that_is_replaced_is_asked_for(
    out: str, layers: str, there: str, is_free: bool, tmp_path: Path
) -> None:
    path = tmp_path / there
    path.parent.mkdir(exist_ok=True)
    path.touch()
    asked = RenderFiles(tmp_path / out, tuple(layers.split(",")))
    assert (asked.there() == []) is is_free
    if not is_free:
        with pytest.raises(NerfError, match=f"{path.name} exists"):
            ensure_free_output(Output(asked, overwrite=False))
    if not (asked.is_folder and "mine" in there):
        ensure_free_output(Output(asked))
    if out.endswith(".png"):
        free = free_output(tmp_path / out, asked.layers, overwrite=False)
        assert free.name == ("one.png" if is_free else "one-2.png")


@pytest.mark.parametrize("name", ["one.png", "f"])
def test_what_is_written_is_what_is_asked_for(name: str, tmp_path: Path) -> None:
    """And a shorter path leaves nothing of a longer one, but what is not of its layers."""
    outputs, cameras = RenderFiles(tmp_path / name, ("rgb", "depth")), CAMERAS
    if outputs.is_folder:
        (tmp_path / "f").mkdir()
        for old in ("rgb_0007.png", "depth_0007.npy", "opacity_0007.png", "rgb_mine.png"):
            (tmp_path / "f" / old).touch()
    else:
        cameras = cameras[0]
    with keeping_frames(outputs, described(tmp_path), cameras, SCALE) as kept:
        save_all(kept)
        pictures = kept.place()
        kept.remove()
    left = set(outputs.folder.iterdir()) - set(outputs.there())
    assert {path.name for path in left} == (
        {"opacity_0007.png", "rgb_mine.png", "frames.json"} if outputs.is_folder else set()
    )
    assert len(outputs.there()) == (3 * 3 + 1 if outputs.is_folder else 4)
    assert [path.name for path in pictures] == (
        [f"{layer}_{i:04d}.png" for layer in ("rgb", "depth") for i in range(3)]
        if outputs.is_folder
        else ["one.png", "one_depth.png"]
    )
    ((layer, record),) = outputs.records()
    assert (layer, json.loads(record.read_text())["unit"]) == ("depth", "source units")


def test_a_stopped_render_counts_what_is_there_and_leaves_no_folders(tmp_path: Path) -> None:
    model = analytic_model(lambda points: density_of(ball(points)))
    scene = model.scene.to_json()
    run: Any = SimpleNamespace(path=tmp_path / "run", step=3, scene_json=scene)
    out, stop = tmp_path / "new" / "views", SimpleNamespace(received=2)
    output = Output(RenderFiles(out, ("rgb",)))
    quiet = Progress("quiet", None, "frame", "render")

    def stopped() -> dict[str, Any]:
        wanted: Any = stop
        return render_path(run, CAMERAS, output, model=model, progress=quiet, stop=wanted)

    result = stopped()
    assert (result["n_frames"], "frames_in" in result) == (0, False)
    assert os.listdir(tmp_path) == []
    what = describe_frames(run, model, CAMERAS, output.files, depth_scale(model, CAMERAS))
    with keeping_frames(output.files, what, CAMERAS, SCALE, in_place=True) as kept:
        save_all(kept)
        (kept.folder / ".rgb_0009.1.png").touch()  # what a kill left
        (kept.folder / "rgb_0002.png").unlink()
    result = stopped()  # before it reads them
    assert (result["n_frames"], result["n_kept"]) == (2, 2)
    assert result["frames_in"] == str(kept.folder)
    assert {path.name for path in kept.folder.iterdir()} == {
        *("frames.json", "rgb_0000.png", "rgb_0001.png")
    }


def test_a_scene_of_one_file_is_no_place_for_frames(tmp_path: Path) -> None:
    (tmp_path / "depth.json").touch()
    (tmp_path / "rgb_0000.png").touch()
    ensure_own_folder(tmp_path, patterns=OURS)
    (tmp_path / "notes.json").touch()
    with pytest.raises(NerfError, match=r"not empty \(notes.json\)"):
        ensure_own_folder(tmp_path, patterns=OURS)
    (tmp_path / "notes.json").rename(tmp_path / "transforms.json")
    with pytest.raises(NerfError, match="is a data set"):
        ensure_own_folder(tmp_path, patterns=(*OURS, "*.json"))


@pytest.mark.parametrize("n_bands", [1, 2, 3, 4])
def test_bands_lie_at_unlike_heights(n_bands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, firsts = analytic_model(lambda points: density_of(ball(points))), []
    monkeypatch.setattr(cost, "_render", lambda *where: firsts.append(where[3]))
    cost.estimate_seconds(model, sphere_cameras(cost.FRAMES_A_BAND * n_bands, size=400))
    assert len(set(firsts[1:])) == n_bands == len(firsts) - 1  # without the warming up


def test_a_hint_never_fails_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(config=SimpleNamespace(backend="auto", device="cpu"))
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):

        def fail(*_: Any, raised: BaseException = error) -> None:
            raise raised

        monkeypatch.setattr(cost, "load_model", fail)
        assert cost.estimate_path(run) is None


def test_the_estimate_halves_its_rays_where_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nerfcli.engine import estimate

    model = analytic_model(lambda points: density_of(ball(points)))
    asked: list[int] = []

    def render_rays(self: object, rays: Any, background: Tensor) -> Pixels:
        asked.append(len(rays))
        if len(rays) > 2048:
            raise torch.OutOfMemoryError("CUDA out of memory")
        n = len(rays)
        return Pixels(torch.zeros(n, 3), *(torch.zeros(n) for _ in range(3)))

    views = SimpleNamespace(
        n_pixels=4096,
        draw=lambda u: torch.zeros(len(u), dtype=torch.int64),
        colors=lambda flat: torch.full((len(flat), 4), 0.5),
        locate=lambda flat: torch.zeros(len(flat), 3, dtype=torch.int64),
    )
    monkeypatch.setattr(type(model.field), "render_rays", render_rays)
    monkeypatch.setattr(estimate, "load_views", lambda *_: views)
    scene: Any = SimpleNamespace(splits={"test": (0,)}, cameras=model.scene.cameras)
    found = estimate_held_out(model, scene, 10**6)
    assert found is not None and found["psnr"] is not None
    assert max(asked) == 4096 and asked[-1] == 2048


def test_what_no_scene_can_meet_needs_no_model() -> None:
    with pytest.raises(NerfError, match="--height"):
        PathRequest(distance=2.0, height=-2.0).ensure_possible()
    PathRequest(distance=2.0, height=-1.9).ensure_possible()
