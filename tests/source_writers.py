"""Small scenes in formats that nerf reads and does not write: one writer each, from known cameras.

Each takes a folder and a `Rig` and writes its format by its definition, with own formulas.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from conftest import sphere_c2w

WIDTH, HEIGHT = 24, 16
OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # from OpenGL's camera axes
BROWN = {"k1": 0.05, "k2": -0.02, "k3": 0.01, "k4": 0.003, "p1": 0.002, "p2": -0.004}


@dataclass(frozen=True)
class Rig:
    """Cameras that look at the origin: c2w [n, 4, 4] with OpenGL's axes, and one K."""

    c2w: np.ndarray
    fx: float = 30.0
    fy: float = 30.0
    cx: float = 12.5
    cy: float = 7.25

    @property
    def k(self) -> np.ndarray:
        matrix = np.eye(4)
        matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2] = self.fx, self.fy, self.cx, self.cy
        return matrix

    def project(
        self, points: np.ndarray, bend: Callable[[np.ndarray], np.ndarray] = lambda xy: xy
    ) -> np.ndarray:
        """Where points [m, 3] land, [n, m, 2]; 0.5 is the centre of the first pixel."""
        w2c = np.linalg.inv(self.c2w @ OPENCV)
        local = points @ w2c[:, :3, :3].transpose(0, 2, 1) + w2c[:, None, :3, 3]
        plane = bend(local[..., :2] / local[..., 2:])
        return plane * [self.fx, self.fy] + [self.cx, self.cy]


def rig(n: int = 5, **intrinsics: float) -> Rig:
    return Rig(np.stack([sphere_c2w(i, n) for i in range(n)]), **intrinsics)


def brown(xy: np.ndarray) -> np.ndarray:
    """OpenCV's formula, with r^8, and the numbers of BROWN."""
    x, y = xy[..., 0], xy[..., 1]
    q = x * x + y * y
    k1, k2, k3, k4, p1, p2 = BROWN.values()
    scale = 1 + k1 * q + k2 * q**2 + k3 * q**3 + k4 * q**4
    u = x * scale + 2 * p1 * x * y + p2 * (q + 2 * x * x)
    v = y * scale + p1 * (q + 2 * y * y) + 2 * p2 * x * y
    return np.stack([u, v], axis=-1)


def photo(path: Path, shade: int = 9, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (WIDTH, HEIGHT), (shade, 9, 9) if mode == "RGB" else shade).save(path)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lines(matrix: np.ndarray, per_line: str = "\n") -> str:
    return per_line.join(" ".join(repr(float(v)) for v in row) for row in matrix) + "\n"


def write_neus(folder: Path, cameras: Rig, name: str = "cameras_sphere.npz") -> None:
    """Pixel coordinates are 0 at the centre of the first one; P is scaled as calibrators do."""
    arrays = {}
    shifted = cameras.k.copy()
    shifted[:2, 2] -= 0.5
    for i, c2w in enumerate(cameras.c2w):
        world = shifted @ np.linalg.inv(c2w @ OPENCV)
        world[:3] *= -0.37 * (i + 1)  # a projection matrix has no scale
        scale = np.diag([1.5, 1.5, 1.5, 1.0])
        scale[:3, 3] = 0.1, -0.2, 0.3
        arrays |= {f"world_mat_{i}": world, f"scale_mat_{i}": scale}
        photo(folder / f"image/{i:03d}.png", i)
    np.savez(folder / name, **arrays)


def write_nsvf(folder: Path, cameras: Rig, srn: bool = False) -> None:
    k = cameras.k
    if srn:
        put(
            folder / "intrinsics.txt",
            f"{k[0, 0]} {k[0, 2]} {k[1, 2]} 0.\n0. 0. 0.\n0.\n1.\n{HEIGHT} {WIDTH}\n",
        )
    else:
        put(folder / "intrinsics.txt", lines(k))
    put(folder / "bbox.txt", "-1 -1.5 -0.5 1 0.5 1.5 0.4\n")
    for i, c2w in enumerate(cameras.c2w):
        name = f"{0 if i < 3 else i - 2}_{i:04d}"
        put(folder / f"pose/{name}.txt", lines(c2w @ OPENCV))
        photo(folder / f"rgb/{name}.png", i)


def write_nerfplusplus(folder: Path, cameras: Rig) -> None:
    for i, c2w in enumerate(cameras.c2w):
        split = ("train", "train", "train", "validation", "test")[i % 5]
        put(folder / split / f"pose/{i:05d}.txt", lines(c2w @ OPENCV, " "))
        put(folder / split / f"intrinsics/{i:05d}.txt", lines(cameras.k, " "))
        photo(folder / split / f"rgb/{i:05d}.png", i)
    put(folder / "camera_path/pose/00000.txt", lines(cameras.c2w[0] @ OPENCV, " "))
    put(folder / "camera_path/intrinsics/00000.txt", lines(cameras.k, " "))


def write_polycam(folder: Path, cameras: Rig, corrected: str = "corrected_") -> None:
    for i, c2w in enumerate(cameras.c2w):
        stamp = 1_000_000 + 40 * i
        data = {f"t_{r}{c}": c2w[r, c] for r in range(3) for c in range(4)}
        data |= {"fx": cameras.fx, "fy": cameras.fy, "cx": cameras.cx, "cy": cameras.cy}
        data |= {"width": WIDTH, "height": HEIGHT, "blur_score": 99.0}
        put(folder / f"keyframes/{corrected}cameras/{stamp}.json", json.dumps(data))
        photo(folder / f"keyframes/{corrected}images/{stamp}.jpg", i)


def quaternion(rotation: np.ndarray) -> list[float]:
    """x, y, z, w of a rotation matrix: the eigenvector of Bar-Itzhack's symmetric matrix."""
    r = rotation
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], np.trace(r)],
        ]
    )
    return np.linalg.eigh(k)[1][:, -1].tolist()


def write_record3d(folder: Path, cameras: Rig, images: str = "rgbd") -> None:
    poses = [[*quaternion(c2w[:3, :3]), *c2w[:3, 3].tolist()] for c2w in cameras.c2w]
    table = {"w": WIDTH, "h": HEIGHT, "K": cameras.k[:3, :3].T.ravel().tolist(), "poses": poses}
    put(folder / ("metadata" if images == "rgbd" else "metadata.json"), json.dumps(table))
    for i in range(len(poses)):
        photo(folder / f"{images}/{i}.jpg", i)


def write_sdfstudio(folder: Path, cameras: Rig) -> None:
    frames = []
    for i, c2w in enumerate(cameras.c2w):
        photo(folder / f"{i:06d}_rgb.png", i)
        frame = {"rgb_path": f"{i:06d}_rgb.png", "intrinsics": cameras.k.tolist()}
        frames.append(frame | {"camtoworld": (c2w @ OPENCV).tolist()})
    table = {"camera_model": "OPENCV", "height": HEIGHT, "width": WIDTH, "frames": frames}
    table |= {"scene_box": {"aabb": [[-1, -1, -1], [1, 1, 1]], "near": 0.5, "far": 4.5}}
    put(folder / "meta_data.json", json.dumps(table))


def write_metashape(
    folder: Path, cameras: Rig, offset: tuple[float, float, float] = (3.0, 2.0, 1.0)
) -> None:
    """A chunk of another frame and scale, whose own transform leads back to the rig's frame."""
    chunk = sphere_c2w(1, 3) * [[2.5], [2.5], [2.5], [1]]
    chunk[:3, 3] = offset
    lens = BROWN | {"p1": BROWN["p2"], "p2": BROWN["p1"]}
    values = {"f": cameras.fy, "b1": cameras.fx - cameras.fy, **lens}
    values |= {"cx": cameras.cx - WIDTH / 2, "cy": cameras.cy - HEIGHT / 2}
    calibration = "".join(f"<{name}>{value!r}</{name}>" for name, value in values.items())
    resolution = f'<resolution width="{WIDTH}" height="{HEIGHT}"/>'
    found = ""
    for i, c2w in enumerate(cameras.c2w):
        moved = c2w @ OPENCV
        moved[:3, 3] += offset
        inner = np.linalg.inv(chunk) @ moved
        inner[:3, :3] *= 2.5
        found += f'<camera id="{i}" sensor_id="0" label="DSC_{i:04d}" enabled="true">'
        found += f"<transform>{lines(inner, ' ').strip()}</transform></camera>"
        photo(folder / f"images/DSC_{i:04d}.JPG", i)
    found += '<camera id="90" sensor_id="0" label="lost"/>'
    found += '<camera id="91" sensor_id="0" label="off" enabled="0"><transform/></camera>'
    rotation = lines(chunk[:3, :3] / 2.5, " ").strip()
    put(
        folder / "cameras.xml",
        f"""<?xml version="1.0" encoding="UTF-8"?>
<document version="2.0.0"><chunk label="Chunk 1" enabled="true">
<sensors next_id="1"><sensor id="0" label="unknown" type="frame">{resolution}
<calibration type="frame" class="initial">{resolution}<f>1</f></calibration>
<calibration type="frame" class="adjusted">{resolution}{calibration}</calibration></sensor>
</sensors>
<cameras next_id="99">{found}</cameras>
<transform><rotation>{rotation}</rotation>
<translation>{" ".join(map(str, offset))}</translation><scale>2.5</scale></transform>
</chunk></document>""",
    )


def write_realitycapture(folder: Path, cameras: Rig) -> None:
    text = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2\n"
    for i, c2w in enumerate(cameras.c2w):
        r = c2w[:3, :3]
        # r = Rz(-heading) Rx(pitch) Ry(roll), read off its entries
        pitch = np.arcsin(r[2, 1])
        heading, roll = np.arctan2(r[0, 1], r[1, 1]), np.arctan2(-r[2, 0], r[2, 2])
        if abs(r[2, 1]) > 1 - 1e-12:  # a level camera: only heading and roll together are known
            heading, roll = np.arctan2(-r[1, 0], r[0, 0]), 0.0
        angles = np.degrees([heading, pitch, roll])
        longer = max(WIDTH, HEIGHT)
        intrinsics = (
            *(cameras.fx * 36 / longer, (cameras.cx - WIDTH / 2) / longer),
            (cameras.cy - HEIGHT / 2) / longer,
        )
        row = [*c2w[:3, 3], *angles, *intrinsics, *BROWN.values()]
        text += f"photo {i}.jpg," + ",".join(repr(float(value)) for value in row) + "\n"
        photo(folder / f"photo {i}.jpg", i)
    put(folder / "registration.csv", text)


POINTS = np.random.default_rng(0).uniform(-0.4, 0.4, (30, 3))


def write_bundler(folder: Path, cameras: Rig, points: np.ndarray = POINTS) -> None:
    """Only a principal point in the middle, and f, k1, k2, fit. Camera 1 is not registered."""
    text = f"# Bundle file v0.3\n{len(cameras.c2w)} {len(points)}\n"
    places = Rig(cameras.c2w, cameras.fx, cameras.fx, 0.0, 0.0).project(points)
    for i, c2w in enumerate(cameras.c2w):
        w2c = np.linalg.inv(c2w)
        if i == 1:
            text += "0 0 0\n" + "0 0 0\n" * 4
        else:
            text += f"{cameras.fx} 0 0\n" + lines(w2c[:3, :3]) + lines(w2c[None, :3, 3])
        photo(folder / f"photos/{i}.jpg", i)
    for j, point in enumerate(points):
        text += lines(point[None]) + f"{j} 20 30\n"
        seen = [i for i in range(len(cameras.c2w)) if i != 1]
        views = (f"{i} {j} {places[i, j, 0]!r} {-places[i, j, 1]!r}" for i in seen)
        text += f"{len(seen)} " + " ".join(views) + "\n"
    put(folder / "bundle/bundle.out", text.replace("np.float64(", "").replace(")", ""))
    put(folder / "list.txt", "".join(f"photos/{i}.jpg 0 30.0\n" for i in range(len(cameras.c2w))))


WRITERS: dict[str, Callable[[Path, Rig], object]] = {
    "neus": write_neus,
    "nsvf": write_nsvf,
    "nerf++": write_nerfplusplus,
    "polycam": write_polycam,
    "record3d": write_record3d,
    "sdfstudio": write_sdfstudio,
    "metashape": write_metashape,
    "realitycapture": write_realitycapture,
    "bundler": write_bundler,
}
