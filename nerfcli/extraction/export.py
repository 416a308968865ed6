"""Export a run as another representation (`nerf export RUN`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nerfcli.core.devices import pick
from nerfcli.core.errors import EmptyField, NerfError
from nerfcli.core.files import filling, read_json
from nerfcli.core.progress import Progress
from nerfcli.engine.crop import crop_model, read_crop
from nerfcli.engine.render import Model, load_model
from nerfcli.engine.runs import Run
from nerfcli.extraction.bake import color_mesh, texture_mesh
from nerfcli.extraction.marching_cubes import marching_cubes
from nerfcli.extraction.mesh_cleanup import drop_unseen_components, refine_mesh
from nerfcli.extraction.mpi import plane_images, write_planes
from nerfcli.extraction.mpi_page import parallax_page
from nerfcli.extraction.multiview import sphere_cameras, write_cameras, write_views
from nerfcli.extraction.plausible import list_doubts
from nerfcli.extraction.point_cloud import ALL_VIEWS_POINTS, field_points
from nerfcli.extraction.solid import Solid, solid_of
from nerfcli.extraction.source_field import SourceField, forget_unseen
from nerfcli.extraction.splat_export import export_splats
from nerfcli.extraction.textured_files import save_textured
from nerfcli.extraction.visibility import Visibility, compute_visibility
from nerfcli.extraction.voxels import field_voxels
from nerfcli.methods import method_of
from nerfcli.scenes.build import source_from_scene
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.writers.transforms import camera_table
from nerfcli.scenes.writers.unsupported import list_unsupported_lenses
from nerfcli.shapes.convert_shape import (
    FOLDERS,
    MESH_RESOLUTION,
    SUFFIXES,
    ExportOptions,
    describe_shape,
    finish,
    fit_shape,
    sidecar_of,
)
from nerfcli.shapes.grids import sdf_of
from nerfcli.shapes.mesh_files import load_shape, save_shape
from nerfcli.shapes.simplify import simplify_mesh
from nerfcli.shapes.types import Mesh

EXPORTS = "exports"  # folder in a run

TEXTURED_FACES = 50_000  # of a mesh with a texture, unless --faces says otherwise


@dataclass(frozen=True)
class Extracted:
    """A surface, and what it was extracted from."""

    mesh: Mesh
    solid: Solid
    visibility: Visibility
    n_dropped: int
    doubts: list[str]


def default_out(run: Run, to: str) -> Path:
    name = to if to in FOLDERS else f"{to}{SUFFIXES[to][0]}"
    return run.path / EXPORTS / name


def export_run(
    run: Run,
    out: Path,
    options: ExportOptions,
    backend: str,
    progress: Progress,
    photos: Scene | None = None,
) -> dict[str, Any]:
    """Write one representation of a run and its sidecar; return the JSON value of the command.

    photos: the run's scene with its photos, which splats are scored against.

    Raises:
        NerfError: an empty field, a threshold that leaves nothing, or a missing package.
    """
    base = {"run": str(run.path), "step": run.step, "to": options.to}
    if options.to == "cameras":
        return _cameras(Scene.from_json(run.scene_json), out, base)
    try:
        return _export_field(run, out, options, backend, progress, photos, base)
    except EmptyField as error:
        if options.crop is None:
            raise
        raise NerfError(
            f"--crop {options.crop}: nothing of the scene is in that box, which is in the units of "
            "the scene's files; `nerf info RUN` and `nerf check --picture` show where it lies."
        ) from error


def _export_field(
    run: Run,
    out: Path,
    options: ExportOptions,
    backend: str,
    progress: Progress,
    photos: Scene | None,
    base: dict[str, Any],
) -> dict[str, Any]:
    crop = None if options.crop is None else read_crop(options.crop)
    model = field_for_shapes(run, backend, progress)
    progress.note(model.backend)
    if crop is not None:
        base |= {"crop": asdict(crop)}
        model = crop_model(model, crop)
    if options.to == "views":
        forget_unseen(model)
        return _views(model, out, options, base, progress)
    source = SourceField.of(model)
    if options.to == "mpi":
        return _planes(source, out, options, base, progress)
    if options.to == "points":
        n, seed = options.n_points, options.seed
        with progress.another(None, "view", "look") as reporter:
            visibility = compute_visibility(source, reporter, min(1.0, n / ALL_VIEWS_POINTS))
        with progress.another(None, "point", "points") as reporter:
            cloud = field_points(source, visibility, n, seed, reporter, progress.note)
        save_shape(cloud, out)
        return finish([out], base | describe_shape(cloud) | {"seed": seed})
    if options.to == "splats":
        return export_splats(source, out, options, base, progress, photos)
    return _surface(source, out, options, base, progress)


def field_for_shapes(run: Run, backend: str, progress: Progress) -> Model:
    """Load the model of a run for shapes, which are made on the CPU.

    Its field is evaluated on the run's device where the method allows it.
    """
    device, method = pick(run.config.device), method_of(run.config)
    if device != "cpu" and not method.exports_on_gpu:
        progress.note(f"{method.name} fields are exported on the cpu, not on {device}")
        device = "cpu"
    model = load_model(run, backend, device, progress.note)
    if device == "cpu":
        return model
    return replace(model, field=model.field.for_cpu_callers(device), device="cpu")


def extract(source: SourceField, options: ExportOptions, progress: Progress) -> Extracted:
    """Extract the surface of a field: closed, oriented outwards, without colours.

    Raises:
        NerfError: an empty field, or a threshold that leaves nothing.
    """
    with progress.another(None, "view", "look") as reporter:
        visibility = compute_visibility(source, reporter)
    progress.note("finding what no light reaches")
    resolution, threshold = options.grid_resolution, options.threshold
    solid = solid_of(source, visibility, resolution, threshold, options.fill)
    progress.note(f"surface at density {solid.threshold:.4g} per unit")
    with progress.another(None, "layer", "surface") as reporter:
        mesh = marching_cubes(solid, reporter)
    mesh = refine_mesh(mesh, solid)
    mesh, n_dropped = drop_unseen_components(mesh, solid, visibility)
    if options.crop is not None:  # marching cubes places vertices a little outside of a cut
        inside = read_crop(options.crop).nearest(torch.from_numpy(mesh.vertices))
        mesh = Mesh(inside.numpy(), mesh.faces)
    if n_dropped:
        progress.note(f"{n_dropped} crumbs and parts that no training camera sees were removed")
    doubts = list_doubts(mesh, solid, visibility, threshold is not None)
    return Extracted(mesh, solid, visibility, n_dropped, doubts)


def run_mesh(
    run: Run, backend: str, progress: Progress, folder: Path | None = None
) -> tuple[Mesh, dict[str, Any]]:
    """Return the mesh of a run with default options; reuse the exported one if it is current.

    folder: where another is written; None: the run's exports/.

    Returns:
        The mesh, and its sidecar.

    Raises:
        NerfError: as `extract`.
    """
    out = default_out(run, "mesh")
    sidecar = sidecar_of(out)
    if out.is_file() and sidecar.is_file():
        value = read_json(sidecar)
        wanted = {"step": run.step, "resolution": MESH_RESOLUTION, "default": True}
        if isinstance(value, dict) and wanted.items() <= value.items():
            progress.note(f"mesh of {out}")
            mesh = load_shape(out)
            assert isinstance(mesh, Mesh)
            return mesh, value
    out = out if folder is None else folder / out.name
    export_run(run, out, ExportOptions(), backend, progress)
    mesh = load_shape(out)
    assert isinstance(mesh, Mesh)
    return mesh, read_json(sidecar_of(out))


def _surface(
    source: SourceField,
    out: Path,
    options: ExportOptions,
    base: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    found = extract(source, options, progress)
    grid = found.solid.grid
    base |= {
        "threshold": found.solid.threshold,
        "resolution": options.grid_resolution,
        "spacing": grid.spacing,
        "filled": options.fill,
        "components_removed": found.n_dropped,
        "doubts": found.doubts,
    }
    if options.to == "mesh":
        return _mesh(found, out, options, base, progress)
    if options.to == "sdf":
        mesh = found.mesh
        with progress.another(None, "layer", "distances") as reporter:
            sdf = sdf_of("the extracted mesh", mesh, options.grid_resolution, reporter)
        save_shape(sdf, out)
        return finish([out], base | describe_shape(sdf))
    with progress.another(None, "layer", "voxels") as reporter:
        voxels = field_voxels(found.solid, color_mesh(found.mesh, source), reporter)
    save_shape(voxels, out)
    return finish([out], base | describe_shape(voxels))


def _mesh(
    found: Extracted, out: Path, options: ExportOptions, base: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    mesh, source = found.mesh, found.solid.source
    n_faces = options.faces
    if n_faces is None and options.texture:
        n_faces = TEXTURED_FACES
    if options.fit:
        mesh = fit_shape(mesh, progress, start=simplify_mesh(mesh, n_faces or TEXTURED_FACES))
    elif n_faces is not None:
        mesh = simplify_mesh(mesh, n_faces)
    base |= {"fitted": options.fit, "default": options == ExportOptions()}
    if options.texture:
        progress.note(f"baking a texture of {options.texture} x {options.texture}")
        mesh, texture = texture_mesh(mesh, source, options.texture)
        files = save_textured(mesh, texture, out)
        return finish(files, base | describe_shape(mesh) | {"texture": options.texture})
    mesh = color_mesh(mesh, source)
    save_shape(mesh, out)
    return finish([out], base | describe_shape(mesh))


def _planes(
    source: SourceField,
    out: Path,
    options: ExportOptions,
    base: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    scene = source.model.scene
    index = _view_index(scene, options.view)
    scaled = replace(scene, cameras=scene.cameras.scaled(options.scale))
    cameras = scaled.cameras[[index]]
    with progress.another(None, "part", "planes") as reporter:
        planes = plane_images(source, cameras, 0, options.planes, reporter)
    page = parallax_page(planes, f"{scene.name}, {scene.names[index]}")
    with filling(out) as folder:
        files = [out / path.relative_to(folder) for path in write_planes(planes, folder, page)]
    frame = source_from_scene(scaled).frames[index]
    return finish(files, base | {
        "view": scene.names[index],
        "planes": options.planes,
        "camera": camera_table(frame, frame.name),
        "lost": [asdict(item) for item in list_unsupported_lenses([frame], "transforms")],
    })  # fmt: skip


def _views(
    model: Model, out: Path, options: ExportOptions, base: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    scene = model.scene
    training = scene.cameras[list(scene.splits["train"])].scaled(options.scale)
    cameras = sphere_cameras(training, scene.box, options.views)
    with progress.another(options.views, "view", "views") as reporter, filling(out) as folder:
        written, unsupported = write_views(model, cameras, folder, reporter)
        files = [out / path.relative_to(folder) for path in written]
    value = {"views": options.views, "size": cameras.size[0].tolist()}
    return finish(files, base | value | {"lost": [asdict(item) for item in unsupported]})


def _cameras(scene: Scene, out: Path, base: dict[str, Any]) -> dict[str, Any]:
    files, unsupported = write_cameras(scene, out)
    lost = [asdict(item) for item in unsupported]
    return finish(files, base | {"cameras": len(scene.cameras), "lost": lost})


def _view_index(scene: Scene, view: str | None) -> int:
    """Find the camera that --view names: an image, or a number among the training views."""
    training = scene.splits["train"]
    if view is None:
        return training[0]
    if view in scene.names:
        return scene.names.index(view)
    if view.isdecimal() and int(view) < len(training):
        return training[int(view)]
    raise NerfError(
        f"--view {view!r}: no image of that name; give one, such as {scene.names[0]}, or a number "
        f"from 0 to {len(training) - 1} (training views in order)."
    )
