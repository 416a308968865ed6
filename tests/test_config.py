from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from nerfcli.core import settings
from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.settings import (
    PRESETS,
    config_from_toml,
    config_to_toml,
    config_values,
    load_config,
    preset_names,
)


def test_defaults_are_the_dataclass() -> None:
    assert load_config() == Config()


def test_order_of_the_layers(tmp_path: Path) -> None:
    """Each layer overrides the ones before: preset < file < --set < flag."""
    file = tmp_path / "c.toml"
    file.write_text("[model]\nwidth = 32\ndepth = 5\n[sampling]\nn_coarse = 7\n")
    config = load_config(
        "classic-small", file, ["model.depth=6", "sampling.n_coarse=9"], {"sampling.n_coarse": 11}
    )
    assert config.model.method == "classic"  # preset alone
    assert config.model.width == 32  # file over preset
    assert config.model.depth == 6  # set over file
    assert config.sampling.n_coarse == 11  # flag over set
    assert config.sampling.n_fine == 32  # preset over default


def test_flag_of_none_was_not_given() -> None:
    assert load_config(flags={"train.seed": None}).train.seed == Config().train.seed


def test_later_length_replaces_the_other_kind() -> None:
    config = load_config("classic", flags={"train.minutes": 1.0})
    assert (config.train.steps, config.train.minutes) == (0, 1.0)
    config = load_config("quick", sets=["train.steps=10"])
    assert (config.train.steps, config.train.minutes) == (10, 0.0)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("train.lr=1", "train.lr", 1.0),
        ("train.random_background=false", "train.random_background", False),
        ("model.method=classic", "model.method", "classic"),
        ('model.method="classic"', "model.method", "classic"),
        (" train.steps = 2_000 ", "train.steps", 2000),
        ("backend=torch", "backend", "torch"),
    ],
)
def test_set(text: str, key: str, value: object) -> None:
    got = config_values(load_config(sets=[text]))[key]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.stepz=3", ["unknown key 'train.stepz'", "train.steps"]),
        ("steps=3", ["unknown key 'steps'", "train.steps"]),
        ("qqqqqq=3", ["unknown key 'qqqqqq'"]),
        ("train.steps", ["table.key=value"]),
        ("train.steps=many", ["[train]", "'steps'", "a whole number", "'many' (str)"]),
        ("train.steps=2.5", ["a whole number", "2.5 (float)"]),
        ("train.steps=true", ["a whole number", "True (bool)"]),
        ("train.random_background=1", ["true or false", "1 (int)"]),
        ("train.steps=-1", ["train.steps must be at least 0"]),
        ("train.lr=nan", ["train.lr must be"]),
        ("train.lr=inf", ["train.lr must be"]),
        ("train.ema_decay=1.5", ["at most 1.0"]),
        ("model.n_levels=0", ["at least 1"]),
        ("model.method=nerf", ["auto, hashgrid, classic"]),
    ],
)
def test_wrong_set_says_what_and_where(text: str, words: list[str]) -> None:
    with pytest.raises(NerfError) as error:
        load_config(sets=[text])
    for word in [f"--set {text}", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nsteps = 1\n[trian]\nlr = 1.0\n", ["unknown key 'trian.lr'", "train.lr"]),
        ("train = 5\n", ["unknown key 'train'"]),
        ("[train]\nsteps = [1]\n", ["[train]", "'steps'", "(list)"]),
        ("[train\n", ["broken TOML", "line 1"]),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(NerfError) as error:
        load_config(file=file)
    for word in ["mine.toml", *words]:
        assert word in str(error.value)


def test_missing_file_and_unknown_preset(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="cannot read config .*none.toml"):
        load_config(file=tmp_path / "none.toml")
    with pytest.raises(NerfError, match="unknown preset 'clasic'; did you mean classic"):
        load_config("clasic")


def test_toml_round_trip_of_every_field(tmp_path: Path) -> None:
    """A config in which no field has its default comes back equal."""
    defaults = config_values(Config())
    others: dict[str, object] = {}
    for key, value in defaults.items():
        if key in settings.CHOICES:
            others[key] = settings.CHOICES[key][-1]
        elif isinstance(value, bool):
            others[key] = not value
        elif isinstance(value, int):
            others[key] = value + 1
        elif isinstance(value, float):
            others[key] = value / 2 + 0.1
        else:
            others[key] = "other"
    config = settings.config_from_values(others)
    assert all(config_values(config)[key] != defaults[key] for key in defaults)
    file = tmp_path / "config.toml"
    file.write_text(config_to_toml(config))
    assert config_from_toml(file) == config
    assert dataclasses.asdict(config) == tomllib.loads(file.read_text())


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_short_diffs(name: str) -> None:
    lines = (PRESETS / f"{name}.toml").read_text().splitlines()
    assert len(lines) <= 20
    assert load_config(name) != Config()


def test_presets_there_are() -> None:
    assert preset_names() == ("classic", "classic-small", "quick")


def test_classic_is_the_paper() -> None:
    config = load_config("classic")
    assert (config.model.method, config.model.width, config.model.depth) == ("classic", 256, 8)
    assert (config.sampling.n_coarse, config.sampling.n_fine) == (64, 128)
    assert (config.train.lr, config.train.lr_final, config.train.n_rays) == (5e-4, 0.1, 1024)
    assert (config.train.steps, config.train.loss) == (200_000, "mse")


def test_tables_of_ranges_name_real_keys() -> None:
    known = config_values(Config())
    for table in (settings.CHOICES, settings.AT_LEAST, settings.AT_MOST):
        assert set(table) <= set(known)


def test_at_most_45_fields() -> None:
    """More knobs than that nobody can hold in their head."""
    assert len(config_values(Config())) <= 45
