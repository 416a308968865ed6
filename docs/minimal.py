"""A radiance field from photos in one file: python docs/minimal.py [--steps N] [--out FILE]

The method of the preset `hashgrid` without what makes it fast: no occupancy grid, no kernels. All
mathematics comes from nerfcli/reference/, so this is the place to start reading there. A minute
on two cores makes a recognisable biplane; `nerf train datasets/biplane` takes the same minute to
a better one.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.config import SceneConfig
from nerfcli.reference.adam import AdamConfig, adam_step
from nerfcli.reference.contraction import BoxSpace
from nerfcli.reference.encoding import GridSpec, hash_grid, spherical_harmonics
from nerfcli.reference.losses import huber
from nerfcli.reference.mlp import init_mlp, mlp
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import importance, stratified
from nerfcli.reference.volume import composite, weights_from_density
from nerfcli.scenes import load_scene, load_views
from nerfcli.scenes.scene import Scene
from nerfcli.scenes.views import over_background

BIPLANE = Path(__file__).parents[1] / "datasets" / "biplane"
GRID = GridSpec(n_levels=6, log2_table_size=15, max_resolution=128)
DENSITY = (GRID.n_outputs, 64, 16)  # widths: features -> log density and 15 more numbers
COLOR = (16 + 16, 64, 3)  # these and the harmonics of the direction -> rgb
N_RAYS, N_COARSE, N_FINE = 384, 32, 16
WHITE = torch.ones(3)


class Field:
    """Density and colour everywhere in a box, as functions of three flat parameter tensors."""

    def __init__(self, space: BoxSpace, generator: torch.Generator) -> None:
        self.space = space
        self.table = (torch.rand(GRID.n_params, generator=generator) * 2 - 1) * 1e-4
        self.density_weights = init_mlp(DENSITY, generator)
        self.color_weights = init_mlp(COLOR, generator)
        self.params = [self.table, self.density_weights, self.color_weights]
        for p in self.params:
            p.requires_grad_()

    def geometry(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [n, 3] -> sigmas [n] per scene unit, and what the colour network reads."""
        features = hash_grid(self.space.to_unit(positions), self.table, GRID)
        outputs = mlp(features, self.density_weights, DENSITY)
        return outputs[:, 0].clamp(max=15.0).exp() / self.space.unit_length, outputs

    def render(self, rays: Rays, generator: torch.Generator | None = None) -> Tensor:
        """Colours of rays over white, [n_rays, 3]. generator: of the samples; None: the middles."""

        def jitter(n: int) -> Tensor:
            if generator is None:
                return torch.full((len(rays), n), 0.5)
            return torch.rand(len(rays), n, generator=generator)

        # where along the rays: first evenly, then where the field turns out to stop light
        near, far = self.space.bounds(rays)
        bounds = Bounds(near, torch.maximum(near, far))  # no length where a ray misses the box
        zero = torch.zeros(len(rays))
        with torch.no_grad():
            edges = stratified(bounds, jitter(N_COARSE + 1))
            coarse = Samples.from_edges(edges)
            sigmas, _ = self.geometry(coarse.positions(rays))
            weights = coarse.dense(weights_from_density(sigmas, coarse))
            u = stratified(Bounds(zero, zero + 1.0), jitter(N_FINE + 1))
            samples = Samples.from_edges(importance(edges, weights, u, epsilon=0.01))
        # what is there
        sigmas, geometry = self.geometry(samples.positions(rays))
        harmonics = spherical_harmonics(rays.directions)[samples.ray_indices()]
        inputs = torch.cat([geometry, harmonics], dim=1)
        rgbs = torch.sigmoid(mlp(inputs, self.color_weights, COLOR))
        # what the eye sees of it
        return composite(sigmas, rgbs, samples, WHITE).rgb


def train(field: Field, scene: Scene, n_steps: int, generator: torch.Generator) -> None:
    """Draw pixels of the training views, render them, and follow the gradient of the error."""
    views = load_views(scene, scene.splits["train"])
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in field.params]
    for step in range(1, n_steps + 1):
        pixels = views.draw(torch.rand(N_RAYS, generator=generator, dtype=torch.float64))
        target = over_background(views.colors(pixels), WHITE)
        rays = scene.cameras.rays(views.locate(pixels))
        loss = huber(field.render(rays, generator), target)
        grads = torch.autograd.grad(loss, field.params)
        lr = 0.02 * 0.1 ** (step / n_steps)
        for p, g, (m, v) in zip(field.params, grads, moments, strict=True):
            adam_step(p, g, m, v, AdamConfig(), step=step, lr=lr)
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.5f}")


def render_image(field: Field, scene: Scene, camera: int) -> Tensor:
    """What a camera of the scene sees, [height, width, 3] in [0, 1]."""
    rays = scene.cameras.image_rays(camera)
    chunks = torch.arange(len(rays)).split(4096)
    with torch.no_grad():
        rgb = torch.cat([field.render(rays[chunk]) for chunk in chunks])
    width, height = scene.cameras.size[camera].tolist()
    return rgb.view(height, width, 3)


def psnr(field: Field, scene: Scene, camera: int) -> tuple[float, Tensor]:
    """The rendering of a view, and how close it is to the photo in dB."""
    image = render_image(field, scene, camera)
    photo = load_views(scene, [camera]).image(0)
    truth = over_background(photo.view(-1, photo.shape[2]) / 255.0, WHITE)
    error = (image.view(-1, 3) - truth).square().mean()
    return -10.0 * math.log10(error.item()), image


def main(n_steps: int, out: Path, downscale: int = 2) -> tuple[float, float]:
    """PSNR of one held-out view before and after training; write its rendering to `out`."""
    generator = torch.Generator().manual_seed(0)
    scene = load_scene(BIPLANE, SceneConfig(downscale=downscale))
    field = Field(BoxSpace(scene.box, scene.near, scene.far), generator)
    camera = scene.splits["test"][0]
    before, _ = psnr(field, scene, camera)
    print(f"step 0: PSNR {before:.2f} dB")
    train(field, scene, n_steps, generator)
    after, image = psnr(field, scene, camera)
    Image.fromarray((image * 255.0).round().to(torch.uint8).numpy()).save(out)
    print(f"step {n_steps}: PSNR {after:.2f} dB, {out}")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("minimal.png"))
    given = parser.parse_args()
    main(given.steps, given.out)
