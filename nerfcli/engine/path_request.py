"""What the user asks of a camera path, and what no scene could meet; needs no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from nerfcli.core.errors import NerfError
from nerfcli.core.text import choose_from, most_like

# the flags that place the camera, and the named paths that have them
PLACING = ("target", "distance", "height", "radius", "elevation", "turns", "start")
_STANDING = tuple(name for name in PLACING if name != "turns")
PLACED = {
    "orbit": PLACING,
    "turntable": PLACING,
    "ellipse": ("target", "height", "turns", "start"),
    "figure8": PLACING,
    "dolly": _STANDING,
    "zoom": _STANDING,
}
VIEWS = {"test": "held-out view", "train": "training view"}  # paths that are a split's views
NAMES = ("auto", *PLACED, "spiral", "interpolate", *VIEWS)
UPS = ("+x", "-x", "+y", "-y", "+z", "-z", "image")
TARGETS = ("centre", "box", "subject")
CAMERAS = ("perspective", "equirectangular", "ods", "vr180")
FPS = 30.0  # of a video, unless the path's file or the user says otherwise
N_FRAMES = 120  # of a named path, unless another length is asked for
MOST_FRAMES = 100_000  # nearly an hour of film; planning more takes long
MOST_PIXELS = 2**16  # along a side


@dataclass(frozen=True)
class PathRequest:
    """What the user asks of a path; None: as the cameras, or the path's file, have it.

    Attributes:
        path: a name, or a file. up: an axis of the source (+z), or image.
        frames: their number. seconds, fps, speed: other ways to state it; speed: how many times
            as fast as it would be. frame: the only one wanted, counted from 0.
        scale: of the images' size. resolution: WIDTHxHEIGHT. fov: from top to bottom, degrees.
        camera: one of CAMERAS. ipd: between two eyes, source units.
        target: x,y,z in source units, or one of TARGETS. distance, height, radius: source units;
            elevation: degrees. Of distance and radius, and of height and elevation, one each.
        turns: full turns of an orbit. start: azimuth of its first frame, degrees.
        path_transform: the file that states the frame of the path's file.
    """

    path: str = "auto"
    up: str | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    speed: float | None = None
    frame: int | None = None
    scale: float = 1.0
    resolution: str | None = None
    fov: float | None = None
    camera: str | None = None
    ipd: float | None = None
    target: str | None = None
    distance: float | None = None
    height: float | None = None
    radius: float | None = None
    elevation: float | None = None
    turns: float | None = None
    start: float | None = None
    path_transform: Path | None = None

    @property
    def is_file(self) -> bool:
        return self.path not in NAMES

    @property
    def placing_flags(self) -> list[str]:
        """The flags among them that place the camera."""
        return [f"--{name}" for name in PLACING if getattr(self, name) is not None]

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height that are asked for."""
        if self.resolution is None:
            return None
        found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", self.resolution.strip().lower())
        width, height = (int(found[1]), int(found[2])) if found else (0, 0)
        if not (1 <= width <= MOST_PIXELS and 1 <= height <= MOST_PIXELS):
            raise NerfError(
                f"--resolution: {self.resolution!r} is no size; give WIDTHxHEIGHT in pixels, as "
                "1920x1080."
            )
        return width, height

    def count_frames(self, usual: float, fps: float | None = None) -> int:
        """Choose the number of frames of a path that has `usual` frames by itself.

        fps: of the path's file.

        Raises:
            NerfError: they are more than MOST_FRAMES.
        """
        asked = f"--path {self.path}"
        if self.frames is not None:
            usual, asked = self.frames, f"--frames {self.frames}"
        elif self.seconds is not None:
            asked = f"--seconds {self.seconds:g}"
            usual = self.seconds * (fps or FPS if self.fps is None else self.fps)
        elif self.speed is not None:
            usual, asked = usual / self.speed, f"--speed {self.speed:g}"
        if usual > MOST_FRAMES:
            raise NerfError(f"{asked}: a path has at most {MOST_FRAMES} frames.")
        return max(round(usual), 1)

    def choose_fps(self, stated: float | None = None) -> float:
        """Choose the frames a second. stated: of the path's file."""
        if self.fps is not None:
            return self.fps
        if self.frames is not None and self.seconds is not None:
            return self.frames / self.seconds
        return stated or FPS

    def ensure_possible(self) -> None:
        """Raise NerfError for what no scene could meet."""
        path, up = self.path, self.up
        if self.is_file and not Path(path).exists():
            raise NerfError(
                f"--path: unknown path {path!r}; {choose_from(path, NAMES)}, or a file: there is "
                "none of this name."
            )
        if up is not None and up not in UPS:
            raise NerfError(f"--up: unknown direction {up!r}; known: {', '.join(UPS)}.")
        if up is not None and path in VIEWS:
            raise NerfError(
                f"--up: --path {path} shows the {VIEWS[path]}s as they are; leave it out."
            )
        if self.path_transform is not None and not self.is_file:
            raise NerfError(
                "--path-transform is of a path's file; leave it out, or name --path FILE."
            )
        if self.path_transform is not None and not self.path_transform.is_file():
            raise NerfError(f"--path-transform {self.path_transform}: there is no such file.")
        if self.frame is not None and self.frame < 0:
            raise NerfError(f"--frame must be at least 0, got {self.frame}.")
        if not 0 < self.scale <= 16:
            raise NerfError(f"--scale must be above 0 and at most 16, got {self.scale}.")
        self._ensure_possible_length()
        self._ensure_possible_camera()
        self._ensure_possible_place()

    def _ensure_possible_length(self) -> None:
        path = self.path
        lengths = {"frames": self.frames, "seconds": self.seconds, "speed": self.speed}
        given = [name for name, value in lengths.items() if value is not None]
        if given and path in VIEWS:
            raise NerfError(
                f"--{given[0]}: --path {path} has one frame for each {VIEWS[path]}; leave it out."
            )
        if self.frames is not None and self.frames < 1:
            raise NerfError(f"--frames must be at least 1, got {self.frames}.")
        for name in ("seconds", "speed"):
            number = lengths[name]
            if number is not None and not (math.isfinite(number) and number > 0):
                raise NerfError(f"--{name} must be above 0, got {number:g}.")
        if self.fps is not None and not 1 <= self.fps <= 240:
            raise NerfError(f"--fps must be from 1 to 240, got {self.fps:g}.")
        if self.speed is not None and len(given) > 1:
            raise NerfError(f"--speed sets the number of frames, as --{given[0]} does; give one.")
        if None not in (self.frames, self.seconds, self.fps):
            raise NerfError("--frames, --seconds and --fps: two of them state the third; give two.")
        rate = self.choose_fps()
        if self.frames is not None and not 1 <= rate <= 240:
            raise NerfError(
                f"--frames {self.frames} in --seconds {self.seconds:g} are {rate:.3g} frames a "
                "second; from 1 to 240 are possible."
            )
        if given and not self.is_file:
            self.count_frames(N_FRAMES)

    def _ensure_possible_camera(self) -> None:
        if self.camera is not None and self.camera not in CAMERAS:
            known = choose_from(self.camera, CAMERAS)
            raise NerfError(f"--camera: unknown camera {self.camera!r}; {known}.")
        _ = self.size
        if self.fov is not None and not 0.1 <= self.fov <= 175:
            raise NerfError(
                f"--fov must be from 0.1 to 175 degrees, from top to bottom, got {self.fov:g}."
            )
        if self.fov is not None and self.camera not in (None, "perspective"):
            raise NerfError(f"--fov: --camera {self.camera} sees all around; leave it out.")
        if self.ipd is not None and not (math.isfinite(self.ipd) and self.ipd >= 0):
            raise NerfError(f"--ipd must be at least 0, got {self.ipd:g}.")
        if self.ipd is not None and not self.is_file and self.camera not in ("ods", "vr180"):
            raise NerfError("--ipd is between two eyes: give --camera ods or vr180 with it.")

    def _ensure_possible_place(self) -> None:
        allowed = PLACED.get("orbit" if self.path == "auto" else self.path, ())
        for flag in self.placing_flags:
            if flag[2:] not in allowed:
                have = [name for name, flags in PLACED.items() if flag[2:] in flags]
                raise NerfError(
                    f"{flag} is of an {', '.join(have[:-1])} or {have[-1]}; leave it out, or give "
                    "--path orbit."
                )
        for name in PLACING[1:]:
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise NerfError(f"--{name} must be a finite number, got {number}.")
        for name in ("distance", "radius"):
            number = getattr(self, name)
            if number is not None and number <= 0:
                raise NerfError(f"--{name} must be above 0, got {number}.")
        if self.turns == 0:
            raise NerfError("--turns 0 goes nowhere; --frame N is one picture of a path.")
        if self.distance is not None and self.radius is not None:
            raise NerfError(
                "--distance is from the target, --radius from the upward axis through it; give one."
            )
        if self.height is not None and self.elevation is not None:
            raise NerfError("--height and --elevation both say how high; give one.")
        if self.elevation is not None and abs(self.elevation) >= 90:
            raise NerfError(
                f"--elevation must be above -90 and below 90 degrees, got {self.elevation:g}."
            )
        if self.distance is not None and self.height is not None:
            from nerfcli.cameras.orbit import ensure_height  # needs torch

            ensure_height(self.height, self.distance)
        if self.target is not None and self.target not in TARGETS:
            parse_point(self.target)


def parse_point(text: str) -> list[float]:
    """Read --target: three finite numbers with commas.

    Raises:
        NerfError: something else, which is no name of a target either.
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        near = most_like(text, TARGETS, 0.6)
        hint = f"; did you mean {near}?" if near else "."
        raise NerfError(
            f"--target: {text!r} is no point; give x,y,z in the scene's units, or one of "
            f"{', '.join(TARGETS)}{hint}"
        )
    return numbers
