"""Compile every kernel for a GPU that need not be there: compile_kernels.py CAPABILITY LAYOUT.

LAYOUT is `pairs` (16 levels of 2 features, float16) or `quads` (8 of 4, bfloat16).
The interpreter is lax where the compiler is strict (types, shapes, loop variables). Launches are
caught and compiled instead of run; prints one JSON object, kernel name -> list of [PTX, bytes of
shared memory].
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nerfcli.backends.triton import triton_render, triton_sampling
from nerfcli.backends.triton.backend import TritonBackend
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import Batch, Bounds, Rays
from nerfcli.reference.adam import AdamConfig
from nerfcli.reference.contraction import BoxSpace, ContractedSpace, PerspectiveSpace, Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import Objective
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec, Network
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import MarchingGrid, Steps
from nerfcli.scenes.views import Views

N_RAYS = 32
BOX = Box((0.0, 0.0, 0.0), 1.0, 2)
SPACES: dict[str, Space] = {
    "box": BoxSpace(BOX),
    "contraction": ContractedSpace(BOX),
    "perspective": PerspectiveSpace(BOX, (1.0,) * 9, (0.0, 0.0, 0.0), 1.0, (1.0, 1.0)),
}
compiled: dict[str, dict[str, tuple[str, int]]] = {}


class NoDriver:
    """As much of a GPU's driver as a launch asks before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)


launch = JITFunction.run


def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """A launch up to its last moment: Triton's own look at the arguments, and its compiler."""
    kernel: Any = launch(self, *args, grid=grid, warmup=True, **options)
    known = compiled.setdefault(self.__name__, {})
    if kernel.hash not in known:
        known[kernel.hash] = kernel.asm["ptx"], kernel.metadata.shared
        if len(sys.argv) > 3:  # a folder for the machine code, to look at with cuobjdump
            name = f"{self.__name__}-{len(known)}.cubin"
            Path(sys.argv[3], name).write_bytes(kernel.asm["cubin"])


def launch_everything(dtype: torch.dtype, net: NetSpec, kind: str) -> None:
    ops = TritonBackend(dtype)
    rays = Rays(torch.zeros(N_RAYS, 3), torch.zeros(N_RAYS, 3))
    zero, colors = torch.zeros(N_RAYS), torch.zeros(N_RAYS, 3)
    steps = Steps(0.1, 0.004)
    occupied = torch.zeros(2, 16, 16, 16, dtype=torch.bool)
    march = (Bounds(zero, zero), zero, MarchingGrid(occupied, BOX, steps))
    ops.march_within(rays, *march, 64)
    draw_and_adapt(ops, colors)
    walk = triton_sampling.new_walk(rays, *march)
    ids = torch.zeros(N_RAYS, dtype=torch.int64)
    walk = replace(walk, ids=ids, first_steps=zero)
    walk.count(8)
    walk.write(torch.zeros(N_RAYS + 1, dtype=torch.int64), zero, 64)
    offsets = torch.zeros(N_RAYS + 1, dtype=torch.int64)
    samples = Samples(torch.zeros(64), torch.zeros(64), offsets)
    batch = Batch(rays, colors, colors, depth=zero, weight=zero)
    plain = Batch(rays, colors, colors)
    ops.step_gradients(network_of(net), network_of(net).params, plain, samples, Objective())
    # whatever a step can give, in one more space: compiling for all of them takes long
    network, given = network_of(net, kind), torch.zeros(N_RAYS, net.n_ray_inputs)
    everything = {"ray_inputs": given, "with_weights": True, "with_ray_grads": True}
    objective = Objective("mse", 0.1, 0.1, 0.1)
    ops.step_gradients(network, network.params, batch, samples, objective, **everything)
    ops.render_rays(network_of(net), rays, *march, colors)
    positions = rays.origins.clone().requires_grad_()
    inputs = torch.cat([ops.spherical_harmonics(positions), given[:, 16:]], dim=1)
    sigmas, rgbs = ops.radiance(network, positions, inputs)
    (sigmas.sum() + rgbs.sum()).backward()
    sigmas = torch.zeros(64, requires_grad=True)
    ops.composite(sigmas, torch.zeros(64, 3), samples, colors).rgb.sum().backward()
    table = torch.zeros(net.grid.n_params)
    ops.copies.of(table)
    for rates, ema in ((None, table.clone()), (torch.zeros(3), table.clone())):
        ops.adam_step(table, table, table, table, AdamConfig(), lr=0.1, rates=rates, ema=ema)


def network_of(net: NetSpec, kind: str = "box") -> Network:
    sizes = (net.grid.n_params, mlp_n_params(net.density_widths), mlp_n_params(net.color_widths))
    return Network(net, NetParams(*map(torch.zeros, sizes)), SPACES[kind])


def draw_and_adapt(ops: TritonBackend, colors: torch.Tensor) -> None:
    """Of views with and without alpha, masks and lenses."""
    c2w, plane = torch.eye(3, 4).double()[None], torch.full((1, 2), 4.0).double()
    index, u = torch.zeros(1, dtype=torch.int64), torch.zeros(N_RAYS).double()
    offsets = torch.tensor([0, 64])
    fisheye, some = Lens("fisheye", (0.1, 0.0, 0.0, 0.0)), torch.zeros(4, dtype=torch.int32)
    for lens, channels, usable, kind in (
        (Lens(), 4, None, "box"),
        (fisheye, 3, some, "perspective"),
    ):
        cameras = Cameras(c2w, plane, plane, torch.full((1, 2), 8), (lens,))
        pixels = torch.zeros(64, channels, dtype=torch.uint8)
        views = Views(pixels, offsets, index, index + 8, usable)
        ops.draw(views, cameras, u, colors, SPACES[kind], index[0])
    limits = {"n_samples": 64, "memory": 0.8, "limits": (1, 9)}
    ops.adapt(torch.zeros(()), index[0], index[0], index[0], **limits)


if __name__ == "__main__":
    driver.set_active(NoDriver())  # pyright: ignore[reportArgumentType]
    JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
    torch.empty = torch.zeros  # nothing is computed, so nothing may be garbage
    triton_render.ROUND_SAMPLES = 0
    if sys.argv[2] == "pairs":
        launch_everything(torch.float16, NetSpec(GridSpec(16, 2, 10)), "perspective")
    else:
        launch_everything(
            torch.bfloat16, NetSpec(GridSpec(8, 4, 10), n_embedding=16), "contraction"
        )
    print(json.dumps({name: list(known.values()) for name, known in compiled.items()}))
