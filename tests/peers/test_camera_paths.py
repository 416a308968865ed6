"""nerfstudio and COLMAP cast the same rays through the pixels of the paths that we read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_convert
import torch
from test_path_files import SIZE, TYPES, camera_path, poses, write
from test_scenes_colmap import capture

from nerfcli.scenes import load_scene
from nerfcli.scenes.path_frames import KnownFrames, known_frames
from nerfcli.scenes.read_path import read_path

pytestmark = pytest.mark.peers
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("camera_type", TYPES)
def test_nerfstudio_casts_the_rays_of_its_path(camera_type: str | None, tmp_path: Path) -> None:
    paths = pytest.importorskip("nerfstudio.cameras.camera_paths", reason="no nerfstudio")
    types = pytest.importorskip("nerfstudio.cameras.cameras").CameraType
    data = camera_path(camera_type, poses(3))
    found = read_path(write(tmp_path / "camera_path.json", data), KnownFrames(), SIZE).cameras
    theirs = paths.get_path_from_json(data)
    right = {
        types.OMNIDIRECTIONALSTEREO_L.value: types.OMNIDIRECTIONALSTEREO_R.value,
        types.VR180_L.value: types.VR180_R.value,
    }.get(int(theirs.camera_type[0]))
    eyes = [theirs] if right is None else [theirs, replace(theirs)]
    if right is not None:
        eyes[1].camera_type = torch.full_like(theirs.camera_type, right)
    for i in range(3):
        bundles = [eye.generate_rays(camera_indices=i) for eye in eyes]
        axis = 1 if camera_type == "vr180" else 0
        rays = found.image_rays(i)
        for name in ("origins", "directions"):
            wanted = torch.cat([getattr(bundle, name) for bundle in bundles], dim=axis)
            torch.testing.assert_close(getattr(rays, name), wanted.reshape(-1, 3), **CLOSE)


def test_colmap_casts_the_rays_of_its_model(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    capture(tmp_path)
    found = read_path(tmp_path, KnownFrames(), SIZE).cameras
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    images = {image.name: image for image in model.images.values()}
    # in the natural order of these names
    names = sorted(images, key=lambda name: (len(name), name))
    assert len(found) == len(names)
    for i, name in enumerate(names):
        image = images[name]
        camera, pose = model.cameras[image.camera_id], image.cam_from_world()
        x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        plane = camera.cam_from_img(np.stack([x, y], axis=-1).reshape(-1, 2))
        local = np.concatenate([plane[:, :2], np.ones((len(plane), 1))], axis=1)
        rotation = pose.rotation.matrix()
        directions = local @ rotation  # the inverse of the rotation, for rows
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        rays = found.image_rays(i)
        np.testing.assert_allclose(rays.directions.numpy(), directions, **CLOSE)
        origin = -rotation.T @ pose.translation
        np.testing.assert_allclose(rays.origins[0].numpy(), origin, **CLOSE)


def test_nerfstudios_frame_leads_back_to_the_poses_of_the_scene(tmp_path: Path) -> None:
    """The cameras of its data parser, as a path, are those of our reader."""
    name = "nerfstudio.data.dataparsers.nerfstudio_dataparser"
    parsers = pytest.importorskip(name, reason="no nerfstudio")
    applied, scale = poses(1, seed=7)[0][:3].tolist(), 0.5
    test_convert.capture(tmp_path, 12, applied_transform=applied, applied_scale=scale)
    config = parsers.NerfstudioDataParserConfig(data=tmp_path, eval_mode="all")
    parsed = config.setup().get_dataparser_outputs("train")
    parsed.save_dataparser_transform(tmp_path / "dataparser_transforms.json")
    c2w = np.tile(np.eye(4), (len(parsed.cameras), 1, 1))
    c2w[:, :3] = parsed.cameras.camera_to_worlds.numpy()
    file = write(tmp_path / "camera_path.json", camera_path("perspective", c2w))
    scene = load_scene(tmp_path)
    known = known_frames(scene.to_json(), scene, tmp_path, None)
    found = read_path(file, known, SIZE).cameras
    source = scene.scene_from_source.inverse().apply_c2w(scene.cameras.c2w)
    order = [scene.names.index(f"images/{file.name}") for file in parsed.image_filenames]
    torch.testing.assert_close(found.c2w, source[order], **CLOSE)
