"""Encodings of positions and directions: frequencies, spherical harmonics, the hash grid.

x: positions in the unit cube, [n, 3]. d: unit directions, [n, 3].
L: levels, F: features per entry, T: the largest number of entries of a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
ALWAYS_HASHED_ABOVE = 1625  # 1626**3 would overflow 32 bits; tiny-cuda-nn hashes from there on


def frequency_encoding(x: Tensor, n_frequencies: int, identity: bool = True) -> Tensor:
    """gamma(x) = (x, sin(2^0 x), cos(2^0 x), ..., sin(2^(L-1) x), cos(2^(L-1) x)).

    NeRF (2020), eq. 4, as in the authors' released code: identity included, no factor pi.

    Args:
        x: [n, d].
        n_frequencies: L.
        identity: put x itself first.

    Returns:
        [n, d * (2 L + identity)].
    """
    scales = 2.0 ** torch.arange(n_frequencies, device=x.device, dtype=x.dtype)
    angles = x[:, None, :] * scales[:, None]  # [n, L, d]
    waves = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # [n, L * 2 * d]
    return torch.cat([x, waves], dim=1) if identity else waves


def spherical_harmonics(directions: Tensor) -> Tensor:
    """The 16 real spherical harmonics of degrees 0-3, in tiny-cuda-nn's order and signs.

    Args:
        directions: [n, 3] unit vectors.

    Returns:
        [n, 16]; each squared value integrates to 1 over the sphere.
    """
    x, y, z = directions.unbind(-1)
    xy, xz, yz, x2, y2, z2 = x * y, x * z, y * z, x * x, y * y, z * z
    columns = (
        torch.full_like(x, 0.28209479177387814),
        -0.48860251190291987 * y,
        0.48860251190291987 * z,
        -0.48860251190291987 * x,
        1.0925484305920792 * xy,
        -1.0925484305920792 * yz,
        0.94617469575755997 * z2 - 0.31539156525251999,
        -1.0925484305920792 * xz,
        0.54627421529603959 * (x2 - y2),
        0.59004358992664352 * y * (-3.0 * x2 + y2),
        2.8906114426405538 * xy * z,
        0.45704579946446572 * y * (1.0 - 5.0 * z2),
        0.3731763325901154 * z * (5.0 * z2 - 3.0),
        0.45704579946446572 * x * (1.0 - 5.0 * z2),
        1.4453057213202769 * z * (x2 - y2),
        0.59004358992664352 * x * (-x2 + 3.0 * y2),
    )
    return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class GridLevel:
    """One level of the hash grid: its scale, its resolution and where its entries lie."""

    scale: float
    resolution: int
    offset: int  # first entry of the level in the table
    n_entries: int
    hashed: bool


@dataclass(frozen=True)
class GridSpec:
    """The shape of a multiresolution hash grid, in tiny-cuda-nn's layout.

    Instant NGP (2022), section 3, and docs/conventions.md. The table is flat: levels one after
    another, the features of an entry together.
    """

    n_levels: int = 16
    n_features: int = 2
    log2_table_size: int = 19
    base_resolution: int = 16
    max_resolution: int = 2048

    @property
    def n_outputs(self) -> int:
        return self.n_levels * self.n_features

    @cached_property
    def levels(self) -> tuple[GridLevel, ...]:
        """scale_l = exp2(l * log2 b) * base - 1, every step rounded to float32.

        tiny-cuda-nn takes the growth b itself as float32 and its resolutions follow from the
        rounded scales (16 -> 512 in 16 levels ends at 513), so the same roundings are needed for
        the same layout. Computed in float64 in between: the same on every machine.
        """
        growth = 1.0
        if self.n_levels > 1:
            growth = (self.max_resolution / self.base_resolution) ** (1 / (self.n_levels - 1))
        log2_growth = _float32(math.log2(_float32(growth)))
        levels, offset = [], 0
        for level in range(self.n_levels):
            power = _float32(2.0 ** _float32(level * log2_growth))
            scale = _float32(_float32(power * self.base_resolution) - 1.0)
            resolution = math.ceil(scale) + 1
            dense = resolution**3
            n_entries = min(-(-dense // 8) * 8, 2**self.log2_table_size)
            hashed = n_entries < dense or resolution > ALWAYS_HASHED_ABOVE
            levels.append(GridLevel(scale, resolution, offset, n_entries, hashed))
            offset += n_entries
        return tuple(levels)

    @property
    def n_entries(self) -> int:
        last = self.levels[-1]
        return last.offset + last.n_entries

    @property
    def n_params(self) -> int:
        return self.n_entries * self.n_features


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def grid_index(corner: Tensor, level: GridLevel) -> Tensor:
    """The entry (within its level) of integer corners [..., 3] int64, non-negative."""
    x, y, z = corner.unbind(-1)
    if level.hashed:
        mask = 0xFFFFFFFF  # products wrap as unsigned 32-bit numbers do
        index = (x * PRIMES[0] & mask) ^ (y * PRIMES[1] & mask) ^ (z * PRIMES[2] & mask)
    else:
        index = x + y * level.resolution + z * level.resolution**2
    return index % level.n_entries


def level_weights(scales: Tensor, spec: GridSpec) -> Tensor:
    """How much of each level is left where the grid is averaged over a ball.

    erf(1 / sqrt(8 s^2 n^2)) for a Gaussian of scale s at a level of n cells along the unit cube,
    with erf(x) taken as sqrt(1 - exp(-4 x^2 / pi)). Zip-NeRF (2023), section 2.

    Args:
        scales: [n] standard deviations, in the unit cube.

    Returns:
        [n, n_levels]: 1 for a point, towards 0 where many cells are averaged.
    """
    cells = scales.new_tensor([level.scale for level in spec.levels])
    return (-torch.expm1(-1.0 / (2.0 * math.pi * (scales[:, None] * cells).square()))).sqrt()


def fade_levels(features: Tensor, scales: Tensor, spec: GridSpec) -> Tensor:
    """Multiply features [n, n_levels * n_features] by the weights of their levels."""
    return features * level_weights(scales, spec).repeat_interleave(spec.n_features, dim=1)


def hash_grid(
    positions: Tensor, table: Tensor, spec: GridSpec, scales: Tensor | None = None
) -> Tensor:
    """Trilinear look-up in every level of the hash grid.

    Args:
        positions: [n, 3] in [0, 1].
        table: [spec.n_params].
        scales: [n], the features of each level are multiplied by its `level_weights`; None: by 1.

    Returns:
        [n, n_levels * n_features], differentiable in `table` and, within a cell, in `positions`.
    """
    entries = table.view(-1, spec.n_features)
    bits = torch.tensor(
        [[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)], device=positions.device
    )  # [8, 3]
    outputs = []
    for level in spec.levels:
        scaled = positions * level.scale + 0.5
        low = scaled.floor()
        fraction = scaled - low  # [n, 3]
        index = grid_index(low.long()[:, None] + bits, level) + level.offset  # [n, 8]
        weights = torch.where(bits.bool(), fraction[:, None], 1 - fraction[:, None]).prod(-1)
        # not entries[index]: on a CPU, threads add up its gradient in any order
        corners = entries.index_select(0, index.flatten()).view(-1, 8, spec.n_features)
        outputs.append((corners * weights[..., None]).sum(1))
    features = torch.cat(outputs, dim=1)
    return features if scales is None else fade_levels(features, scales, spec)
