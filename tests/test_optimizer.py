"""Named parameters, and Adam over them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.core.errors import NerfError
from nerfcli.methods.optimizer import Optimizer
from nerfcli.reference.adam import AdamConfig, adam_step
from nerfcli.reference.params import ParamSet, Role
from nerfcli.reference.radiance import NetParams


def params() -> ParamSet:
    roles = {"slow": Role(lr_factor=0.1), "grid": Role(decays=True)}
    return ParamSet({"slow": torch.ones(3), "grid": torch.ones(2, 2), "net": torch.ones(1)}, roles)


def step(optimizer: Optimizer, n: int, **rates: Any) -> None:
    for i, grad in enumerate(optimizer.grads.values()):
        grad.fill_(0.5 + i)
    optimizer.step(step=n, lr=0.1, **rates)


def test_maps_keep_names_order_and_roles() -> None:
    doubled = params().map(lambda p: 2 * p)
    assert list(doubled) == ["slow", "grid", "net"]
    assert float(doubled["net"]) == 2.0 and doubled.role("grid").decays
    state = doubled.state("m.")
    assert list(state) == ["m.slow", "m.grid", "m.net"]
    back = params().from_state(state | {"other": torch.zeros(1)}, "m.")
    assert list(back) == list(doubled) and back.role("slow").lr_factor == 0.1


def test_the_parameters_of_the_hash_grid_by_name() -> None:
    three = NetParams(torch.zeros(4), torch.zeros(2), torch.zeros(3))
    named = three.named()
    assert list(named) == ["grid.table", "density.weights", "color.weights"]
    assert [named.role(name).decays for name in named] == [True, False, False]
    assert all(a is b for a, b in zip(NetParams.of(named).tensors(), three.tensors(), strict=True))


def test_roles_reach_adam() -> None:
    """Each parameter as by a call of its own, with its rate and decay."""
    config = AdamConfig(beta2=0.999, weight_decay=0.3, ema_decay=0.9)
    optimizer = Optimizer(params(), Backend(), config)
    want, means = params(), params()
    m, v = want.map(torch.zeros_like), want.map(torch.zeros_like)
    for n in (1, 2):
        step(optimizer, n)
        for i, name in enumerate(want):
            flat, m_flat, v_flat, mean = (t[name].view(-1) for t in (want, m, v, means))
            adam_step(
                flat,
                torch.full_like(flat, 0.5 + i),
                m_flat,
                v_flat,
                config if name == "grid" else replace(config, weight_decay=0.0),
                step=n,
                lr=0.1 * 0.1 if name == "slow" else 0.1,
                ema=mean,
            )
    for name in want:
        assert torch.equal(optimizer.params[name], want[name])
        assert torch.equal(optimizer.model()[name], means[name])
        assert not optimizer.grads[name].any()


def test_a_factor_scales_rates_on_the_device() -> None:
    seen: list[Tensor] = []

    class Ops:
        @staticmethod
        def adam_step(*_tensors: Tensor, rates: Tensor, **_options: Any) -> None:
            seen.append(rates)

    ops: Any = Ops()
    rates = torch.tensor([0.5, 0.1, 0.01])
    Optimizer(params(), ops, AdamConfig()).step(rates=rates)
    torch.testing.assert_close(seen[0], torch.tensor([0.05, 0.1, 0.01]))
    assert seen[1] is rates and seen[2] is rates  # by identity: nothing is copied for nothing


@pytest.mark.parametrize(("ema_decay", "keeps_raw"), [(0.0, False), (0.0, True), (0.9, True)])
def test_a_checkpoint_goes_on_with_the_same_bits(ema_decay: float, keeps_raw: bool) -> None:
    config = AdamConfig(ema_decay=ema_decay)
    first, second = (Optimizer(params(), Backend(), config, keeps_raw=keeps_raw) for _ in "ab")
    step(first, 1)
    model = first.model().map(torch.clone).state()
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    assert ("raw.net" in state) == keeps_raw
    loaded = second.load(model, state)
    assert loaded is second.params
    for optimizer in (first, second):
        step(optimizer, 2)
    assert all(torch.equal(first.params[name], second.params[name]) for name in first.params)
    assert all(torch.equal(first.model()[name], second.model()[name]) for name in first.params)
    with pytest.raises(NerfError, match="m.net"):
        second.load(model, {name: t for name, t in state.items() if name != "m.net"})
