"""The optimiser step: Adam that leaves untouched entries alone.

Kingma & Ba (2015), algorithm 1. Entries whose gradient is exactly zero keep value and moments
(most of a hash grid, most of the time); the bias correction uses the global step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def adam_step(
    params: Tensor,
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-15,
    weight_decay: float = 0.0,
    ema: Tensor | None = None,
    ema_decay: float = 0.0,
) -> None:
    """One step in place, on flat float32 tensors of one length; clears `grads`.

    Args:
        step: 1 for the first step.
        weight_decay: L2 factor added to the gradient of touched entries.
        ema: running mean of the parameters, updated where they are:
            ema <- ema_decay * ema + (1 - ema_decay) * params.
    """
    with torch.no_grad():
        index = grads.nonzero().squeeze(1)
        g = grads[index]
        p = params[index]
        if weight_decay:
            g = g + weight_decay * p
        m_new = beta1 * m[index] + (1 - beta1) * g
        v_new = beta2 * v[index] + (1 - beta2) * g * g
        m[index], v[index] = m_new, v_new
        m_hat = m_new / (1 - beta1**step)
        v_hat = v_new / (1 - beta2**step)
        p = p - lr * m_hat / (v_hat.sqrt() + eps)
        params[index] = p
        if ema is not None:
            ema[index] = ema_decay * ema[index] + (1 - ema_decay) * p
        grads.zero_()
