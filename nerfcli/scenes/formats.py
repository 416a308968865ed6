"""The formats that are read: what shows each in a folder, and its reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nerfcli.core.config import SceneConfig
from nerfcli.scenes.readers import (
    bundler,
    llff,
    metashape,
    neus,
    nsvf,
    polycam,
    realitycapture,
    record3d,
    sdfstudio,
)
from nerfcli.scenes.readers.blender import SPLITS, blender_files, read_blender
from nerfcli.scenes.readers.colmap import read_colmap_models
from nerfcli.scenes.readers.colmap_folders import PLACES, colmap_models
from nerfcli.scenes.readers.nerfplusplus import find_nerfplusplus, read_nerfplusplus
from nerfcli.scenes.readers.transforms import read_transforms
from nerfcli.scenes.source import Source


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: the tool's, for people.
        shown_by: the files or folders that show it, for people.
        find: folder -> the file or folder that shows it; None if it is not of this format.
        read: (folder, what `find` returned, what the user wants) -> its source.
        files: patterns of file names; a scene may be given as one of these files.
    """

    name: str
    shown_by: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path, Path, SceneConfig], Source]
    files: tuple[str, ...] = ()


def _find_blender(root: Path) -> Path | None:
    return next(iter(blender_files(root).values()), None)


def _find_file(name: str) -> Callable[[Path], Path | None]:
    return lambda root: root / name if (root / name).is_file() else None


def _find_colmap(root: Path) -> Path | None:
    return next((model.path for model in colmap_models(root)), None)


N_USUAL = 4  # formats, from the first, whose files an error names


def _read_json(root: Path, path: Path, wanted: SceneConfig) -> Source:
    is_blender = path.stem in [f"transforms_{split}" for split in SPLITS]
    return read_blender(root, path, wanted) if is_blender else read_transforms(path, wanted)


# in this order: the first one found in a folder is read
FORMATS = (
    Format(
        "Blender",
        "transforms_train.json, transforms_val.json, transforms_test.json",
        _find_blender,
        lambda root, _, wanted: read_blender(root, None, wanted),
    ),
    Format(
        "instant-ngp, nerfstudio",
        "transforms.json",
        _find_file("transforms.json"),
        lambda _, path, wanted: read_transforms(path, wanted),
    ),
    Format(
        "COLMAP",
        f"cameras.bin or cameras.txt in {', '.join(PLACES)}, or numbered, as sparse/0",
        _find_colmap,
        lambda root, _, wanted: read_colmap_models(root, colmap_models(root), wanted),
    ),
    Format(
        "LLFF",
        llff.NAME,
        _find_file(llff.NAME),
        lambda root, _, wanted: llff.read_llff(root, wanted),
        (llff.NAME,),
    ),
    Format("NeuS", " or ".join(neus.FILES), neus.find_neus, neus.read_neus, ("*.npz",)),
    Format(
        "SDFStudio",
        sdfstudio.FILE,
        sdfstudio.find_sdfstudio,
        sdfstudio.read_sdfstudio,
        (sdfstudio.FILE,),
    ),  # fmt: skip
    Format("NSVF", f"{nsvf.FILE} and pose", nsvf.find_nsvf, nsvf.read_nsvf, (nsvf.FILE,)),
    Format("NeRF++", "train/pose and train/intrinsics", find_nerfplusplus, read_nerfplusplus),
    Format("Polycam", "keyframes", polycam.find_polycam, polycam.read_polycam),
    Format(
        "Record3D",
        "metadata or metadata.json",
        record3d.find_record3d,
        record3d.read_record3d,
        record3d.FILES,
    ),  # fmt: skip
    Format(
        "Metashape",
        "an XML file of cameras",
        metashape.find_metashape,
        metashape.read_metashape,
        ("*.xml",),
    ),  # fmt: skip
    Format(
        "RealityCapture",
        "a CSV file of camera parameters",
        realitycapture.find_realitycapture,
        realitycapture.read_realitycapture,
        ("*.csv",),
    ),  # fmt: skip
    Format("Bundler", "bundle.out", bundler.find_bundler, bundler.read_bundler, ("*.out",)),
    # the last, since any file of this kind may be named
    Format("transforms", "transforms*.json", lambda _: None, _read_json, ("*.json",)),
)


def formats_in(root: Path) -> list[tuple[Format, Path]]:
    """Find the formats that a folder holds, and the file or folder that shows each.

    Raises:
        OSError: it holds none, or only in folders that may not be read.
    """
    pairs, closed = [], None
    for form in FORMATS:
        try:
            found = form.find(root)
        except OSError as error:  # a folder in it that may not be read
            closed = closed or error
            continue
        if found is not None:
            pairs.append((form, found))
    if closed and not pairs:
        raise closed
    return pairs


def format_of(path: Path) -> Format | None:
    """Find the format that a file belongs to, by its name; None if by none."""
    name = path.name.lower()
    return next((f for f in FORMATS if any(Path(name).match(p) for p in f.files)), None)


def describe_formats() -> str:
    """List what was looked for in a folder: of the rarer formats, the names alone."""
    forms = [form for form in FORMATS if form.name != "transforms"]
    usual = ", ".join(f"{form.shown_by.split(',')[0]} ({form.name})" for form in forms[:N_USUAL])
    return f"{usual}, files of {', '.join(form.name for form in forms[N_USUAL:])}"
