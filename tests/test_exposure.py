"""Exposure: the colour maps of a step, the codes, what photos say of it, and scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from step_cases import (
    N_RAYS,
    OPS,
    marched,
    plain_pass,
    plain_photometric,
    some_batch,
    some_network,
    zeros_like,
)

from nerfcli.cameras.rays import Batch, ColorMap
from nerfcli.core.config import Config, HashGridConfig, UnboundedConfig
from nerfcli.core.errors import NerfError
from nerfcli.engine import evaluate
from nerfcli.engine.image_metrics import fit_colors, psnr
from nerfcli.engine.train import prepare
from nerfcli.matching import exposure as exposure_matching
from nerfcli.matching.exposure import measure_exposures
from nerfcli.methods import method_of
from nerfcli.reference.fused import Objective, step_gradients
from nerfcli.scenes import ImageCache, Scene, load_scene


def exposed(batch: Batch, seed: int = 5) -> Batch:
    """The batch, a colour map for each ray."""
    n, generator = len(batch.rays), torch.Generator().manual_seed(seed)
    gain, offset = torch.randn(2, n, 3, generator=generator, dtype=batch.rgb.dtype)
    return replace(batch, color=ColorMap((0.3 * gain).exp(), 0.1 * offset))


@pytest.mark.parametrize("photometric", ["mse", "huber"])
def test_the_loss_is_of_mapped_colours(photometric: Any) -> None:
    batch, network = exposed(some_batch()), some_network()
    samples, _ = marched(batch.rays)
    rgb, _ = plain_pass(network, batch.rays, samples, batch.background)
    assert batch.color is not None
    rgb = batch.color.gain * rgb + batch.color.offset
    objective = Objective(photometric, min_transmittance=0.0)
    out = step_gradients(OPS, network, zeros_like(network.params), batch, samples, objective)
    want = plain_photometric(photometric, rgb, batch.rgb).item()
    assert out.terms["photometric"].item() == pytest.approx(want, rel=1e-10)
    assert out.mse.item() == pytest.approx(plain_photometric("mse", rgb, batch.rgb).item())


def test_gradients_of_colour_maps_match_differences() -> None:
    """Also of the rays without samples, which show the background."""
    batch, network = exposed(some_batch()), some_network()
    samples, _ = marched(batch.rays)
    objective = Objective("huber", opacity=0.2, min_transmittance=0.0)

    def loss(color: ColorMap) -> float:
        grads, moved = zeros_like(network.params), replace(batch, color=color)
        return step_gradients(OPS, network, grads, moved, samples, objective).loss(objective).item()

    out = step_gradients(
        OPS, network, zeros_like(network.params), batch, samples, objective, with_ray_grads=True
    )
    assert batch.color is not None and out.color_grads is not None and out.ray_grads is not None
    for k in range(2):
        for place in [(0, 0), (1, 2), (2, 1), (N_RAYS - 1, 0)]:
            ends = []
            for h in (1e-6, -1e-6):
                moved = [c.clone() for c in batch.color]
                moved[k][place] += h
                ends.append(loss(ColorMap(*moved)))
            want = (ends[0] - ends[1]) / 2e-6
            assert out.color_grads[k][place].item() == pytest.approx(want, rel=1e-5, abs=1e-9)
            assert want != 0.0


def test_live_rays_alone_have_gradients_of_colour_maps() -> None:
    batch, network = exposed(some_batch()), some_network()
    samples, _ = marched(batch.rays)
    end = int(samples.ray_offsets[5])
    samples = replace(samples, ray_offsets=samples.ray_offsets.clamp(max=end))
    out = step_gradients(
        OPS, network, zeros_like(network.params), batch, samples, Objective(),
        n_live=torch.tensor(5),
    )  # fmt: skip
    assert out.color_grads is not None
    for grad in out.color_grads:
        assert grad.shape == (N_RAYS, 3) and grad[:5].all() and not grad[5:].any()


def wall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Colours of a textured wall, [..., 3], between a fifth and four fifths."""
    rng = np.random.default_rng(1)
    value = np.zeros((*x.shape, 3))
    for _ in range(24):
        a, b, phase = rng.normal(0, 6, 2).tolist() + [rng.uniform(0, 7)]
        value += np.sin(a * x + b * y + phase)[..., None] * rng.uniform(0.5, 1, 3)
    return 0.45 + 0.1 * np.tanh(value / 3)


SIDE, N_VIEWS = 48, 9


def write_wall(folder: Path, stops: list[float]) -> Path:
    """Photos of a wall 2 units in front of a row of cameras, each with its exposure."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, stop in enumerate(stops):
        at = 0.15 * (i - len(stops) / 2)
        u, v = np.meshgrid(*[(np.arange(SIDE) + 0.5 - SIDE / 2) / SIDE] * 2)
        image = wall(2 * u + at, -2 * v) * 2 ** (stop / 2.2)
        Image.fromarray(np.round(255 * image.clip(0, 1)).astype(np.uint8)).save(
            folder / "images" / f"{i}.png"
        )
        pose = np.eye(4)
        pose[:3, 3] = (at, 0.0, 2.0)
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()})
    intrinsics = {"fl_x": SIDE, "fl_y": SIDE, "cx": SIDE / 2, "cy": SIDE / 2, "w": SIDE, "h": SIDE}
    (folder / "transforms.json").write_text(json.dumps(intrinsics | {"frames": frames}))
    return folder


STOPS = [0.5, -0.5, 0.1, 0.5, -0.4, 0.0, 0.4, -0.5, -0.1]


def config_of(scene_path: Path, **values: Any) -> tuple[Scene, Config]:
    config = Config(device="cpu", backend="torch", method="unbounded")
    own = UnboundedConfig(
        log2_table_size=12, n_levels=6, max_resolution=64, width=16, n_rays=128, n_samples=8,
        n_bins=16, proposal_resolution=16,
    )  # fmt: skip
    config = replace(
        config,
        unbounded=own,
        scene=replace(config.scene, holdout=0),
        train=replace(config.train, steps=5, **values),
    )
    return load_scene(scene_path, config.scene), config


@pytest.mark.parametrize("shape", [(8, 2000), (1, 300), (1, 1)])
def test_thin_photos_are_reduced(shape: tuple[int, int]) -> None:
    views: Any = SimpleNamespace(
        image=lambda _: torch.full((*shape, 3), 99, dtype=torch.uint8), usable_of=lambda _: None
    )
    assert exposure_matching._reduce(views, 0).patches.shape[1] > 0


@pytest.mark.parametrize("differ", [True, False])
def test_photos_of_a_wall_tell_their_exposures(tmp_path: Path, differ: bool) -> None:
    truth = torch.tensor(STOPS if differ else [0.0] * N_VIEWS)
    scene, config = config_of(write_wall(tmp_path / "wall", truth.tolist()))
    said: list[str] = []
    ready = prepare(scene, config, said.append)
    found = measure_exposures(ready.scene, ready.residents.at(0))
    assert found is not None and found.differ == differ
    assert ready.config.train.exposure is False
    torch.testing.assert_close(found.stops, truth - truth.mean(), atol=0.05, rtol=0)
    assert found.extent == pytest.approx(float(truth.max() - truth.min()), abs=0.06)
    hint = "photos seem to differ in exposure by 1.0 stops: --set train.exposure=true"
    assert any(line.startswith(hint) for line in said) == differ
    assert ready.scene.log_gains is None


def test_the_setting_has_the_last_word(tmp_path: Path) -> None:
    path = write_wall(tmp_path / "wall", STOPS)
    for wish in (True, False):
        scene, config = config_of(path, exposure=wish)
        said: list[str] = []
        ready = prepare(scene, config, said.append)
        assert ready.config.train.exposure is wish
        assert not any("exposure" in line for line in said)
        gains = ready.scene.log_gains
        assert (gains is not None) == wish
        if gains is not None:
            stops = gains / math.log(2) * 2.2
            truth = torch.tensor(STOPS)
            torch.testing.assert_close(stops, truth - truth.mean(), atol=0.05, rtol=0)
    scene, config = config_of(path, exposure=True)
    with pytest.raises(NerfError, match=r"train\.exposure: method classic"):
        prepare(scene, replace(config, method="classic"))


def test_alpha_or_too_few_photos_are_not_measured(ball: Path, tmp_path: Path) -> None:
    scene = load_scene(ball)
    assert measure_exposures(scene, ImageCache(scene, scene.splits["train"]).at(0)) is None
    scene, _ = config_of(write_wall(tmp_path / "wall", STOPS))
    assert measure_exposures(scene, ImageCache(scene, [0, 1]).at(0)) is None


def trainer_of(path: Path, method: str = "unbounded", **values: Any) -> Any:
    scene, config = config_of(path, **values)
    config = replace(config, method=method)
    if method == "hashgrid":
        own = HashGridConfig(
            log2_table_size=8, n_levels=2, max_resolution=32, width=16, n_samples=512,
            occupancy_resolution=16,
        )  # fmt: skip
        config = replace(config, hashgrid=own, unbounded=UnboundedConfig())
    ready = prepare(scene, config)
    generator = torch.Generator().manual_seed(0)
    views = ready.residents.at(0)
    made = method_of(ready.config).create_trainer(ready.scene, views, ready.config, OPS, generator)
    made.begin(views)
    return made


def test_codes_recover_the_gains(tmp_path: Path) -> None:
    """From zero, up to their mean, and of the offsets there is nothing to learn."""
    trainer = trainer_of(write_wall(tmp_path / "wall", STOPS), exposure=True)
    trainer.codes.codes.zero_()
    for _ in range(100):
        trainer.step(0.03)
    truth = torch.tensor(STOPS) * math.log(2) / 2.2
    colour = wall(*np.meshgrid(*[np.linspace(-1, 1, 50)] * 2)).mean()
    # what a grey of the wall's mean becomes; a gain and an offset may share it
    log_gain, offset = trainer.codes.codes.split(3, dim=1)
    shown = (log_gain.exp() * colour + offset).mean(1) / colour
    got = shown.log() - shown.log().mean()
    torch.testing.assert_close(got, truth - truth.mean(), atol=0.04, rtol=0)
    assert trainer.codes.codes.mean(0).abs().max() < 1e-6


@pytest.mark.parametrize("method", ["unbounded", "hashgrid"])
def test_codes_resume_bit_for_bit(tmp_path: Path, method: str) -> None:
    path = write_wall(tmp_path / "wall", STOPS)
    one, other = (trainer_of(path, method, exposure=True) for _ in range(2))
    for _ in range(3):
        one.step(0.01)
    states = one.model_state(), one.optimizer_state(), one.extra_state()
    model, optimizer = ({k: t.clone() for k, t in s.items()} for s in states[:2])
    assert {k for k in optimizer if k.startswith("exposure.")} == {
        "exposure.codes", "exposure.m", "exposure.v",
    }  # fmt: skip
    assert not any("exposure" in name for name in model)
    other.load(model, optimizer, states[2])
    other.generator.set_state(one.generator.get_state())
    for trainer in (one, other):
        for _ in range(2):
            trainer.step(0.01)
    for name, tensor in one.optimizer_state().items():
        assert torch.equal(tensor, other.optimizer_state()[name]), name
    optimizer.pop("exposure.m")
    with pytest.raises(NerfError, match=r"exposure\.m"):
        other.load(model, optimizer, states[2])


def test_no_codes_where_they_are_off(tmp_path: Path) -> None:
    path = write_wall(tmp_path / "wall", STOPS)
    trainer = trainer_of(path)
    assert trainer.codes is None
    assert not any("exposure" in name for name in trainer.optimizer_state())


def test_the_loss_of_a_trainer_has_the_codes(tmp_path: Path) -> None:
    trainer = trainer_of(write_wall(tmp_path / "wall", STOPS), exposure=True)
    drawn, _ = trainer._draw(64)
    plain = replace(drawn, color=None)
    assert drawn.color is not None and drawn.color.gain.std() > 0.1
    assert torch.equal(trainer.loss(plain)["photometric"], trainer.loss(drawn)["photometric"])
    trainer.codes = None
    assert not torch.equal(trainer.loss(plain)["photometric"], trainer.loss(drawn)["photometric"])


def test_fitted_colours_are_those_of_a_least_squares_line() -> None:
    rng = np.random.default_rng(0)
    photo = np.round(255 * rng.uniform(0.2, 0.7, (6, 5, 3))) / 255
    image = np.round(255 * (photo * [0.5, 1.2, 0.9] + [0.1, -0.05, 0.0])) / 255
    usable = rng.uniform(size=(6, 5)) < 0.7
    image[~usable] = 1.0
    fitted = fit_colors(image, photo, usable)
    for c in range(3):
        gain, offset = np.polyfit(image[usable, c], photo[usable, c], 1)
        by_hand = np.round(255 * np.clip(gain * image[..., c] + offset, 0, 1)) / 255
        np.testing.assert_allclose(fitted[usable, c], by_hand[usable], atol=1e-9)
    assert psnr(fitted[usable][None], photo[usable][None]) > 45
    flat = np.full((6, 5, 3), 0.5)
    assert abs(fit_colors(flat, photo).mean() - photo.mean()) < 2 / 255
    nothing = np.zeros((6, 5), dtype=bool)
    assert np.array_equal(fit_colors(image, photo, nothing), image)


@pytest.mark.parametrize("on", [True, False])
def test_eval_gives_the_second_figure_where_codes_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    scene, _ = config_of(write_wall(tmp_path / "wall", STOPS))
    scene = replace(scene, splits=scene.splits | {"test": (0, 1)})
    photos = [evaluate.load_views(scene, [i]).image(0).float().numpy() / 255 for i in (0, 1)]
    rng = np.random.default_rng(2)
    shown = [0.8 * p + 0.02 + rng.normal(0, 0.01, p.shape) for p in photos]
    model = SimpleNamespace(backend="a backend", background=torch.zeros(3), scene=scene)
    monkeypatch.setattr(evaluate, "load_model", lambda *_: model)
    monkeypatch.setattr(
        evaluate, "render_image", lambda model, cameras, i: SimpleNamespace(rgb=shown[i])
    )
    monkeypatch.setattr(evaluate, "as_image", lambda rgb, cameras, index: rgb)
    monkeypatch.setattr(evaluate, "estimate_seconds", lambda model, cameras: 0.0)
    config = SimpleNamespace(device="cpu", train=SimpleNamespace(exposure=on))
    run: Any = SimpleNamespace(
        step=1, config=config, path=tmp_path, write_json=lambda name, value: None
    )
    progress: Any = SimpleNamespace(note=lambda text: None, update=lambda *a, **k: None)
    result = evaluate.evaluate(run, scene, save_images=False, progress=progress)
    assert ("psnr_corrected" in result) == ("psnr_corrected" in result["protocol"]) == on
    if not on:
        return
    expected = []
    for image, photo in zip(shown, photos, strict=True):
        image = np.round(255 * image.clip(0, 1)) / 255
        fitted = np.stack(
            [np.polyval(np.polyfit(image[..., c].ravel(), photo[..., c].ravel(), 1), image[..., c])
             for c in range(3)], axis=-1,
        )  # fmt: skip
        fitted = np.round(255 * fitted.clip(0, 1)) / 255
        expected.append(-10 * math.log10(((fitted - photo) ** 2).mean()))
    got = [view["psnr_corrected"] for view in result["views"]]
    assert got == pytest.approx(expected, abs=1e-3)
    assert result["psnr_corrected"] == pytest.approx(sum(expected) / 2, abs=1e-3)
    assert result["psnr_corrected"] > result["psnr"] + 5
