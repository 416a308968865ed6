"""The field of NeRF (2020): a coarse and a fine MLP under frequency encodings.

t: distance along a ray, [n_rays, n]. Deviations from the authors' code, each for a reason, are
listed in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.crop import Crop
from nerfcli.cameras.rays import Bounds, Rays
from nerfcli.core.config import Config
from nerfcli.core.devices import float32_products
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.reference.encoding import frequency_encoding
from nerfcli.reference.losses import mse
from nerfcli.reference.mlp import classic_layer_widths, classic_mlp, init_classic
from nerfcli.reference.params import ParamSet
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import (
    LINEAR,
    Disparity,
    Steps,
    edges_from_points,
    importance,
    stratified,
)
from nerfcli.reference.volume import composite, weights_from_density
from nerfcli.scenes import Scene

CHUNK_FLOATS = 2**27  # activations that wait for their gradients at once, half a gigabyte
DISPARITY = Disparity()
RAYS_PER_CHUNK = 2048  # rendered at once; 192 samples each through a 256-wide network


@dataclass(frozen=True)
class Jitter:
    """The randomness of rays' samples.

    Attributes:
        coarse: [n_rays, n_coarse] in [0, 1), places in the strata.
        fine: [n_rays, n_fine] in [0, 1), what importance sampling is asked for.
        coarse_noise, fine_noise: normal, a value for each point of a network; None: without.
    """

    coarse: Tensor
    fine: Tensor
    coarse_noise: Tensor | None = None
    fine_noise: Tensor | None = None

    @staticmethod
    def draw(n_rays: int, config: Config, generator: torch.Generator) -> Jitter:
        n_coarse, n_fine = config.classic.n_coarse, config.classic.n_fine

        def draw(kind: Callable[..., Tensor], n: int) -> Tensor:
            return kind(n_rays, n, generator=generator, device=generator.device)

        coarse, fine = draw(torch.rand, n_coarse), draw(torch.rand, n_fine)
        if not config.classic.density_noise:
            return Jitter(coarse, fine)
        noises = draw(torch.randn, n_coarse), draw(torch.randn, n_coarse + n_fine)
        return Jitter(coarse, fine, *noises)

    def __getitem__(self, rays: slice) -> Jitter:
        noises = (n if n is None else n[rays] for n in (self.coarse_noise, self.fine_noise))
        return Jitter(self.coarse[rays], self.fine[rays], *noises)


@dataclass
class ClassicField:
    """The coarse and the fine network of NeRF (2020), evaluated in scene coordinates."""

    box: Box
    near: float
    far: float
    config: Config
    params: ParamSet  # "coarse.<layer>.weight", ...
    ops: Backend
    precision: str = "float32"  # of the networks' products in training: float32 | tf32 | bfloat16
    crop: Crop | None = None  # nothing is outside of it

    @staticmethod
    def create(
        config: Config, scene: Scene, ops: Backend, generator: torch.Generator
    ) -> ClassicField:
        model = config.classic
        widths = classic_layer_widths(
            model.width,
            model.depth,
            3 + 6 * model.position_frequencies,
            3 + 6 * model.direction_frequencies,
        )
        params = {}
        for network in ("coarse", "fine"):
            layers = init_classic(widths, generator)
            params |= {f"{network}.{name}": value for name, value in layers.items()}
        return ClassicField(scene.box, scene.near, scene.far, config, ParamSet(params), ops)

    def to(self, device: str) -> ClassicField:
        return replace(self, params=self.params.map(lambda p: p.to(device)))

    def for_cpu_callers(self, device: str) -> ClassicField:
        return self.to("cpu")

    @property
    def rays_per_chunk(self) -> int:
        return RAYS_PER_CHUNK

    @property
    def steps(self) -> Steps:
        """The mean length of its samples."""
        own = self.config.classic
        return Steps((self.far - self.near) / (own.n_coarse + own.n_fine))

    @property
    def occupancy(self) -> None:
        """There is none: its rays sample everywhere."""

    @property
    def needs_radii(self) -> bool:
        return False

    def between(self, near: float, far: float) -> ClassicField:
        return replace(self, near=near, far=far)

    def within(self, crop: Crop) -> ClassicField:
        return replace(self, crop=crop)

    def ending_at(self, min_transmittance: float) -> None:
        """Its rays have no early end."""

    def network(
        self, name: str, positions: Tensor, directions: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One network at [n, 3] positions -> sigmas [n] per scene unit, rgbs [n, 3].

        noise: [n], added to the raw density before the ReLU (NeRF 2020, appendix A).
        """
        model = self.config.classic
        prefix = f"{name}."
        params = {k.removeprefix(prefix): v for k, v in self.params.items() if k[0] == name[0]}
        x = frequency_encoding(positions, model.position_frequencies)
        d = frequency_encoding(directions, model.direction_frequencies)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else None
        raw, rgbs = classic_mlp(x, d, params, model.depth, dtype)
        return torch.relu(raw if noise is None else raw + noise), rgbs

    def density(self, positions: Tensor) -> Tensor:
        """positions [n, 3] in scene space -> sigmas [n] per scene unit, without gradients."""
        with torch.no_grad():
            return self.radiance(positions, torch.zeros_like(positions))[0]

    def radiance(self, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """positions, directions [n, 3] -> sigmas [n] per scene unit, rgbs [n, 3]."""
        sigmas, rgbs = self.network("fine", positions, directions)
        if self.crop is not None:
            sigmas = torch.where(self.crop.contains(positions), sigmas, 0.0)
        return sigmas, rgbs

    def render_coarse_fine(
        self, rays: Rays, background: Tensor, jitter: Jitter | None
    ) -> tuple[Pixels, Pixels]:
        """Both passes of NeRF (2020), section 5.2.

        Args:
            background: [3] or [n_rays, 3].
            jitter: of these rays; None takes the middle of every stratum.

        Returns:
            The pixels of the coarse and of the fine network.
        """
        sampling, n_rays, device = self.config.classic, len(rays), rays.origins.device

        def shade(name: str, t: Tensor, noise: Tensor | None) -> tuple[Pixels, Tensor, Tensor]:
            edges = edges_from_points(t, bounds)
            positions = rays.at(t).reshape(-1, 3)
            directions = rays.directions[:, None].expand(-1, t.shape[1], -1).reshape(-1, 3)
            noise = None if noise is None else noise.reshape(-1) * sampling.density_noise
            sigmas, rgbs = self.network(name, positions, directions, noise)
            samples = Samples.from_edges(edges)
            pixels = composite(sigmas, rgbs, samples, background)
            return pixels, edges, samples.dense(weights_from_density(sigmas, samples))

        bounds = self.bounds(rays)
        spacing = DISPARITY if sampling.spacing == "disparity" else LINEAR
        if jitter is None:
            u = (torch.arange(sampling.n_fine, device=device) + 0.5) / sampling.n_fine
            halves = torch.full((n_rays, sampling.n_coarse), 0.5, device=device)
            jitter = Jitter(halves, u.expand(n_rays, -1))
        t = stratified(bounds, jitter.coarse, spacing)
        coarse, edges, weights = shade("coarse", t, jitter.coarse_noise)
        t_fine = importance(edges, weights, jitter.fine, spacing=spacing)
        t_all = torch.cat([t, t_fine], dim=1).sort(dim=1).values
        fine, _, _ = shade("fine", t_all, jitter.fine_noise)
        return coarse, fine

    def render_rays(self, rays: Rays, background: Tensor) -> Pixels:
        """Pixels of the fine network, without gradients. background [3]."""
        with torch.no_grad():
            return self.render_coarse_fine(rays, background, None)[1]

    def bounds(self, rays: Rays) -> Bounds:
        """near and far, for every ray; within the crop."""
        t_min = torch.full((len(rays),), self.near, device=rays.origins.device)
        bounds = Bounds(t_min, torch.full_like(t_min, self.far))
        return bounds if self.crop is None else self.crop.cut(rays, bounds)

    def state(self) -> dict[str, Tensor]:
        return self.params.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        ensure_same_shapes(state, self.params)
        self.params = self.params.from_state(state)


def gradients(
    field: ClassicField, rays: Rays, target: Tensor, background: Tensor, jitter: Jitter
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """||C^_c - C||^2 + ||C^_f - C||^2 (NeRF 2020, eq. 6); on a CPU a part of the rays at a time.

    The parts bound the memory (3.6 GB for 1024 rays of the full network at once) and take the
    same time there.

    Args:
        target: [n_rays, 3]. background: [3]. jitter: of the rays.

    Returns:
        The loss, the fine network's part of it, and the gradients in the order of field.params.
    """
    params = list(field.params.values())
    device = target.device
    loss, fine_loss = torch.zeros(2, device=device).unbind()
    grads = [torch.zeros_like(p) for p in params]
    chunk = rays_at_once(field.config) if device.type == "cpu" else len(rays)
    for start in range(0, len(rays), chunk):
        part = slice(start, start + chunk)
        share = len(target[part]) / len(rays)
        with float32_products(field.precision):
            pixels = field.render_coarse_fine(rays[part], background, jitter[part])
            coarse, fine = (mse(p.rgb, target[part]) * share for p in pixels)
            found = torch.autograd.grad(coarse + fine, params)
        for total, g in zip(grads, found, strict=True):
            total += g
        loss += (coarse + fine).detach()
        fine_loss += fine.detach()
    return loss, fine_loss, grads


def rays_at_once(config: Config) -> int:
    """How many rays' activations fit CHUNK_FLOATS."""
    own = config.classic
    per_ray = (2 * own.n_coarse + own.n_fine) * own.width * (own.depth + 2)
    return max(64, CHUNK_FLOATS // per_ray)
