"""Compare outputs and gradients of a backend with the reference, on both grid shapes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from nerfcli.backends import selfcheck
from nerfcli.backends.base import Backend
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import NetSpec

# Relative error, ||got - want|| / ||want||. On a CPU both sides compute in float32 and differ by
# the order of sums, less than 1e-6 as measured; a GPU backend may use half precision.
LIMITS = {"cpu": 1e-4, "cuda": selfcheck.LIMIT}
# may lack the colour of 2e-3 of the light (docs/backends.md), and is held to selfcheck.LIMIT
FAINT = "render_rays in fog (rgb)"
NETS = (NetSpec(GridSpec(16, 2, 12, 16, 256)), NetSpec(GridSpec(8, 4, 12, 16, 256)))


@dataclass(frozen=True)
class ParityRow:
    """The operation of a backend that differs most from the reference, and by how much."""

    backend: str
    agrees: bool
    operation: str
    error: float  # relative
    limit: float
    compared: int  # tensors

    def as_dict(self) -> dict:
        return asdict(self)


def parity(name: str, backend: Backend, device: str) -> ParityRow:
    """Compare `backend` with the reference; NaN is the largest error."""
    limit = LIMITS[device]
    errors = [found for net in NETS for found in selfcheck.differences(backend, device, net)]
    strict = [(n, e) for n, e in errors if n != FAINT or not e <= selfcheck.LIMIT]
    operation, error = max(strict, key=lambda found: (found[1] != found[1], found[1]))
    agrees = all(e <= limit for _, e in strict)
    return ParityRow(name, agrees, operation, error, limit, len(errors))
