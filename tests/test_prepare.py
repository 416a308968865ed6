"""`nerf prepare`: photos and videos to scenes, by structure from motion."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from spoiled import write_textured_scene
from test_frames import LEFT_PIPES, write_video

from conftest import HANGS, ROOT, Nerf, nerf_environment
from nerfcli.cli import main
from nerfcli.cli.prepare import summarise
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Progress
from nerfcli.prepare import PrepareOptions, Stopped, clear_scene, pipeline, prepare_scene, sfm
from nerfcli.prepare.masks import take_masks
from nerfcli.prepare.normalise import DISTANCE, normalise
from nerfcli.prepare.photos import (
    Photo,
    find_photos,
    make_names,
    take_photos,
    write_pyramid,
)
from nerfcli.scenes import load_scene, read_source
from nerfcli.scenes.images import TURNS
from nerfcli.scenes.source import Source

QUIET = Progress("quiet", None, "", "")
N_VIEWS = 8


def aligned_error(found: Source, true: Source) -> float:
    """Median distance of camera centres after the best similarity, over the set's diameter."""
    truth = {Path(frame.name).stem: frame.c2w[:, 3] for frame in true.frames}
    pairs = [(f.c2w[:, 3], truth[Path(f.name).stem]) for f in found.frames]
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    u, s, vt = np.linalg.svd((b - b.mean(0)).T @ (a - a.mean(0)))  # Umeyama 1991
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = (s * np.diag(sign)).sum() / ((a - a.mean(0)) ** 2).sum()
    moved = scale * (a - a.mean(0)) @ (u @ sign @ vt).T + b.mean(0)
    diameter = np.linalg.norm(b[:, None] - b[None], axis=-1).max()
    return float(np.median(np.linalg.norm(moved - b, axis=1)) / diameter)


def copy_photos(scene: Path, folder: Path, n: int) -> Path:
    photos = folder / "photos"
    photos.mkdir()
    for i in range(n):
        shutil.copy(scene / "images" / f"v_{i}.png", photos)
    return photos


def test_pngs_can_be_written_after_pycolmap() -> None:
    """With pycolmap 4.2.1 loaded before numpy and Pillow 13, the first PNG aborts or hangs."""
    modules = (ROOT / "nerfcli").rglob("*.py")
    places = [path for path in modules if "import pycolmap" in path.read_text(encoding="utf-8")]
    assert places == [ROOT / "nerfcli/prepare/sfm.py"]  # the only one, which keeps the order
    pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    code = (
        "import io; from nerfcli.prepare.sfm import load_pycolmap; load_pycolmap()\n"
        "from PIL import Image; Image.new('RGB', (8, 8)).save(io.BytesIO(), 'PNG')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=nerf_environment(),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr


def pycolmap() -> Any:
    return pytest.importorskip("pycolmap")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textured_scene(tmp_path_factory.mktemp("prepare") / "textured", N_VIEWS)


@pytest.fixture(scope="module")
def prepared(scene: Path) -> tuple[Path, dict]:
    """The textured scene's bare images, prepared once."""
    pytest.importorskip("pycolmap")
    out = scene.parent / "prepared"
    return out, prepare_scene(
        scene / "images", out, PrepareOptions(pyramid=1), QUIET, lambda: False
    )


def test_poses_are_those_of_the_renderer(scene: Path, prepared: tuple[Path, dict]) -> None:
    out, record = prepared
    assert record["registered"] == record["images"] == N_VIEWS
    assert record["failed"] == {}
    assert record["enough"]
    assert 0 < record["reprojection_px"] < 1.5
    assert aligned_error(read_source(out), read_source(scene)) < 0.01
    # the lens is found along with the poses; a percent is what views of 240 pixels give
    assert read_source(out).frames[0].focal[0] == pytest.approx(220.0, rel=0.03)


def test_the_scene_stands_upright_and_is_of_a_sensible_size(
    prepared: tuple[Path, dict],
) -> None:
    source = read_source(prepared[0])
    poses = np.stack([frame.c2w for frame in source.frames])
    up = -poses[:, :, 1]
    assert (up @ [0, 0, 1] > 0.5).all()
    # the textured scene's cameras are level, so their sideways axes are horizontal
    assert np.abs(poses[:, 2, 0]).max() < np.sin(np.radians(5))
    assert source.applied_transform is not None
    assert source.points is not None
    assert len(source.points) > 100
    distances = np.linalg.norm(poses[:, :, 3], axis=1)
    assert distances.mean() == pytest.approx(DISTANCE, rel=0.1)


def test_what_is_written(scene: Path, prepared: tuple[Path, dict]) -> None:
    out, _ = prepared
    names = {path.name for path in out.iterdir()}
    assert names == {"images", "images_2", "transforms.json", "sparse_pc.ply", "prepare.json"}
    for path in (scene / "images").iterdir():
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()
    with Image.open(out / "images_2" / "v_0.png") as image:
        assert image.size == (120, 90)
    assert len(load_scene(out).names) == N_VIEWS


def test_a_finished_scene_is_not_made_again(
    scene: Path, prepared: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (prepared[0] / "transforms.json").stat().st_mtime_ns
    with pytest.raises(SystemExit) as ended:
        words = ["prepare", str(scene / "images"), "--out", str(prepared[0]), "--pyramid", "1"]
        main([*words, "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["registered"] == N_VIEWS
    assert (prepared[0] / "transforms.json").stat().st_mtime_ns == before
    # a scene of other photos must not pass for theirs
    others = shutil.copytree(scene / "images", tmp_path / "others")
    with pytest.raises(SystemExit) as ended:
        main(["prepare", str(others), "--out", str(prepared[0])])
    assert ended.value.code == 2
    assert "Choose another --out" in capsys.readouterr().err


def test_starting_again_removes_only_what_was_made(
    scene: Path, prepared: tuple[Path, dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(prepared[0], tmp_path / "out")
    (out / "run").mkdir()  # a user's own
    before = sorted(out.rglob("*"))
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit) as ended:  # nothing to begin with: the scene stays
        main(["prepare", str(tmp_path / "none"), "--out", str(out), "--overwrite"])
    assert ended.value.code == 2
    assert "holds 0 images" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before
    clear_scene(scene / "images", out)
    assert [path.name for path in out.iterdir()] == ["run"]


def test_undistorted_images_keep_their_size_and_are_undistorted_once(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small images are matched enlarged; a run that broke off after writing them goes on."""
    pytest.importorskip("pycolmap")
    photos = copy_photos(scene, tmp_path, 5)
    out, options = tmp_path / "out", PrepareOptions(undistort=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_transforms", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_scene(photos, out, options, QUIET, lambda: False)
    first = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    with monkeypatch.context() as patch:  # what is done is not done again
        patch.setattr(sfm, "reconstruct", lambda *_: 1 / 0)
        patch.setattr(pycolmap(), "undistort_images", lambda *_: 1 / 0)
        record = prepare_scene(photos, out, options, QUIET, lambda: False)
    assert record["registered"] == 5
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == first
    frame = read_source(out).frames[0]
    assert frame.lens.is_pinhole
    assert frame.size == pytest.approx((240, 180), rel=0.02)
    for path in photos.iterdir():
        Image.open(path).convert("RGBA").save(path)
    with pytest.raises(NerfError, match="transparency"):
        prepare_scene(photos, tmp_path / "clear", options, QUIET, lambda: False)


def test_images_are_numbered_in_order_whichever_thread_ends_first(tmp_path: Path) -> None:
    """The model depends on the numbers, so the same photos would give another scene."""
    pytest.importorskip("pycolmap")
    rng = np.random.default_rng(0)
    names = [f"v_{i}.png" for i in range(6)]
    (tmp_path / "photos").mkdir()
    for name, side in zip(names, (700, 600, 64, 64, 64, 64), strict=True):
        pixels = rng.integers(0, 255, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    workspace = sfm.Workspace(tmp_path / "photos", None, tmp_path, lambda: False)
    for _ in range(2):  # the second time, all are there
        sfm.extract_features(workspace, names, "SIMPLE_RADIAL", shared=False, progress=QUIET)
        with closing(sqlite3.connect(workspace.database)) as link:
            rows = link.execute("SELECT name FROM images ORDER BY image_id").fetchall()
        assert [name for (name,) in rows] == names


def test_masks_keep_features_out_and_go_into_the_scene(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names as COLMAP has them, names of other tools, none, and one made of a turned photo."""
    photos = copy_photos(scene, tmp_path, 5)
    with Image.open(photos / "v_3.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 8  # stored on its side
        image.transpose(Image.Transpose.ROTATE_270).save(photos / "v_3.jpg", quality=95, exif=exif)
    (photos / "v_3.png").unlink()
    masks = tmp_path / "mine"
    masks.mkdir()
    half = Image.new("L", (240, 180), 255)
    half.paste(0, (0, 0, 120, 180))
    half.save(masks / "v_0.png.png")
    half.convert("1").save(masks / "v_1.png")
    half.save(masks / "v_2.PNG")
    half.transpose(Image.Transpose.ROTATE_270).save(masks / "v_3.png")
    out, notes = tmp_path / "out", []
    options = PrepareOptions(masks=str(masks))
    progress = Progress("quiet", None, "", "")
    monkeypatch.setattr(progress, "note", notes.append)
    stops = iter([False, False, False])  # in the middle of the features
    with pytest.raises(Stopped):
        prepare_scene(photos, out, options, progress, lambda: next(stops, True))
    assert "1 photo without a mask" in notes[-1]
    for i, name in enumerate(["v_0.png", "v_1.png", "v_2.png", "v_3.jpg", "v_4.png"]):
        with Image.open(out / "masks" / f"{name}.png") as image:
            mask = np.array(image)
        assert mask.shape == (180, 240) and set(np.unique(mask)) <= {0, 255}
        assert (mask[:, 120:] == 255).all() and (mask[:, :120] == (0 if i < 4 else 255)).all()
    reconstruct = sfm.reconstruct

    def checked(workspace: sfm.Workspace, *rest: Any) -> Any:
        with closing(sqlite3.connect(workspace.database)) as link:
            query = "SELECT name, cols, data FROM keypoints JOIN images USING (image_id)"
            for name, columns, data in link.execute(query):
                x = np.frombuffer(data, np.float32).reshape(-1, columns)[:, 0] / 3  # enlarged
                assert len(x) > 50 and (x.min() < 115) == (name == "v_4.png")
        return reconstruct(workspace, *rest)

    monkeypatch.setattr(sfm, "reconstruct", checked)
    record = prepare_scene(photos, out, options, progress, lambda: False)
    assert record["masks"] and record["images"] == 5
    found = read_source(out)
    assert all(frame.mask == out / f"masks/{Path(frame.name).name}.png" for frame in found.frames)
    assert found.points is not None and found.masked_where == "black"
    (out / "run").mkdir()
    clear_scene(photos, out)
    assert [path.name for path in out.iterdir()] == ["run"]


def test_a_stopped_run_goes_on(scene: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    photos = copy_photos(scene, tmp_path, 5)
    out, calls = tmp_path / "out", 0

    def soon() -> bool:
        nonlocal calls
        calls += 1
        return calls > 2

    with pytest.raises(Stopped):
        prepare_scene(photos, out, PrepareOptions(), QUIET, soon)
    assert not (out / "transforms.json").exists()
    with pytest.raises(NerfError, match="lens"):
        prepare_scene(photos, out, PrepareOptions(lens="opencv"), QUIET, lambda: False)
    record = prepare_scene(photos, out, PrepareOptions(), QUIET, lambda: False)
    assert record["registered"] == 5


def test_watching_takes_no_lock(tmp_path: Path) -> None:
    """pycolmap ends the process when it meets a lock, so progress must be read without one."""
    link = sqlite3.connect(tmp_path / "d?b.db", isolation_level=None)
    link.execute("CREATE TABLE keypoints (image_id INTEGER)")
    link.execute("INSERT INTO keypoints VALUES (1)")
    link.execute("BEGIN EXCLUSIVE")  # any reader that asks for a lock is refused now
    assert sfm._count_without_lock(tmp_path / "d?b.db", "keypoints") == 1
    assert sfm._count_without_lock(tmp_path / "none.db", "keypoints") == 0
    link.close()


def test_without_pycolmap_it_says_how_to_install_it(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(NerfError, match=r"pip install 'nerfcli\[prepare\]'"):
        prepare_scene(scene / "images", tmp_path / "out", PrepareOptions(), QUIET, lambda: False)
    assert not (tmp_path / "out").exists()


def test_photos_are_copied_upright_and_the_bad_ones_named(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    pixels[:10] //= 4
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    exif[0x0110] = "Phone"
    Image.fromarray(pixels).save(photos / "p2.jpg", exif=exif)
    Image.fromarray(pixels).save(photos / "p10.jpg")
    (photos / "p3.jpg").write_bytes(b"not a picture")
    names = find_photos(photos)
    assert names == ["p2.jpg", "p3.jpg", "p10.jpg"]
    taken, failed = take_photos(photos, names, tmp_path / "out")
    assert [photo.name for photo in taken] == ["p2.jpg", "p10.jpg"]
    assert taken[0].size == (20, 30)
    assert list(failed) == ["p3.jpg"]
    with Image.open(tmp_path / "out" / "p2.jpg") as image:
        assert image.size == (20, 30)
        assert image.getexif().get(0x0112) == 1
        assert image.getexif()[0x0110] == "Phone"
        turned = np.array(image, dtype=float)
    assert turned[:, 10:].mean() < 0.5 * turned[:, :10].mean()  # the dark rows are right now
    assert (tmp_path / "out" / "p10.jpg").read_bytes() == (photos / "p10.jpg").read_bytes()


def test_names_that_pycolmap_cannot_read_are_changed(tmp_path: Path) -> None:
    names = ["a 1.jpg", "a_1.jpg", "a\t1.jpg", "#b.png", "two words/c.jpg", "d.webp", "d.png"]
    new = make_names(names)
    assert list(map(new.get, names)) == [
        *("a_1_2.jpg", "a_1.jpg", "a_1_3.jpg", "_b.png", "two_words/c.jpg", "d_2.png", "d.png")
    ]
    pixels = np.random.default_rng(2).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "e f.webp", lossless=True)
    taken, failed = take_photos(tmp_path, ["e f.webp"], tmp_path / "out")
    assert ([photo.name for photo in taken], failed) == (["e_f.png"], {})
    with Image.open(tmp_path / "out" / "e_f.png") as image:
        np.testing.assert_array_equal(np.array(image), pixels)


def noise(size: tuple[int, int] = (8, 6), channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(2).integers(0, 255, (*size[::-1], channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_photos_are_what_they_hold_not_what_their_name_says(tmp_path: Path) -> None:
    """pycolmap reads JPEG, PNG, TIFF and BMP under any name."""
    for name, kind in (("a.jpg", "WEBP"), ("b.PNG", "GIF"), ("c.jpeg", "PNG"), ("d.png", "JPEG")):
        noise().save(tmp_path / name, format=kind)
    noise(channels=4).save(tmp_path / "e.jpg", format="WEBP", lossless=True)
    noise(channels=4).save(tmp_path / "f.jpg", format="PNG")
    names, out = find_photos(tmp_path), tmp_path / "out"
    taken, failed = take_photos(tmp_path, names, out)
    assert [photo.name for photo in taken] == names and not failed
    assert [photo.has_alpha for photo in taken] == [False] * 4 + [True] * 2
    kinds = [Image.open(out / name).format for name in names]
    assert kinds == ["JPEG", "PNG", "PNG", "JPEG", "PNG", "PNG"]
    for name in ("c.jpeg", "d.png", "f.jpg"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    write_pyramid(out, tmp_path, 1)
    with Image.open(tmp_path / "images_2" / "e.jpg") as image:
        assert (image.mode, image.size) == ("RGBA", (4, 3))


def test_thumbnails_and_leftovers_are_no_photos(tmp_path: Path) -> None:
    names = ["a.jpg", "b/c.jpg", "d.jpg"]
    hidden = [".thumbnails/a.jpg", ".Trashes/x/a.jpg", "@eaDir/a.jpg/THUMB.jpg"]
    hidden += ["b/@eaDir/a.jpg", "__MACOSX/._a.jpg", "__MACOSX/a.jpg", ".b.1234.jpg"]
    for name in names + hidden:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        noise().save(tmp_path / "images" / name)
    (tmp_path / "images" / ".b.1234.jpg").write_bytes(b"half")  # of a run that was killed
    assert find_photos(tmp_path / "images") == names
    write_pyramid(tmp_path / "images", tmp_path, 1)
    made = [p.relative_to(tmp_path / "images_2") for p in (tmp_path / "images_2").rglob("*.*")]
    assert sorted(path.as_posix() for path in made) == names


def test_a_photo_with_a_second_picture_stays_a_good_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise()], exif=exif)
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    take_photos(tmp_path, ["a.jpg"], tmp_path / "out")
    noise().save(tmp_path / "best.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "out" / "a.jpg") as image, Image.open(tmp_path / "best.jpg") as best:
        assert image.size == (6, 8) and image.format == "JPEG"
        for what in ("quantization", "layer"):  # layer: the subsampling
            assert getattr(image, what) == getattr(best, what)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_tag_does_not_cost_a_turned_photo(tmp_path: Path) -> None:
    """A rational where a number belongs, and a number that is text: Pillow cannot write them."""

    def tag(code: int, kind: int, count: int, value: bytes) -> bytes:
        return struct.pack("<HHI", code, kind, count) + value.ljust(4, b"\0")

    entries = [tag(0x0110, 2, 2, b"X"), tag(0x0112, 3, 1, b"\6")]
    broken = [tag(0x0102, 2, 4, b"abc"), tag(0x8769, 2, 4, b"abc"), tag(0x011A, 2, 4, b"abc")]
    names = []
    for i, extra in enumerate([*broken, b""]):
        tags = sorted([*entries, extra]) if extra else []
        tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + b"\0" * 4
        names.append(f"{i}.jpg")
        noise().save(tmp_path / names[-1], exif=b"Exif\0\0" + (tiff if tags else b"junk"))
    taken, failed = take_photos(tmp_path, names, tmp_path / "out")
    assert [photo.size for photo in taken] == [(6, 8)] * 3 + [(8, 6)] and failed == {}
    for photo in taken[:3]:
        with Image.open(tmp_path / "out" / photo.name) as image:
            assert image.size == (6, 8) and image.getexif().get(0x0112, 1) == 1


def test_names_that_are_not_utf8_are_changed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert make_names([name, "caf_.jpg"]) == {name: "caf__2.jpg", "caf_.jpg": "caf_.jpg"}
    record = {"scene": "s", "registered": 3, "images": 4, "points": 9, "reprojection_px": 1.0}
    record |= {"seconds": 1.0, "models": [3], "failed": {name: "is broken"}, "enough": True}
    assert "caf\\udce9.jpg: is broken" in summarise(record).encode().decode()


@pytest.mark.parametrize("stored", [True, False, None])
def test_masks_are_turned_as_the_size_of_others_says(tmp_path: Path, stored: bool | None) -> None:
    """Upside down a mask has the size of its photo; one on its side says how the set is stored."""
    photos, found, notes = {}, {}, []
    for name, orientation, size in (("a", 6, (4, 8)), ("b", 3, (8, 4)), ("c", 8, (4, 4))):
        if name == "a" and stored is None:
            continue
        turn = TURNS[orientation]
        photos[name] = Photo(f"{name}.jpg", size, False, (), orientation)
        mask = Image.new("L", size, 255)
        mask.paste(0, (0, 0, size[0], 2))
        back = {6: 8, 8: 6, 3: 3}[orientation]
        if stored:
            mask = mask.transpose(TURNS[back])
        assert not stored or mask.transpose(turn).size == size
        found[name] = tmp_path / f"{name}.png"
        mask.save(found[name])
    take_masks(found, photos, tmp_path / "out", notes.append)
    for name in photos:
        with Image.open(tmp_path / "out" / f"{name}.jpg.png") as image:
            pixels = np.array(image)
        assert (pixels[:2] == 0).all() and (pixels[2:] == 255).all()
    assert len(notes) == (1 if stored is None else 0)


def test_normalising_moves_everything_alike(scene: Path) -> None:
    source = read_source(scene)
    moved = normalise(source)
    before = np.stack([frame.c2w for frame in source.frames])
    after = np.stack([frame.c2w for frame in moved.frames])
    apply, scale = moved.applied_transform, moved.applied_scale
    assert apply is not None
    np.testing.assert_allclose(
        after[:, :, 3], scale * (before[:, :, 3] @ apply[:, :3].T + apply[:, 3]), atol=1e-9
    )
    np.testing.assert_allclose(after[:, :, :3], apply[:, :3] @ before[:, :, :3], atol=1e-9)


@LEFT_PIPES
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "o"], "does not exist"),
        (["photos", "--out", "photos/o"], "lies in photos"),
        (["photos", "--out", "full"], "not empty"),
        (["photos", "--out", "o", "--lens", "round"], "--lens"),
        (["photos", "--out", "o", "--frames", "1"], "--frames"),
        (["photos", "--out", "o"], "0 images"),
        (["photos/note.txt", "--out", "o2"], "cannot be read as a video"),
    ],
)
def test_bad_use_gives_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pycolmap")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "note.txt").write_text("no video")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def fox() -> Path:
    data = os.environ.get("NERF_DATA")
    if not data or not (Path(data) / "fox").is_dir():
        pytest.skip("NERF_DATA does not name the folder of the real scenes")
    pytest.importorskip("pycolmap")
    return Path(data) / "fox"


@pytest.mark.slow
def test_the_fox_photos_find_their_published_places(tmp_path: Path) -> None:
    record = prepare_scene(
        fox() / "images", tmp_path / "fox", PrepareOptions(), QUIET, lambda: False
    )
    assert record["registered"] >= 49
    assert aligned_error(read_source(tmp_path / "fox"), read_source(fox())) < 0.01


@pytest.mark.slow
def test_rendered_views_find_their_exact_places(tmp_path: Path) -> None:
    """The bundled scene: 200 pixels, transparent around the object, views all around it."""
    pytest.importorskip("pycolmap")
    biplane = Path(__file__).parents[1] / "datasets" / "biplane"
    shutil.copytree(biplane / "train", tmp_path / "photos")
    out = tmp_path / "out"
    record = prepare_scene(tmp_path / "photos", out, PrepareOptions(), QUIET, lambda: False)
    assert record["registered"] >= 0.9 * record["images"]
    true = read_source(biplane / "transforms_train.json")
    assert aligned_error(read_source(out), true) < 0.01


@pytest.mark.slow
def test_video_to_video(tmp_path: Path, nerf: Nerf) -> None:
    """What the README's one line does, on a video of a real capture."""
    frames = sorted((fox() / "images").glob("*.jpg"))
    write_video(tmp_path / "walk.mp4", [np.array(Image.open(path)) for path in frames])
    nerf("prepare", "walk.mp4", "--out", "scene", "--frames", "50", "--quiet", timeout=540)
    nerf("check", "scene", "--quiet")
    nerf("train", "scene", "--out", "run", "--steps", "200", "--quiet", timeout=300)
    nerf("render", "run", "--out", "out.mp4", "--frames", "4", "--scale", "0.25", "--quiet")
    assert (tmp_path / "out.mp4").stat().st_size > 1000
