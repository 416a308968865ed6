"""Where the field that a viewer shows comes from: a run on the disk, or one that is training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nerfcli.cameras.crop import Crop
from nerfcli.engine.crop import crop_model
from nerfcli.engine.render import Model
from nerfcli.scenes import Scene
from nerfcli.view.turns import Turns


class Source(Protocol):
    """Something with a field to show.

    Attributes:
        name: for people. scene: of the field; with photos where it knows where they are.
        turns: who may compute; shared by all that compute on one device.
        version: grows as the field changes.
    """

    @property
    def name(self) -> str: ...
    @property
    def scene(self) -> Scene: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def version(self) -> int: ...

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

    def model(self) -> Model:
        return self.loaded


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
