"""The optimiser step: Adam that leaves untouched entries alone.

Kingma & Ba (2015), algorithm 1. Entries whose gradient is exactly zero keep value and moments
(most of a hash grid, most of the time); the bias correction uses the global step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamConfig:
    """The constants of the step.

    Attributes:
        weight_decay: L2 factor added to the gradient of touched entries.
        ema_decay: of the running mean of the parameters; 0: there is none.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-15
    weight_decay: float = 0.0
    ema_decay: float = 0.0

    def bias_corrections(self, step: int) -> tuple[float, float]:
        """1 - beta1^step and 1 - beta2^step."""
        return 1 - self.beta1**step, 1 - self.beta2**step


def adam_step(
    params: Tensor,
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    config: AdamConfig,
    *,
    step: int = 1,
    lr: float = 0.0,
    rates: Tensor | None = None,
    ema: Tensor | None = None,
) -> None:
    """Take one step in place, on flat float32 tensors of one length; clear `grads`.

    Args:
        step: 1 for the first step.
        rates: [3], lr and both bias corrections, in place of `lr` and `step`.
        ema: running mean of the parameters, updated where they are:
            ema <- ema_decay * ema + (1 - ema_decay) * params.
    """
    beta1, beta2, bias = config.beta1, config.beta2, config.bias_corrections(step)
    if rates is not None:
        lr, *bias = rates.tolist()
    with torch.no_grad():
        index = grads.nonzero().squeeze(1)
        g = grads[index]
        p = params[index]
        if config.weight_decay:
            g = g + config.weight_decay * p
        m_new = beta1 * m[index] + (1 - beta1) * g
        v_new = beta2 * v[index] + (1 - beta2) * g * g
        m[index], v[index] = m_new, v_new
        m_hat = m_new / bias[0]
        v_hat = v_new / bias[1]
        p = p - lr * m_hat / (v_hat.sqrt() + config.eps)
        params[index] = p
        if ema is not None:
            ema[index] = config.ema_decay * ema[index] + (1 - config.ema_decay) * p
        grads.zero_()
