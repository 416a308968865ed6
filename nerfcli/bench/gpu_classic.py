"""Time the steps of method classic in each precision, and measure the error of each."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from nerfcli.backends.base import Backend
from nerfcli.bench.clock import measure
from nerfcli.bench.gpu_measures import Bench, Row
from nerfcli.core.config import ClassicConfig, Config, known
from nerfcli.core.devices import random_generator
from nerfcli.engine.resolve import resolve
from nerfcli.methods.base import background_of
from nerfcli.methods.classic import ClassicField, Jitter, gradients
from nerfcli.scenes.views import over_background

PRECISIONS = ("float32", "tf32", "bfloat16")


def classic_rows(bench: Bench, n_rays: int | None = None) -> list[Row]:
    """Time loss and gradients of one batch, with a fresh network of the paper's size.

    Args:
        n_rays: of the batch; None: as many as a step has.
    """
    ready, _ = bench.prepared
    config = Config("classic", device=ready.config.device, classic=ClassicConfig(n_rays=n_rays))
    config = resolve(config, ready.scene)
    rows: list[Row] = []
    exact: torch.Tensor | None = None
    for precision in PRECISIONS if bench.device == "cuda" else ("float32", "bfloat16"):
        found, seconds = _steps(bench, config, precision)
        exact = found if exact is None else exact
        rows.append(
            {
                "method": "classic",
                "precision": precision,
                "rays": known(config.classic.n_rays),
                "ms a step": float(f"{1e3 * seconds:.4g}"),
                "gradients off by": float(f"{(found - exact).norm() / exact.norm():.2g}"),
            }
        )
    return rows


def _steps(bench: Bench, config: Config, precision: str) -> tuple[torch.Tensor, float]:
    """Compute all gradients, concatenated, and the median time that they take."""
    ready, _ = bench.prepared
    scene, device = ready.scene, torch.device(bench.device)
    weights, pixels = (torch.Generator().manual_seed(seed) for seed in (0, 1))
    field = ClassicField.create(config, scene, Backend(), weights)
    field = replace(field.to(bench.device), precision=precision)
    for p in field.params.values():
        p.requires_grad_()
    views, background = ready.residents.at(0).to(bench.device), background_of(scene, device)
    u = torch.rand(known(config.classic.n_rays), dtype=torch.float64, generator=pixels)
    flat = views.draw(u.to(device))
    rays = scene.cameras.rays(views.locate(flat))
    target = over_background(views.colors(flat), background)

    def step() -> torch.Tensor:
        jitter = Jitter.draw(len(rays), config, random_generator(bench.device, 2))
        _, _, grads = gradients(field, rays, target, background, jitter)
        return torch.cat([g.reshape(-1) for g in grads])

    effort = bench.sizes.effort
    times = measure(step, bench.device, effort.repeats, effort.seconds)
    return step(), statistics.median(times)
