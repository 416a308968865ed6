"""Damaged files: whatever bytes a model file holds, a NerfError or a scene, soon and small."""

from __future__ import annotations

import json
import random
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import source_writers as writers
from PIL import Image

from conftest import sphere_c2w
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import load_scene, read_source
from nerfcli.scenes.readers.colmap_binary import read_binary
from nerfcli.scenes.readers.colmap_text import read_text_model
from nerfcli.scenes.readers.llff import read_table
from nerfcli.scenes.readers.transforms import TransformsFiles, read_frames
from nerfcli.scenes.source import Points, read_object
from nerfcli.scenes.writers.convert import WriteOptions, write_scene

N_VIEWS = 4
MOST_BYTES = 20_000_000  # that reading a few kilobytes may take, whatever they state
MOST_SECONDS = 2.0  # of the processor for one file; a usual one takes a millisecond


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small scene in every format."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "source/images").mkdir(parents=True)
    frames = []
    for i in range(N_VIEWS):
        Image.new("RGB", (12, 8), (i, 9, 9)).save(root / f"source/images/{i}.png")
        pose = sphere_c2w(i, N_VIEWS).tolist()
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose, "fl_x": 10.0 + i})
    table = {"w": 12, "h": 8, "k1": 0.1, "aabb_scale": 2, "frames": frames}
    (root / "source/transforms.json").write_text(json.dumps(table))
    rng = np.random.default_rng(0)
    seen = np.arange(30), np.arange(30) % N_VIEWS, rng.random((30, 2)) * 8
    source = read_source(root / "source")
    source = replace(source, points=Points(rng.normal(size=(30, 3)), None, None, *seen))
    for name, target, text in (
        ("binary", "colmap", False),
        ("text", "colmap", True),
        ("transforms", "transforms", False),
        ("llff", "llff", False),
        ("blender", "blender", False),
    ):
        (root / name).mkdir()
        write_scene(source, root / name, WriteOptions(target, text=text))
    rig = writers.rig(3)
    for name, write in writers.WRITERS.items():
        write(root / name, rig)
    return root


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes replaced by others, extremes among them."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
    return bytes(damaged)


def overwritten(data: bytes, rng: random.Random) -> bytes:
    """Eight bytes in a row as a huge, a negative or a random number."""
    at = rng.randrange(max(len(data) - 8, 1))
    word = rng.choice((b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8, rng.randbytes(8)))
    return data[:at] + word + data[at + 8 :]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def spliced(data: bytes, rng: random.Random) -> bytes:
    """A piece left out or repeated."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:b] + data[b:]


NUMBER = re.compile(rb"-?\d+(\.\d+)?(e[+-]?\d+)?")
EXTREMES = (b"0", b"-1", b"nan", b"inf", b"1e308", b"-1e-308", b"99999999999", b"1e5", b"")


def renumbered(data: bytes, rng: random.Random) -> bytes:
    """A number of a text replaced by an extreme one."""
    found = [match.span() for match in NUMBER.finditer(data[:100_000])]
    if not found or b"\0" in data:
        return flipped(data, rng)
    start, end = rng.choice(found)
    return data[:start] + rng.choice(EXTREMES) + data[end:]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flipped, overwritten, truncated, spliced, renumbered),
)
FILES = [
    ("binary", "sparse/0/cameras.bin"),
    ("binary", "sparse/0/images.bin"),
    ("binary", "sparse/0/points3D.bin"),
    ("text", "sparse/0/cameras.txt"),
    ("text", "sparse/0/images.txt"),
    ("text", "sparse/0/points3D.txt"),
    ("llff", "poses_bounds.npy"),
    ("transforms", "transforms.json"),
    ("transforms", "sparse_pc.ply"),
    ("blender", "transforms_train.json"),
    ("blender", "train/1.png"),
]
OTHERS = [  # read by way of the folder, since they have no parser apart from it
    ("neus", "cameras_sphere.npz"),
    ("nsvf", "intrinsics.txt"),
    ("nsvf", "bbox.txt"),
    ("nsvf", "pose/0_0000.txt"),
    ("nerf++", "train/pose/00000.txt"),
    ("nerf++", "train/intrinsics/00000.txt"),
    ("polycam", "keyframes/corrected_cameras/1000000.json"),
    ("record3d", "metadata"),
    ("sdfstudio", "meta_data.json"),
    ("metashape", "cameras.xml"),
    ("realitycapture", "registration.csv"),
    ("bundler", "bundle/bundle.out"),
    ("bundler", "list.txt"),
]
ALL = FILES + OTHERS


def read_model(folder: Path) -> None:
    (read_text_model if (folder / "cameras.txt").is_file() else read_binary)(folder)


PARSERS: dict[str, Callable[[Path], object]] = {  # by the ending of the file
    ".bin": lambda path: read_model(path.parent),
    ".txt": lambda path: read_model(path.parent),
    ".npy": read_table,
    ".json": lambda path: read_frames(path, read_object(path), TransformsFiles(path.parent)),
}


def hammer(
    path: Path,
    read: Callable[[], object],
    n_cases: int,
    seed: int,
    write: Callable[[bytes], object] | None = None,
) -> None:
    """Read with so many different damages of one file."""
    rng = random.Random(f"{path.name} {seed}")
    whole = path.read_bytes()
    write = write or path.write_bytes
    outcomes = set()
    try:
        for case in range(n_cases):
            damaged = DAMAGES[case % len(DAMAGES)](whole, rng)
            write(damaged)
            start = time.process_time()
            try:
                read()
                outcomes.add("read")
            except NerfError as error:
                outcomes.add("refused")
                assert str(error)
            except Exception as error:
                raise AssertionError(f"{path}, case {case}: {damaged[:2000]!r}") from error
            assert time.process_time() - start < MOST_SECONDS, f"{path}, case {case}"
    finally:
        write(whole)
    assert "refused" in outcomes or path.suffix == ".ply"  # points are only left out


@pytest.mark.parametrize(("scene", "file"), ALL, ids=["/".join(pair) for pair in ALL])
def test_scenes_with_a_damaged_file_are_refused_or_read(
    scenes: Path, scene: str, file: str
) -> None:
    """The whole way to a scene, with its memory watched."""
    folder = scenes / scene
    load_scene(folder)  # what is imported on the way is not counted
    tracemalloc.start()
    try:
        n_cases = 60 if (scene, file) in FILES else 20
        hammer(folder / file, lambda: load_scene(folder, SceneConfig(holdout=0)), n_cases, seed=0)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


PARSED = [pair for pair in FILES if Path(pair[1]).suffix in PARSERS]


def in_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], object]:
    """A way to write a file that does without the disk, which is what takes the time."""
    contents = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    monkeypatch.setattr(Path, "read_bytes", lambda self: contents[self])
    return lambda data: contents.update({path: data})


@pytest.mark.parametrize(("scene", "file"), PARSED)
def test_parsers_alone_thousands_of_times(
    scenes: Path, scene: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scenes / scene / file
    n_cases = 500 if file.endswith(".json") else 3000  # each frame's image is looked for
    write = in_memory(path, monkeypatch)
    hammer(path, lambda: PARSERS[path.suffix](path), n_cases, 1, write)


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "file"), PARSED)
def test_parsers_alone_many_more_times(
    scenes: Path, scene: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scenes / scene / file
    write = in_memory(path, monkeypatch)
    hammer(path, lambda: PARSERS[path.suffix](path), 20_000, 2, write)


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "file"), ALL, ids=["/".join(pair) for pair in ALL])
def test_many_more_scenes_with_a_damaged_file(scenes: Path, scene: str, file: str) -> None:
    folder = scenes / scene
    place = folder / file  # damage to some files hides the format, so that they are named
    named = place if place.suffix in (".xml", ".csv", ".npz") else folder
    n_cases = 2000 if (scene, file) in FILES else 8000
    hammer(place, lambda: load_scene(named, SceneConfig(holdout=0)), n_cases, seed=3)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("transforms.json", "[" * 100_000),
        ("transforms.json", '{"frames": ' + "[" * 100_000),
        ("transforms.json", '{"frames": [{"file_path": 1' + "0" * 5000 + "}]}"),
        ("transforms.json", '{"w": 1' + "0" * 400 + ', "h": 1, "frames": [{"file_path": "a"}]}'),
    ],
    ids=["deep", "deeper", "long number", "large number"],
)
def test_json_that_breaks_parsers(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(NerfError):
        read_source(tmp_path)
