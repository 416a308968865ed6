"""Check before training that the held-out views can be read; training does not read them."""

from __future__ import annotations

from nerfcli.core.errors import NerfError
from nerfcli.scenes.image_cache import ensure_size, image_path
from nerfcli.scenes.images import ensure_complete, image_header
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.source import abbreviate


def ensure_held_out(scene: Scene) -> None:
    """Raise NerfError if `load_views` could not read the test views.

    Only headers and ends of the files are read (`images.ensure_complete`).
    """
    for camera in scene.splits.get("test", ()):
        try:
            path = image_path(scene, camera)
            width, height, _, turned = image_header(path)
            sizes = [(width, height), (height, width)] if turned else [(width, height)]
            ensure_size(
                scene,
                camera,
                path,
                [(w // scene.downscale, h // scene.downscale) for w, h in sizes],
            )
            for file in (path, scene.alpha_paths[camera], scene.mask_paths[camera]):
                if file is not None:
                    ensure_complete(file)
        except NerfError as error:
            raise NerfError(
                f"{error} It belongs to a held-out view, by which the run is judged: put it right, "
                "or take the frame out of the scene."
            ) from error


def odd_shapes(scene: Scene) -> str | None:
    """Return a remark on test views of another shape than the training views, or None.

    Only where files state no sizes (Blender): the angle of view is then taken for each width, so
    that a squeezed or turned image would be rendered through a wrong camera.
    """
    train, test = scene.splits["train"], scene.splits.get("test", ())
    width, height = scene.cameras.size[train[0]].tolist() if train else (0, 0)
    same = all(scene.cameras.size[i].tolist() == [width, height] for i in train)
    if scene.kind != "blender" or not same:
        return None
    sizes = {i: scene.cameras.size[i].tolist() for i in test}
    odd = [i for i, (w, h) in sizes.items() if abs(w * height - h * width) > max(width, height)]
    if not odd:
        return None
    names = abbreviate([f"{scene.names[i]} ({sizes[i][0]}x{sizes[i][1]})" for i in odd])
    return f"held-out images of another shape than the training images' {width}x{height}: {names}"
