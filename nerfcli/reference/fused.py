"""The two fused wholes of a hash-grid field: the gradients of a training step, and rendering.

Here they are composed of differentiable parts, which is their definition. `ops` brings the parts
(`density`, `radiance`, `march`, `composite`, ...), so that a backend composes its own; the fast
backends replace the whole where the configuration is plain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from nerfcli.cameras.rays import Batch, Bounds, ColorMap, Rays
from nerfcli.reference.contraction import Space
from nerfcli.reference.losses import PHOTOMETRIC, depth_loss, distortion_loss, mse, opacity_loss
from nerfcli.reference.proposals import ProposalGrid
from nerfcli.reference.radiance import NetParams, Network
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import LINEAR, MarchingGrid, Piecewise
from nerfcli.reference.volume import visible, weights_from_density


class Parts(Protocol):
    """The ops that the wholes are composed of; signatures as in backends/base.py."""

    def spherical_harmonics(self, directions: Tensor) -> Tensor: ...

    def density(
        self, network: Network, positions: Tensor, scales: Tensor | None = None
    ) -> Tensor: ...

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def march(self, rays: Rays, bounds: Bounds, jitter: Tensor, grid: MarchingGrid) -> Samples: ...

    def propose(
        self, rays: Rays, jitter: Tensor, grid: ProposalGrid, annealing: float = 1.0
    ) -> Samples: ...

    def composite(
        self, sigmas: Tensor, rgbs: Tensor, samples: Samples, background: Tensor
    ) -> Pixels: ...


class SampleGrid(Protocol):
    """What is known of where things are, by which rays are sampled."""

    def sample(self, ops: Parts, rays: Rays, bounds: Bounds, jitter: Tensor) -> Samples:
        """The samples of rays. jitter: [n_rays] in [0, 1)."""
        ...


@dataclass(frozen=True)
class Objective:
    """What a step minimises: the photometric loss, and further terms by their weights.

    Attributes:
        photometric: a name of losses.PHOTOMETRIC; its weight is 1.
        opacity, depth, distortion: weights of losses.opacity_loss, depth_loss and
            distortion_loss; 0 leaves a term out, and so does a batch without depth.
        curve: the distortion is taken in s of Piecewise(curve); 0: in distance over the field's
            unit length.
        full_from: gradients of samples nearer than this fall with the square of the distance, as
            a pixel's cone does, or matter gathers in front of cameras (Philip & Deschaintre 2023,
            "Floaters no more"). It changes no term's value.
        min_transmittance: samples behind less light than this are dropped first.
    """

    photometric: Literal["mse", "huber"] = "huber"
    opacity: float = 0.0
    depth: float = 0.0
    distortion: float = 0.0
    curve: float = 0.0
    full_from: float = 0.0
    min_transmittance: float = 1e-4

    @property
    def is_plain(self) -> bool:
        """Whether there is no term but the photometric one."""
        return not (self.opacity or self.depth or self.distortion)

    def weights(self) -> dict[str, float]:
        """The weight of every term that takes part."""
        others = {k: getattr(self, k) for k in ("opacity", "depth", "distortion")}
        return {"photometric": 1.0} | {k: w for k, w in others.items() if w}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms that are there."""
        total = terms["photometric"]  # of weight 1
        for name, weight in self.weights().items():
            if name != "photometric" and name in terms:
                total = total + weight * terms[name]
        return total


@dataclass(frozen=True)
class RayGrads:
    """Gradients of the loss in what belongs to the rays; distances of samples are held fixed.

    Rays that do not count have zeros.

    Attributes:
        origins, directions: [n_rays, 3].
        ray_inputs: [n_rays, 16 + n_embedding]; the share of the directions is in `directions` too.
    """

    origins: Tensor
    directions: Tensor
    ray_inputs: Tensor


@dataclass(frozen=True)
class StepOut:
    """What a step reports, as tensors on the device: nothing waits for them.

    Attributes:
        terms: each loss term before its weight, a scalar.
        mse: squared error, a scalar.
        n_kept: samples that took part after the early end of rays, int64.
        weights: [capacity] volume-rendering weights, 0 where a sample was dropped; on request.
        ray_grads: on request.
        color_grads: gradients in the batch's colour maps, where it has these.
    """

    terms: dict[str, Tensor]
    mse: Tensor
    n_kept: Tensor
    weights: Tensor | None = None
    ray_grads: RayGrads | None = None
    color_grads: ColorMap | None = None

    def loss(self, objective: Objective) -> Tensor:
        """The weighted sum of the terms."""
        return objective.total(self.terms)


@dataclass(frozen=True)
class Rendered:
    """A differentiable rendering of packed samples.

    Attributes:
        pixels: of the rays.
        kept: the samples that light reaches.
        keep: [capacity] bool, which of the given samples these are.
        sigmas: [kept.capacity] per scene unit.
    """

    pixels: Pixels
    kept: Samples
    keep: Tensor
    sigmas: Tensor


def render_samples(
    ops: Parts,
    network: Network,
    rays: Rays,
    samples: Samples,
    ray_inputs: Tensor | None,
    background: Tensor,
    min_transmittance: float,
    full_from: float = 0.0,
) -> Rendered:
    """Render packed samples, differentiable in the network, the rays and their inputs.

    Args:
        ray_inputs: [n_rays, 16 + n_embedding]; None: the harmonics of the directions alone.
        background: [3] or [n_rays, 3].
        full_from: see Objective.
    """
    indices = samples.ray_indices()
    positions = samples.positions(rays, indices)
    with torch.no_grad():
        scales = None
        if rays.radii is not None:
            scales = cone_scales(network.space, rays.radii[indices], samples.t_mids, positions)
        sigmas = ops.density(network, positions, scales)
        keep = visible(sigmas, samples, min_transmittance)
    kept = samples.select(keep)
    if ray_inputs is None:
        inputs = ops.spherical_harmonics(rays.directions[indices[keep]])
    else:
        inputs = ray_inputs[indices[keep]]
    scales = None if scales is None else scales[keep]
    sigmas, rgbs = ops.radiance(network, positions[keep], inputs, scales)
    if full_from:
        share = (kept.t_mids / full_from).square().clamp(max=1.0)
        sigmas, rgbs = _scale_gradient(sigmas, share), _scale_gradient(rgbs, share[:, None])
    return Rendered(ops.composite(sigmas, rgbs, kept, background), kept, keep, sigmas)


def cone_scales(space: Space, radii: Tensor, t: Tensor, positions: Tensor) -> Tensor:
    """Scales of pixels' cones at samples, in the unit cube, [n]: half of the cone's radius there.

    Zip-NeRF (2023), section 2, with one point an interval. They count as given: no gradient goes
    through them.

    Args:
        radii: [n] per unit of distance. t: [n]. positions: [n, 3].
    """
    return 0.5 * radii * t * space.stretch(positions)


def _scale_gradient(x: Tensor, share: Tensor) -> Tensor:
    """x, whose gradient is multiplied by `share`."""
    return x.detach() + (x - x.detach()) * share


def shown(rgb: Tensor, batch: Batch) -> Tensor:
    """What the photos of the batch show where colours rgb [n_rays, 3] are rendered."""
    return rgb if batch.color is None else batch.color.gain * rgb + batch.color.offset


def loss_terms(
    network: Network, batch: Batch, rendered: Rendered, objective: Objective
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The terms of the objective, each differentiable, and the weights of the kept samples.

    Every term but the photometric one is a function of the volume-rendering weights.
    """
    pixels, kept = rendered.pixels, rendered.kept
    photometric = PHOTOMETRIC[objective.photometric]
    terms = {"photometric": photometric(shown(pixels.rgb, batch), batch.rgb, batch.weight)}
    if objective.is_plain:
        return terms, None
    weights = weights_from_density(rendered.sigmas, kept)
    if objective.opacity:
        terms["opacity"] = opacity_loss(weights, kept, batch.weight)
    if objective.depth and batch.depth is not None:
        terms["depth"] = depth_loss(weights, kept, batch.depth, batch.weight)
    if objective.distortion:
        if objective.curve:
            scale, spacing = 1.0, Piecewise(objective.curve)
        else:
            scale, spacing = 1.0 / network.space.unit_length, LINEAR
        terms["distortion"] = distortion_loss(weights, kept, scale, batch.weight, spacing)
    return terms, weights


def step_gradients(
    ops: Parts,
    network: Network,
    grads: NetParams,
    batch: Batch,
    samples: Samples,
    objective: Objective,
    *,
    ray_inputs: Tensor | None = None,
    n_live: Tensor | None = None,
    with_weights: bool = False,
    with_ray_grads: bool = False,
    scale: float = 1.0,
) -> StepOut:
    """Render the samples, compare with the batch, add d loss / d params to `grads`.

    Samples behind T < objective.min_transmittance are dropped first, so they cost no gradient.

    Args:
        grads: accumulated into; the optimiser step clears them.
        samples: packed samples of batch.rays.
        ray_inputs: [n_rays, 16 + n_embedding]; None: the harmonics of the directions alone.
        n_live: how many rays count, an int64 scalar; None: all. The others have no samples.
        with_weights, with_ray_grads: also return these.
        scale: of the loss on the way back, for parts that compute in half precision.
    """
    n_rays = len(batch.rays)
    if n_live is not None:
        batch, samples, ray_inputs = _first(int(n_live), batch, samples, ray_inputs)
    leaves = NetParams(*(p.detach().requires_grad_() for p in network.params.tensors()))
    rays = batch.rays
    wanted: tuple[Tensor, ...] = leaves.tensors()
    with torch.enable_grad():
        if batch.color is not None:
            color = ColorMap(*(c.detach().requires_grad_() for c in batch.color))
            batch, wanted = replace(batch, color=color), (*wanted, *color)
        if with_ray_grads:
            origins, directions = (
                t.detach().requires_grad_() for t in (rays.origins, rays.directions)
            )
            rays = replace(rays, origins=origins, directions=directions)
            if ray_inputs is None:
                ray_inputs = ops.spherical_harmonics(directions)
            else:
                ray_inputs = ray_inputs.detach().requires_grad_()
            wanted = (*wanted, origins, directions, ray_inputs)
        rendered = render_samples(
            ops,
            replace(network, params=leaves),
            rays,
            samples,
            ray_inputs,
            batch.background,
            objective.min_transmittance,
            objective.full_from,
        )
        terms, weights = loss_terms(network, batch, rendered, objective)
        total = objective.total(terms)
    kept = rendered.kept
    found: tuple[Tensor | None, ...] = (None,) * len(wanted)
    if kept.capacity or batch.color is not None:
        found = torch.autograd.grad(total * scale, wanted, allow_unused=True)
    for own, grad in zip(grads.tensors(), found[:3], strict=True):
        if grad is not None:
            # what overflowed in half precision is left out of this step
            own += grad if scale == 1.0 else grad.nan_to_num(0.0, 0.0, 0.0) / scale
    of_rays = [w.new_zeros(n_rays, w.shape[1]) for w in wanted[3:]]
    for own, grad in zip(of_rays, found[3:], strict=True):
        if grad is not None:
            own[: len(grad)] = grad / scale
    color_grads = None if batch.color is None else ColorMap(*of_rays[:2])
    ray_grads = RayGrads(*of_rays[-3:]) if with_ray_grads else None
    spread = None
    if with_weights:
        if weights is None:
            weights = weights_from_density(rendered.sigmas, kept)
        spread = torch.zeros_like(samples.t_starts)
        spread[rendered.keep] = weights.detach()
    return StepOut(
        {name: term.detach() for name, term in terms.items()},
        mse(shown(rendered.pixels.rgb, batch).detach(), batch.rgb),
        torch.tensor(kept.capacity, device=batch.rgb.device),
        spread,
        ray_grads,
        color_grads,
    )


def render_rays(
    ops: Parts,
    network: Network,
    rays: Rays,
    bounds: Bounds,
    jitter: Tensor,
    grid: SampleGrid,
    background: Tensor,
    *,
    min_transmittance: float = 1e-4,
    ray_inputs: Tensor | None = None,
) -> Pixels:
    """Pixels of rays through a hash-grid field, without gradients.

    Args:
        jitter: [n_rays], as for sampling.march. background: [3] or [n_rays, 3].
    """
    with torch.no_grad():
        samples = grid.sample(ops, rays, bounds, jitter)
        return render_samples(
            ops, network, rays, samples, ray_inputs, background, min_transmittance
        ).pixels


def _first(
    n: int, batch: Batch, samples: Samples, ray_inputs: Tensor | None
) -> tuple[Batch, Samples, Tensor | None]:
    """The first n rays of a step."""
    batch = Batch(
        batch.rays[:n],
        batch.rgb[:n],
        batch.background[:n],
        None if batch.depth is None else batch.depth[:n],
        None if batch.weight is None else batch.weight[:n],
        None if batch.color is None else ColorMap(*(c[:n] for c in batch.color)),
    )
    samples = replace(samples, ray_offsets=samples.ray_offsets[: n + 1])
    return batch, samples, None if ray_inputs is None else ray_inputs[:n]
