"""What a step of the hash grid hands to the optimiser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nerfcli.backends.base import Backend
from nerfcli.core.config import Config, HashGridConfig
from nerfcli.engine import train
from nerfcli.methods.hashgrid_method import create_trainer
from nerfcli.methods.hashgrid_trainer import HashGridTrainer
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
