"""Where the field that a viewer shows comes from: a run on the disk, or one that is training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from nerfcli.cameras.crop import Crop
from nerfcli.core.errors import NerfError
from nerfcli.engine.crop import crop_model
from nerfcli.engine.render import Model
from nerfcli.methods.exposure import CODES
from nerfcli.scenes import Scene
from nerfcli.view.turns import Turns

if TYPE_CHECKING:
    from nerfcli.engine.runs import Run


class Source(Protocol):
    """Something with a field to show.

    Attributes:
        name: for people. scene: of the field; with photos where it knows where they are.
        turns: who may compute; shared by all that compute on one device.
        version: grows as the field changes.
        path: of the run folder, for what a page saves; None: it has none.
    """

    @property
    def name(self) -> str: ...
    @property
    def scene(self) -> Scene: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def version(self) -> int: ...
    @property
    def path(self) -> Path | None: ...

    def codes(self) -> Tensor | None:
        """The learned exposure codes of all cameras, [n_cameras, 6]; None: there are none."""
        ...

    def model(self) -> Model:
        """The field as it is now. Only within a band of `turns`."""
        ...


@dataclass(eq=False)
class RunSource:
    """A run that does not change."""

    name: str
    loaded: Model
    scene: Scene
    turns: Turns
    version: int = 0
    path: Path | None = None
    learned: Tensor | None = field(default=None, repr=False)

    def model(self) -> Model:
        return self.loaded

    def codes(self) -> Tensor | None:
        return self.learned


def load_codes(run: Run) -> Tensor | None:
    """Read the exposure codes that a run learned; None: it learned none, or they are gone."""
    if not run.config.train.exposure:
        return None
    try:
        return run.load_checkpoint()[1].get(CODES)
    except NerfError:  # a model is shown without its optimiser, too
        return None


@dataclass
class Cropped:
    """Remembers a source's cropped model, so that moving about in a crop makes none anew."""

    source: Source
    _made: tuple[Model, Crop, Model] | None = field(default=None, repr=False)

    def model(self, crop: Crop | None) -> Model:
        """The source's model, of which nothing is shown outside of a crop in source units."""
        whole = self.source.model()
        if crop is None:
            return whole
        if self._made is None or self._made[0] is not whole or self._made[1] != crop:
            self._made = whole, crop, crop_model(whole, crop)
        return self._made[2]
