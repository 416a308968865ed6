"""Shared fixtures: a tiny scene from closed forms, and the command line as users run it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the cores are shared by the tests
HANGS = 900.0  # seconds after which a command is taken to hang, however busy the machine is
SIZE = 16  # pixels a side
ANGLE_X = 0.7  # horizontal field of view, radians
RADIUS = 4.0  # of the cameras' sphere; the scene is a unit ball, coloured by its normal
SMALL = [  # a hash grid whose steps take milliseconds
    *("--set", "hashgrid.n_levels=4", "--set", "hashgrid.log2_table_size=10"),
    *("--set", "hashgrid.max_resolution=32", "--set", "hashgrid.n_samples=1024"),
    *("--set", "hashgrid.occupancy_resolution=16", "--set", "hashgrid.steps_per_box=32"),
]


def sphere_c2w(index: int, n: int) -> np.ndarray:
    """OpenGL camera on a spiral over the sphere, looking at the origin. [4, 4]"""
    z = 1.6 * (index + 0.5) / n - 0.8
    azimuth = 2.4 * index
    direction = np.array(
        [
            math.cos(azimuth) * math.sqrt(1 - z * z),
            math.sin(azimuth) * math.sqrt(1 - z * z),
            z,
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], direction)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2] = right, np.cross(direction, right), direction
    c2w[:3, 3] = RADIUS * direction
    return c2w


def sphere_image(c2w: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The unit ball as that camera sees it, straight-alpha RGBA [size, size, 4] uint8."""
    focal = 0.5 * size / math.tan(0.5 * ANGLE_X)
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    local = np.stack([(x - size / 2) / focal, -(y - size / 2) / focal, -np.ones_like(x)], -1)
    directions = local @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    origin = c2w[:3, 3]
    middle = directions @ origin
    inside = middle**2 - (origin @ origin - 1.0)
    t = -middle - np.sqrt(np.clip(inside, 0.0, None))
    normals = origin + t[..., None] * directions
    rgba = np.concatenate([0.5 + 0.5 * normals, np.ones_like(t)[..., None]], axis=-1)
    rgba[inside <= 0] = 0.0
    return np.round(np.clip(rgba, 0, 1) * 255).astype(np.uint8)


def write_blender_scene(folder: Path, n_train: int = 8, n_test: int = 2) -> Path:
    """A Blender-layout scene of the ball, so small that a step takes milliseconds."""
    total = n_train + n_test
    for split, indices in (("train", range(n_train)), ("test", range(n_train, total))):
        (folder / split).mkdir(parents=True)
        frames = []
        for i in indices:
            c2w = sphere_c2w((i * 3) % total, total)
            Image.fromarray(sphere_image(c2w)).save(folder / split / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": c2w.tolist()})
        table = {"camera_angle_x": ANGLE_X, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(table, indent=1))
    return folder


def nerf_environment() -> dict[str, str]:
    """This checkout's package, one thread: several tests share two cores."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


Nerf = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def nerf(tmp_path: Path) -> Nerf:
    """Run `nerf ARGS` in a subprocess, in tmp_path."""

    def run(
        *args: object, code: int | None = 0, timeout: float = HANGS
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "nerfcli", *map(str, args)],
            cwd=tmp_path,
            env=nerf_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert code is None or done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny scene; read only."""
    return write_blender_scene(tmp_path_factory.mktemp("scenes") / "ball")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        return json.loads(self.out)


Call = Callable[..., Outcome]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run a command in this process, in tmp_path."""
    from nerfcli.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert isinstance(end.value.code, int)
        out, err = capsys.readouterr()
        return Outcome(end.value.code, out, err)

    return run
