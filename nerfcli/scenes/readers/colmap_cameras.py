"""COLMAP's camera models: the parameters of each, and its lens.

Source: COLMAP, src/colmap/sensor/models.h; ids 11 and above exist since its version 3.12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nerfcli.cameras.intrinsics import Intrinsics
from nerfcli.cameras.lens_fits import Form, restate_lens
from nerfcli.cameras.lens_models import MODELS
from nerfcli.cameras.lenses import Lens, panorama
from nerfcli.core.errors import NerfError


@dataclass(frozen=True)
class CameraModel:
    """One of COLMAP's models; its parameters are focal lengths, principal point, then the lens's.

    Attributes:
        n_focal: 1: fx = fy; 2; 0: none are stored (equirectangular: w, h).
        lens: name in lens_models.MODELS.
        names: the stored lens parameters, in order.
    """

    id: int
    name: str
    n_focal: int
    lens: str = "pinhole"
    names: tuple[str, ...] = ()

    @property
    def n_params(self) -> int:
        return self.n_focal + 2 + len(self.names)


def _all_of(lens: str) -> tuple[str, ...]:
    return MODELS[lens].params


CAMERA_MODELS = (
    CameraModel(0, "SIMPLE_PINHOLE", 1),
    CameraModel(1, "PINHOLE", 2),
    CameraModel(2, "SIMPLE_RADIAL", 1, "brown", ("k1",)),
    CameraModel(3, "RADIAL", 1, "brown", ("k1", "k2")),
    CameraModel(4, "OPENCV", 2, "brown", ("k1", "k2", "p1", "p2")),
    CameraModel(5, "OPENCV_FISHEYE", 2, "fisheye", _all_of("fisheye")),
    CameraModel(6, "FULL_OPENCV", 2, "rational", _all_of("rational")),
    CameraModel(7, "FOV", 2, "fov", _all_of("fov")),
    CameraModel(8, "SIMPLE_RADIAL_FISHEYE", 1, "fisheye", ("k1",)),
    CameraModel(9, "RADIAL_FISHEYE", 1, "fisheye", ("k1", "k2")),
    CameraModel(10, "THIN_PRISM_FISHEYE", 2, "thin_prism_fisheye", _all_of("thin_prism_fisheye")),
    CameraModel(
        *(11, "RAD_TAN_THIN_PRISM_FISHEYE", 2, "rad_tan_thin_prism_fisheye"),
        _all_of("rad_tan_thin_prism_fisheye"),
    ),
    CameraModel(12, "SIMPLE_DIVISION", 1, "division", ("k",)),
    CameraModel(13, "DIVISION", 2, "division", ("k",)),
    CameraModel(14, "SIMPLE_FISHEYE", 1, "fisheye"),
    CameraModel(15, "FISHEYE", 2, "fisheye"),
    CameraModel(16, "EUCM", 2, "eucm", ("alpha", "beta")),
    CameraModel(17, "EQUIRECTANGULAR", 0, "equirectangular"),
)
BY_ID = {model.id: model for model in CAMERA_MODELS}
BY_NAME = {model.name: model for model in CAMERA_MODELS}


def intrinsics_of(
    model: CameraModel, size: tuple[int, int], params: tuple[float, ...], where: str
) -> Intrinsics:
    """Convert a camera's parameters to intrinsics.

    Raises:
        NerfError: the number of parameters is wrong, or one is not finite.
    """
    if len(params) != model.n_params or not all(math.isfinite(p) for p in params):
        raise NerfError(
            f"{where}: {model.name} takes {model.n_params} finite parameters, "
            f"got {', '.join(f'{p:g}' for p in params) or 'none'}."
        )
    if model.n_focal == 0:
        return Intrinsics(size, *panorama(size), Lens(model.lens))
    fx, fy = params[0], params[model.n_focal - 1]
    cx, cy, *rest = params[model.n_focal :]
    lens = Lens.of(model.lens, **dict(zip(model.names, rest, strict=True)))
    return Intrinsics(size, (fx, fy), (cx, cy), lens)


def camera_model_of(camera: Intrinsics) -> tuple[CameraModel, tuple[float, ...]] | None:
    """Choose COLMAP's smallest model for a camera, and its parameters; None if none fits."""
    if camera.lens.model == "equirectangular":
        return BY_NAME["EQUIRECTANGULAR"], (float(camera.size[0]), float(camera.size[1]))
    square = camera.focal[0] == camera.focal[1]
    for model in sorted(CAMERA_MODELS, key=lambda model: model.n_params):
        lens = restate_lens(camera.lens, Form(model.lens, model.names))
        if lens is not None and (model.n_focal == 2 or square):
            values = [lens.named[name] for name in model.names]
            return model, (*camera.focal[: model.n_focal], *camera.principal, *values)
    return None
