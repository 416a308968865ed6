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
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
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

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
N_RAYS = 32
BOX = Box((0.0, 0.0, 0.0), 1.0, 2)
SPACES: dict[str, Space] = {
    "box": BoxSpace(BOX),
    "contraction": ContractedSpace(BOX),
    "perspective": PerspectiveSpace(BOX, (1.0,) * 9, (0.0,) * 3, 1.0, (1.0, 1.0)),
}
compiled: dict[str, dict[str, tuple[str, int]]] = {}


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    assert len(args) == len(self.params), self.__name__
    signature, constants, aligned = {}, {}, {}
    for i, (param, value) in enumerate(zip(self.params, args, strict=True)):
        signature[param.name] = "constexpr" if param.is_constexpr else type_of(value)
        if param.is_constexpr:
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor) and not param.do_not_specialize:
            aligned[(i,)] = [["tt.divisibility", 16]]
    key = str((signature, constants))
    known = compiled.setdefault(self.__name__, {})
    if key not in known:
        source = ASTSource(self, signature, constants, aligned)
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        kernel = triton.compile(source, target=target, options=options)
        known[key] = kernel.asm["ptx"], kernel.metadata.shared
        if len(sys.argv) > 3:  # a folder for the machine code, to look at with cuobjdump
            name = f"{self.__name__}-{len(known)}.cubin"
            Path(sys.argv[3], name).write_bytes(kernel.asm["cubin"])


def launch_everything(dtype: torch.dtype, net: NetSpec) -> None:
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
    for space in SPACES.values():
        network = network_of(net, space)
        grads, is_plain = network.params, space.kind == "box"
        objective = Objective() if is_plain else Objective("mse", 0.1, 0.1, 0.1)
        given = None if is_plain else torch.zeros(N_RAYS, net.n_ray_inputs)
        plain = Batch(rays, colors, colors)
        ops.step_gradients(network, grads, plain if is_plain else batch, samples, objective,
                           ray_inputs=given, with_weights=not is_plain, with_ray_grads=True)  # fmt: skip
        ops.render_rays(network, rays, *march, colors)
        positions = rays.origins.clone().requires_grad_()
        inputs = ops.spherical_harmonics(positions)
        sigmas, rgbs = ops.radiance(network_of(net, space), positions, inputs)
        (sigmas.sum() + rgbs.sum()).backward()
    sigmas = torch.zeros(64, requires_grad=True)
    ops.composite(sigmas, torch.zeros(64, 3), samples, colors).rgb.sum().backward()
    table = torch.zeros(net.grid.n_params)
    ops.copies.of(table)
    for rates, ema in ((None, table.clone()), (torch.zeros(3), table.clone())):
        ops.adam_step(table, table, table, table, AdamConfig(), lr=0.1, rates=rates, ema=ema)


def network_of(net: NetSpec, space: Space) -> Network:
    sizes = (net.grid.n_params, mlp_n_params(net.density_widths), mlp_n_params(net.color_widths))
    return Network(net, NetParams(*map(torch.zeros, sizes)), space)


def draw_and_adapt(ops: TritonBackend, colors: torch.Tensor) -> None:
    """Of views with and without alpha, masks and lenses."""
    c2w, plane = torch.eye(3, 4).double()[None], torch.full((1, 2), 4.0).double()
    index, u = torch.zeros(1, dtype=torch.int64), torch.zeros(N_RAYS).double()
    offsets = torch.tensor([0, 64])
    for lens, channels, usable, kind in (
        (Lens(), 4, None, "box"),
        (Lens("fisheye", (0.1, 0.0, 0.0, 0.0)), 3, torch.zeros(4, dtype=torch.int32), "perspective"),
    ):  # fmt: skip
        cameras = Cameras(c2w, plane, plane, torch.full((1, 2), 8), (lens,))
        pixels = torch.zeros(64, channels, dtype=torch.uint8)
        views = Views(pixels, offsets, index, index + 8, usable)
        ops.draw(views, cameras, u, colors, SPACES[kind], index[0])
    limits = {"n_samples": 64, "memory": 0.8, "limits": (1, 9)}
    ops.adapt(torch.zeros(()), index[0], index[0], index[0], **limits)


if __name__ == "__main__":
    JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
    torch.empty = torch.zeros  # nothing is computed, so nothing may be garbage
    triton_render.ROUND_SAMPLES = 0
    if sys.argv[2] == "pairs":
        launch_everything(torch.float16, NetSpec(GridSpec(16, 2, 10)))
    else:
        launch_everything(torch.bfloat16, NetSpec(GridSpec(8, 4, 10), n_embedding=16))
    print(json.dumps({name: list(known.values()) for name, known in compiled.items()}))
