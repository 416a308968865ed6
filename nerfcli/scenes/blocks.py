"""Cut a large capture by its cameras into overlapping blocks, each a scene of its own.

Every block is trained as an ordinary run, and the runs are blended where they are rendered
(engine/blocks.py), as Block-NeRF (2022) does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nerfcli.core.errors import NerfError
from nerfcli.scenes.source import Points, Source
from nerfcli.scenes.writers.splits import hold_out

FEWEST = 4  # training views of a block, without those of the overlap


@dataclass(frozen=True)
class Block:
    """A part of a capture.

    Attributes:
        core: the frames that this block alone is responsible for.
        frames: all of its frames, with those of the overlap; ascending.
    """

    core: tuple[int, ...]
    frames: tuple[int, ...]


def cut_by_cameras(centers: np.ndarray, n_blocks: int, overlap: float = 0.2) -> list[Block]:
    """Cut cameras in two along their longest extent, again and again.

    Args:
        centers: [n, 3] positions of the cameras.
        overlap: share of a side's cameras, the nearest to the cut, that the other side has too.

    Returns:
        Blocks of about equally many cameras; each camera is in the core of one.

    Raises:
        NerfError: a block would have fewer than FEWEST cameras.
    """
    if not n_blocks >= 2:
        raise NerfError(f"--blocks must be at least 2, got {n_blocks}.")
    if len(centers) < FEWEST * n_blocks:
        most = len(centers) // FEWEST
        raise NerfError(
            f"--blocks {n_blocks}: {len(centers)} views are too few, each block needs {FEWEST} of "
            f"its own; {f'at most --blocks {most}' if most > 1 else 'train them as they are'}."
        )
    if not 0.0 <= overlap <= 1.0:
        raise NerfError(f"--overlap must be from 0 to 1, got {overlap}.")
    everything = np.arange(len(centers))
    return [
        Block(tuple(sorted(core.tolist())), tuple(sorted(both.tolist())))
        for core, both in _cut(centers, everything, everything, n_blocks, overlap)
    ]


def _cut(
    centers: np.ndarray, core: np.ndarray, both: np.ndarray, n: int, overlap: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut `core` into n parts. both: those, and the cameras that it overlaps with."""
    if n == 1:
        return [(core, both)]
    middle = centers[core].mean(axis=0)
    axis = np.linalg.svd(centers[core] - middle, full_matrices=False)[2][0]
    along = centers @ axis
    ordered = core[np.argsort(along[core], kind="stable")]
    first = n // 2
    k = round(len(core) * first / n)
    low, high = ordered[:k], ordered[k:]
    # how far each side reaches into the other
    ends = (
        along[high[min(round(overlap * len(high)), len(high) - 1)]],
        along[low[max(len(low) - 1 - round(overlap * len(low)), 0)]],
    )
    with_low = both[(along[both] < ends[0]) | np.isin(both, low)]
    with_high = both[(along[both] > ends[1]) | np.isin(both, high)]
    return [
        *_cut(centers, low, with_low, first, overlap),
        *_cut(centers, high, with_high, n - first, overlap),
    ]


def source_of_block(source: Source, block: Block, name: str) -> Source:
    """The part of a source that a block is trained on.

    Every frame has a split: a view that one block holds out is held out by all. A block holds out
    those of its core, so that each is scored once.
    """
    frames = hold_out(source.frames)
    core = set(block.core)
    kept = [i for i in block.frames if (frames[i].split or "train") == "train" or i in core]
    return replace(
        source,
        name=name,
        frames=tuple(frames[i] for i in kept),
        points=None if source.points is None else _seen_by(source.points, kept),
        box=None,
        bounds=None,
    )


def _seen_by(points: Points, kept: Sequence[int]) -> Points:
    """The points that the frames `kept` observe; all of them where no observations are known."""
    if not len(points.point):
        return points
    place = {old: new for new, old in enumerate(kept)}
    is_kept = np.isin(points.frame, list(place))
    seen, renumbered = np.unique(points.point[is_kept], return_inverse=True)
    return Points(
        points.xyz[seen],
        None if points.rgb is None else points.rgb[seen],
        None if points.error is None else points.error[seen],
        renumbered,
        np.array([place[f] for f in points.frame[is_kept].tolist()], dtype=np.int64),
        points.xy[is_kept],
    )
