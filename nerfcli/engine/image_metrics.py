"""How close two images are: PSNR and SSIM, as docs/conventions.md defines them."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import minimum_filter
from skimage.metrics import structural_similarity

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def round_to_8_bits(image: np.ndarray) -> np.ndarray:
    """Clamp to [0, 1] and round to multiples of 1/255, as a saved PNG would be."""
    return np.round(np.clip(image, 0.0, 1.0) * 255.0) / 255.0


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """-10 log10(mean squared error), in dB; infinite for equal images.

    image, reference: [height, width, channels] in [0, 1].
    """
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def fit_colors(
    image: np.ndarray, reference: np.ndarray, usable: np.ndarray | None = None
) -> np.ndarray:
    """Map each channel by the gain and offset that bring it nearest to the reference.

    Args:
        image, reference: [height, width, 3]. usable: [height, width] bool; None: all.

    Returns:
        The image mapped, clamped and rounded to 8 bits.
    """
    fitted = image.astype(np.float64)
    keep = np.ones(image.shape[:2], dtype=bool) if usable is None else usable
    for c in range(image.shape[2]) if keep.any() else ():
        x, y = fitted[keep, c], reference[keep, c].astype(np.float64)
        spread = x.var()
        gain = np.mean((x - x.mean()) * (y - y.mean())) / spread if spread > 0 else 1.0
        fitted[..., c] = gain * (fitted[..., c] - x.mean()) + y.mean()
    return round_to_8_bits(fitted)


def ssim(image: np.ndarray, reference: np.ndarray, usable: np.ndarray | None = None) -> float:
    """Structural similarity, Wang et al. (2004): Gaussian window 11x11, sigma 1.5, range 1.

    The mean is over the windows that lie within the image and hold only usable pixels; nan where
    there is no such window.

    Args:
        usable: [height, width] bool, the pixels that count; None: all.
    """
    if min(image.shape[:2]) < SSIM_WINDOW:
        return math.nan
    values = structural_similarity(
        image.astype(np.float64),
        reference.astype(np.float64),
        win_size=SSIM_WINDOW,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=2,
        full=True,
    )[1]
    half = SSIM_WINDOW // 2
    inner = np.asarray(values)[half:-half, half:-half]
    if usable is not None:
        whole = np.asarray(minimum_filter(usable, SSIM_WINDOW), dtype=bool)
        inner = inner[whole[half:-half, half:-half]]
    return float(inner.mean(dtype=np.float64)) if inner.size else math.nan
