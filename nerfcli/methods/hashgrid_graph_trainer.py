"""Hash-grid steps that never wait for the device: fixed shapes, one CUDA graph a step.

How many rays count is decided on the device, from the samples that the last steps kept; nothing
of a step is read by the host. `_advance` runs as it stands where there are no graphs (Triton's
interpreter), and is captured once where there are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nerfcli.backends.base import Backend
from nerfcli.cameras.rays import Batch, Bounds
from nerfcli.core.config import Config, known
from nerfcli.methods.base import StepResult
from nerfcli.methods.hashgrid_trainer import (
    MAX_RAYS,
    MIN_RAYS,
    RATE_MEMORY,
    HashGridTrainer,
)
from nerfcli.scenes import Scene
from nerfcli.scenes.views import Views

# Room for marched samples, as a multiple of the kept samples of a step: a trained lego at 800 x 800
# needs 4.2; where more are marched, fewer rays take part.
MARCHED = 6
EAGER_STEPS = 3  # before the capture: they compile the kernels and fill the caches
AHEAD = 4  # steps that the host may be in front of the device


class GraphTrainer(HashGridTrainer):
    """A HashGridTrainer whose counts live on the device."""

    def __init__(
        self, scene: Scene, views: Views, config: Config, ops: Backend, generator: torch.Generator
    ) -> None:
        super().__init__(scene, views, config, ops, generator)
        n_samples = known(config.hashgrid.n_samples)
        self.max_rays = max(MIN_RAYS, min(MAX_RAYS, n_samples))
        self.capacity = MARCHED * n_samples
        first = min(self.n_rays(), self.max_rays)
        self.wanted = torch.full((), first, dtype=torch.int64, device=self.device)
        self.rate = torch.zeros((), device=self.device)
        self.rates = torch.zeros(3, device=self.device)
        self.backdrop = self.background.expand(self.max_rays, 3).contiguous()
        # to invert a lens, the host looks at tensors: such steps are launched one by one
        # by the device of a tensor, cuda:0; the generator's is cuda, and tables are made for each
        self.by_lookup = scene.cameras.rays_by_lookup(self.backdrop.device)
        self.captures = self.device.type == "cuda" and self.by_lookup
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: StepResult | None = None
        self._marks: deque[torch.cuda.Event] = deque()

    def step(self, lr: float) -> StepResult:
        self.step_count += 1
        for i, value in enumerate((lr, *self.optimizer.config.bias_corrections(self.step_count))):
            self.rates[i].fill_(value)  # a kernel with an argument, not a copy from the host
        if self._captured is not None and self._graph is not None:
            self._graph.replay()
            result = self._captured
        elif self.captures and self.step_count > self.first_step + EAGER_STEPS:
            result = self._capture()
        else:
            result = self._advance()
        if self._update_due():
            self.field.sampler.update(self.field.density, self.generator, wait=False)
        self._keep_pace()
        return result

    def _advance(self) -> StepResult:
        """One step: batch, march, gradients, the next ray count, Adam. Reads nothing back."""
        field, ops = self.field, self.ops
        batch, bounds = self._draw(self.max_rays)
        jitter = self._uniform(self.max_rays)
        sample = field.sampler.sample_within
        samples, n_fit = sample(batch.rays, bounds, jitter, self.capacity)
        n_live = torch.minimum(self.wanted, n_fit)
        out = ops.step_gradients(
            field.network, self.grads, batch, samples, self.objective, n_live=n_live
        )
        self._adapt_there(n_live, out.n_kept)
        self.optimizer.step(rates=self.rates)
        return self._result(out, n_live, out.n_kept)

    def _draw(self, n_rays: int) -> tuple[Batch, Bounds]:
        """n rays; those beyond the wanted ones miss the box."""
        u, background = self._uniform(n_rays, dtype=torch.float64), self.backdrop
        if self.config.train.random_background:
            background = self._uniform(n_rays, 3)
        cameras, space = self.scene.cameras, self.field.space
        return self.ops.draw(self.views, cameras, u, background, space, self.wanted)

    def _adapt_there(self, n_rays: Tensor, n_kept: Tensor) -> None:
        """`_adapt` and `n_rays`, in tensors on the device, written in place. The budget is of kept
        samples alone: what is marched behind a surface is hardly looked at."""
        self.ops.adapt(
            self.rate,
            self.wanted,
            n_rays,
            n_kept,
            n_samples=known(self.config.hashgrid.n_samples),
            memory=RATE_MEMORY,
            limits=(MIN_RAYS, self.max_rays),
        )

    def _capture(self) -> StepResult:
        """Record a step and take it; from here on a step is one launch, if it can be recorded."""
        graph, stream, random = (
            torch.cuda.CUDAGraph(),
            torch.cuda.current_stream(),
            self.generator.get_state(),
        )
        release = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if release < (2, 14):  # later ones notice by themselves, and warn of the call
            graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(graph):
                captured = self._advance()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return self._without_graph(error, stream, random)
        self._graph, self._captured = graph, captured
        graph.replay()
        return captured

    def _without_graph(
        self, error: RuntimeError, stream: torch.cuda.Stream, random: Tensor
    ) -> StepResult:
        """The step that could not be recorded; from here on they are launched kernel by kernel."""
        torch.cuda.set_stream(stream)
        # the old generator belongs to a recording that never ended
        self.generator = torch.Generator(self.device)
        self.generator.set_state(random)
        self.captures = False
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        remark = f"a step cannot be recorded as a CUDA graph ({first}); going on without, slower"
        return replace(self._advance(), remark=remark)

    def _keep_pace(self) -> None:
        """Wait for the step AHEAD before this one: it is over, or nearly, so the device never
        runs dry, and the clock of a run in minutes counts steps that were really taken."""
        if self.device.type != "cuda":
            return
        mark = torch.cuda.Event()
        mark.record()
        self._marks.append(mark)
        if len(self._marks) > AHEAD:
            self._marks.popleft().synchronize()

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"samples_per_ray": float(self.rate)}

    def load(
        self, model: dict[str, Tensor], optimizer: dict[str, Tensor], extra: dict[str, Any]
    ) -> None:
        super().load(model, optimizer, extra)
        self.rate.fill_(self.samples_per_ray)
        self.wanted.fill_(min(self.n_rays(), self.max_rays))
        self.forget_graph()

    def set_views(self, views: Views) -> None:
        """Go on with other pixels; a graph knows where the old ones lie, so it is made anew."""
        super().set_views(views)
        self.forget_graph()

    def forget_graph(self) -> None:
        """Launch the next steps one by one, then record one anew."""
        self._graph, self._captured = None, None
        self.first_step = self.step_count
