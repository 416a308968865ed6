"""Go back where the numbers of a training go wrong, and on with other random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nerfcli.core.errors import CannotWrite
from nerfcli.engine.checkpoints import GENERATOR
from nerfcli.engine.failures import diverged
from nerfcli.engine.render import Model, render_rays
from nerfcli.scenes.views import over_background

if TYPE_CHECKING:
    from nerfcli.engine.loop import Loop

CAUTION = 0.5  # what the learning rate is multiplied by at each setback
MOST_SETBACKS = 3  # of a run
SEED_STRIDE = 1_000_003  # between the seeds of a run that begins again
EMPTINESS_AT = (200, 900)  # steps: by the second one every method shows something
N_RAYS = 512  # that are looked at then
PLAIN = 0.02  # standard deviation of photos in which nothing is to be seen
CONTRAST = 0.02  # of a picture that shows something, as a share of the photos'
NO_SAMPLE = "no ray meets an occupied cell any more"


class Diverged(Exception):
    """The training cannot go on from where it is; the text says why."""

    begins_again = False  # from a fresh field


class Collapsed(Diverged):
    """The field shows nothing, and no gradient leads out of that."""

    begins_again = True


def ensure_finite(model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
    """Raise Diverged unless all that a checkpoint holds is finite."""
    # densities of the occupancy grid are infinite until they are known
    learned = (t for name, t in model.items() if not name.startswith("occupancy."))
    if not all(bool(t.isfinite().all()) for t in learned):
        raise Diverged("the weights are not finite")
    if not all(bool(t.isfinite().all()) for t in optimizer.values()):
        raise Diverged("the optimiser's state is not finite")


def recover(loop: Loop, fault: Diverged) -> None:
    """Take the last checkpoint, or a fresh field where there is none, with other random numbers.

    The learning rate is lower from then on, unless the field was only empty.

    Raises:
        NerfError: it has gone wrong too often.
    """
    step, run = loop.step, loop.run
    if loop.setbacks >= MOST_SETBACKS:
        raise diverged(run, step, str(fault))
    fresh = fault.begins_again or not run.has_checkpoint
    loop.setbacks += 1
    loop.caution *= 1.0 if fault.begins_again else CAUTION
    seed = (loop.config.train.seed + SEED_STRIDE * loop.setbacks) % 2**63
    errors: list[float] = []
    if fresh:
        loop.trainer = loop.begin(seed)
        loop.saved, loop.last = None, None
    else:
        model, optimizer, state = run.load_checkpoint(str(loop.trainer.device))
        optimizer.pop(GENERATOR, None)
        loop.trainer.load(model, optimizer, state["trainer"])
        loop.trainer.generator.manual_seed(seed)
        errors, loop.saved = state.get("recent_mse", []), loop.step
    where = "step 0" if fresh else f"the checkpoint of step {loop.step}"
    slower = "" if loop.caution == 1.0 else f" and {loop.caution:g} of the learning rate"
    loop.progress.note(
        f"warning: by step {step} {fault}. Going on from {where} with other random numbers{slower}"
    )
    loop.recent.clear()
    loop.recent.extend(torch.tensor(errors, device=loop.trainer.device))
    run.forget_metrics()
    loop.elapsed = loop.clock.elapsed()
    if fresh and run.has_checkpoint:  # else a killed run would go on from the field that was left
        try:
            loop.save()
        except CannotWrite as error:
            loop.go_on_unsaved(error)
    loop.budget.fixed = False  # steps that are taken again need time
    loop.budget.start(loop.step, loop.elapsed)


@dataclass
class Emptiness:
    """A callback that lets a run begin again, once, where its field shows nothing at first.

    A field that has become empty, or a fog of one colour, has no gradient that leads out of that.
    """

    warned: bool = False

    def __call__(self, loop: Loop) -> None:
        if loop.step not in EMPTINESS_AT or self.warned or not shows_nothing(loop):
            return
        if not loop.setbacks:
            raise Collapsed("the field shows nothing but one colour")
        self.warned = True
        loop.progress.note(
            f"warning: by step {loop.step} the field still shows nothing but one colour. Do the "
            "poses and the box fit the photos? Ask `nerf check`"
        )


def shows_nothing(loop: Loop) -> bool:
    """Whether the field is of one colour where the photos are not, by rays over all of them."""
    model, views = Model.of(loop.trainer), loop.residents.at(loop.step - 1)
    flat = views.draw((torch.arange(N_RAYS, dtype=torch.float64) + 0.5) / N_RAYS)
    truth = over_background(views.colors(flat), model.background.cpu())
    cameras = loop.trainer.scene.cameras
    rays = cameras.rays(views.locate(flat).to(model.device), model.field.needs_radii)
    shown = float(render_rays(model, rays).rgb.std(0).mean())
    contrast = float(truth.std(0).mean())
    return contrast > PLAIN and shown < CONTRAST * contrast
