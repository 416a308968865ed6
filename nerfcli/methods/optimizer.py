"""Adam over named parameters: gradients, moments and a running mean, and their checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.ops import Ops
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.reference.params import ParamSet


class Optimizer:
    """What Adam keeps beside the parameters, which it changes in place.

    Args:
        weight_decay: of the parameters whose role says so.
        ema_decay: of the running mean; None: none is kept.
        options: other keywords of `ops.adam_step`.
    """

    def __init__(
        self,
        params: ParamSet,
        ops: Ops,
        *,
        weight_decay: float = 0.0,
        ema_decay: float | None = None,
        **options: Any,
    ) -> None:
        self.params, self.ops, self.options = params, ops, options
        self.weight_decay, self.ema_decay = weight_decay, ema_decay
        self.grads, self.m, self.v = (params.map(_zeros) for _ in range(3))
        self.ema = None if ema_decay is None else params.map(lambda p: p.detach().clone())

    def step(self, **rates: Any) -> None:
        """One step; clears the gradients.

        rates: `step` and `lr`, or `rates` where the backend takes them from the device.
        """
        for name, p in self.params.items():
            role = self.params.role(name)
            self.ops.adam_step(
                _flat(p),
                _flat(self.grads[name]),
                _flat(self.m[name]),
                _flat(self.v[name]),
                weight_decay=self.weight_decay if role.decays else 0.0,
                ema=None if self.ema is None else _flat(self.ema[name]),
                ema_decay=self.ema_decay or 0.0,
                **_scaled(rates, role.lr_factor),
                **self.options,
            )

    def model(self) -> ParamSet:
        """What is rendered and saved as the model: the running mean, or else the parameters."""
        return self.params if self.ema is None else self.ema

    def state(self) -> dict[str, Tensor]:
        """m.* and v.*; raw.* for the parameters where the model is their running mean."""
        raw = {} if self.ema is None else self.params.state("raw.")
        return raw | self.m.state("m.") | self.v.state("v.")

    def load(self, model: dict[str, Tensor], state: dict[str, Tensor]) -> ParamSet:
        """Take a checkpoint, and give back its parameters for the field.

        Raises:
            NerfError: the tensors have other names or shapes.
        """
        ensure_same_shapes(state, self.state())
        self.m, self.v = self.m.from_state(state, "m."), self.v.from_state(state, "v.")
        if self.ema is None:
            self.params = self.params.from_state(model)
        else:
            self.params = self.params.from_state(state, "raw.")
            self.ema = self.ema.from_state(model).map(torch.clone)
        return self.params


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, requires_grad=False)


def _flat(tensor: Tensor) -> Tensor:
    """[n]; the very same where it is flat already, since a backend may know it by identity."""
    return tensor if tensor.dim() == 1 and not tensor.requires_grad else tensor.detach().view(-1)


def _scaled(rates: dict[str, Any], factor: float) -> dict[str, Any]:
    if factor == 1.0:
        return rates
    if "rates" in rates:
        scaled = rates["rates"].clone()
        scaled[0] *= factor
        return rates | {"rates": scaled}
    return rates | {"lr": rates["lr"] * factor}
