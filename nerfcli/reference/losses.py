"""Losses between rendered and true pixels, each a mean over rays and channels."""

from __future__ import annotations

import torch
from torch import Tensor

HUBER_DELTA = 0.1


def mse(rgb: Tensor, target: Tensor) -> Tensor:
    """||C^ - C||^2, averaged. rgb, target [n_rays, 3] -> scalar."""
    return (rgb - target).square().mean()


def huber(rgb: Tensor, target: Tensor) -> Tensor:
    """Quadratic up to HUBER_DELTA, linear beyond; equals mse below it.

    e^2 where |e| <= delta, else delta (2 |e| - delta).
    """
    error = (rgb - target).abs()
    linear = HUBER_DELTA * (2 * error - HUBER_DELTA)
    return torch.where(error <= HUBER_DELTA, error.square(), linear).mean()


LOSSES = {"mse": mse, "huber": huber}
