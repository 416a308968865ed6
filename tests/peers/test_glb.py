"""GLBs before the Khronos validator, and as three.js shows them in Chromium.

npm install --global gltf-validator three
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerfcli.extraction.bake import Texture
from nerfcli.extraction.textured_files import save_textured
from nerfcli.shapes.mesh_files import save_shape
from nerfcli.shapes.types import Mesh

pytestmark = [pytest.mark.peers, pytest.mark.slow]

SQUARES = np.array(
    [
        *([v, v, v] for v in (0, 2, 5, 10, 20, 40, 80, 128, 200, 255)),
        *([200, 30, 30], [30, 120, 60], [20, 40, 180], [128, 64, 10], [10, 90, 90], [240, 200, 20]),
    ],
    dtype=np.uint8,
)
KINDS = ("colored", "textured", "plain")
VALIDATE = """
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[1]));
require('gltf-validator').validateBytes(bytes).then(r => console.log(JSON.stringify(r.issues)));
"""
PAGE = """<body style="margin:0"><script type="importmap">
{"imports": {"three": "./three/build/three.module.js"}}</script><script type="module">
import * as three from 'three';
import {GLTFLoader} from './three/examples/jsm/loaders/GLTFLoader.js';
const renderer = new three.WebGLRenderer({preserveDrawingBuffer: true});
renderer.setSize(400, 400);
document.body.appendChild(renderer.domElement);
const scene = new three.Scene(), camera = new three.OrthographicCamera(0, 4, 4, 0, -10, 10);
scene.add(new three.AmbientLight(0xffffff, 1), new three.DirectionalLight(0xffffff, 1));
const loaded = await new GLTFLoader().loadAsync(location.search.slice(1));
scene.add(loaded.scene);
renderer.render(scene, camera);
</script></body>"""


@pytest.fixture(scope="module")
def packages() -> Path:
    """The folder of npm's global packages."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    done = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True, check=True)
    return Path(os.environ.get("NODE_PATH") or done.stdout.strip())


def write_squares(folder: Path) -> None:
    """Four by four squares, each of one colour, in each way that a GLB can have colours."""
    vertices, faces, uv = [], [], []
    for i in range(len(SQUARES)):
        x, y, n = i % 4, i // 4, len(vertices)
        vertices += [(x, y, 0), (x + 1, y, 0), (x + 1, y + 1, 0), (x, y + 1, 0)]
        faces += [(n, n + 1, n + 2), (n, n + 2, n + 3)]
        uv += [((i + 0.5) / len(SQUARES), 0.5)] * 4
    plain = Mesh(np.array(vertices, dtype=np.float64), np.array(faces))
    colors = np.repeat(SQUARES, 4, axis=0).astype(np.float32) / np.float32(255)
    save_shape(plain, folder / "plain.glb")
    save_shape(Mesh(plain.vertices, plain.faces, colors), folder / "colored.glb")
    image = np.repeat(np.repeat(SQUARES[None], 16, axis=0), 16, axis=1)
    save_textured(plain, Texture(np.array(uv), image), folder / "textured.glb")


@pytest.mark.parametrize("kind", KINDS)
def test_the_khronos_validator_finds_nothing(kind: str, packages: Path, tmp_path: Path) -> None:
    if not (packages / "gltf-validator").is_dir():
        pytest.skip("npm install --global gltf-validator")
    write_squares(tmp_path)
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(tmp_path / f"{kind}.glb")],
        env=os.environ | {"NODE_PATH": str(packages)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["messages"] == []


@pytest.fixture
def address(packages: Path, tmp_path: Path) -> Iterator[str]:
    """A server of the page, the GLBs and three.js."""
    if not (packages / "three").is_dir():
        pytest.skip("npm install --global three")
    (tmp_path / "three").symlink_to(packages / "three")
    (tmp_path / "page.html").write_text(PAGE)
    write_squares(tmp_path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/page.html"
        server.shutdown()


@pytest.mark.parametrize("kind", ["colored", "textured"])
def test_a_viewer_shows_the_colours_as_they_were(kind: str, address: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed")
    picture = tmp_path / "shown.png"
    subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--use-angle=swiftshader"),
            *("--enable-unsafe-swiftshader", "--window-size=400,600", "--hide-scrollbars"),
            *("--virtual-time-budget=10000", f"--screenshot={picture}", f"{address}?{kind}.glb"),
        ],
        capture_output=True,
        check=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    shown = [pixels[350 - 100 * (i // 4), 50 + 100 * (i % 4)] for i in range(len(SQUARES))]
    assert np.abs(np.array(shown) - SQUARES).max() <= 1
