"""Whether a run learns exposure codes, by its settings and its photos."""

from __future__ import annotations

from dataclasses import replace

from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.progress import Note
from nerfcli.matching.exposure import measure_exposures
from nerfcli.methods import method_of
from nerfcli.scenes import Scene
from nerfcli.scenes.views import Views


def choose_exposure(
    scene: Scene, config: Config, views: Views, note: Note | None
) -> tuple[Scene, Config]:
    """Decide whether exposure codes are learned, and with which gains they begin.

    Where nothing is said they are off, and a remark names photos that seem to differ: what is seen
    from elsewhere has another brightness too (gloss), which the photos alone do not tell apart, and
    there codes cost quality.

    Raises:
        NerfError: codes are asked for, and the method learns none.
    """
    wanted, able = config.train.exposure, method_of(config).has_exposure
    if wanted and not able:
        raise NerfError(
            f"train.exposure: method {config.method} learns no exposures; use unbounded or "
            "hashgrid, or leave the setting out."
        )
    found = measure_exposures(scene, views) if able and wanted is not False else None
    if wanted is None and found is not None and found.differ and note is not None:
        note(
            f"photos seem to differ in exposure by {found.extent:.1f} stops: "
            "--set train.exposure=true learns a gain for each"
        )
    config = replace(config, train=replace(config.train, exposure=bool(wanted)))
    return replace(scene, log_gains=found.log_gains if wanted and found else None), config
