"""PSNR and SSIM against closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from nerfcli.engine.image_metrics import psnr, round_to_8_bits, ssim


def test_psnr_of_a_constant_error():
    a = np.full((4, 5, 3), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr(a, a) == math.inf


def test_rounding_clamps_and_snaps():
    image = np.array([[[-0.2, 1.3, 0.5001]]])
    assert round_to_8_bits(image)[0, 0].tolist() == [0.0, 1.0, 128 / 255]


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. (2004), eq. 13, one channel, window truncated at 5 pixels, valid part."""
    x = np.arange(-5, 6)
    g = np.exp(-0.5 * (x / 1.5) ** 2)
    g /= g.sum()

    def blur(v):
        return correlate1d(correlate1d(v, g, axis=0), g, axis=1)[5:-5, 5:-5]

    mu_a, mu_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2
    cov = blur(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
    return float((top / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_ssim_agrees_with_the_paper():
    rng = np.random.default_rng(0)
    a = rng.random((32, 40, 3))
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1)
    want = np.mean([reference_ssim(a[..., c], b[..., c]) for c in range(3)])
    assert ssim(a, b) == pytest.approx(want, abs=1e-9)
    assert ssim(a, a) == pytest.approx(1.0)


def test_ssim_of_an_image_smaller_than_the_window_is_not_a_number():
    assert math.isnan(ssim(np.zeros((10, 40, 3)), np.zeros((10, 40, 3))))


def test_masked_ssim_is_over_the_windows_without_a_masked_pixel():
    rng = np.random.default_rng(1)
    a, b = rng.random((40, 48, 3)), rng.random((40, 48, 3))
    usable = np.zeros((40, 48), bool)
    usable[:, 20:] = True
    # a masked pixel has no say, whatever it holds
    other = np.where(usable[..., None], b, a)
    want = ssim(a[:, 20:], b[:, 20:])
    assert ssim(a, b, usable) == pytest.approx(want, abs=1e-12)
    assert ssim(a, other, usable) == pytest.approx(want, abs=1e-12)
    assert ssim(a, b, np.ones_like(usable)) == ssim(a, b)


def test_masked_ssim_without_a_usable_window_is_not_a_number():
    a = np.random.default_rng(2).random((40, 48, 3))
    usable = np.ones((40, 48), bool)
    usable[::8, ::8] = False
    assert math.isnan(ssim(a, a, usable))
