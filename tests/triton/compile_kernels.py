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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from nerfcli.backends import ops_triton
from nerfcli.backends.ops import Ops
from nerfcli.backends.triton import triton_render, triton_sampling
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.cameras.rays import Rays
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import Steps
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
    ops = ops_triton.build(dtype)
    sizes = (net.grid.n_params, mlp_n_params(net.density_widths), mlp_n_params(net.color_widths))
    params, grads = (NetParams(*(torch.zeros(n) for n in sizes)) for _ in "ab")
    box, steps = Box((0.0, 0.0, 0.0), 1.0, 2), Steps(0.1, 0.004)
    rays, zero = Rays(torch.zeros(N_RAYS, 3), torch.zeros(N_RAYS, 3)), torch.zeros(N_RAYS)
    occupied, colors = torch.zeros(2, 16, 16, 16, dtype=torch.bool), torch.zeros(N_RAYS, 3)
    march = (zero, zero, zero, occupied)
    assert ops.march_within is not None and ops.draw is not None and ops.adapt is not None
    ops.march_within(rays.origins, rays.directions, *march, box, steps, 64)
    draw_and_adapt(ops, box, colors)
    walk = triton_sampling.new_walk(rays.origins, rays.directions, *march, box, steps)
    ids = torch.zeros(N_RAYS, dtype=torch.int64)
    walk = replace(walk, ids=ids, first_steps=zero)
    walk.count(8)
    walk.write(torch.zeros(N_RAYS + 1, dtype=torch.int64), zero, 64)
    offsets = torch.zeros(N_RAYS + 1, dtype=torch.int64)
    samples = Samples(torch.zeros(64), torch.zeros(64), offsets)
    ops.photometric_gradients(params, grads, net, box, rays, samples, colors, colors)
    ops.render_rays(params, net, box, rays, *march, steps, colors)
    ops.radiance(rays.origins, rays.directions, params, net)
    sigmas = torch.zeros(64, requires_grad=True)
    ops.composite(sigmas, torch.zeros(64, 3), samples, colors).rgb.sum().backward()
    table, ema = params.table, params.table.clone()
    adam = partial(ops.adam_step, table, grads.table, table, table)
    adam(step=1, lr=0.1, ema=ema, ema_decay=0.9)
    adam(rates=torch.zeros(3), ema=ema, ema_decay=0.9)


def draw_and_adapt(ops: Ops, box: Box, colors: torch.Tensor) -> None:
    """Of views with and without alpha, masks and lenses."""
    assert ops.draw is not None and ops.adapt is not None
    c2w, plane = torch.eye(3, 4).double()[None], torch.full((1, 2), 4.0).double()
    index, u = torch.zeros(1, dtype=torch.int64), torch.zeros(N_RAYS).double()
    offsets = torch.tensor([0, 64])
    for lens, channels, usable in (
        (Lens(), 4, None),
        (Lens("fisheye", (0.1, 0.0, 0.0, 0.0)), 3, torch.zeros(4, dtype=torch.int32)),
    ):
        cameras = Cameras(c2w, plane, plane, torch.full((1, 2), 8), (lens,))
        pixels = torch.zeros(64, channels, dtype=torch.uint8)
        views = Views(pixels, offsets, index, index + 8, usable)
        ops.draw(views, cameras, u, colors, box, 0.1, 9.0, index[0])
    limits = {"n_samples": 64, "memory": 0.8, "limits": (1, 9)}
    ops.adapt(torch.zeros(()), index[0], index[0], index[0], **limits)


if __name__ == "__main__":
    JITFunction.run = compile_only  # pyright: ignore[reportAttributeAccessIssue]
    torch.empty = torch.zeros  # nothing is computed, so nothing may be garbage
    triton_render.ROUND_SAMPLES = 0
    if sys.argv[2] == "pairs":
        launch_everything(torch.float16, NetSpec(GridSpec(16, 2, 10)))
    else:
        launch_everything(torch.bfloat16, NetSpec(GridSpec(8, 4, 10)))
    print(json.dumps({name: list(known.values()) for name, known in compiled.items()}))
