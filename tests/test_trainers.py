"""What a step of the hash grid hands to the optimiser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Batch, Rays
from nerfcli.core.config import Config, HashGridConfig
from nerfcli.engine import train
from nerfcli.engine.render import Model, render_image
from nerfcli.methods.base import Sampler
from nerfcli.methods.hashgrid_method import create_trainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
from nerfcli.reference.radiance import NetParams
from nerfcli.reference.samples import Pixels
from nerfcli.scenes import load_scene


def trainer_of(scene: Path, seen: list[dict[str, Any]], **values: Any) -> HashGridTrainer:
    """One whose optimiser steps are noted before they are taken."""
    config = Config(device="cpu", backend="torch")
    config = replace(
        config,
        train=replace(config.train, steps=2),
        hashgrid=HashGridConfig(
            log2_table_size=8,
            n_levels=2,
            max_resolution=32,
            width=16,
            n_samples=256,
            occupancy_resolution=8,
            **values,
        ),
    )
    ready = train.prepare(load_scene(scene), config)

    class Noting(Backend):
        def adam_step(self, params: torch.Tensor, *rest: Any, **options: Any) -> None:
            seen.append({"n": len(params), "config": rest[3], **options})
            super().adam_step(params, *rest, **options)

    generator = torch.Generator().manual_seed(0)
    views = ready.residents.at(0)
    made = create_trainer(ready.scene, views, ready.config, Noting(), generator)
    return made


def batch_of(trainer: HashGridTrainer, n: int = 200) -> Batch:
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    background = torch.full((n, 3), 0.5)
    cameras, space = trainer.scene.cameras, trainer.field.space
    radii = trainer.field.needs_radii
    return trainer.ops.draw(trainer.views, cameras, u, background, space, with_radii=radii)[0]


@pytest.mark.parametrize("cones", [False, True])
@pytest.mark.parametrize("name", ["cpu", "torch"])
def test_the_fused_step_agrees_with_the_loss(ball: Path, name: str, cones: bool) -> None:
    """`loss` is the definition: autograd through it gives the gradients of the fused op."""
    trainer = trainer_of(ball, [], opacity_loss=0.1, distortion_loss=0.2, anti_aliasing=cones)
    if backends.why_unavailable(name, "cpu") is None:
        backend = backends.backend_class(name)()
        trainer.ops = trainer.field.ops = trainer.field.sampler.ops = backend
    for _ in range(3):
        trainer.step(1e-2)
    batch, field = batch_of(trainer), trainer.field
    leaves = NetParams(*(p.clone().requires_grad_() for p in field.params.tensors()))
    trainer.field = replace(field, params=leaves)
    terms = trainer.loss(batch)
    assert set(terms) == {"photometric", "opacity", "distortion"}
    want = torch.autograd.grad(trainer.objective.total(terms), leaves.tensors())
    got = NetParams(*(torch.zeros_like(p) for p in leaves.tensors()))
    jitter = torch.full((len(batch.rays),), 0.5)
    samples = field.sampler.sample(batch.rays, field.bounds(batch.rays), jitter)
    out = trainer.ops.step_gradients(field.network, got, batch, samples, trainer.objective)
    for key, term in terms.items():
        torch.testing.assert_close(out.terms[key], term.detach(), rtol=1e-5, atol=1e-7)
    for a, b in zip(got.tensors(), want, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_the_occupancy_grid_is_a_sampler(ball: Path) -> None:
    sampler: Sampler = trainer_of(ball, []).field.sampler
    state = {name: tensor.clone() for name, tensor in sampler.state().items()}
    sampler.update(lambda x: torch.zeros(len(x)), torch.Generator().manual_seed(0))
    assert not torch.equal(sampler.state()["occupancy.densities"], state["occupancy.densities"])
    sampler.load_state(state)
    assert torch.equal(sampler.state()["occupancy.densities"], state["occupancy.densities"])


def test_the_grid_alone_decays(ball: Path) -> None:
    seen: list[dict[str, Any]] = []
    trainer = trainer_of(ball, seen, weight_decay=3e-7)
    trainer.step(1e-2)
    assert [call["n"] for call in seen] == [len(p) for p in trainer.field.params.tensors()]
    assert [call["config"].weight_decay for call in seen] == [3e-7, 0.0, 0.0]


def test_decay_shrinks_the_grid(ball: Path) -> None:
    """So strong a one that it alone is left: every entry touched moves towards zero."""
    trainer = trainer_of(ball, [], weight_decay=1e6)
    before = trainer.field.params.table.clone()
    trainer.step(1e-5)
    after = trainer.field.params.table
    large = (before != after) & (before.abs() > 2e-5)
    assert (after[large].abs() < before[large].abs()).all() and large.any()


@pytest.mark.parametrize("cones", [False, True])
def test_smaller_pictures_have_wider_cones(
    ball: Path, cones: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seen = trainer_of(ball, [], anti_aliasing=cones), []
    render = Backend.render_rays

    def noting(self: Backend, network: Any, rays: Rays, *rest: Any, **options: Any) -> Pixels:
        seen.append(rays.radii)
        return render(self, network, rays, *rest, **options)

    monkeypatch.setattr(Backend, "render_rays", noting)
    trainer.step(1e-2)
    cameras, model = trainer.scene.cameras, Model.of(trainer)
    for scale in (1.0, 0.5):
        render_image(model, cameras.scaled(scale), 0)
    if cones:
        assert float(seen[1].median() / seen[0].median()) == pytest.approx(2, rel=0.02)
    else:
        assert seen == [None, None]
