"""One self-contained HTML page that shows the planes of a multi-plane image in space."""

from __future__ import annotations

import base64
import html
import io

import numpy as np

from nerfcli.extraction.mpi import PlaneImages

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>@TITLE@</title>
<style>
html, body { margin: 0; height: 100%; overflow: hidden; background: #fff; touch-action: none }
#stage { position: fixed; inset: 0; cursor: grab }
#space { position: absolute; left: 50%; top: 50%; transform-style: preserve-3d }
#space img { position: absolute; left: @LEFT@px; top: @TOP@px; width: @WIDTH@px;
  height: @HEIGHT@px; transform-origin: 50% 50%; pointer-events: none; user-select: none }
#hint { position: fixed; left: 1rem; bottom: 1rem; font: 14px system-ui, sans-serif; color: #555 }
</style></head><body>
<div id="stage"><div id="space">@IMAGES@</div></div>
<div id="hint">@TITLE@ &middot; move the pointer or drag to look around</div>
<script>
"use strict";
// A plane at depth z lies at translateZ(p (1 - z / z0)) and is enlarged by z / z0, with p the
// distance of the eye in pixels: from the view's own place it covers exactly the view.
const z0 = @FOCUS@, focal = @FOCAL@, width = @WIDTH@, height = @HEIGHT@;
const stage = document.getElementById("stage"), space = document.getElementById("space");
stage.style.perspective = focal + "px";
stage.style.perspectiveOrigin = "50% 50%";
for (const image of space.children) {
  const ratio = image.dataset.depth / z0;
  image.style.transform = `translateZ(${focal * (1 - ratio)}px) scale(${ratio})`;
}
const reach = 0.05 * focal;  // of the eye to each side
let goal = [0, 0], at = [0, 0], idle = true;
function fit() { return Math.min(innerWidth / width, innerHeight / height) * 0.96; }
function draw(time) {
  if (idle) goal = [Math.sin(time / 1400), 0.5 * Math.sin(time / 1900)];
  at = at.map((value, i) => value + 0.12 * (goal[i] - value));
  const [x, y] = at.map(value => value * reach), k = fit();
  // moving the world against the eye, with the plane at z0 held still
  const shear = `matrix3d(1,0,0,0, 0,1,0,0, ${x / focal},${y / focal},1,0, 0,0,0,1)`;
  space.style.transform = shear;
  stage.style.transform = `scale(${k})`;
  requestAnimationFrame(draw);
}
addEventListener("pointermove", event => {
  idle = false;
  goal = [2 * event.clientX / innerWidth - 1, 2 * event.clientY / innerHeight - 1];
});
document.addEventListener("pointerleave", () => { idle = true; });
const fixed = new URLSearchParams(location.hash.slice(1)).get("eye");
if (fixed) { idle = false; goal = fixed.split(",").map(Number); at = goal.slice(); }
requestAnimationFrame(draw);
</script></body></html>
"""


def parallax_page(planes: PlaneImages, title: str) -> str:
    """The page as text; images are inside it, as PNG data."""
    from PIL import Image

    _, height, width, _ = planes.images.shape
    opacity = planes.images[..., 3].astype(np.float64).sum(axis=(1, 2))
    focus = float(planes.depths @ opacity / opacity.sum()) if opacity.sum() else 1.0
    tags = []
    for image, depth in list(zip(planes.images, planes.depths, strict=True))[::-1]:
        if not image[..., 3].any():
            continue
        packed = io.BytesIO()
        Image.fromarray(image).save(packed, format="PNG", optimize=True)
        data = base64.b64encode(packed.getvalue()).decode("ascii")
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
    page = PAGE
    for name, value in values.items():
        page = page.replace(f"@{name}@", value)
    return page
