"""Write meshes as GLB, the binary form of glTF 2.0, and find the colours in GLBs of any origin.

glTF states vertex colours linearly and textures in sRGB. Colours here are what a camera saw, so
the material asks viewers for no light of their own (KHR_materials_unlit); viewers without that
extension get a rough surface that is no metal, which glTF's default would be.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nerfcli.shapes.types import Mesh

RAW_COLORS = "_RAW_COLOR_0"  # a custom attribute: trimesh hands those on as they are stored
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_FLOAT, _UINT = 5126, 5125
_ARRAY, _ELEMENTS = 34962, 34963
_UNLIT = "KHR_materials_unlit"


def glb_bytes(mesh: Mesh, uv: np.ndarray | None = None, png: bytes | None = None) -> bytes:
    """Encode a mesh with its vertex colours, or with a texture.

    uv: [v, 2] in [0, 1], (0, 0) the lower left; png: the texture, an encoded PNG in sRGB.
    Vertex colours are stored as float32: 8 bits of a linear value would band dark tones.
    """
    body, views, accessors = bytearray(), [], []

    def add_view(data: bytes, **keys: int) -> int:
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(data)} | keys)
        body.extend(data + b"\0" * (-len(data) % 4))
        return len(views) - 1

    def add(values: np.ndarray, component: int, kind: str, target: int, **keys: Any) -> int:
        view = add_view(values.tobytes(), target=target)
        count = len(values)
        accessors.append({"bufferView": view, "componentType": component, "type": kind,
                          "count": count} | keys)  # fmt: skip
        return len(accessors) - 1

    points = mesh.vertices.astype("<f4")
    limits = {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
    attributes = {"POSITION": add(points, _FLOAT, "VEC3", _ARRAY, **limits)}
    material: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    tree: dict[str, Any] = {"asset": {"version": "2.0", "generator": "nerf"}}
    if png is not None and uv is not None:
        flipped = np.stack([uv[:, 0], 1.0 - uv[:, 1]], axis=1).astype("<f4")
        attributes["TEXCOORD_0"] = add(flipped, _FLOAT, "VEC2", _ARRAY)
        tree["images"] = [{"bufferView": add_view(png), "mimeType": "image/png"}]
        tree["textures"] = [{"source": 0}]
        material["baseColorTexture"] = {"index": 0}
    elif mesh.vertex_colors is not None:
        stored = np.round(np.clip(mesh.vertex_colors, 0.0, 1.0) * 255.0) / 255.0  # as other formats
        attributes["COLOR_0"] = add(_linear(stored).astype("<f4"), _FLOAT, "VEC3", _ARRAY)
    indices = add(mesh.faces.astype("<u4").reshape(-1), _UINT, "SCALAR", _ELEMENTS)
    tree["materials"] = [{"pbrMetallicRoughness": material}]
    if len(attributes) > 1:  # without colours the shape shows only under light
        tree["materials"][0]["extensions"] = {_UNLIT: {}}
        tree["extensionsUsed"] = [_UNLIT]
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    tree |= {"scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
    tree |= {"meshes": [{"primitives": [primitive]}], "accessors": accessors}
    tree |= {"bufferViews": views, "buffers": [{"byteLength": len(body)}]}
    return _assemble(tree, struct.pack("<II", len(body), _BIN) + body)


def open_glb(path: Path) -> tuple[io.BytesIO, bool]:
    """Open a GLB for trimesh so that the vertex colours come as stored, as RAW_COLORS.

    Returns:
        The file, and whether its colours are linear, as glTF has them. trimesh itself, and earlier
        versions of this program through it, write sRGB bytes without a material.
    """
    data = path.read_bytes()
    try:
        magic, _, _, length, kind = struct.unpack_from("<5I", data)
        tree = json.loads(data[20 : 20 + length])
        if (magic, kind) != (_MAGIC, _JSON):
            return io.BytesIO(data), True
        primitives = [p for mesh in tree.get("meshes", []) for p in mesh["primitives"]]
        for primitive in primitives:
            found = primitive["attributes"]
            if "COLOR_0" in found:
                found[RAW_COLORS] = found["COLOR_0"]
        bare = not any("material" in primitive for primitive in primitives)
        linear = not (bare and "mikedh/trimesh" in str(tree["asset"].get("generator")))
        return io.BytesIO(_assemble(tree, data[20 + length :])), linear
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return io.BytesIO(data), True  # damaged: trimesh says how


def srgb_of(stored: np.ndarray, is_linear: bool, factor: Any = None) -> np.ndarray:
    """Return sRGB colours [n, 3] float32, in steps of 1/255, of stored ones [n, 3 or 4].

    stored: floats, or integers that stand for [0, 1]. factor: of the material, linear or bytes.
    """
    colors = _unit_range(np.asarray(stored)[:, :3])
    if factor is not None:
        colors = colors * _unit_range(np.asarray(factor)[:3])
    colors = np.clip(colors, 0.0, 1.0)
    if is_linear:
        colors = np.where(
            colors <= 0.0031308, colors * 12.92, 1.055 * colors ** (1.0 / 2.4) - 0.055
        )
    return np.round(colors * 255.0).astype(np.float32) / np.float32(255)


def _linear(colors: np.ndarray) -> np.ndarray:
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def _unit_range(values: np.ndarray) -> np.ndarray:
    most = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    return values.astype(np.float64) / most


def _assemble(tree: dict[str, Any], chunks: bytes) -> bytes:
    text = json.dumps(tree, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    head = struct.pack("<5I", _MAGIC, 2, 20 + len(text) + len(chunks), len(text), _JSON)
    return head + text + chunks
