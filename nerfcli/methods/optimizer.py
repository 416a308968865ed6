"""Adam over named parameters: gradients, moments and a running mean, and their checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.core.distributed import World
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.params import ParamSet


class Optimizer:
    """What Adam keeps beside the parameters, which it changes in place.

    Args:
        config: its weight decay acts on the parameters whose role says so; with an ema_decay, a
            running mean of the parameters is kept.
        keeps_raw: whether a checkpoint holds the parameters beside the model. Needed where the
            model is their mean.
    """

    def __init__(
        self, params: ParamSet, ops: Backend, config: AdamConfig, *, keeps_raw: bool = False
    ) -> None:
        self.params, self.ops, self.config, self.keeps_raw = params, ops, config, keeps_raw
        self.grads, self.m, self.v = (params.map(_zeros) for _ in range(3))
        self._message: Tensor | None = None  # what `sum_gradients` sends
        self.mean = params.map(lambda p: p.detach().clone()) if config.ema_decay else None
        plain = replace(config, weight_decay=0.0)
        self._configs = {n: config if params.role(n).decays else plain for n in params}

    def step(self, **rates: Any) -> None:
        """Take one step; clear the gradients.

        rates: `step` and `lr`, or `rates` where they are on the device.
        """
        for name, p in self.params.items():
            self.ops.adam_step(
                flat(p),
                flat(self.grads[name]),
                flat(self.m[name]),
                flat(self.v[name]),
                self._configs[name],
                ema=None if self.mean is None else flat(self.mean[name]),
                **scaled(rates, self.params.role(name).lr_factor),
            )

    def sum_gradients(self, world: World, n_rays: int, beside: Tensor) -> Tensor:
        """Make the gradients those of all processes, by one message of one flat buffer.

        Args:
            n_rays: of all processes; the gradients here are means over this one's share.
            beside: [n] float32, numbers to be summed as they are.

        Returns:
            The sums of `beside`.
        """
        grads = [flat(grad) for grad in self.grads.values()]
        sizes = [*map(len, grads), len(beside)]
        if self._message is None:
            self._message = torch.empty(sum(sizes), device=beside.device)
        parts = self._message.split(sizes)
        for part, grad in zip(parts[:-1], grads, strict=True):
            torch.mul(grad, world.portion(n_rays), out=part)
        parts[-1].copy_(beside)
        world.sum_in_place(self._message)
        for part, grad in zip(parts[:-1], grads, strict=True):
            grad.copy_(part)
        return parts[-1].clone()

    def model(self) -> ParamSet:
        """What is rendered and saved as the model: the running mean, or else the parameters."""
        return self.params if self.mean is None else self.mean

    def state(self) -> dict[str, Tensor]:
        """m.*, v.* and, if kept, raw.*: what a checkpoint holds beside the model."""
        raw = self.params.state("raw.") if self.keeps_raw else {}
        return raw | self.m.state("m.") | self.v.state("v.")

    def load(self, model: dict[str, Tensor], state: dict[str, Tensor]) -> ParamSet:
        """Take a checkpoint, and give back its parameters for the field.

        Raises:
            NerfError: the tensors have other names or shapes.
        """
        ensure_same_shapes(state, self.state())
        self.m, self.v = self.m.from_state(state, "m."), self.v.from_state(state, "v.")
        if self.mean is not None:
            self.mean = self.mean.from_state(model).map(torch.clone)
        raw = (state, "raw.") if self.keeps_raw else (model, "")
        self.params = self.params.from_state(*raw)
        return self.params


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, requires_grad=False)


def flat(tensor: Tensor) -> Tensor:
    """[n]; the very same where it is flat already, since a backend may know it by identity."""
    return tensor if tensor.dim() == 1 and not tensor.requires_grad else tensor.detach().view(-1)


def scaled(rates: dict[str, Any], factor: float) -> dict[str, Any]:
    if factor == 1.0:
        return rates
    if "rates" in rates:
        scaled = rates["rates"].clone()
        scaled[0] *= factor
        return rates | {"rates": scaled}
    return rates | {"lr": rates["lr"] * factor}
