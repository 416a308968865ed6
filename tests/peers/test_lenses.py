"""Tens of thousands of lenses of every camera model: where COLMAP inverts a pixel, we do."""

from __future__ import annotations

import pytest
from random_lenses import compare_with_colmap

from nerfcli.scenes.readers.colmap_cameras import CAMERA_MODELS, CameraModel

pytestmark = [pytest.mark.peers, pytest.mark.slow]
N_LENSES = 1500  # of each of 18 models, 27,000 in all: 8 minutes of a core


@pytest.mark.parametrize("model", [pytest.param(model, id=model.name) for model in CAMERA_MODELS])
def test_where_colmap_inverts_a_pixel_we_do(model: CameraModel) -> None:
    pytest.importorskip("pycolmap", reason="the peer, pycolmap, is not installed")
    counts = compare_with_colmap(model, seed=1, n_lenses=N_LENSES, step=53)
    print(f"{model.name}: {dict(counts)}")
    assert counts["lenses"] > 0.9 * N_LENSES
    assert counts["pixels_missed"] == 0
