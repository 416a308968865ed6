"""`train`: from a scene and a resolved config to a run folder with a trained field."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.core.config import Config
from nerfcli.core.devices import (
    ensure_room,
    memory_errors,
    pick,
    random_generator,
)
from nerfcli.core.distributed import world
from nerfcli.core.progress import Progress
from nerfcli.core.signals import StopSignal
from nerfcli.core.text import quantity
from nerfcli.engine.callbacks import Callback
from nerfcli.engine.loop import Loop
from nerfcli.engine.ready import Prepared, prepare
from nerfcli.engine.resolve import describe
from nerfcli.engine.runs import Run, in_training
from nerfcli.engine.schedule import Budget, Clock
from nerfcli.methods import Trainer, method_of
from nerfcli.scenes.views import Views

__all__ = ["Loop", "Prepared", "memory_advice", "prepare", "start", "train"]


def train(
    prepared: Prepared,
    run: Run | Callable[[ExitStack], Run],
    *,
    progress: Progress,
    stop: StopSignal | None = None,
    held: ExitStack | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> dict:
    """Train until the budget is spent or a signal asks to stop; the state is saved either way.

    A signal before the first step ends it at once: there is nothing to save.

    Args:
        run: or what makes its folder, which is called just before the first step with what is to
            hold its lock.
        stop: takes the signals of this process from the first step on.
        held: keeps the lock on the run and the signals beyond the training.
        resume: go on from the run's checkpoint; the run takes the length that `prepared` states.
        callbacks: called after each step.

    Returns:
        A summary: steps, seconds, psnr (of the training rays of the last steps), held_out (see
        `estimate_held_out`; None where it was stopped), rates, stopped (the signal, or None),
        ended_by (steps, minutes, target, signal, or who asked a callback).

    Raises:
        NerfError: the training diverged, memory ran out, or the run cannot be read or written.
        Interrupted: a signal came before the first step.
    """
    device = pick(prepared.config.device)
    choice = backends.select(prepared.config.backend, device, progress.note)
    with ExitStack() as own:
        held = own if held is None else held
        with memory_errors("training", memory_advice(prepared.config)):
            if isinstance(run, Run):
                if world().is_first:
                    held.enter_context(in_training(run.path))
                opened = run
            else:
                opened = partial(run, held)
            loop = start(prepared, opened, choice.backend, device, progress, resume)
            progress.note(choice.line)  # the images of a resumed run have been read by now, too
            progress.note(describe(prepared.scene, prepared.config))
            if not world().is_alone:
                progress.note(f"{world().size} processes share the rays of each step")
            loop.callbacks = callbacks
            stop = held.enter_context(StopSignal() if stop is None else stop)
            loop.world.wait()  # till all have checked what they were asked for
            _ = loop.run  # its folder is there before the first step
            summary = loop.go(stop)
        wanted = not summary["stopped"] and loop.world.is_first
        return summary | {"held_out": loop.score_held_out() if wanted else None}


def memory_advice(config: Config) -> str:
    return (
        "read smaller images (--downscale 2), make a step smaller "
        f"(--set {method_of(config).smaller_step}), or use --device cpu"
    )


def start(
    prepared: Prepared,
    run: Run | Callable[[], Run],
    ops: Backend,
    device: str,
    progress: Progress,
    resume: bool = False,
) -> Loop:
    """Put pixels and field on the device, and take the run's checkpoint where it is resumed.

    run: or what makes its folder, where the loop first asks for it.
    """
    clock = Clock(prepared.seconds, time.perf_counter())
    scene, config, residents = prepared.scene, prepared.config, prepared.residents
    checkpoint = run.load_checkpoint(device) if resume and isinstance(run, Run) else None
    if checkpoint is not None:
        if isinstance(run, Run) and run.remark:
            progress.note(run.remark)
        residents.n_shards = checkpoint[2].get("parts", 1)
    views = residents.at(checkpoint[2]["step"] if checkpoint is not None else 0)
    # while one shard replaces another, both are there
    pixels = views.pixels.numel() * (2 if residents.n_shards > 1 else 1)
    ensure_room(
        pixels, device, f"the pixels of {quantity(len(views), 'image')}", memory_advice(config)
    )

    def create(seed: int, views: Views) -> Trainer:
        own = replace(config, train=replace(config.train, seed=seed))
        generator = random_generator(device, seed)
        return method_of(config).create_trainer(scene, views.to(device), own, ops, generator)

    def begin(seed: int) -> Trainer:
        trainer = create(seed, residents.at(0))
        if remark := trainer.begin(residents.at(0), prepared.silhouettes):
            progress.note(remark)
        return trainer

    budget = Budget.of(config.train)
    open_run = (lambda: run) if isinstance(run, Run) else run
    seed = config.train.seed
    trainer = begin(seed) if checkpoint is None else create(seed, views)
    loop = Loop(trainer, residents, config, open_run, budget, clock, progress, begin)
    if checkpoint is not None:
        loop.resume(*checkpoint)
        if loop.world.is_first:
            loop.run.go_on_with(config)
    return loop
