"""Adam of several processes of one machine: each steps its share of parameters they all see.

Parameters, moments and running means lie in memory that all processes map, and the gradients of
each in a slot of it. A process adds up its share of all slots and steps it, so nothing is sent and
no work is done twice. Over a network, and on GPUs, `Optimizer.sum_gradients` sends the gradients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.core.distributed import World, has_shared_room, map_shared, world
from nerfcli.core.tensors import ensure_same_shapes
from nerfcli.methods.optimizer import Optimizer, flat, scaled
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.params import ParamSet


class SharedOptimizer(Optimizer):
    """An Optimizer whose tensors all processes of a world on this machine share.

    The field is to take its parameters from `params`: they have been moved.
    """

    def __init__(
        self, params: ParamSet, ops: Backend, config: AdamConfig, *, keeps_raw: bool = False
    ) -> None:
        super().__init__(params, ops, config, keeps_raw=keeps_raw)
        self.world = world()
        self.params, self.m, self.v = (map_set(s) for s in (params, self.m, self.v))
        if self.mean is not None:
            self.mean = map_set(self.mean)
        self.slots = [map_set(self.grads) for _ in range(self.world.size)]
        self.grads = self.slots[self.world.rank]
        self._shares = [1.0 / self.world.size] * self.world.size

    def sum_gradients(self, world: World, n_rays: int, beside: Tensor) -> Tensor:
        """Sum `beside` alone, and so wait for the gradients of all; `step` sums these."""
        self._shares = [replace(world, rank=r).portion(n_rays) for r in range(world.size)]
        world.sum_in_place(beside)
        return beside

    def step(self, **rates: Any) -> None:
        """Take one step of this process's share; wait for the others; clear the gradients."""
        for name, p in self.params.items():
            mine = self.world.share(p.numel())
            grads = [flat(slot[name])[mine] for slot in self.slots]
            total = grads[0].mul_(self._shares[0])
            for grad, share in zip(grads[1:], self._shares[1:], strict=True):
                total.add_(grad, alpha=share)
                grad.zero_()
            self.ops.adam_step(
                flat(p)[mine],
                total,
                flat(self.m[name])[mine],
                flat(self.v[name])[mine],
                self._configs[name],
                ema=None if self.mean is None else flat(self.mean[name])[mine],
                **scaled(rates, self.params.role(name).lr_factor),
            )
        self.world.wait()

    def load(self, model: dict[str, Tensor], state: dict[str, Tensor]) -> ParamSet:
        """Take a checkpoint into the shared tensors, and give back its parameters."""
        ensure_same_shapes(state, self.state())
        raw = (state, "raw.") if self.keeps_raw else (model, "")
        taken = [(self.m, (state, "m.")), (self.v, (state, "v.")), (self.params, raw)]
        if self.mean is not None:
            taken.append((self.mean, (model, "")))
        for target, source in taken:
            for name, tensor in target.from_state(*source).items():
                with torch.no_grad():
                    target[name].copy_(tensor)
        self.world.wait()
        return self.params


def map_set(params: ParamSet) -> ParamSet:
    """The same values in memory that all processes of this machine map."""
    return params.map(lambda p: map_shared(p.detach()).requires_grad_(p.requires_grad))


def create_optimizer(
    params: ParamSet, ops: Backend, config: AdamConfig, *, keeps_raw: bool = False
) -> Optimizer:
    """The optimiser for the processes that work together; its `params` are the field's."""
    device = next(iter(params.values())).device
    if world().is_on_one_machine and device.type == "cpu":
        n_copies = 3 + bool(config.ema_decay) + world().size  # values, moments, means, gradients
        n_bytes = n_copies * sum(p.numel() * p.element_size() for p in params.values())
        if has_shared_room(n_bytes):
            return SharedOptimizer(params, ops, config, keeps_raw=keeps_raw)
    return Optimizer(params, ops, config, keeps_raw=keeps_raw)
