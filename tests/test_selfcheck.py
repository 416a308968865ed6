"""The comparison with the reference, on backends that are wrong on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nerfcli.backends import selfcheck
from nerfcli.backends.base import Backend
from nerfcli.reference.encoding import GridSpec
from nerfcli.reference.fused import StepOut
from nerfcli.reference.radiance import NetParams, NetSpec
from nerfcli.reference.samples import Samples

RIGHT = Backend()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "NET", NetSpec(GridSpec(3, 2, 9, 4, 32), width=16))
    monkeypatch.setattr(selfcheck, "N_RAYS", 16)
    monkeypatch.setattr(selfcheck, "N_POINTS", 63)


def fault_of(**ops: Callable[..., Any]) -> str:
    """The fault that is found in the reference with these ops in the place of its own."""
    methods = {name: staticmethod(op) for name, op in ops.items()}
    return str(selfcheck.find_fault(type("Wrong", (Backend,), methods)(), "cpu"))


def scale(op: Callable[..., Any], factor: float = 1.1) -> Callable[..., Any]:
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


def double_gradient(x: torch.Tensor) -> torch.Tensor:
    return _DoubledGradient.apply(x)  # pyright: ignore[reportReturnType]


def test_the_reference_agrees_with_itself() -> None:
    assert selfcheck.find_fault(Backend(), "cpu") is None


@pytest.mark.parametrize(
    "op", ["spherical_harmonics", "hash_grid", "mlp", "density", "radiance", "composite"]
)
def test_a_wrong_output_is_found(op: str) -> None:
    fault = fault_of(**{op: scale(getattr(RIGHT, op))})
    assert fault.startswith(f"{op}") and "differs from the reference by 10%" in fault


def test_a_wrong_gradient_in_the_table_is_found() -> None:
    fault = fault_of(
        hash_grid=lambda x, table, spec: RIGHT.hash_grid(x, double_gradient(table), spec)
    )
    assert fault == "the gradient of hash_grid differs from the reference by 100%"


def test_a_wrong_gradient_in_positions_is_found() -> None:
    fault = fault_of(
        hash_grid=lambda x, table, spec: RIGHT.hash_grid(double_gradient(x), table, spec)
    )
    assert fault == "the gradient of hash_grid in positions differs from the reference by 100%"


def test_a_wrong_gradient_in_directions_is_found() -> None:
    fault = fault_of(spherical_harmonics=lambda d: RIGHT.spherical_harmonics(double_gradient(d)))
    assert fault == "the gradient of spherical_harmonics differs from the reference by 100%"


def test_a_wrong_gradient_in_the_networks_is_found() -> None:
    def wrong(network: Any, *args: Any) -> Any:
        params = NetParams(*map(double_gradient, network.params.tensors()))
        return RIGHT.radiance(dataclasses.replace(network, params=params), *args)

    fault = fault_of(radiance=wrong)
    assert fault == "the gradient of radiance differs from the reference by 100%"


def test_a_wrong_gradient_in_ray_inputs_is_found() -> None:
    fault = fault_of(
        radiance=lambda network, x, inputs: RIGHT.radiance(network, x, double_gradient(inputs))
    )
    assert fault == "its gradient differs from the reference by 100%"


def test_a_space_that_is_ignored_is_found() -> None:
    def wrong(network: Any, *args: Any) -> Any:
        return RIGHT.radiance(dataclasses.replace(network, space=selfcheck.SPACES[0]), *args)

    assert fault_of(radiance=wrong).startswith("radiance in contraction (density of positions)")


def test_a_wrong_gradient_of_composite_is_found() -> None:
    fault = fault_of(
        composite=lambda sigmas, *args: RIGHT.composite(double_gradient(sigmas), *args)
    )
    assert fault == "the gradient of composite differs from the reference by 100%"


def test_a_march_that_loses_samples_is_found() -> None:
    def wrong(*args: Any) -> Samples:
        samples = RIGHT.march(*args)
        return samples.select(torch.arange(samples.capacity) % 10 != 0)

    assert fault_of(march=wrong).startswith("march differs")


def test_gradients_of_a_step_that_are_never_written_are_found() -> None:
    def wrong(network: Any, grads: NetParams, *args: Any, **options: Any) -> StepOut:
        nowhere = NetParams(*(torch.zeros_like(g) for g in grads.tensors()))
        return RIGHT.step_gradients(network, nowhere, *args, **options)

    assert fault_of(step_gradients=wrong).startswith("step_gradients differs")


def test_gradients_of_rays_that_are_wrong_are_found() -> None:
    def wrong(*args: Any, **options: Any) -> StepOut:
        out = RIGHT.step_gradients(*args, **options)
        if out.ray_grads is None:
            return out
        grads = dataclasses.replace(out.ray_grads, origins=2 * out.ray_grads.origins)
        return dataclasses.replace(out, ray_grads=grads)

    fault = fault_of(step_gradients=wrong)
    assert fault.startswith("step_gradients with gradients of rays differs")


def test_a_wrong_picture_is_found() -> None:
    assert "render_rays (rgb) differs" in fault_of(render_rays=scale(RIGHT.render_rays))


def test_an_adam_that_keeps_its_gradients_is_found() -> None:
    def wrong(params: torch.Tensor, grads: torch.Tensor, *args: Any, **options: Any) -> None:
        RIGHT.adam_step(params, grads.clone(), *args, **options)

    assert "adam_step differs" in fault_of(adam_step=wrong)


def test_what_is_not_finite_is_found() -> None:
    assert "mlp differs" in fault_of(mlp=scale(RIGHT.mlp, float("nan")))


def test_rays_of_other_pixels_are_found() -> None:
    fault = fault_of(draw=lambda views, cameras, u, *rest: RIGHT.draw(views, cameras, 1 - u, *rest))
    assert fault.startswith("draw differs")


def test_rays_that_do_not_count_but_hit_the_box_are_found() -> None:
    assert fault_of(draw=lambda *args: RIGHT.draw(*args[:-1])).startswith("draw differs")


def test_a_ray_count_that_does_not_follow_is_found() -> None:
    assert fault_of(adapt=lambda *_, **__: None).startswith("adapt differs")


def test_a_march_that_miscounts_the_rays_that_fit_is_found() -> None:
    def wrong(*args: Any) -> tuple[Samples, torch.Tensor]:
        samples, n_fit = RIGHT.march_within(*args)
        return samples, n_fit + 2

    assert fault_of(march_within=wrong).startswith("march_within differs")


def test_a_march_that_passes_over_what_does_not_fit_is_found() -> None:
    """All rays keep their samples: more than there is room for."""

    def wrong(*args: Any) -> tuple[Samples, torch.Tensor]:
        return RIGHT.march(*args[:-1]), RIGHT.march_within(*args)[1]

    assert fault_of(march_within=wrong).startswith("march_within differs")


def test_a_mean_over_all_rays_instead_of_the_live_ones_is_found() -> None:
    def wrong(*args: Any, n_live: torch.Tensor | None = None, **options: Any) -> StepOut:
        network, grads, batch, samples, objective = args
        live = int(samples.ray_offsets[-1])
        short = Samples(samples.t_starts[:live], samples.t_ends[:live], samples.ray_offsets)
        return RIGHT.step_gradients(network, grads, batch, short, objective, **options)

    fault = fault_of(step_gradients=wrong)
    assert fault.startswith("step_gradients of some rays differs")


def test_a_step_that_does_not_see_the_rates_is_found() -> None:
    def wrong(*args: Any, rates: torch.Tensor | None = None, **options: Any) -> None:
        RIGHT.adam_step(*args, **({"step": 1, "lr": 0.1} | options))

    assert fault_of(adam_step=wrong).startswith("adam_step by rates differs")


def test_a_copy_of_the_table_that_grows_stale_is_found() -> None:
    copies: dict[int, torch.Tensor] = {}

    def stale(positions: torch.Tensor, table: torch.Tensor, spec: GridSpec) -> torch.Tensor:
        if table.requires_grad:
            return RIGHT.hash_grid(positions, table, spec)
        copy = copies.setdefault(id(table), table.clone())
        return RIGHT.hash_grid(positions, copy, spec)

    assert fault_of(hash_grid=stale).startswith("hash_grid after adam_step differs")
