"""Tensors and specs as the C structs of the kernels; checks happen here, at the edge."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from nerfcli.backends.cpu import library
from nerfcli.cameras.rays import Rays
from nerfcli.core.errors import NerfError
from nerfcli.core.tensors import ensure_shape
from nerfcli.reference.contraction import PerspectiveSpace, Space
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import SampleGrid
from nerfcli.reference.mlp import mlp_n_params
from nerfcli.reference.proposals import COARSER, ProposalGrid
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Pixels, Samples
from nerfcli.reference.sampling import Box, MarchingGrid, Steps

KINDS = {"box": 0, "contraction": 1, "perspective": 2}  # of spaces, as host.h counts them


def checked(
    name: str, value: Tensor, shape: tuple[int | None, ...], *, written: bool = False
) -> Tensor:
    """`value` as a contiguous float32 CPU tensor of `shape`; no copy if it will be written.

    Raises:
        NerfError: wrong shape, type or device, or not contiguous though to be written.
    """
    ensure_shape(name, value, shape)
    if value.dtype != torch.float32 or value.device.type != "cpu":
        raise NerfError(f"{name} must be float32 on the cpu, got {value.dtype} on {value.device}.")
    if written and not value.is_contiguous():
        raise NerfError(f"{name} is written in place and must be contiguous.")
    return value.contiguous()


def pointer(tensor: Tensor | None) -> int | None:
    """Where its numbers are; null for None."""
    return None if tensor is None else tensor.data_ptr()


@cache
def grid_view(spec: GridSpec) -> library.Grid:
    view = library.Grid(spec.n_levels, spec.n_features)
    for i, level in enumerate(spec.levels):
        view.scale[i], view.resolution[i] = level.scale, level.resolution
        view.n_entries[i], view.offset[i] = level.n_entries, level.offset
        view.hashed[i] = level.hashed
    return view


@cache
def net_view(net: NetSpec) -> library.Net:
    shape = (net.width, net.n_geometry, net.n_color_hidden, net.n_ray_inputs)
    return library.Net(grid_view(net.grid), *shape)


def params_view(params: NetParams, net: NetSpec, *, written: bool = False) -> library.Params:
    sizes = (net.grid.n_params, mlp_n_params(net.density_widths), mlp_n_params(net.color_widths))
    names = ("table", "density", "color")
    tensors = params.tensors()
    for name, tensor, size in zip(names, tensors, sizes, strict=True):
        # parameters are large: a hidden copy would cost more than the op
        checked(name, tensor, (size,), written=True)
    return library.Params(*(tensor.data_ptr() for tensor in tensors))


def rays_view(
    rays: Rays, ray_inputs: Tensor | None = None, net: NetSpec | None = None
) -> tuple[library.RaysView, tuple[Tensor | None, ...]]:
    """The struct, and the tensors that must live as long as it does.

    Raises:
        NerfError: wrong shapes; no ray inputs though `net` has an embedding.
    """
    origins = checked("origins", rays.origins, (None, 3))
    n = origins.shape[0]
    directions = checked("directions", rays.directions, (n, 3))
    if ray_inputs is not None and net is not None:
        ray_inputs = checked("ray_inputs", ray_inputs, (n, net.n_ray_inputs))
    elif net is not None and net.n_embedding:
        raise NerfError("ray_inputs must be given where the network takes an embedding.")
    radii = None if rays.radii is None else checked("radii", rays.radii, (n,))
    pointers = map(pointer, (origins, directions, ray_inputs, radii))
    return library.RaysView(*pointers, n), (origins, directions, ray_inputs, radii)


def samples_view(samples: Samples) -> tuple[library.SamplesView, tuple[Tensor, ...]]:
    """The struct, and the tensors that must live as long as it does."""
    t_starts = checked("t_starts", samples.t_starts, (None,))
    t_ends = checked("t_ends", samples.t_ends, (samples.capacity,))
    offsets = samples.ray_offsets.contiguous()
    view = library.SamplesView(t_starts.data_ptr(), t_ends.data_ptr(), offsets.data_ptr())
    return view, (t_starts, t_ends, offsets)


@cache
def space_view(space: Space) -> library.SpaceView:
    box = space.box
    view = library.SpaceView(KINDS[space.kind], space.unit_length)
    if isinstance(space, PerspectiveSpace):
        view.origin[:], view.size = space.origin, space.z_near
        view.rotation[:], view.tan[:] = space.rotation, space.tan
    elif space.kind == "contraction":
        view.origin[:], view.size = box.center, box.half_size
    else:
        low = torch.tensor(box.center) - box.outer_half_size  # float32, as Box.to_unit has it
        view.origin[:], view.size = low.tolist(), box.side
    return view


def step_lengths(steps: Steps) -> library.StepLengths:
    return library.StepLengths(steps.size, steps.cone)


def occupancy_view(occupied: Tensor, box: Box) -> library.Occupancy:
    """`occupied` must be contiguous and outlive the struct.

    Raises:
        NerfError: not bool, or of another shape than [n_cascades, R, R, R].
    """
    resolution = occupied.shape[-1]
    ensure_shape("occupied", occupied, (box.n_cascades, resolution, resolution, resolution))
    if occupied.dtype != torch.bool:
        raise NerfError(f"occupied must be bool, got {occupied.dtype}.")
    center = (library.c_float * 3)(*box.center)
    return library.Occupancy(occupied.data_ptr(), box.n_cascades, resolution, center, box.half_size)


def proposals_view(grid: ProposalGrid, annealing: float = 1.0) -> library.Proposals:
    """`grid` must outlive the struct.

    Raises:
        NerfError: a grid or the edges that the kernels cannot read in place.
    """
    for name, cells, resolution in (
        ("fine", grid.fine, grid.resolution),
        ("coarse", grid.coarse, grid.resolution // COARSER),
    ):
        ensure_shape(name, cells, (resolution**3,))
        if cells.dtype != torch.bfloat16 or not cells.is_contiguous():
            raise NerfError(f"{name} must be contiguous bfloat16, got {cells.dtype}.")
    edges = checked("edges", grid.edges, (None,), written=True)
    return library.Proposals(
        grid.fine.data_ptr(),
        grid.coarse.data_ptr(),
        edges.data_ptr(),
        grid.resolution,
        grid.resolution // COARSER,
        len(edges) - 1,
        grid.n_samples,
        grid.prior,
        grid.padding,
        annealing,
    )


def sampling_view(grid: SampleGrid) -> tuple[tuple, Tensor | None]:
    """Occupancy, steps and proposals, null what a grid is not, and what must live as long."""
    if isinstance(grid, ProposalGrid):
        return (None, None, proposals_view(grid)), None
    assert isinstance(grid, MarchingGrid)
    occupied = grid.occupied.contiguous()
    return (occupancy_view(occupied, grid.box), step_lengths(grid.steps), None), occupied


def pixels_view(pixels: Pixels) -> library.PixelsView:
    return library.PixelsView(
        pixels.rgb.data_ptr(),
        pixels.opacity.data_ptr(),
        pixels.depth.data_ptr(),
        pixels.median_depth.data_ptr(),
    )
