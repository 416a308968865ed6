"""State the lenses of a scene in the models of a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

MIXTURE = 1.0  # pixels that a lens may be off to have the model of the others


def state_lenses(
    frames: Sequence[Frame], target: str, done: Callable[[int, int], None] = lambda n, total: None
) -> tuple[list[Frame], list[Fit | None]]:
    """Give frames the lenses that will be written for them. Frames that have them stay.

    Args:
        done: called with the number of fits so far, and how many they are at most.

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
    shared = _fit_to_others(rest, stated, done) if target == "transforms" else None
    if shared is not None:
        stated, fits = shared
    else:
        fits = fit_lenses(rest, FITTED.get(target, FORMS[target]), done) if rest else []
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


def _fit_to_others(
    rest: Sequence[Intrinsics],
    stated: Mapping[Intrinsics, Lens | None],
    done: Callable[[int, int], None],
) -> tuple[dict[Intrinsics, Lens | None], list[Fit]] | None:
    """Fit lenses in a model that states all others exactly, so that one model holds for all.

    Args:
        rest: the cameras to fit. stated: all cameras; None for those to fit.

    Returns:
        The lenses of all cameras in this model, and the fits; None where there is none that is
        near enough.
    """
    others = [camera for camera in stated if camera not in set(rest)]
    if not rest or not others:
        return None
    common = [
        form
        for form in FITTED["transforms"]
        if all(restate_lens(camera.lens, form) for camera in others)
    ]
    if not common:
        return None
    fits = fit_lenses(rest, common, done)
    if max(fit.worst for fit in fits) > MIXTURE or max(fit.missed for fit in fits) > 0:
        return None
    form = next(f for f in common if all(fit.camera.lens.model == f.model for fit in fits))
    return {c: restate_lens(c.lens, form) if c in set(others) else None for c in stated}, fits


def intrinsics_of_frame(frame: Frame) -> Intrinsics:
    """Return a frame's camera without its pose."""
    return Intrinsics(frame.size, frame.focal, frame.principal, frame.lens)


def _restate(lens: Lens, forms: Sequence[Form]) -> Lens | None:
    return next((found for form in forms if (found := restate_lens(lens, form))), None)


def _is_panorama(camera: Intrinsics) -> bool:
    return camera.lens.model == "equirectangular"
