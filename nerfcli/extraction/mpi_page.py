"""Fill mpi_page.html: the planes of a multi-plane image, shown in space by a browser."""

from __future__ import annotations

import base64
import html
from importlib.resources import files

import numpy as np

from nerfcli.extraction.mpi import PlaneImages


def parallax_page(planes: PlaneImages, title: str) -> str:
    """Return one HTML page that needs nothing else: the images are inside it, as PNG data."""
    from imageio.v3 import imwrite

    _, height, width, _ = planes.images.shape
    opacity = planes.images[..., 3].astype(np.float64).sum(axis=(1, 2))
    focus = float(planes.depths @ opacity / opacity.sum()) if opacity.sum() else 1.0
    tags = []
    for image, depth in list(zip(planes.images, planes.depths, strict=True))[::-1]:
        if not image[..., 3].any():
            continue
        packed = imwrite("<bytes>", image, extension=".png", plugin="pillow", optimize=True)
        assert packed is not None
        data = base64.b64encode(packed).decode("ascii")
        tags.append(f'<img alt="" data-depth="{depth:.6g}" src="data:image/png;base64,{data}">')
    values = {
        "TITLE": html.escape(title),
        "IMAGES": "\n".join(tags),
        "FOCUS": f"{focus:.6g}",
        "FOCAL": f"{planes.focal:.6g}",
        "LEFT": f"{-width / 2:g}",
        "TOP": f"{-height / 2:g}",
        "WIDTH": str(width),
        "HEIGHT": str(height),
    }
    page = files("nerfcli.extraction").joinpath("mpi_page.html").read_text(encoding="utf-8")
    for name, value in values.items():
        page = page.replace(f"@{name}@", value)
    return page
