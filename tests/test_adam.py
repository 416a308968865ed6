"""The optimiser step against torch.optim.Adam and against Adam by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nerfcli.reference.adam import AdamConfig, adam_step


def state(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    params = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return params, torch.zeros(n), torch.zeros(n)


def some_grads(n: int, step: int, share: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    grads = torch.randn(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < share, grads, 0.0)


@pytest.mark.parametrize(
    ("betas", "eps", "decay"),
    [((0.9, 0.99), 1e-15, 0.0), ((0.9, 0.999), 1e-7, 0.0), ((0.8, 0.95), 1e-3, 0.1)],
)
def test_equals_torchs_adam_where_no_gradient_is_zero(betas, eps: float, decay: float) -> None:
    params, m, v = state(50)
    twin = params.clone().requires_grad_()
    optimizer = torch.optim.Adam([twin], lr=0.02, betas=betas, eps=eps, weight_decay=decay)
    for step in range(1, 21):
        grads = some_grads(50, step)
        twin.grad = grads.clone()
        optimizer.step()
        config = AdamConfig(*betas, eps=eps, weight_decay=decay)
        adam_step(params, grads, m, v, config, step=step, lr=0.02)
        assert not grads.any()  # cleared
    # float32; torch divides by the bias correction in another order
    torch.testing.assert_close(params, twin.detach(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(m, optimizer.state[twin]["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(v, optimizer.state[twin]["exp_avg_sq"], rtol=1e-5, atol=1e-7)


def test_the_first_step_is_the_learning_rate() -> None:
    params, m, v = state(4)
    before = params.clone()
    grads = torch.tensor([1e-6, -1e-6, 100.0, -3.0])
    sign = grads.sign()
    adam_step(params, grads, m, v, AdamConfig(), step=1, lr=0.01)
    torch.testing.assert_close(params, before - 0.01 * sign)


def test_entries_without_gradient_keep_everything() -> None:
    params, m, v = state(200)
    m += 0.3
    v += 0.7
    ema = params + 1.0
    grads = some_grads(200, 1, share=0.3)
    idle = grads == 0
    assert 100 < idle.sum() < 180
    before = [t.clone() for t in (params, m, v, ema)]
    config = AdamConfig(weight_decay=0.5, ema_decay=0.9)
    adam_step(params, grads, m, v, config, step=9, lr=0.1, ema=ema)
    for now, then in zip((params, m, v, ema), before, strict=True):
        assert torch.equal(now[idle], then[idle])
        assert (now[~idle] != then[~idle]).all()


def test_bias_correction_counts_all_steps_also_those_skipped() -> None:
    params, m, v = state(1)
    start, g = params.item(), 0.25
    for step in range(1, 5):  # only steps 2 and 4 touch the entry
        grads = torch.tensor([g if step % 2 == 0 else 0.0])
        adam_step(params, grads, m, v, AdamConfig(0.9, 0.99, 1e-8), step=step, lr=0.1)
    first = 0.1 * (0.1 * g) / (1 - 0.9**2) / (math.sqrt(0.01 * g * g / (1 - 0.99**2)) + 1e-8)
    moment = 0.9 * 0.1 * g + 0.1 * g
    square = 0.99 * 0.01 * g * g + 0.01 * g * g
    second = 0.1 * moment / (1 - 0.9**4) / (math.sqrt(square / (1 - 0.99**4)) + 1e-8)
    assert params.item() == pytest.approx(start - first - second, rel=1e-5)


def test_ema_follows_the_new_parameters() -> None:
    params, m, v = state(30)
    ema = params.clone()
    expected = params.clone()
    for step in range(1, 6):
        config = AdamConfig(ema_decay=0.8)
        adam_step(params, some_grads(30, step), m, v, config, step=step, lr=0.1, ema=ema)
        expected = 0.8 * expected + 0.2 * params
    torch.testing.assert_close(ema, expected)


def test_no_gradient_at_all_is_no_step() -> None:
    params, m, v = state(5)
    before = params.clone()
    adam_step(params, torch.zeros(5), m, v, AdamConfig(), step=1, lr=1.0)
    assert torch.equal(params, before) and not m.any() and not v.any()


def test_minimises_a_quadratic() -> None:
    params, m, v = state(10)
    goal = torch.linspace(-1, 1, 10)
    for step in range(1, 401):
        lr = 0.1 * 0.98**step  # Adam circles at the size of its rate
        adam_step(params, 2 * (params - goal), m, v, AdamConfig(), step=step, lr=lr)
    torch.testing.assert_close(params, goal, atol=1e-3, rtol=0)


def test_rates_in_a_tensor_stand_for_lr_and_step() -> None:
    config = AdamConfig(0.8, 0.95, 1e-3, weight_decay=0.1, ema_decay=0.7)
    results = []
    for as_tensor in (False, True):
        params, m, v = state(30)
        ema = params.clone()
        for step in range(1, 6):
            corrections = (1 - 0.8**step, 1 - 0.95**step)
            assert config.bias_corrections(step) == pytest.approx(corrections, rel=1e-12)
            rates = torch.tensor([0.05 / step, *corrections], dtype=torch.float64)
            given: dict[str, Any] = (
                {"rates": rates} if as_tensor else {"lr": 0.05 / step, "step": step}
            )
            adam_step(params, some_grads(30, step, 0.6), m, v, config, ema=ema, **given)
        results.append((params, m, v, ema))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
