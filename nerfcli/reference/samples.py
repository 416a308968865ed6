"""Samples along rays, and the pixels that rays see.

t_starts, t_ends: the ends of the interval that a sample stands for, in scene units.
sigmas: density per scene unit of length. weights: transmittance * alphas. opacity: their sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nerfcli.cameras.rays import Rays


@dataclass(frozen=True)
class Samples:
    """Intervals along rays, packed ray after ray.

    Attributes:
        t_starts: [capacity] float32, sorted within a ray.
        t_ends: [capacity] float32.
        ray_offsets: [n_rays + 1] int64; ray i owns the samples ray_offsets[i]:ray_offsets[i+1].
            ray_offsets[-1] is the live count; entries beyond it are padding.
    """

    t_starts: Tensor
    t_ends: Tensor
    ray_offsets: Tensor

    @property
    def n_rays(self) -> int:
        return self.ray_offsets.shape[0] - 1

    @property
    def capacity(self) -> int:
        return self.t_starts.shape[0]

    @property
    def t_mids(self) -> Tensor:
        return 0.5 * (self.t_starts + self.t_ends)

    def positions(self, rays: Rays, indices: Tensor | None = None) -> Tensor:
        """The middles of the intervals in scene space, [capacity, 3].

        indices: `ray_indices()`, where the caller has it already.
        """
        indices = self.ray_indices() if indices is None else indices
        return rays.origins[indices] + self.t_mids[:, None] * rays.directions[indices]

    def ray_indices(self) -> Tensor:
        """The ray of each sample, [capacity] int64; padding belongs to the last ray."""
        counts = self.ray_offsets.diff()
        rays = torch.arange(self.n_rays, device=counts.device)
        indices = torch.repeat_interleave(rays, counts)
        padding = self.capacity - indices.shape[0]
        if padding:
            indices = torch.cat([indices, indices.new_full((padding,), self.n_rays - 1)])
        return indices

    def select(self, keep: Tensor) -> Samples:
        """The samples where `keep` [capacity] bool is true, same rays, without padding."""
        ends = torch.cat([keep.new_zeros(1, dtype=torch.int64), keep.cumsum(0)])
        return replace(
            self,
            t_starts=self.t_starts[keep],
            t_ends=self.t_ends[keep],
            ray_offsets=ends[self.ray_offsets],
        )

    @staticmethod
    def from_edges(edges: Tensor) -> Samples:
        """Equal counts per ray from interval edges [n_rays, n + 1]."""
        n_rays, n = edges.shape[0], edges.shape[1] - 1
        offsets = torch.arange(n_rays + 1, device=edges.device) * n
        return Samples(edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1), offsets)

    def dense(self, values: Tensor) -> Tensor:
        """View per-sample values [capacity, ...] as [n_rays, n, ...]; only for equal counts."""
        return values.reshape(self.n_rays, -1, *values.shape[1:])


@dataclass(frozen=True)
class Pixels:
    """What a ray sees.

    Attributes:
        rgb: [n_rays, 3], composited over the background.
        opacity: [n_rays], sum of the weights.
        depth: [n_rays], expected distance sum(w t) / sum(w); 0 where nothing is hit.
        median_depth: [n_rays], middle of the sample where the weights pass half of the
            opacity; 0 where nothing is hit.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    median_depth: Tensor

    @staticmethod
    def cat(parts: list[Pixels]) -> Pixels:
        return Pixels(
            *(torch.cat([getattr(p, f) for p in parts]) for f in Pixels.__dataclass_fields__)
        )
