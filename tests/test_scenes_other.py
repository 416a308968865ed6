"""Sources of other tools: cameras and pixels agree with the rig that they were written from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import source_writers as writers
import torch
from PIL import Image
from source_writers import HEIGHT, POINTS, WIDTH, Rig

from nerfcli.core.config import SceneConfig
from nerfcli.core.errors import NerfError
from nerfcli.scenes import Source, load_scene, read_source
from nerfcli.scenes.readers import arrays
from nerfcli.scenes.writers.convert import WriteOptions, write_scene

MIDDLE = {"cx": WIDTH / 2, "cy": HEIGHT / 2}


def project(source: Source, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Where the source's cameras see POINTS, [n, m, 2]."""
    seen = []
    for frame in source.frames:
        local = (POINTS + offset - frame.c2w[:, 3]) @ frame.c2w[:, :3]
        plane = frame.lens.project(torch.from_numpy(local)).numpy()
        seen.append(plane * frame.focal + frame.principal)
    return np.stack(seen)


INTRINSICS: dict[str, dict[str, float]] = {  # that the format can hold
    **dict.fromkeys(writers.WRITERS, {"fy": 31.0}),
    "metashape": {"fx": 31.0},
    "realitycapture": {},
    "bundler": MIDDLE,
}
BENT = ("metashape", "realitycapture")


@pytest.mark.parametrize("kind", INTRINSICS)
def test_pixels_of_all_points_agree_with_the_rig(tmp_path: Path, kind: str) -> None:
    rig = writers.rig(5, **INTRINSICS[kind])
    writers.WRITERS[kind](tmp_path, rig)
    source = read_source(tmp_path)
    assert source.kind == kind
    want = rig.project(POINTS, writers.brown) if kind in BENT else rig.project(POINTS)
    if kind == "bundler":
        want = np.delete(want, 1, axis=0)
    if kind == "nerf++":  # by names: test, train, validation
        want = want[[4, 0, 1, 2, 3]]
    moved = np.array([3.0, 2.0, 1.0]) if kind == "metashape" else 0.0
    np.testing.assert_allclose(project(source, moved), want, atol=1e-5)
    assert all(frame.image is not None for frame in source.frames)
    scene = load_scene(tmp_path, SceneConfig(holdout=2))
    assert scene.splits["train"] and scene.splits["test"]


@pytest.mark.parametrize("kind", INTRINSICS)
def test_what_is_read_is_converted(tmp_path: Path, kind: str) -> None:
    writers.WRITERS[kind](tmp_path / "there", writers.rig(5, **INTRINSICS[kind]))
    source = read_source(tmp_path / "there")
    (tmp_path / "here").mkdir()
    write_scene(source, tmp_path / "here", WriteOptions("transforms"))
    again = read_source(tmp_path / "here")
    np.testing.assert_allclose(project(again), project(source), atol=1e-6)
    assert [f.split for f in again.frames] == [f.split for f in source.frames]


@pytest.mark.parametrize("kind", ["metashape", "realitycapture", "bundler"])
@pytest.mark.parametrize("folder", ["masks", "Depth", "depth_maps", "confidence", "a_previews"])
def test_what_lies_beside_photos_is_not_taken_for_them(
    tmp_path: Path, kind: str, folder: str
) -> None:
    writers.WRITERS[kind](tmp_path, writers.rig(3, **INTRINSICS[kind]))
    photos = [path for path in tmp_path.rglob("*") if path.suffix.lower() == ".jpg"]
    for path in photos:  # their folder comes last, other files have their names
        (tmp_path / "zoo").mkdir(exist_ok=True)
        path.rename(tmp_path / "zoo" / path.name)
        writers.photo(tmp_path / folder / f"{path.stem}.png", 255)
    for text in (*tmp_path.glob("*.txt"), *tmp_path.glob("*.xml")):
        named = text.read_text().replace("photos/", "")
        labels = re.sub(r'(label="DSC_\d+)"', r'\1.jpg"', named) if folder[0] == "a" else named
        text.write_text(labels.replace(".jpg", ".JPG") if kind == "metashape" else labels)
    frames = read_source(tmp_path).frames
    assert {frame.image.parent.name for frame in frames if frame.image} == {"zoo"}


def test_very_names_win_over_other_extensions_in_usual_folders(tmp_path: Path) -> None:
    writers.write_bundler(tmp_path, writers.rig(3, **MIDDLE))
    (tmp_path / "list.txt").write_text("0.jpg\n1.jpg\n2.jpg\n")
    for i in range(3):
        writers.photo(tmp_path / f"images/{i}.png")
    frames = read_source(tmp_path).frames
    assert {frame.image.parent.name for frame in frames if frame.image} == {"photos"}


def test_the_one_of_several_folders_of_photos_is_named(tmp_path: Path) -> None:
    writers.write_realitycapture(tmp_path, writers.rig(3))
    for path in sorted(tmp_path.glob("*.jpg")):
        for folder in ("first", "second"):
            writers.photo(tmp_path / folder / path.name)
        path.unlink()
    notes = read_source(tmp_path).notes
    assert any("each of first, second holds all images, first is read" in n for n in notes), notes
    assert len(notes) <= 3


# NeuS


def test_neus_box_is_the_unit_sphere_and_its_surroundings(tmp_path: Path) -> None:
    writers.write_neus(tmp_path, writers.rig(4))
    box = read_source(tmp_path).box
    assert box is not None and box.half_size == pytest.approx(1.5) and box.n_cascades > 1
    assert box.center == pytest.approx((0.1, -0.2, 0.3))


def test_neus_masks_make_the_rest_transparent(tmp_path: Path) -> None:
    writers.write_neus(tmp_path, writers.rig(4), "cameras.npz")
    for i in range(4):
        writers.photo(tmp_path / f"mask/{i:03d}.png", 255, "L")
    source = read_source(tmp_path / "cameras.npz")
    assert all(frame.alpha is not None and frame.has_alpha for frame in source.frames)
    assert source.box is not None and source.box.n_cascades == 1
    (tmp_path / "mask/002.png").unlink()
    source = read_source(tmp_path)
    assert not any(frame.has_alpha for frame in source.frames)
    assert any("3 of 4" in note for note in source.notes)


def test_neus_principal_points_in_the_very_middle_are_counted_from_the_corner(
    tmp_path: Path,
) -> None:
    writers.write_neus(tmp_path, writers.rig(3, cx=WIDTH / 2 + 0.5, cy=HEIGHT / 2 + 0.5))
    source = read_source(tmp_path)
    np.testing.assert_allclose(source.frames[0].principal, (WIDTH / 2, HEIGHT / 2), atol=1e-5)
    assert any("corner" in note for note in source.notes)


def test_neus_with_fewer_images_pairs_by_number(tmp_path: Path) -> None:
    rig = writers.rig(4)
    writers.write_neus(tmp_path, rig)
    (tmp_path / "image/001.png").unlink()
    want = np.delete(rig.project(POINTS), 1, axis=0)
    source = read_source(tmp_path)
    np.testing.assert_allclose(project(source), want, atol=1e-5)
    assert any("1 of 4 images" in note and "world_mat_1" in note for note in source.notes)


@pytest.mark.parametrize("absent", [1, 3, 4])
def test_neus_names_that_count_from_1_are_not_taken_for_others(tmp_path: Path, absent: int) -> None:
    rig = writers.rig(4)
    writers.write_neus(tmp_path, rig)
    for i in (3, 2, 1, 0):
        (tmp_path / f"image/{i:03d}.png").rename(tmp_path / f"image/{i + 1:03d}.png")
    np.testing.assert_allclose(project(read_source(tmp_path)), rig.project(POINTS), atol=1e-5)
    (tmp_path / f"image/{absent:03d}.png").unlink()
    if absent == 4:
        with pytest.raises(NerfError, match="do not tell which"):
            read_source(tmp_path)
        return
    want = np.delete(rig.project(POINTS), absent - 1, axis=0)
    np.testing.assert_allclose(project(read_source(tmp_path)), want, atol=1e-5)


def spoil_neus(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    path = folder / "cameras_sphere.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(path, allow_pickle=True, **arrays)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: [a.pop(name) for name in list(a) if "world" in name], "no world_mat"),
        (lambda a: a["world_mat_1"].fill(np.nan), "not finite"),
        (lambda a: a["world_mat_1"].fill(0.0), "no projection matrix"),
        (lambda a: a.update(world_mat_1=np.ones((3, 3))), "4 columns"),
        (lambda a: a.update(world_mat_1=np.array([["x"]], object)), "not a NumPy file"),
        (lambda a: a.update(world_mat_1=np.ones((9000, 4))), "too large"),
        (lambda a: a.pop("world_mat_3"), "holds 4 images"),
        (lambda a: [a[f"world_mat_{i}"].__imul__([[1], [-1], [1], [1]]) for i in range(4)], "away"),
        (lambda a: a["scale_mat_0"].fill(0.0), "impossible"),
        (lambda a: a["world_mat_0"].__setitem__(0, a["world_mat_0"][:2].sum(0)), "skewed"),
    ],
)
def test_neus_faults_are_named(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], word: str
) -> None:
    writers.write_neus(tmp_path, writers.rig(4))
    if word == "holds 4 images":
        (tmp_path / "image/003.png").rename(tmp_path / "image/a.png")
    spoil_neus(tmp_path, change)
    with pytest.raises(NerfError, match=word):
        read_source(tmp_path)


# NSVF


def test_nsvf_splits_box_and_the_short_intrinsics(tmp_path: Path) -> None:
    rig = writers.rig(5)
    writers.write_nsvf(tmp_path, rig, srn=True)
    source = read_source(tmp_path)
    np.testing.assert_allclose(project(source), rig.project(POINTS), atol=1e-5)
    assert [frame.split for frame in source.frames] == ["train"] * 3 + ["val", "test"]
    assert source.box is not None and source.box.half_size == 1.0
    assert source.box.center == (0.0, -0.5, 0.5)


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("intrinsics.txt", "", "4x4 matrix"),
        ("intrinsics.txt", "1 2\n3 4\n", "4x4 matrix"),
        ("intrinsics.txt", "30 nan 8 0\n", "not finite"),
        ("intrinsics.txt", "30 x 8 0\n", "expected numbers"),
        ("intrinsics.txt", "30 12 8 0\n0 24\n", "cannot be a size"),
        ("intrinsics.txt", "30 0 12\n5 30 8\n0 0 1\n", "intrinsic matrix"),
        ("bbox.txt", "1 1 1 -1 -1 -1 0.4", "impossible"),
        ("bbox.txt", "1 1 1", "6 numbers"),
        ("pose/0_0000.txt", "1 0 0 0\n0 1 0 0\n", "4x4 matrix"),
        ("pose/0_0000.txt", "-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "mirrored"),
    ],
)
def test_nsvf_faults_are_named(tmp_path: Path, file: str, text: str, word: str) -> None:
    writers.write_nsvf(tmp_path, writers.rig(5))
    (tmp_path / file).write_text(text)
    with pytest.raises(NerfError, match=word):
        read_source(tmp_path)


# NeRF++


def test_nerfplusplus_splits_and_camera_path(tmp_path: Path) -> None:
    writers.write_nerfplusplus(tmp_path, writers.rig(5))
    writers.photo(tmp_path / "train/mask/00000.png", 255, "L")
    with pytest.raises(NerfError, match="1 file for 3 poses"):
        read_source(tmp_path)
    for i in (1, 2):
        writers.photo(tmp_path / f"train/mask/{i:05d}.png", 255, "L")
    source = read_source(tmp_path)
    assert sorted(str(frame.split) for frame in source.frames) == ["test", *["train"] * 3, "val"]
    assert sum(frame.mask is not None for frame in source.frames) == 3
    assert any("camera_path has 1 camera and no images" in note for note in source.notes)
    (tmp_path / "train/pose/00000.txt").write_text("1 2 3")
    with pytest.raises(NerfError, match="4x4 matrix"):
        read_source(tmp_path)


# Polycam, Record3D, SDFStudio


def test_polycam_depth_confidence_and_raw_cameras(tmp_path: Path) -> None:
    writers.write_polycam(tmp_path, writers.rig(3), corrected="")
    writers.photo(tmp_path / "keyframes/depth/1000040.png", 9, "L")
    writers.photo(tmp_path / "keyframes/confidence/1000040.png", 9, "L")
    source = read_source(tmp_path)
    depths = [frame.depth for frame in source.frames]
    assert depths[1] is not None and depths[1].scale == 1e-3 and not depths[1].is_euclidean
    assert depths[0] is None and source.beyond
    assert any("no corrected cameras" in note for note in source.notes)
    assert len(read_source(tmp_path / "keyframes").frames) == 3


@pytest.mark.parametrize("key", ["fx", "cy", "t_00", "t_23"])
@pytest.mark.parametrize("value", [None, "a", float("nan"), 1e300])
def test_polycam_faults_are_named(tmp_path: Path, key: str, value: object) -> None:
    writers.write_polycam(tmp_path, writers.rig(2))
    path = tmp_path / "keyframes/corrected_cameras/1000000.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {key: value}))
    with pytest.raises(NerfError, match="1000000.json"):
        read_source(tmp_path)


def test_record3d_of_the_other_export_with_cameras_of_their_own(tmp_path: Path) -> None:
    rig = writers.rig(3)
    writers.write_record3d(tmp_path / "EXR_RGBD", rig, "rgb")
    path = tmp_path / "EXR_RGBD/metadata.json"
    data = json.loads(path.read_text())
    data |= {"perFrameIntrinsicCoeffs": [[30, 30, 12.5, 7.25]] * 3, "K": None}
    path.write_text(json.dumps(data))
    (tmp_path / "EXR_RGBD/rgb/1.jpg").unlink()
    source = read_source(tmp_path)
    np.testing.assert_allclose(
        project(source), np.delete(rig.project(POINTS), 1, axis=0), atol=1e-5
    )
    assert any("1 of 3 images" in note for note in source.notes)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"poses": []}, "no poses"),
        ({"poses": [[0, 0, 0, 1, 0, 0]]}, "7 numbers"),
        ({"poses": [[0, 0, 0, 2, 0, 0, 0]]}, "quaternion"),
        ({"poses": [[0, 0, 0, None, 0, 0, 0]]}, "finite number"),
        ({"K": [30, 0, 0]}, "4 or 9"),
        ({"w": "x"}, "metadata: w"),
        ({"h": 0}, "cannot be a size"),
        ({"w": 16, "h": 24}, "shapes differ"),
    ],
)
def test_record3d_faults_are_named(tmp_path: Path, change: dict[str, object], word: str) -> None:
    writers.write_record3d(tmp_path, writers.rig(2))
    path = tmp_path / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(NerfError, match=word):
        read_source(tmp_path)


def test_sdfstudio_masks_box_and_faults(tmp_path: Path) -> None:
    writers.write_sdfstudio(tmp_path, writers.rig(2))
    path = tmp_path / "meta_data.json"
    data = json.loads(path.read_text())
    for i, frame in enumerate(data["frames"]):
        frame["foreground_mask"] = f"{i}_mask.png"
        writers.photo(tmp_path / f"{i}_mask.png", 255, "L")
    path.write_text(json.dumps(data | {"has_foreground_mask": True, "worldtogt": [[2]]}))
    source = read_source(tmp_path)
    assert all(frame.has_alpha for frame in source.frames)
    assert source.box is not None and source.box.half_size == 1.0
    assert source.beyond[0][0] == "worldtogt"
    for change, word in (
        ({"frames": 3}, "no list of frames"),
        ({"frames": [{}]}, "no rgb_path"),
        ({"frames": [{**data["frames"][0], "intrinsics": [1]}]}, "intrinsics"),
        ({"frames": [{**data["frames"][0], "camtoworld": [1]}]}, "camtoworld"),
        ({"scene_box": {"aabb": [1]}}, "two corners"),
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(NerfError, match=word):
            read_source(tmp_path)


# Metashape


def test_metashape_leaves_out_cameras_that_are_off_or_not_aligned(tmp_path: Path) -> None:
    writers.write_metashape(tmp_path, writers.rig(3))
    source = read_source(tmp_path / "cameras.xml")
    assert len(source.frames) == 3
    assert any("1 of 5 cameras are disabled: off" in note for note in source.notes)
    assert any("1 of 5 cameras are not aligned: lost" in note for note in source.notes)


def test_metashape_of_the_earth_is_moved_near_the_origin(tmp_path: Path) -> None:
    rig = writers.rig(3, fx=31.0)
    offset = (4_000_000.25, 500_000.5, -3.0e6)
    writers.write_metashape(tmp_path, rig, offset)
    source = read_source(tmp_path)
    moved = source.applied_transform
    assert moved is not None and any("origin is moved" in note for note in source.notes)
    assert np.abs([frame.c2w[:, 3] for frame in source.frames]).max() < 10
    want = rig.project(POINTS, writers.brown)
    np.testing.assert_allclose(project(source, np.array(offset) + moved[:, 3]), want, atol=1e-4)


def test_metashape_fisheye_bends_what_the_angle_makes_of_the_plane(tmp_path: Path) -> None:
    rig = writers.rig(3, fx=31.0)
    writers.write_metashape(tmp_path, rig)
    path = tmp_path / "cameras.xml"
    path.write_text(path.read_text().replace('"frame"', '"fisheye"'))

    def fisheye(xy: np.ndarray) -> np.ndarray:
        r = np.linalg.norm(xy, axis=-1, keepdims=True)
        return writers.brown(xy * np.arctan(r) / r)

    want = rig.project(POINTS, fisheye)
    got = project(read_source(tmp_path), np.array([3.0, 2.0, 1.0]))
    np.testing.assert_allclose(got, want, atol=1e-5)


def in_components(text: str, *transforms: str) -> str:
    """Move the chunk's transform to components; camera i belongs to component i % n."""
    start, end = text.index("<transform><rotation>"), text.index("</chunk>")
    made = "".join(
        f'<component id="{i}" label="Component {i + 1}">{transform}</component>'
        for i, transform in enumerate(transforms)
    )
    text = text[:start] + f"<components>{made}</components>" + text[end:]
    for i in range(9):
        text = text.replace(
            f'label="DSC_{i:04d}"', f'component_id="{i % len(transforms)}" label="DSC_{i:04d}"'
        )
    return text


def test_metashape_components_have_transforms_of_their_own(tmp_path: Path) -> None:
    rig = writers.rig(5, fx=31.0)
    writers.write_metashape(tmp_path, rig)
    path = tmp_path / "cameras.xml"
    text = path.read_text()
    own = text[text.index("<transform><rotation>") : text.index("</chunk>")]
    want = rig.project(POINTS, writers.brown)
    offset = np.array([3.0, 2.0, 1.0])
    for transforms in ([own], [own, own]):
        path.write_text(in_components(text, *transforms))
        source = read_source(tmp_path)
        np.testing.assert_allclose(project(source, offset), want, atol=1e-5)
        assert not any("components" in note for note in source.notes)
    other = "<transform><scale>7</scale></transform>"  # the chunk's, which does not count
    path.write_text(in_components(text, own).replace("</chunk>", other + "</chunk>"))
    np.testing.assert_allclose(project(read_source(tmp_path), offset), want, atol=1e-5)


def test_metashape_components_without_transforms_are_unrelated(tmp_path: Path) -> None:
    writers.write_metashape(tmp_path, writers.rig(5))
    path = tmp_path / "cameras.xml"
    path.write_text(in_components(path.read_text(), "", "<transform/>"))
    source = read_source(tmp_path)
    assert [frame.name[-8:-4] for frame in source.frames] == ["0000", "0002", "0004"]
    assert any("2 of 5 aligned cameras are left out" in note for note in source.notes)


def test_metashape_cameras_with_one_label_can_be_left_out(tmp_path: Path) -> None:
    writers.write_metashape(tmp_path, writers.rig(5))
    path = tmp_path / "cameras.xml"
    path.write_text(path.read_text().replace("DSC_0003", "DSC_0001"))
    with pytest.raises(NerfError, match="memory cards .* Of 5 frames 2 cannot be used; --skip-bad"):
        read_source(tmp_path)
    source = read_source(tmp_path, SceneConfig(skip_bad_frames=True))
    assert [frame.name[-8:-4] for frame in source.frames] == ["0000", "0002", "0004"]
    assert sum("left out" in note for note in source.notes) == 1


def test_metashape_skew_is_told(tmp_path: Path) -> None:
    writers.write_metashape(tmp_path, writers.rig(2))
    path = tmp_path / "cameras.xml"
    whole = path.read_text()
    path.write_text(whole.replace("<k1>", "<b2>0.5</b2><k1>"))
    assert any("skew is not used" in note for note in read_source(tmp_path).notes)
    path.write_text(whole.replace("<k1>", "<b2>9</b2><k1>"))
    with pytest.raises(NerfError, match="skewed by"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("</document>", "", "broken XML"),
        ("<document", '<!DOCTYPE d [<!ENTITY a "b">]><document', "entities"),
        ('type="frame" class="adjusted"', 'type="rpc" class="adjusted"', "'rpc' are not supported"),
        ("<f>30.0", "<f>nan", "not finite"),
        ("<f>30", "<g>", "broken XML"),
        ("<scale>2.5", "<scale>2.5e300", "absurd"),
        ('sensor_id="0"', 'sensor_id="7"', "no sensor '7'"),
        ("<transform>", "<transform>1 ", "expected 16 numbers"),
        ("<scale>2.5", "<scale>0", "scale is 0"),
        ("<rotation>", "<rotation>1 ", "expected 9 numbers"),
        ('width="24"', 'width="0"', "cannot be a size"),
        ("<transform>", "<moved>", "broken XML"),
        ("<k1>", "<p3>0.1</p3><k1>", "p3 and p4"),
        ("DSC", "IMG", "none of the 2 images exists"),
    ],
)
def test_metashape_faults_are_named(tmp_path: Path, old: str, new: str, word: str) -> None:
    writers.write_metashape(tmp_path, writers.rig(2))
    path = tmp_path / "cameras.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(NerfError, match=word):
        read_source(path)


# RealityCapture


def test_realitycapture_reads_other_separators_and_names_what_is_missing(tmp_path: Path) -> None:
    rig = writers.rig(4)
    writers.write_realitycapture(tmp_path, rig)
    path = tmp_path / "registration.csv"
    path.write_text("#cameras 4\r\n" + path.read_text().replace(",", ";").replace("\n", "\r\n"))
    (tmp_path / "photo 2.jpg").unlink()
    source = read_source(tmp_path)
    want = np.delete(rig.project(POINTS, writers.brown), 2, axis=0)
    np.testing.assert_allclose(project(source), want, atol=1e-5)
    assert any("1 of 4 images" in note for note in source.notes)


def test_realitycapture_of_a_map_is_moved_near_the_origin(tmp_path: Path) -> None:
    rig = writers.rig(3)
    far = rig.c2w.copy()
    far[:, :3, 3] += [500_000.0, 4_000_000.0, 0.0]
    writers.write_realitycapture(tmp_path, Rig(far))
    source = read_source(tmp_path)
    assert source.applied_transform is not None
    offset = source.applied_transform[:, 3] + [500_000.0, 4_000_000.0, 0.0]
    np.testing.assert_allclose(
        project(source, offset), rig.project(POINTS, writers.brown), atol=1e-4
    )


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (",heading", ",yaw", "heading"),
        ("photo 0.jpg,", "photo 0.jpg,1,", "columns"),
        ("photo 0.jpg,", "photo 0.jpg,x", "line 2: x: expected numbers"),
        ("photo", "other", "none of the 2 images exists"),
        ("photo 1", "photo 0", "more than once"),
    ],
)
def test_realitycapture_faults_are_named(tmp_path: Path, old: str, new: str, word: str) -> None:
    writers.write_realitycapture(tmp_path, writers.rig(2))
    path = tmp_path / "registration.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(NerfError, match=word):
        read_source(path)


# Bundler


def test_bundler_points_are_seen_where_its_views_say(tmp_path: Path) -> None:
    rig = writers.rig(4, **MIDDLE)
    writers.write_bundler(tmp_path, rig)
    source = read_source(tmp_path)
    points = source.points
    assert points is not None and points.rgb is not None
    np.testing.assert_allclose(points.xyz, POINTS)
    assert points.rgb[7].tolist() == [7, 20, 30]
    np.testing.assert_allclose(project(source)[points.frame, points.point], points.xy, atol=1e-5)
    assert any("1 of 4 cameras are not part" in note for note in source.notes)
    assert len(read_source(tmp_path / "bundle/bundle.out").frames) == 3
    writers.put(tmp_path / "list.txt", "".join(f"photos/{i}.jpg\n" for i in (0, 1, 2, 2)))
    left = read_source(tmp_path, SceneConfig(skip_bad_frames=True))
    assert left.points is not None and set(left.points.frame) == {0}


@pytest.mark.parametrize(
    ("file", "old", "new", "word"),
    [
        ("bundle/bundle.out", "4 30\n", "4 31\n", "truncated"),
        ("bundle/bundle.out", "4 30\n", "-4 30\n", "whole numbers"),
        ("bundle/bundle.out", "4 30\n", "3 30\n", "3 cameras, and its list 4"),
        ("bundle/bundle.out", "30.0 0 0\n", "nan 0 0\n", "not finite"),
        ("bundle/bundle.out", "30.0 0 0\n", "x 0 0\n", "line 3: expected numbers"),
        ("bundle/bundle.out", "30.0 0 0\n", "-30.0 0 0\n", "focal length"),
        ("bundle/bundle.out", "\n3 0 0 ", "\n3 9 0 ", "camera 9, of 4"),
        ("list.txt", "photos/", "lost/", "none of the 3 images exists"),
    ],
)
def test_bundler_faults_are_named(tmp_path: Path, file: str, old: str, new: str, word: str) -> None:
    writers.write_bundler(tmp_path, writers.rig(4, **MIDDLE))
    path = tmp_path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(NerfError, match=word):
        read_source(tmp_path)
    (tmp_path / "list.txt").unlink()
    with pytest.raises(NerfError, match="needs its list"):
        read_source(tmp_path)


@pytest.mark.parametrize("block", [40, 2**22])
def test_bundler_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    writers.write_bundler(tmp_path, writers.rig(4, **MIDDLE), POINTS[:2])
    path = tmp_path / "bundle/bundle.out"
    want = read_source(tmp_path).points
    monkeypatch.setattr(arrays, "BLOCK", block)
    text = path.read_text().replace("\n", "\n# and\n", 20)
    path.write_text(text)
    got = read_source(tmp_path).points
    assert want is not None and got is not None
    np.testing.assert_array_equal(got.xyz, want.xyz)
    np.testing.assert_array_equal(got.xy, want.xy)
    path.write_text(text + "1 2 1e300")
    with pytest.raises(NerfError, match=f"line {len(text.splitlines()) + 1} has absurd values"):
        read_source(tmp_path)


def test_bundler_may_be_a_large_file_without_points(tmp_path: Path) -> None:
    writers.write_bundler(tmp_path, writers.rig(4, **MIDDLE), POINTS[:0])
    assert read_source(tmp_path).points is None
    path = tmp_path / "bundle/bundle.out"
    os.truncate(path, 2**28 + 1)  # with zeros that take no space
    with pytest.raises(NerfError, match="expected numbers"):
        read_source(tmp_path)
    os.truncate(path, 2**30 + 1)
    with pytest.raises(NerfError, match="absurdly large"):
        read_source(tmp_path)


# what is known and not read


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("reconstruction.json", "OpenSfM"),
        ("model.nvm", "Bundler"),
        ("scan.psx", "Export Cameras"),
        ("scene.sfm", "Meshroom"),
        ("capture.r3d", "unpack"),
        ("scene.blend", "BlenderNeRF"),
        ("point_cloud.ply", "photos"),
        ("IMG_1.JPG", "nerf prepare"),
        ("garden/transforms.json", "Scenes within it: .*garden"),
        ("other.txt", "no known format. Looked for: .*NSVF"),
    ],
)
def test_known_captures_that_are_not_read_are_named(tmp_path: Path, file: str, word: str) -> None:
    writers.put(tmp_path / file, "x")
    with pytest.raises(NerfError, match=word):
        read_source(tmp_path)


@pytest.mark.parametrize("kind", INTRINSICS)
def test_each_image_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    writers.WRITERS[kind](tmp_path, writers.rig(3, **INTRINSICS[kind]))
    opened = []
    original = Image.open

    def count(path: Path) -> Image.Image:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(Image, "open", count)
    frames = read_source(tmp_path).frames
    assert len(opened) == len(frames) > 1


# what other systems leave behind


@pytest.mark.parametrize("kind", INTRINSICS)
def test_files_of_apple_double_are_not_read(tmp_path: Path, kind: str) -> None:
    writers.WRITERS[kind](tmp_path, writers.rig(5, **INTRINSICS[kind]))
    want = read_source(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    source = read_source(tmp_path)
    assert source.notes == want.notes
    np.testing.assert_array_equal(project(source), project(want))


def test_photos_of_apple_double_are_no_photos(tmp_path: Path) -> None:
    writers.put(tmp_path / "._IMG_1.JPG", "x")
    with pytest.raises(NerfError) as caught:
        read_source(tmp_path)
    assert "nerf prepare" not in str(caught.value)


# what the user says


@pytest.mark.parametrize("kind", INTRINSICS)
def test_images_elsewhere_and_a_bad_frame(tmp_path: Path, kind: str) -> None:
    root, there = tmp_path / "scene", tmp_path / "photos"
    writers.WRITERS[kind](root, writers.rig(5, **INTRINSICS[kind]))
    source = read_source(root)
    spoilt = source.frames[2].image
    assert spoilt is not None
    whole = spoilt.read_bytes()
    spoilt.write_bytes(b"no image")
    with pytest.raises(NerfError, match="--skip-bad-frames"):
        read_source(root)
    left = read_source(root, SceneConfig(skip_bad_frames=True))
    assert len(left.frames) == len(source.frames) - 1
    np.testing.assert_array_equal(left.frames[2].c2w, source.frames[3].c2w)
    spoilt.write_bytes(whole)
    there.mkdir()
    for frame in source.frames:
        assert frame.image is not None
        place = there / ("photos/" if kind == "bundler" else "") / frame.image.name
        place.parent.mkdir(exist_ok=True)
        frame.image.rename(place)
    with pytest.raises(NerfError):
        read_source(root)
    given = SceneConfig(images=str(there))
    if kind == "nerf++":
        with pytest.raises(NerfError, match="splits have their own"):
            read_source(root, given)
        return
    again = read_source(root, given)
    np.testing.assert_array_equal(project(again), project(source))
