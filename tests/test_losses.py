"""Losses against hand values and torch's own Huber loss."""

from __future__ import annotations

import pytest
import torch

from nerfcli.reference.losses import HUBER_DELTA, PHOTOMETRIC, huber, mse


def test_mse_by_hand() -> None:
    rgb = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    assert mse(rgb, target).item() == pytest.approx((0.25 + 1.0 + 0.25) / 6)


def test_huber_equals_mse_for_small_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(40, 3, generator=generator)
    rgb = target + (torch.rand(40, 3, generator=generator) - 0.5) * 2 * (HUBER_DELTA * 0.99)
    torch.testing.assert_close(huber(rgb, target), mse(rgb, target))


def test_huber_is_twice_torchs() -> None:
    generator = torch.Generator().manual_seed(1)
    rgb, target = torch.rand(2, 50, 3, generator=generator)
    expected = 2 * torch.nn.functional.huber_loss(rgb, target, delta=HUBER_DELTA)
    torch.testing.assert_close(huber(rgb, target), expected)


def test_huber_by_hand() -> None:
    one = torch.tensor([[0.6]]), torch.tensor([[0.1]])
    assert huber(*one).item() == pytest.approx(0.1 * (2 * 0.5 - 0.1))


def test_huber_and_its_slope_are_continuous() -> None:
    error = torch.tensor(
        [[HUBER_DELTA - 1e-9, HUBER_DELTA + 1e-9, -HUBER_DELTA + 1e-9, -HUBER_DELTA - 1e-9]],
        dtype=torch.float64,
    ).T
    error.requires_grad_()
    values = torch.stack([huber(e, torch.zeros_like(e)) for e in error])
    assert values.detach().tolist() == pytest.approx([HUBER_DELTA**2] * 4, rel=1e-7)
    (slope,) = torch.autograd.grad(values.sum(), error)
    expected = [2 * HUBER_DELTA] * 2 + [-2 * HUBER_DELTA] * 2
    assert slope.ravel().tolist() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_gradients_match_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rgb, target = torch.rand(2, 6, 3, generator=generator, dtype=torch.float64)
    inputs = (rgb.requires_grad_(), target)
    assert torch.autograd.gradcheck(PHOTOMETRIC[name], inputs)


@pytest.mark.parametrize("name", sorted(PHOTOMETRIC))
def test_a_perfect_picture_costs_nothing(name: str) -> None:
    rgb = torch.rand(4, 3, requires_grad=True)
    value = PHOTOMETRIC[name](rgb, rgb.detach())
    (grad,) = torch.autograd.grad(value, rgb)
    assert value.item() == 0.0 and not grad.any()
