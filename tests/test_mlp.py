"""Networks against scalar loops and against their parameter counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nerfcli.reference.mlp import (
    classic_layer_widths,
    classic_mlp,
    classic_skip,
    init_classic,
    init_mlp,
    mlp,
    mlp_layers,
    mlp_n_params,
)


def test_flat_weights_are_row_major_out_by_in() -> None:
    widths = (3, 5, 4, 2)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(mlp_n_params(widths), generator=generator, dtype=torch.float64)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    flat, expected = weights.tolist(), []
    for row in x.tolist():
        h, start = row, 0
        for layer, (n_in, n_out) in enumerate([(3, 5), (5, 4), (4, 2)]):
            h = [sum(flat[start + o * n_in + i] * h[i] for i in range(n_in)) for o in range(n_out)]
            start += n_in * n_out
            if layer < 2:  # none after the last
                h = [max(0.0, v) for v in h]
        expected.append(h)
    assert start == len(flat) == 3 * 5 + 5 * 4 + 4 * 2
    torch.testing.assert_close(mlp(x, weights, widths), torch.tensor(expected, dtype=torch.float64))


def test_mlp_gradients_match_finite_differences() -> None:
    widths = (3, 6, 2)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(mlp_n_params(widths), generator=generator, dtype=torch.float64)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: mlp(x, w, widths), inputs)


def test_mlp_of_no_rows() -> None:
    assert mlp(torch.zeros(0, 3), torch.zeros(3 * 4 + 4 * 2), (3, 4, 2)).shape == (0, 2)


def test_init_mlp_is_glorot_uniform_and_seeded() -> None:
    widths = (32, 64, 16)
    weights = init_mlp(widths, torch.Generator().manual_seed(5))
    assert torch.equal(weights, init_mlp(widths, torch.Generator().manual_seed(5)))
    for layer, (n_in, n_out) in zip(mlp_layers(weights, widths), [(32, 64), (64, 16)], strict=True):
        bound = math.sqrt(6 / (n_in + n_out))
        assert layer.shape == (n_out, n_in)
        assert 0.98 * bound < layer.abs().max() <= bound
        # a uniform law on +-b has variance b^2 / 3; 1024 draws give it to about 3 %
        assert layer.var().item() == pytest.approx(bound**2 / 3, rel=0.15)


def test_classic_network_has_the_papers_parameter_count() -> None:
    params = init_classic(classic_layer_widths())
    assert sum(p.numel() for p in params.values()) == 595_844
    assert all(not v.any() for k, v in params.items() if k.endswith("bias"))
    assert params["trunk.5.weight"].shape == (256, 256 + 63)  # the sixth layer, alone
    assert [k for k, (n_in, _) in classic_layer_widths().items() if n_in == 319] == ["trunk.5"]


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_classic_mlp_equals_numpy(depth: int) -> None:
    rng = np.random.default_rng(depth)
    widths = classic_layer_widths(width=10, depth=depth, n_position=5, n_direction=4)
    arrays = {}
    for name, (n_in, n_out) in widths.items():
        arrays[f"{name}.weight"] = rng.normal(size=(n_out, n_in)) / math.sqrt(n_in)
        arrays[f"{name}.bias"] = rng.normal(size=n_out)
    arrays["sigma.bias"][:] = -5.0
    x, d = rng.normal(size=(6, 5)), rng.normal(size=(6, 4))

    def layer(name: str, h: np.ndarray) -> np.ndarray:
        return arrays[f"{name}.weight"] @ h + arrays[f"{name}.bias"]

    sigmas, rgbs = [], []
    for position, direction in zip(x, d, strict=True):
        h = position
        for i in range(depth):
            joined = i == depth // 2 + 1
            h = np.maximum(layer(f"trunk.{i}", np.append(position, h) if joined else h), 0)
        sigmas.append(layer("sigma", h)[0])
        h = np.maximum(layer("color.0", np.append(layer("feature", h), direction)), 0)
        rgbs.append(1 / (1 + np.exp(-layer("color.1", h))))
    params = {k: torch.tensor(v) for k, v in arrays.items()}
    raw, rgb = classic_mlp(torch.tensor(x), torch.tensor(d), params, depth)
    torch.testing.assert_close(raw, torch.tensor(np.array(sigmas)))
    torch.testing.assert_close(rgb, torch.tensor(np.array(rgbs)))
    assert (raw < 0).any()  # linear: the ReLU is the field's


def test_classic_skip_is_the_input_of_the_sixth_layer() -> None:
    assert classic_skip(8) == 5
