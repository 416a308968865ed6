"""How close two images are, as docs/conventions.md defines it: PSNR, SSIM, MS-SSIM, and fits."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter, minimum_filter
from skimage.metrics import structural_similarity

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
LEAST_MS_SSIM = (SSIM_WINDOW - 1) * 2 ** (len(MS_WEIGHTS) - 1) + 1  # pixels a side
CC_ROUNDS, CC_MARGIN = 5, 0.5 / 255  # of multinerf's color_correct


def round_to_8_bits(image: np.ndarray) -> np.ndarray:
    """Clamp to [0, 1] and round to multiples of 1/255, as a saved PNG would be."""
    return np.round(np.clip(image, 0.0, 1.0) * 255.0) / 255.0


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """-10 log10(mean squared error), in dB; infinite for equal images.

    image, reference: [height, width, channels] in [0, 1].
    """
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def masked_psnr(image: np.ndarray, reference: np.ndarray, usable: np.ndarray | None) -> float:
    """Compute the PSNR over the usable pixels [height, width] bool; None: all; nan of none."""
    if usable is None:
        return psnr(image, reference)
    if not usable.any():
        return math.nan
    return psnr(image[usable][None], reference[usable][None])


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


def ms_ssim(image: np.ndarray, reference: np.ndarray, usable: np.ndarray | None = None) -> float:
    """Multi-scale structural similarity, Wang et al. (2003): five scales, each half of the last.

    Contrast and structure of all scales, and the luminance of the coarsest, are averaged as in
    `ssim`, raised to MS_WEIGHTS and multiplied; the mean is over channels. Negative averages count
    as 0. Pixels are halved by the mean of 2x2, with the last row or column of an odd side twice.

    Args:
        usable: [height, width] bool, the pixels that count; a coarse one does if all below it do.

    Returns:
        nan where a scale has no usable window, as below LEAST_MS_SSIM pixels a side.
    """
    if min(image.shape[:2]) < LEAST_MS_SSIM:
        return math.nan
    a, b = image.astype(np.float64), reference.astype(np.float64)
    keep = np.ones(a.shape[:2], dtype=bool) if usable is None else usable
    product = np.ones(a.shape[2])
    for scale, weight in enumerate(MS_WEIGHTS):
        if scale:
            a, b = _halve(a), _halve(b)
            keep = _halve(keep.astype(np.float64)) == 1.0
        luminance, rest = _similarities(a, b)
        half = SSIM_WINDOW // 2
        whole = np.asarray(minimum_filter(keep, SSIM_WINDOW), dtype=bool)[half:-half, half:-half]
        if not whole.any():
            return math.nan
        last = scale == len(MS_WEIGHTS) - 1
        values = (luminance * rest if last else rest)[half:-half, half:-half][whole]
        product *= np.maximum(values.mean(axis=0), 0.0) ** weight
    return float(product.mean())


def _similarities(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance, and contrast times structure, of the window around each pixel."""

    def blur(values: np.ndarray) -> np.ndarray:
        radius = SSIM_WINDOW // 2
        return gaussian_filter(values, SSIM_SIGMA, radius=radius, axes=(0, 1))

    mean_a, mean_b = blur(a), blur(b)
    squares, product = mean_a**2 + mean_b**2, mean_a * mean_b
    variances, covariance = blur(a * a) + blur(b * b) - squares, blur(a * b) - product
    c1, c2 = 0.01**2, 0.03**2
    return (2 * product + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2)


def _halve(values: np.ndarray) -> np.ndarray:
    """Mean of 2x2 pixels of [height, width, ...]; an odd side is continued by its last pixel."""
    odd = [(0, size % 2) for size in values.shape[:2]] + [(0, 0)] * (values.ndim - 2)
    v = np.pad(values, odd, mode="edge")
    return (v[::2, ::2] + v[1::2, ::2] + v[::2, 1::2] + v[1::2, 1::2]) / 4.0


def color_correct(
    image: np.ndarray, reference: np.ndarray, usable: np.ndarray | None = None
) -> np.ndarray:
    """Warp colours by the quadratic polynomial that brings them nearest to the reference.

    As `color_correct` of multinerf (mip-NeRF 360, RawNeRF): least squares for each channel over
    the pixels whose value is clipped neither in the image, nor in the reference, nor by the warp
    so far, five times in a row.

    Args:
        image: [height, width, 3], not rounded. reference: [height, width, 3].
        usable: [height, width] bool, the pixels that are fitted; None: all.

    Returns:
        The image warped and clamped; the caller rounds it.
    """
    colors = image.reshape(-1, image.shape[-1]).astype(np.float64)
    wanted = reference.reshape(colors.shape).astype(np.float64)
    fitted = _is_unclipped(colors) & _is_unclipped(wanted)
    if usable is not None:
        fitted &= usable.reshape(-1, 1)
    n = colors.shape[1]
    for _ in range(CC_ROUNDS):
        squares = [colors[:, c : c + 1] * colors[:, c:] for c in range(n)]
        terms = np.concatenate([*squares, colors, np.ones_like(colors[:, :1])], axis=-1)
        mask = fitted & _is_unclipped(colors)
        warp = [
            np.linalg.lstsq(terms[mask[:, c]], wanted[mask[:, c], c], rcond=-1)[0] for c in range(n)
        ]
        colors = np.clip(terms @ np.stack(warp, axis=-1), 0.0, 1.0)
    return colors.reshape(image.shape)


def _is_unclipped(values: np.ndarray) -> np.ndarray:
    return (values >= CC_MARGIN) & (values <= 1.0 - CC_MARGIN)
