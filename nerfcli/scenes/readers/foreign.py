"""Name the captures that are known and not read, each with a way to one that is."""

from __future__ import annotations

from pathlib import Path

from nerfcli.scenes.readers.listings import is_hidden

CSV_EXPORT = "its export of internal and external camera parameters (CSV), which is read"
# a file or folder that shows it, what it is, and the way out
KNOWN = (
    ("opensfm/reconstruction.json", "an OpenDroneMap project", "opensfm export_colmap opensfm"),
    ("reconstruction.json", "an OpenSfM reconstruction", "opensfm export_colmap"),
    ("sfm.sfm", "Meshroom's (AliceVision's)", "its node ConvertSfMFormat, or ExportColmap"),
    ("*.sfm", "Meshroom's (AliceVision's)", "its node ConvertSfMFormat, or ExportColmap"),
    ("*.abc", "an Alembic file of cameras", "its program's export as COLMAP"),
    ("sfm_data.json", "OpenMVG's", "openMVG_main_openMVG2Colmap"),
    ("*.nvm", "VisualSFM's", "its export as Bundler (bundle.out, list.txt), which is read"),
    ("*.mvs", "OpenMVS's", "the reconstruction that it was made from"),
    ("*.psx", "a Metashape project", "File, Export, Export Cameras (XML), which is read"),
    ("*.psz", "a Metashape project", "File, Export, Export Cameras (XML), which is read"),
    ("*.rcproj", "a RealityCapture project", CSV_EXPORT),
    ("*.rsproj", "a RealityScan project", CSV_EXPORT),
    ("*.xmp", "RealityCapture's camera files", CSV_EXPORT),
    ("*.r3d", "a packed Record3D capture", "unpack it (it is a zip file); the folder is read"),
    ("*.blend", "a Blender file", "the add-on BlenderNeRF writes transforms.json"),
    ("cams/*_cam.txt", "an MVSNet data set", "its colmap_input, or a conversion to NeuS"),
    ("*.sens", "a ScanNet recording", "ScanNet's SensReader, then nerf prepare"),
    ("odometry.csv", "a Stray Scanner capture", "its rgb.mp4, and nerf prepare"),
    ("groundtruth.txt", "a TUM RGB-D sequence", "its rgb folder, and nerf prepare"),
    ("traj.txt", "a Replica sequence", "a conversion to transforms.json"),
    ("config.yml", "a run of nerfstudio", "the data that it was trained on"),
    ("*.ingp", "a snapshot of instant-ngp", "the data that it was trained on"),
)
# what says least, after photos
REST = (
    ("*.usd[acz]", "a 3D scene without photos", "its photos, and nerf prepare"),
    ("*.splat", "Gaussian splats without photos", "the data that they were trained on"),
    ("*.ply", "points or splats without photos", "the photos of them"),
    ("*.zip", "a packed folder", "unpack it first"),
)
PHOTOS = ("*.jpg", "*.jpeg", "*.png", "*.heic", "*.dng", "*.mp4", "*.mov")


def describe_foreign(path: Path) -> str:
    """Describe a capture that is known and not read, as the rest of an error message; "" if none.

    Args:
        path: a folder, or one of its files.
    """
    return _describe(path, KNOWN) or describe_photos(path) or _describe(path, REST)


def _describe(path: Path, known: tuple[tuple[str, str, str], ...]) -> str:
    for pattern, what, way in known:
        if path.is_file() and path.match(pattern) or path.is_dir() and _has(path, pattern):
            return f"It looks like {what}, which is not read. The way out: {way}."
    return ""


def describe_photos(path: Path) -> str:
    """Say where a folder holds photos or a video, what makes a scene of them; "" if it does not."""
    if path.is_dir() and any(_has(path, p) or _has(path, p.upper()) for p in PHOTOS):
        return "It holds photos or a video without poses: nerf prepare finds them."
    return ""


def _has(folder: Path, pattern: str) -> bool:
    try:
        return any(not is_hidden(path.name) for path in folder.glob(pattern))
    except OSError:
        return False
