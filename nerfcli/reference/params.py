"""Parameters by name: values, gradients, moments and running means share names and order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Role:
    """How the optimiser treats a parameter.

    Attributes:
        lr_factor: of the learning rate.
        decays: whether weight decay acts on it.
    """

    lr_factor: float = 1.0
    decays: bool = False


class ParamSet(dict[str, Tensor]):
    """Tensors by name, in a fixed order; the names are those of a checkpoint.

    Args:
        roles: of the parameters that do not have the plain `Role()`.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], roles: Mapping[str, Role] | None = None
    ) -> None:
        super().__init__(tensors)
        self.roles = roles or {}

    def role(self, name: str) -> Role:
        return self.roles.get(name, Role())

    def map(self, change: Callable[[Tensor], Tensor]) -> ParamSet:
        """Another set of the same names, each tensor changed."""
        return ParamSet({name: change(tensor) for name, tensor in self.items()}, self.roles)

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors under prefixed names, as a part of a checkpoint."""
        return {prefix + name: tensor for name, tensor in self.items()}

    def from_state(self, state: Mapping[str, Tensor], prefix: str = "") -> ParamSet:
        """The set of these names in a checkpoint; what else it holds is left out."""
        return ParamSet({name: state[prefix + name] for name in self}, self.roles)
