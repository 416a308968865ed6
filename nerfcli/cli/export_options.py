"""Options of `nerf export` that are refused before the work: useless, or lacking a package."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from nerfcli.core.errors import NerfError
from nerfcli.core.extras import ensure_installed

if TYPE_CHECKING:
    from nerfcli.shapes.convert_shape import ExportOptions

# option -> the targets that it has an effect on
BELONGS_TO = {
    **dict.fromkeys(("resolution", "threshold", "fill"), ("mesh", "voxels", "sdf")),
    **dict.fromkeys(("faces", "texture", "fit"), ("mesh",)),
    **dict.fromkeys(("points", "seed"), ("points", "splats")),
    "fit_steps": ("splats",),
    **dict.fromkeys(("view", "planes"), ("mpi",)),
    "crop": ("mesh", "points", "voxels", "sdf", "splats", "mpi", "views"),
    **{"views": ("views",), "scale": ("mpi", "views")},
}


def ensure_useful(options: ExportOptions, *, of_file: bool) -> None:
    """Raise NerfError for an option without effect on the target, and for a missing package.

    of_file: a shape file is exported, not a run.
    """
    for field in fields(options):
        kinds = BELONGS_TO.get(field.name, (options.to,))
        if getattr(options, field.name) != field.default and options.to not in kinds:
            flag = "--no-fill" if field.name == "fill" else f"--{field.name.replace('_', '-')}"
            raise NerfError(f"{flag} belongs to --to {' or '.join(kinds)}, not {options.to}.")
    if options.crop is not None and of_file:
        raise NerfError("--crop is of a field: name a run, not a shape file.")
    if options.texture and of_file:
        raise NerfError("--texture is baked from a field: name a run, not a shape file.")
    if options.texture:
        ensure_installed("xatlas", "--texture")
    thinned = {"--faces": options.faces, "--texture": options.texture, "--fit": options.fit}
    for flag in (flag for flag, given in thinned.items() if given):
        ensure_installed("fast_simplification", flag)
