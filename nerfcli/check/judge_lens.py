"""Test whether the matches ask for a lens that the files do not state."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from nerfcli.cameras.cameras import Cameras
from nerfcli.cameras.lenses import Lens
from nerfcli.check.epipolar import trace_matches
from nerfcli.check.judge_poses import format_pixels
from nerfcli.check.poses import BETTER_FOCAL, SAMPLE, Fit, fit_poses, thin
from nerfcli.check.report import Finding
from nerfcli.matching.matching import Matches

STEPS = (0.2, 0.1, 0.05, 0.025)  # of k1 and k2, each tried both ways from the best so far
LEAST_BEND = 1.0  # pixels at working size: less at an image's corner is no matter
TERMS = ("k1", "k2")


def judge_lens(
    matches: Matches, cameras: Cameras, working_scale: Tensor, tolerance: float
) -> list[Finding]:
    """Find a radial distortion under which the matches fit clearly better than as stated.

    Lenses without radial terms r^2 and r^4 are not judged.

    Args:
        cameras: poses in the source's frame.
        working_scale: [n_cameras] pixels at working size per pixel of the camera.
        tolerance: largest residual of good poses, pixels.
    """
    if len(matches.pairs) < 3 or not all(_is_judged(lens) for lens in set(cameras.lenses)):
        return []
    sample = thin(matches, *SAMPLE)

    def fit(added: dict[str, float]) -> Fit:
        bent = {lens: _bend(lens, added) for lens in set(cameras.lenses)}
        changed = replace(cameras, lenses=tuple(bent[lens] for lens in cameras.lenses))
        rays = trace_matches(sample, changed, working_scale)
        return fit_poses(rays, cameras.c2w, tolerance)

    stated = best_fit = fit({})
    best = dict.fromkeys(TERMS, 0.0)
    for step in STEPS:
        for term in TERMS:
            for sign in (1, -1):
                added = best | {term: best[term] + sign * step}
                found = fit(added)
                if found.median < best_fit.median:
                    best, best_fit = added, found
    corner = 0.5 * cameras.size / cameras.focal
    radius = float(corner.norm(dim=-1).median())
    bend = sum(value * radius ** (3 + 2 * i) for i, value in enumerate(best.values()))
    pixels = abs(bend) * float((cameras.focal.mean(-1) * working_scale).median())
    if pixels < LEAST_BEND or not best_fit.improves_on(stated, BETTER_FOCAL):
        return []
    terms = " and ".join(f"{key} by about {value:+.2g}" for key, value in best.items() if value)
    text = (
        f"with {terms} changed, matches lie {best_fit.median:.2g} px from where the poses put "
        "them, "
        f"as stated {format_pixels(stated.median)}: has a lens parameter been lost?"
    )
    return [Finding("warning", "distortion", text)]


def _is_judged(lens: Lens) -> bool:
    return lens.is_pinhole or lens.model in ("brown", "fisheye")


def _bend(lens: Lens, added: dict[str, float]) -> Lens:
    """Add to the radial terms of a lens."""
    model = "brown" if lens.is_pinhole else lens.model
    named = {} if lens.is_pinhole else lens.named
    return Lens.of(
        model, **named | {key: named.get(key, 0.0) + added.get(key, 0.0) for key in TERMS}
    )
