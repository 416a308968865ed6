"""State the lenses of a scene in the models of a format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.cameras.lens_fits import Fit, Form, fit_lenses, restate_lens
from nerfcli.cameras.lenses import Lens
from nerfcli.scenes.readers.colmap_cameras import CAMERA_MODELS
from nerfcli.scenes.source import Frame

PINHOLE, FISHEYE = Form("pinhole"), Form.all_of("fisheye")
OPENCV = Form("brown", ("k1", "k2", "p1", "p2"))
FISHEYE624 = Form.all_of("rad_tan_thin_prism_fisheye")
PANORAMA = Form("equirectangular")
# what each format holds; of these, the first that states a lens exactly is written
FORMS = {
    "blender": (PINHOLE,),
    "llff": (PINHOLE,),
    "colmap": tuple(Form(model.lens, model.names) for model in CAMERA_MODELS),
    "transforms": (PINHOLE, Form.all_of("brown"), FISHEYE, FISHEYE624, PANORAMA),
    "instant-ngp": (PINHOLE, OPENCV, FISHEYE),
}
# what is fitted to lenses that no form states; to others than those that are listed, FORMS
FITTED = {
    "colmap": (OPENCV, Form.all_of("rational")),
    "transforms": (Form.all_of("brown"), FISHEYE, FISHEYE624),
    "instant-ngp": (OPENCV, FISHEYE),
}


def state_lenses(frames: Sequence[Frame], target: str) -> tuple[list[Frame], list[Fit | None]]:
    """Give frames the lenses that will be written for them.

    Returns:
        The frames, and for each its fit, None where the lens is exact.
    """
    cameras = dict.fromkeys(map(intrinsics_of_frame, frames))
    stated = {camera: _restate(camera.lens, FORMS[target]) for camera in cameras}
    if target == "transforms":  # nerfstudio has one model for all
        for form in FORMS[target]:
            shared = {camera: restate_lens(camera.lens, form) for camera in cameras}
            if None not in shared.values():
                stated = shared
                break
        if len({_is_panorama(camera) for camera in cameras}) == 2:
            stated |= {camera: None for camera in cameras if _is_panorama(camera)}
    rest = [camera for camera, lens in stated.items() if lens is None]
    fits = fit_lenses(rest, FITTED.get(target, FORMS[target])) if rest else []
    fit_of = dict(zip(rest, fits, strict=True))
    new, found = [], []
    for frame in frames:
        camera = intrinsics_of_frame(frame)
        fit, lens = fit_of.get(camera), stated[camera]
        if fit is not None:
            frame = replace(frame, **vars(fit.camera))
        elif lens is not None and lens != frame.lens:
            frame = replace(frame, lens=lens)
        new.append(frame)
        found.append(fit)
    return new, found


def intrinsics_of_frame(frame: Frame) -> Intrinsics:
    """Return a frame's camera without its pose."""
    return Intrinsics(frame.size, frame.focal, frame.principal, frame.lens)


def _restate(lens: Lens, forms: Sequence[Form]) -> Lens | None:
    return next((found for form in forms if (found := restate_lens(lens, form))), None)


def _is_panorama(camera: Intrinsics) -> bool:
    return camera.lens.model == "equirectangular"
