"""Multilayer perceptrons as functions of their weights.

Two kinds: bias-free ReLU networks whose matrices lie in one flat tensor (tiny-cuda-nn's layout,
row-major [out, in] per layer, concatenated), and the 2020 paper's network with biases.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def mlp_n_params(widths: tuple[int, ...]) -> int:
    """Parameters of a bias-free network; widths = (in, hidden, ..., out)."""
    return sum(a * b for a, b in itertools.pairwise(widths))


def mlp_layers(weights: Tensor, widths: tuple[int, ...]) -> list[Tensor]:
    """Views [out, in] of the layers of flat `weights` [mlp_n_params(widths)]."""
    pairs = list(itertools.pairwise(widths))
    parts = weights.split([a * b for a, b in pairs])
    return [part.view(b, a) for part, (a, b) in zip(parts, pairs, strict=True)]


def init_mlp(widths: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Flat weights, uniform by Glorot & Bengio (2010): +-sqrt(6 / (in + out))."""
    parts = []
    for a, b in itertools.pairwise(widths):
        bound = math.sqrt(6 / (a + b))
        parts.append((torch.rand(b * a, generator=generator) * 2 - 1) * bound)
    return torch.cat(parts)


def mlp(x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
    """ReLU between layers, none after the last. x [n, widths[0]] -> [n, widths[-1]]."""
    *hidden, last = mlp_layers(weights, widths)
    for layer in hidden:
        x = torch.relu(F.linear(x, layer))
    return F.linear(x, last)


def classic_layer_widths(
    width: int = 256, depth: int = 8, n_position: int = 63, n_direction: int = 27
) -> dict[str, tuple[int, int]]:
    """(in, out) of each layer of the 2020 network (NeRF 2020, fig. 7), by name."""
    widths = {}
    for i in range(depth):
        n_in = n_position if i == 0 else width
        if i == classic_skip(depth):
            n_in += n_position
        widths[f"trunk.{i}"] = (n_in, width)
    widths["sigma"] = (width, 1)
    widths["feature"] = (width, width)
    widths["color.0"] = (width + n_direction, width // 2)
    widths["color.1"] = (width // 2, 3)
    return widths


def classic_skip(depth: int) -> int:
    """Index of the layer that sees gamma(x) again: the sixth of eight."""
    return depth // 2 + 1


def init_classic(
    widths: Mapping[str, tuple[int, int]], generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Glorot-uniform weights and zero biases, as the authors' code (Keras) starts them."""
    params = {}
    for name, (n_in, n_out) in widths.items():
        bound = math.sqrt(6 / (n_in + n_out))
        weight = (torch.rand(n_out, n_in, generator=generator) * 2 - 1) * bound
        params[f"{name}.weight"], params[f"{name}.bias"] = weight, torch.zeros(n_out)
    return params


def classic_mlp(
    x: Tensor,
    d: Tensor,
    params: Mapping[str, Tensor],
    depth: int = 8,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The 2020 network: gamma(x), gamma(d) -> raw density and colour.

    gamma(x) is concatenated in front of the output of the fifth layer; sigma is linear from the
    eighth; a feature without activation, joined with gamma(d), goes through one ReLU layer of
    half the width to a sigmoid.

    Args:
        x: [n, n_position] encoded positions. d: [n, n_direction] encoded directions.
        params: "<layer>.weight" [out, in] and "<layer>.bias" [out], see classic_layer_widths.
        dtype: of the products of all layers but the two that give density and colour; None: that
            of the parameters.

    Returns:
        raw density [n] (before ReLU) and rgb [n, 3] in [0, 1].
    """

    full = params["sigma.weight"].dtype
    low = dtype or full

    def linear(name: str, value: Tensor, dtype: torch.dtype = low) -> Tensor:
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        return F.linear(value.to(dtype), weight.to(dtype), bias.to(dtype))

    x, d = x.to(low), d.to(low)
    h = x
    for i in range(depth):
        if i == classic_skip(depth):
            h = torch.cat([x, h], dim=-1)
        h = torch.relu(linear(f"trunk.{i}", h))
    raw_sigma = linear("sigma", h, full).squeeze(-1)
    h = torch.relu(linear("color.0", torch.cat([linear("feature", h), d], dim=-1)))
    return raw_sigma, torch.sigmoid(linear("color.1", h, full))
