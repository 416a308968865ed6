"""Read the cameras that Agisoft Metashape exports as XML (File, Export, Export Cameras).

A camera's transform is camera to component, OpenCV's axes; the component's own transform leads on
to the reference frame. Files without components have it in the chunk. Pixels are, by the appendix
"Camera models" of its manual, with (x, y) = (X, Y) / Z (frame) or these times angle / tangent
(fisheye), and r = |(x, y)|:

    x' = x (1 + K1 r^2 + K2 r^4 + K3 r^6 + K4 r^8) + P1 (r^2 + 2 x^2) + 2 P2 x y
    y' = y (1 + K1 r^2 + K2 r^4 + K3 r^6 + K4 r^8) + P2 (r^2 + 2 y^2) + 2 P1 x y
    u = w / 2 + cx + x' (f + B1) + y' B2,    v = h / 2 + cy + y' f

so P1 and P2 change places against OpenCV's p1 and p2.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.core.text import quantity
from nerfcli.scenes.readers.arrays import parse_numbers, read_text
from nerfcli.scenes.readers.collector import (
    Collector,
    Pinhole,
    find_images,
    possible_size,
)
from nerfcli.scenes.readers.listings import list_files
from nerfcli.scenes.source import NoFrames, Source, abbreviate

MOST_FILES = 100  # that are looked into for the right one
MOST_XML = 2**26  # bytes; ten thousand cameras take a third of it
HEAD = 4096  # bytes that show what an XML file is
PARAMETERS = {
    *("f", "fx", "fy", "cx", "cy", "skew", "b1", "b2"),
    *("k1", "k2", "k3", "k4", "p1", "p2", "p3", "p4"),
}
Transform = tuple[np.ndarray, np.ndarray, float]  # rotation, translation, scale
IDENTITY: Transform = np.eye(3), np.zeros(3), 1.0
FRAME, FISHEYE, SPHERE = ("frame",), ("fisheye", "equidistant_fisheye"), ("spherical",)


def find_metashape(root: Path) -> Path | None:
    """Find the first XML file in a folder that holds a document with chunks."""
    for path in list_files(root, "*.[xX][mM][lL]")[:MOST_FILES]:
        try:
            with path.open("rb") as file:
                head = file.read(HEAD)
        except OSError:
            continue
        if b"<document" in head and b"<chunk" in head:
            return path
    return None


def read_metashape(root: Path, path: Path, wanted: SceneConfig) -> Source:
    """Read the chunk with most aligned cameras, and find the images by the cameras' labels.

    Raises:
        NerfError: a fault in the file; names sensor or camera.
    """
    chunk, notes = _chunk(_parse(path), path)
    cameras, more = _cameras(chunk, path)
    placed, unrelated = _place(cameras, chunk, path)
    sensors = {sensor.get("id", ""): sensor for sensor in chunk.iter("sensor")}
    pictures = find_images(root, [camera.get("label", "") for camera, _ in placed], wanted)
    collector = Collector(root, path, wanted, pictures=pictures, notes=notes + more + unrelated)
    intrinsics: dict[str, Pinhole] = {}
    for camera, (rotation, translation, scale) in placed:
        with collector.faults.collect():
            label, sensor = camera.get("label", ""), camera.get("sensor_id", "")
            where = f"{path}, camera {label!r}"
            if sensor not in sensors:
                raise NerfError(f"{where}: the file has no sensor {sensor!r}.")
            if sensor not in intrinsics:
                intrinsics[sensor] = _intrinsics(sensors[sensor], f"{path}, sensor {sensor}")
            values = parse_numbers(camera.findtext("transform") or "", f"{where}: transform", 16)
            pose = np.array(values).reshape(4, 4)[:3]
            pose[:, 3] *= scale
            pose = rotation @ pose
            pose[:, 3] += translation
            stated = intrinsics[sensor]
            collector.add(label, pictures.find(label), pose, stated, where, key="transform")
    return collector.finish("metashape", near_origin=True)


def _parse(path: Path) -> ElementTree.Element:
    text = read_text(path, MOST_XML)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise NerfError(f"{path} defines its own XML entities, which no camera file needs.")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise NerfError(f"{path} is broken XML ({error}). Export the cameras again.") from error


def _chunk(document: ElementTree.Element, path: Path) -> tuple[ElementTree.Element, list[str]]:
    """Choose the chunk with most aligned cameras, and name the others."""
    chunks = list(document.iter("chunk"))
    if not chunks:
        raise NoFrames(f"{path} holds no chunk; it is no camera file of Metashape.")
    best = max(chunks, key=lambda chunk: sum(1 for _ in _aligned(chunk)))
    if len(chunks) == 1:
        return best, []
    others = [chunk.get("label") or chunk.get("id") or "?" for chunk in chunks if chunk is not best]
    return best, [
        f"the chunk {best.get('label') or best.get('id')} is read, not {abbreviate(others)}"
    ]


def _aligned(chunk: ElementTree.Element) -> list[ElementTree.Element]:
    return [camera for camera in chunk.iter("camera") if camera.find("transform") is not None]


def _cameras(chunk: ElementTree.Element, path: Path) -> tuple[list[ElementTree.Element], list[str]]:
    """List the cameras that can be used, and note the others."""
    cameras = list(chunk.iter("camera"))
    off = [c for c in cameras if c.get("enabled", "true").lower() in ("0", "false")]
    usable = [c for c in _aligned(chunk) if c not in off]
    lost = [c for c in cameras if c not in usable and c not in off]
    notes = []
    for group, why in ((off, "disabled"), (lost, "not aligned")):
        if group:
            labels = abbreviate([camera.get("label", "?") for camera in group])
            notes.append(f"{len(group)} of {len(cameras)} cameras are {why}: {labels}")
    if not usable:
        raise NerfError(
            f"{path}: none of the {quantity(len(cameras), 'camera')} is aligned and enabled."
        )
    return usable, notes


def _place(
    cameras: list[ElementTree.Element], chunk: ElementTree.Element, path: Path
) -> tuple[list[tuple[ElementTree.Element, Transform]], list[str]]:
    """Pair cameras with the transform of their component, or of the chunk where it has none.

    Only transforms of their own relate components to each other. The largest group stays.
    """
    components = {c.get("id", ""): c for c in chunk.iterfind("components/component")}
    own = {
        name: _read_transform(found, f"{path}: component {name}'s")
        for name, component in components.items()
        if (found := component.find("transform")) is not None and len(found)
    }
    rest = chunk.find("transform")
    common = IDENTITY if rest is None else _read_transform(rest, f"{path}: the chunk's")
    only = next(iter(components)) if len(components) == 1 else ""
    groups: dict[str | None, list[tuple[ElementTree.Element, Transform]]] = {}
    for camera in cameras:
        name = camera.get("component_id", only)
        groups.setdefault(None if name in own else name, []).append((camera, own.get(name, common)))
    largest = max(groups.values(), key=len)
    n = len(cameras) - len(largest)
    return largest, [] if n == 0 else [
        f"{n} of {len(cameras)} aligned cameras are left out: they are in other components, which "
        "no transform relates to the largest one"
    ]


def _read_transform(transform: ElementTree.Element, where: str) -> Transform:
    """Read rotation, translation and scale; what is absent changes nothing."""
    rotation, translation, scale = IDENTITY
    if text := transform.findtext("rotation"):
        rotation = np.array(parse_numbers(text, f"{where} rotation", 9)).reshape(3, 3)
    if text := transform.findtext("translation"):
        translation = np.array(parse_numbers(text, f"{where} translation", 3))
    if text := transform.findtext("scale"):
        scale = parse_numbers(text, f"{where} scale", 1)[0]
    if not 1e-9 < scale < 1e9:
        raise NerfError(f"{where} scale is {scale:g}.")
    return rotation, translation, scale


def _intrinsics(sensor: ElementTree.Element, where: str) -> Pinhole:
    calibrations = sensor.findall("calibration")
    chosen = [c for c in calibrations if c.get("class") == "adjusted"] or calibrations
    calibration = chosen[0] if chosen else None
    size = _size(sensor, calibration, where)
    kind = sensor.get("type", "frame") if calibration is None else calibration.get("type", "frame")
    if kind in SPHERE:
        return Pinhole(*panorama(size), size, Lens("equirectangular"))
    if kind not in FRAME + FISHEYE:
        raise NerfError(
            f"{where}: cameras of type {kind[:40]!r} are not supported; export undistorted images "
            "(File, Export, Convert Images)."
        )
    if calibration is None:
        raise NerfError(f"{where} has no calibration; align the photos first.")
    found = {
        child.tag: parse_numbers(child.text or "", f"{where}: {child.tag}", 1)[0]
        for child in calibration
        if child.tag in PARAMETERS
    }
    lens = _lens(found, kind in FISHEYE, where)
    if "fx" in found:  # PhotoScan before 1.3: from the corner, not from the middle
        focal = (found["fx"], found.get("fy", found["fx"]))
        principal = (found.get("cx", size[0] / 2), found.get("cy", size[1] / 2))
        return Pinhole(focal, principal, size, lens, found.get("skew", 0.0))
    if "f" not in found:
        raise NerfError(f"{where}: the calibration has no focal length f.")
    focal = (found["f"] + found.get("b1", 0.0), found["f"])
    principal = (size[0] / 2 + found.get("cx", 0.0), size[1] / 2 + found.get("cy", 0.0))
    return Pinhole(focal, principal, size, lens, found.get("b2", 0.0))


def _lens(found: dict[str, float], is_fisheye: bool, where: str) -> Lens:
    if any(found.get(name) for name in ("p3", "p4")):
        raise NerfError(f"{where}: p3 and p4 are not supported; export undistorted images.")
    named = {name: found.get(name, 0.0) for name in ("k1", "k2", "k3", "k4")}
    p1, p2 = found.get("p2", 0.0), found.get("p1", 0.0)
    if is_fisheye and not (p1 or p2):
        return Lens.of("fisheye", **named)
    return Lens.of("thin_prism_fisheye" if is_fisheye else "brown", **named, p1=p1, p2=p2)


def _size(
    sensor: ElementTree.Element, calibration: ElementTree.Element | None, where: str
) -> tuple[int, int]:
    for element in (calibration, sensor):
        resolution = None if element is None else element.find("resolution")
        if resolution is not None:
            text = f"{resolution.get('width', '')} {resolution.get('height', '')}"
            width, height = parse_numbers(text, f"{where}: resolution", 2)
            return possible_size(width, height, where)
    raise NerfError(f"{where} has no resolution.")
