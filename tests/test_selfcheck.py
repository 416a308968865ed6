"""The comparison with the reference, on backends that are wrong on purpose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from nerfcli.backends import selfcheck
from nerfcli.backends.ops import Ops, reference
from nerfcli.cameras.boxes import Box
from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.rays import Rays
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Samples
from nerfcli.reference.sampling import intersect_box
from nerfcli.scenes.views import Views


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "NET", NetSpec(GridSpec(3, 2, 9, 4, 32), width=16))
    monkeypatch.setattr(selfcheck, "N_RAYS", 16)
    monkeypatch.setattr(selfcheck, "N_POINTS", 63)


def scaled(op: Callable[..., Any], factor: float = 1.1) -> Callable[..., Any]:
    """The op with every tensor that it returns ten percent too large."""

    def wrong(*args: Any, **options: Any) -> Any:
        out = op(*args, **options)
        if isinstance(out, torch.Tensor):
            return out * factor
        if isinstance(out, tuple):
            return tuple(part * factor for part in out)
        values = {f.name: getattr(out, f.name) * factor for f in dataclasses.fields(out)}
        return type(out)(**values)

    return wrong


class _DoubledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * grad


def test_the_reference_agrees_with_itself() -> None:
    assert selfcheck.fault(reference(), "cpu") is None


@pytest.mark.parametrize(
    "op", ["spherical_harmonics", "hash_grid", "mlp", "density", "radiance", "composite"]
)
def test_a_wrong_output_is_found(op: str) -> None:
    ops = dataclasses.replace(reference(), **{op: scaled(getattr(reference(), op))})
    assert str(selfcheck.fault(ops, "cpu")).startswith(f"{op}")
    assert "differs from the reference by 10%" in str(selfcheck.fault(ops, "cpu"))


@pytest.mark.parametrize("op", ["hash_grid", "radiance", "composite"])
def test_a_wrong_gradient_is_found(op: str) -> None:
    right = getattr(reference(), op)

    def wrong(*args: Any) -> Any:
        first = args[1] if op == "hash_grid" else args[0]
        if op == "radiance":
            doubled = NetParams(*(_DoubledGradient.apply(p) for p in args[2].tensors()))
            return right(args[0], args[1], doubled, args[3])
        doubled = _DoubledGradient.apply(first)
        return right(args[0], doubled, args[2]) if op == "hash_grid" else right(doubled, *args[1:])

    ops = dataclasses.replace(reference(), **{op: wrong})
    assert selfcheck.fault(ops, "cpu") == f"the gradient of {op} differs from the reference by 100%"


def test_a_march_that_loses_samples_is_found() -> None:
    def wrong(*args: Any) -> Samples:
        samples = reference().march(*args)
        keep = torch.arange(samples.capacity) % 10 != 0
        return samples.select(keep)

    ops = dataclasses.replace(reference(), march=wrong)
    assert str(selfcheck.fault(ops, "cpu")).startswith("march differs")


def test_gradients_of_a_step_that_are_never_written_are_found() -> None:
    def wrong(params: NetParams, grads: NetParams, *args: Any, **options: Any) -> Any:
        nowhere = NetParams(*(torch.zeros_like(g) for g in grads.tensors()))
        return reference().photometric_gradients(params, nowhere, *args, **options)

    ops = dataclasses.replace(reference(), photometric_gradients=wrong)
    assert "photometric_gradients differs" in str(selfcheck.fault(ops, "cpu"))


def test_a_wrong_picture_is_found() -> None:
    ops = dataclasses.replace(reference(), render_rays=scaled(reference().render_rays))
    assert "render_rays (rgb) differs" in str(selfcheck.fault(ops, "cpu"))


def test_an_adam_that_keeps_its_gradients_is_found() -> None:
    def wrong(params: torch.Tensor, grads: torch.Tensor, *args: Any, **options: Any) -> None:
        reference().adam_step(params, grads.clone(), *args, **options)

    ops = dataclasses.replace(reference(), adam_step=wrong)
    assert "adam_step differs" in str(selfcheck.fault(ops, "cpu"))


def test_what_is_not_finite_is_found() -> None:
    ops = dataclasses.replace(reference(), mlp=scaled(reference().mlp, float("nan")))
    assert "mlp differs" in str(selfcheck.fault(ops, "cpu"))


def march_within(*args: Any, keep: int = 0) -> tuple[Samples, torch.Tensor]:
    """sampling.march into a fixed capacity; `keep` more rays than fit are said to fit."""
    whole = reference().march(*args[:-1])
    samples, n = selfcheck._first_rays(whole, args[-1])
    return samples, torch.tensor(n + keep)


def gradients_of_some(
    params: NetParams, grads: NetParams, net: NetSpec, box: Any, rays: Any, samples: Samples,
    target: torch.Tensor, background: torch.Tensor, *, n_live: torch.Tensor | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    n = len(rays) if n_live is None else int(n_live)
    live = int(samples.ray_offsets[n])
    short = Samples(samples.t_starts[:live], samples.t_ends[:live], samples.ray_offsets[: n + 1])
    right = reference().photometric_gradients
    return right(params, grads, net, box, rays[:n], short, target[:n], background[:n], **options)


def adam_by_rates(*args: Any, rates: torch.Tensor | None = None, **options: Any) -> None:
    if rates is None:
        return reference().adam_step(*args, **options)
    step = round(float(torch.log(1 - rates[1].double()) / math.log(0.9)))
    return reference().adam_step(*args, **options, step=step, lr=float(rates[0]))


def draw(
    views: Views, cameras: Cameras, u: torch.Tensor, background: torch.Tensor, box: Box,
    near: float, far: float, n_counted: torch.Tensor,
) -> tuple[Rays, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    flat = views.draw(u)
    rays, colors = cameras.rays(views.locate(flat)), views.colors(flat)
    target = colors[:, :3] * colors[:, 3:] + (1 - colors[:, 3:]) * background
    t_min, t_max = intersect_box(rays.origins, rays.directions, box, near, far)
    t_max[int(n_counted) :] = t_min[int(n_counted) :]
    return rays, target, t_min, t_max


def adapt(rate: torch.Tensor, wanted: torch.Tensor, *now: torch.Tensor, **options: Any) -> None:
    n_rays, n_kept = (int(n) for n in now)
    memory = options["memory"]
    rate.copy_(memory * rate + (1 - memory) * n_kept / n_rays)
    wanted.fill_(int(options["n_samples"] / float(rate)))


def waitless() -> Ops:
    """The reference in the clothes of a backend whose counts live on the device."""
    return dataclasses.replace(
        reference(),
        march_within=march_within,
        draw=draw,
        adapt=adapt,
        photometric_gradients=gradients_of_some,
        adam_step=adam_by_rates,
    )


def test_a_step_that_never_waits_is_compared_too() -> None:
    assert selfcheck.fault(waitless(), "cpu") is None
    every, fewer = (
        {name for name, _ in selfcheck.differences(ops, "cpu")} for ops in (waitless(), reference())
    )
    assert every - fewer == {
        "draw",
        "adapt",
        "march_within",
        "photometric_gradients of some rays",
        "adam_step by rates",
    }


def test_rays_of_other_pixels_are_found() -> None:
    def wrong(views: Views, cameras: Cameras, u: torch.Tensor, *rest: Any) -> Any:
        return draw(views, cameras, 1 - u, *rest)

    fault = selfcheck.fault(dataclasses.replace(waitless(), draw=wrong), "cpu")
    assert str(fault).startswith("draw differs")


def test_rays_that_do_not_count_but_hit_the_box_are_found() -> None:
    def wrong(views: Views, cameras: Cameras, u: torch.Tensor, *rest: Any) -> Any:
        background, box, near, far, _counted = rest
        return draw(views, cameras, u, background, box, near, far, torch.tensor(selfcheck.N_RAYS))

    fault = selfcheck.fault(dataclasses.replace(waitless(), draw=wrong), "cpu")
    assert str(fault).startswith("draw differs")


def test_a_ray_count_that_does_not_follow_is_found() -> None:
    fault = selfcheck.fault(dataclasses.replace(waitless(), adapt=lambda *_, **__: None), "cpu")
    assert str(fault).startswith("adapt differs")


def test_a_march_that_miscounts_the_rays_that_fit_is_found() -> None:
    wrong = partial(march_within, keep=2)
    fault = selfcheck.fault(dataclasses.replace(waitless(), march_within=wrong), "cpu")
    assert str(fault).startswith("march_within differs")


def test_a_march_that_passes_over_what_does_not_fit_is_found() -> None:
    """All rays keep their samples: more than there is room for."""

    def wrong(*args: Any) -> tuple[Samples, torch.Tensor]:
        return reference().march(*args[:-1]), march_within(*args)[1]

    fault = selfcheck.fault(dataclasses.replace(waitless(), march_within=wrong), "cpu")
    assert str(fault).startswith("march_within differs")


def test_a_mean_over_all_rays_instead_of_the_live_ones_is_found() -> None:
    def wrong(*args: Any, n_live: torch.Tensor | None = None, **options: Any) -> Any:
        return reference().photometric_gradients(*args, **options)

    ops = dataclasses.replace(waitless(), photometric_gradients=wrong)
    assert str(selfcheck.fault(ops, "cpu")).startswith("photometric_gradients of some rays differs")


def test_a_step_that_does_not_see_the_rates_is_found() -> None:
    def wrong(*args: Any, rates: torch.Tensor | None = None, **options: Any) -> None:
        reference().adam_step(*args, **({"step": 1, "lr": 0.1} | options))

    ops = dataclasses.replace(waitless(), adam_step=wrong)
    assert str(selfcheck.fault(ops, "cpu")).startswith("adam_step by rates differs")


def test_a_copy_of_the_table_that_grows_stale_is_found() -> None:
    copies: dict[int, torch.Tensor] = {}

    def stale(positions: torch.Tensor, table: torch.Tensor, spec: GridSpec) -> torch.Tensor:
        if table.requires_grad:
            return reference().hash_grid(positions, table, spec)
        copy = copies.setdefault(id(table), table.clone())
        return reference().hash_grid(positions, copy, spec)

    ops = dataclasses.replace(reference(), hash_grid=stale)
    assert str(selfcheck.fault(ops, "cpu")).startswith("hash_grid after adam_step differs")
