"""The seam: a frozen record of functions that a backend may replace one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nerfcli.cameras.rays import Rays
from nerfcli.reference import adam, encoding, mlp, radiance, sampling, volume
from nerfcli.reference import fused as step
from nerfcli.reference.fused import StepTerms
from nerfcli.reference.samples import Pixels, Samples


@dataclass(frozen=True)
class Ops:
    """What a backend does. Signatures and contracts are those of the reference functions.

    A backend with `march_within`, `draw` and `adapt` can take a training step without ever
    waiting for the device: its photometric_gradients also takes n_live (how many rays count, a
    scalar tensor), and its adam_step rates ([3]: lr and both bias corrections) in place of lr and
    step.
    """

    name: str
    spherical_harmonics: Callable[..., Tensor]
    hash_grid: Callable[..., Tensor]
    mlp: Callable[..., Tensor]
    density: Callable[..., Tensor]
    radiance: Callable[..., tuple[Tensor, Tensor]]
    march: Callable[..., Samples]
    composite: Callable[..., Pixels]
    photometric_gradients: Callable[..., StepTerms]
    render_rays: Callable[..., Pixels]
    adam_step: Callable[..., None]
    march_within: Callable[..., tuple[Samples, Tensor]] | None = None  # into a fixed capacity
    draw: Callable[..., tuple[Rays, Tensor, Tensor, Tensor]] | None = None  # rays of a step
    adapt: Callable[..., None] | None = None  # how many rays the next step takes
    rays_per_chunk: int = 2**13  # rays that render_rays is given at once


def reference() -> Ops:
    """Every op in plain torch: the definition that the other backends must agree with."""
    return Ops(
        name="torch",
        spherical_harmonics=encoding.spherical_harmonics,
        hash_grid=encoding.hash_grid,
        mlp=mlp.mlp,
        density=radiance.density,
        radiance=radiance.radiance,
        march=sampling.march,
        composite=volume.composite,
        photometric_gradients=step.photometric_gradients,
        render_rays=step.render_rays,
        adam_step=adam.adam_step,
    )
