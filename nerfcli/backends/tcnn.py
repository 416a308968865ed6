"""The tiny-cuda-nn backend: NVIDIA's `tinycudann` modules for the grid and the networks.

Its modules own their parameters; here they are called with ours, which have the same layout up
to the padding of a network's outputs. The rest is left to torch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from nerfcli.backends.base import Backend
from nerfcli.core.devices import cuda_missing, is_installed
from nerfcli.core.errors import NerfError
from nerfcli.reference import fused
from nerfcli.reference import mlp as networks
from nerfcli.reference.encoding import GridSpec, fade_levels
from nerfcli.reference.fused import StepOut
from nerfcli.reference.radiance import MAX_LOG_DENSITY, Network

INSTALL = (
    "pip install 'git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch' "
    "--no-build-isolation (needs nvcc and a C++ compiler; it is not on PyPI)"
)
FUSED_WIDTHS = (16, 32, 64, 128)
# Of the loss on the way back. The library rounds gradients of outputs to half precision, multiplies
# them by 128 and adds those of parameters up in it: this much keeps a sample's share in 65,536 rays
# above what it holds, and the sum over all samples, near 1 at the most, below 65504.
SCALE = 256.0
OUTPUT_MULTIPLE = 16  # the fully fused network pads its outputs to it


@functools.cache
def _grid_module(spec: GridSpec) -> Any:
    import tinycudann  # pyright: ignore[reportMissingImports]

    growth = 1.0
    if spec.n_levels > 1:
        growth = (spec.max_resolution / spec.base_resolution) ** (1 / (spec.n_levels - 1))
    config = {
        "otype": "HashGrid",
        "n_levels": spec.n_levels,
        "n_features_per_level": spec.n_features,
        "log2_hashmap_size": spec.log2_table_size,
        "base_resolution": spec.base_resolution,
        "per_level_scale": growth,
    }
    return _ours(tinycudann.Encoding(3, config), spec.n_params, "the grid")


@functools.cache
def _network_module(widths: tuple[int, ...]) -> Any:
    import tinycudann  # pyright: ignore[reportMissingImports]

    config = {
        "otype": "FullyFusedMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": widths[1],
        "n_hidden_layers": len(widths) - 2,
    }
    n_out = -(-widths[-1] // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE
    n_params = networks.mlp_n_params((*widths[:-1], n_out))
    return _ours(tinycudann.Network(widths[0], widths[-1], config), n_params, f"widths {widths}")


def _ours(module: Any, n_params: int, what: str) -> Any:
    """The module, if its parameters are as many as ours; their order no one can ask it."""
    if module.params.numel() != n_params:
        raise NerfError(
            f"backend tcnn: this tinycudann has {module.params.numel()} parameters for {what}, "
            f"not {n_params}. Use another version of it, or another --backend."
        )
    return module


class TcnnBackend(Backend):
    """The grid and the networks in half precision; everything else is the reference."""

    name = "tcnn"
    rays_per_chunk = 2**16

    @classmethod
    def why_unavailable(cls, device: str) -> str | None:
        if device != "cuda":
            return f"it does not run on {device}"
        if not is_installed("tinycudann"):
            return f"tinycudann is not installed: {INSTALL}"
        if missing := cuda_missing():
            return missing
        try:
            import tinycudann  # noqa: F401  # pyright: ignore[reportMissingImports]
        except (ImportError, OSError) as error:  # built for another torch, CUDA or GPU
            return (
                f"tinycudann cannot be imported ({str(error).strip().rstrip('.')}): build it again"
            )
        return None

    def hash_grid(
        self, positions: Tensor, table: Tensor, spec: GridSpec, scales: Tensor | None = None
    ) -> Tensor:
        """Float32 in, out and in the gradient of the table."""
        if not len(positions):
            return super().hash_grid(positions, table, spec, scales)
        features = functional_call(_grid_module(spec), {"params": table}, (positions,)).float()
        return features if scales is None else fade_levels(features, scales, spec)

    def mlp(self, x: Tensor, weights: Tensor, widths: tuple[int, ...]) -> Tensor:
        """Shapes that the fused network lacks go to torch."""
        fused = len(set(widths[1:-1])) == 1 and widths[1] in FUSED_WIDTHS and widths[0] % 16 == 0
        if not fused or not len(x):
            return super().mlp(x, weights, widths)
        # rows of the last matrix [out, in] come last, so padding the outputs is padding the end
        missing = -widths[-1] % OUTPUT_MULTIPLE * widths[-2]
        padded = F.pad(weights, (0, missing))
        return functional_call(_network_module(widths), {"params": padded}, (x,)).float()

    def density(self, network: Network, positions: Tensor, scales: Tensor | None = None) -> Tensor:
        return _sigmas(self._geometry(network, positions, scales)) / network.space.unit_length

    def radiance(
        self,
        network: Network,
        positions: Tensor,
        ray_inputs: Tensor,
        scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        geometry = self._geometry(network, positions, scales)
        inputs = torch.cat([geometry, ray_inputs], dim=1)
        rgbs = torch.sigmoid(self.mlp(inputs, network.params.color, network.spec.color_widths))
        return _sigmas(geometry) / network.space.unit_length, rgbs

    def step_gradients(self, *args: Any, **options: Any) -> StepOut:
        return fused.step_gradients(self, *args, scale=SCALE, **options)

    def _geometry(self, network: Network, positions: Tensor, scales: Tensor | None) -> Tensor:
        spec, params = network.spec, network.params
        unit = network.space.to_unit(positions)
        features = self.hash_grid(unit, params.table, spec.grid, scales)
        return self.mlp(features, params.density, spec.density_widths)


def _sigmas(geometry: Tensor) -> Tensor:
    log_density = geometry[:, 0]
    # the clamp without its gradient: no density gets stuck
    return torch.exp(log_density - (log_density - MAX_LOG_DENSITY).clamp(min=0.0).detach())
