"""The place of a run's images, recorded in scene.json when the run is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "data_source"  # in scene.json


@dataclass(frozen=True)
class ImageSource:
    """A scene's path as the user gave it, and the absolute path that it stood for."""

    given: str
    resolved: str

    @staticmethod
    def of(path: Path) -> ImageSource:
        return ImageSource(str(path), str(path.resolve()))

    @staticmethod
    def recorded(scene_json: Any) -> ImageSource:
        """Read the record of a run; "" where it has none."""
        record = scene_json.get(KEY) if isinstance(scene_json, dict) else None
        record = record if isinstance(record, dict) else {}
        return ImageSource(str(record.get("given", "")), str(record.get("resolved", "")))

    def as_json(self) -> dict[str, dict[str, str]]:
        return {KEY: dataclasses.asdict(self)}
