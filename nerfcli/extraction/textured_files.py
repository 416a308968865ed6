"""Write meshes with a texture: OBJ with MTL and PNG, or GLB."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.core.files import replacing, write_text
from nerfcli.extraction.bake import Texture
from nerfcli.scenes.images import write_png
from nerfcli.shapes.glb import glb_bytes
from nerfcli.shapes.types import Mesh

SUFFIXES = (".obj", ".glb")


def save_textured(mesh: Mesh, texture: Texture, path: Path) -> list[Path]:
    """Write the mesh and its texture; return the files, the named one first.

    Raises:
        NerfError: a suffix that holds no texture, or a place that cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise NerfError(
            f"{path}: {path.suffix or 'this'} holds no texture; choose {' or '.join(SUFFIXES)}, "
            "or leave --texture out."
        )
    if path.suffix.lower() == ".glb":
        return [_save_glb(mesh, texture, path)]
    return _save_obj(mesh, texture, path)


def _save_obj(mesh: Mesh, texture: Texture, path: Path) -> list[Path]:
    picture, material = path.with_suffix(".png"), path.with_suffix(".mtl")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(picture, texture.image)
    write_text(
        material,
        f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {picture.name}\n",
    )
    # seams repeat a vertex with another uv: the OBJ states it once, so the mesh stays closed
    places, number = np.unique(mesh.vertices, axis=0, return_inverse=True)
    number = number.ravel()[mesh.faces] + 1
    with replacing(path) as aside, aside.open("w", encoding="ascii") as file:
        file.write(f"mtllib {material.name}\nusemtl surface\n")
        np.savetxt(file, places, fmt="v %.9g %.9g %.9g")
        np.savetxt(file, texture.uv, fmt="vt %.7g %.7g")
        rows = np.stack([number, mesh.faces + 1], axis=2).reshape(-1, 6)
        np.savetxt(file, rows, fmt="f %d/%d %d/%d %d/%d")
    return [path, material, picture]


def _save_glb(mesh: Mesh, texture: Texture, path: Path) -> Path:
    from imageio.v3 import imwrite

    png = imwrite("<bytes>", texture.image, extension=".png")
    with replacing(path) as aside:
        aside.write_bytes(glb_bytes(mesh, texture.uv, png))
    return path
