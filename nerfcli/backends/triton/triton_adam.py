"""The optimiser step in Triton, and the half-precision copy that it changes too.

One pass: read the gradient; where it is not zero, update moments, value, running mean and copy,
and clear it. Elements go in groups of four, 16 bytes of each tensor, so that a group without any
gradient costs that one read and every other access is as wide as it can be.
"""

# Kernels are Python to read, not to type-check: constants become constexpr at the launch.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nerfcli.backends.triton.launch import blocks
from nerfcli.reference.adam import AdamConfig

BLOCK = 256  # groups of a program
GROUP = 4


@triton.jit
def _adam(  # an argument must not be called `params`: Triton's own launch code has a variable of it
    values, grads, m, v, ema, copy, rates, n, lr, beta1, beta2, eps, weight_decay, bias1, bias2,
    ema_decay, HAS_EMA: tl.constexpr, HAS_COPY: tl.constexpr, HAS_RATES: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index = rows[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    g = tl.load(grads + index, (rows * GROUP < n)[:, None], 0.0)
    touched = g != 0.0
    some = (tl.max(touched.to(tl.int32), 1) > 0)[:, None]  # the same for a whole group
    if HAS_RATES:
        lr, bias1, bias2 = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2)
    p = tl.load(values + index, some, 0.0)
    m_old, v_old = tl.load(m + index, some, 0.0), tl.load(v + index, some, 0.0)
    g += weight_decay * p
    m_new = tl.where(touched, beta1 * m_old + (1.0 - beta1) * g, m_old)
    v_new = tl.where(touched, beta2 * v_old + (1.0 - beta2) * g * g, v_old)
    step = lr * (m_new / bias1) / (tl.sqrt(v_new / bias2) + eps)
    p = tl.where(touched, p - step, p)
    tl.store(grads + index, tl.zeros((BLOCK, GROUP), tl.float32), some)
    tl.store(m + index, m_new, some)
    tl.store(v + index, v_new, some)
    tl.store(values + index, p, some)
    if HAS_EMA:
        mean = tl.load(ema + index, some, 0.0)
        mean = tl.where(touched, ema_decay * mean + (1.0 - ema_decay) * p, mean)
        tl.store(ema + index, mean, some)
    if HAS_COPY:
        tl.store(copy + index, p.to(copy.dtype.element_ty), some)


def adam_step(
    params: Tensor,
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    config: AdamConfig,
    step: int = 1,
    lr: float = 0.0,
    rates: Tensor | None = None,
    ema: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """adam.adam_step: in place, entries without gradient left alone, `grads` cleared.

    Args:
        rates: [3] float32 on the device, in place of `lr` and `step`, which a CUDA graph would
            never see change.
        copy: of the parameters in another precision, changed along with them.
    """
    n = params.shape[0]
    group = GROUP if n % GROUP == 0 else 1
    _adam[(blocks(n // group, BLOCK),)](
        params, grads, m, v, m if ema is None else ema, m if copy is None else copy,
        m if rates is None else rates, n, lr, config.beta1, config.beta2, config.eps,
        config.weight_decay, *config.bias_corrections(step), config.ema_decay, ema is not None,
        copy is not None, rates is not None, group, BLOCK,
    )  # fmt: skip
