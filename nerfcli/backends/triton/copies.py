"""Half-precision copies of tables: one thing with the table to this backend, two to all others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nerfcli.reference.radiance import Network


@dataclass
class _Copy:
    tensor: Tensor
    version: int  # of the table when the copy was true


class TableCopies:
    """Copies of float32 tables in the precision of the kernels, each as long as its table lives.

    torch counts the changes of a tensor, so a copy that somebody else made stale is noticed and
    made anew. The optimiser's kernel writes the copy along with the table.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, table: Tensor) -> Tensor:
        """The table itself if it has the precision, else its copy; made at first use."""
        if table.dtype == self.dtype:
            return table.detach()
        known = self._known.get(table)
        if known is None or known.version != table._version:
            known = _Copy(table.detach().to(self.dtype), table._version)
            self._known[table] = known
        return known.tensor

    def narrow(self, network: Network) -> Network:
        """The network with its table as the kernels read it."""
        table = self.of(network.params.table)
        return replace(network, params=replace(network.params, table=table))

    def known(self, table: Tensor) -> Tensor | None:
        """The copy that a kernel which changes `table` must change alike; None: there is none."""
        known = self._known.get(table)
        return None if known is None or known.version != table._version else known.tensor

    def note_change(self, table: Tensor) -> None:
        """Count a change of `table` by a kernel, which torch does not see, made in its copy too."""
        known = self._known.get(table)
        was_true = known is not None and known.version == table._version
        torch.autograd.graph.increment_version(table)
        if known is not None and was_true:
            known.version = table._version
