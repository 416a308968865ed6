from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from nerfcli.core import settings
from nerfcli.core.config import (
    METHOD_TABLES,
    Config,
    HashGridConfig,
    SceneConfig,
    TrainConfig,
)
from nerfcli.core.config_format1 import AUTO_AT_0, AUTO_BY_NAME, MOVED
from nerfcli.core.errors import NerfError
from nerfcli.core.settings import (
    PRESETS,
    config_from_toml,
    config_to_toml,
    config_values,
    ensure_valid,
    load_config,
    preset_names,
)
from nerfcli.methods import METHODS
from nerfcli.reference.losses import PHOTOMETRIC


def test_defaults_are_the_dataclass() -> None:
    assert load_config() == Config()


def test_order_of_the_layers(tmp_path: Path) -> None:
    """Each layer overrides the ones before: preset < file < --set < flag."""
    file = tmp_path / "c.toml"
    file.write_text("[classic]\nwidth = 32\ndepth = 5\nn_coarse = 7\n")
    config = load_config(
        "classic-small", file, ["classic.depth=6", "classic.n_coarse=9"], {"classic.n_coarse": 11}
    )
    assert config.method == "classic"  # preset alone
    assert config.classic.width == 32  # file over preset
    assert config.classic.depth == 6  # set over file
    assert config.classic.n_coarse == 11  # flag over set
    assert config.classic.n_fine == 32  # preset over default


def test_flag_of_none_was_not_given() -> None:
    assert load_config(flags={"train.seed": None}).train.seed == Config().train.seed


def test_later_length_replaces_the_other_kind() -> None:
    config = load_config("classic", flags={"train.minutes": 1.0})
    assert (config.train.steps, config.train.minutes) == (None, 1.0)
    config = load_config("quick", sets=["train.steps=10"])
    assert (config.train.steps, config.train.minutes) == (10, None)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("train.lr=1", "train.lr", 1.0),
        ("train.random_background=false", "train.random_background", False),
        ("method=classic", "method", "classic"),
        ('method="classic"', "method", "classic"),
        ("method=auto", "method", None),
        ("scene.near=auto", "scene.near", None),
        ("train.loss=none", "train.loss", None),
        ("backend=auto", "backend", "auto"),
        ("train.lr=1", "train.lr", 1.0),
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
        ("width=3", ["unknown key 'width'", "hashgrid.width or unbounded.width or classic.width"]),
        ("qqqqqq=3", ["unknown key 'qqqqqq'"]),
        ("occupancy.resolution=64", ["it is now hashgrid.occupancy_resolution"]),
        ("train.n_samples=64", ["it is now hashgrid.n_samples"]),
        ("train.steps", ["table.key=value"]),
        ("train.steps=many", ["train.steps must be a whole number", "auto", "'many'"]),
        ("train.steps=2.5", ["a whole number", "2.5"]),
        ("train.steps=true", ["a whole number", "True"]),
        ("train.steps=[1]", ["a whole number", "[1]"]),
        ("train.random_background=1", ["true or false", "got 1"]),
        ("train.random_background=auto", ["true or false; got 'auto'"]),
        (
            "train.steps=0",
            ["train.steps must be a whole number, at least 1 and at most 1000000000, or auto"],
        ),
        ("train.lr=nan", ["train.lr must be a finite number, above 0"]),
        ("train.lr=inf", ["train.lr must be"]),
        ("scene.near=0", ["scene.near must be a finite number, above 0, or auto; got 0"]),
        ("hashgrid.ema_decay=1.5", ["at least 0 and at most 1"]),
        ("hashgrid.n_levels=0", ["at least 1"]),
        ("hashgrid.cone=0.5", ["at least 0 and below 0.5; got 0.5"]),
        ("scene.alpha=mask", ["one of ignore, transparent, or auto; got 'mask'"]),
        ("train.loss=l1", ["one of huber, mse, or auto; got 'l1'"]),
        ("train.seed=-1", ["a whole number, at least 0; got -1"]),
        ("backend=3", ["a string; got 3"]),
        ("method=nerf", ["hashgrid, unbounded, classic", "'nerf'"]),
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
        ("[train]\nsteps = [1]\n", ["train.steps", "a whole number", "[1]"]),
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


def test_keys_of_another_method_are_refused(tmp_path: Path) -> None:
    refused = r"hashgrid.width: the method is classic.*\[hashgrid\].*--method hashgrid"
    with pytest.raises(NerfError, match=refused):
        load_config("classic", sets=["hashgrid.width=32"])
    with pytest.raises(NerfError, match="classic.depth: the method is hashgrid"):
        load_config(sets=["classic.depth=3", "method=hashgrid"])
    file = tmp_path / "mine.toml"
    file.write_text("[classic]\nn_rays = 12\n")
    assert load_config(file=file, flags={"method": "classic"}).classic.n_rays == 12


def other_value(key: str, default: object) -> object:
    """A value within the bounds that is not the default."""
    by_key = {
        "method": None,
        "device": "cuda",
        "scene.background": "white",
        "scene.alpha": "ignore",
        "scene.images": "photos",
        "train.loss": "mse",
        "train.lr_final": 0.5,
        "train.exposure": True,
        "hashgrid.log2_table_size": 9,
        "unbounded.log2_table_size": 9,
        "unbounded.space": "perspective",
        "unbounded.min_transmittance": 1e-3,
        "classic.spacing": "linear",
    }
    if key in by_key:
        return by_key[key]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1 if isinstance(default, int) else default / 3 + 0.1
    return "other" if isinstance(default, str) else 3


@pytest.mark.parametrize("method", METHOD_TABLES)
def test_toml_round_trip_of_every_field(tmp_path: Path, method: str) -> None:
    """A config in which no field has its default comes back equal."""
    rest = [name for name in METHOD_TABLES if name != method]
    defaults = {
        key: value
        for key, value in config_values(Config()).items()
        if key.partition(".")[0] not in rest
    }
    others = {key: other_value(key, value) for key, value in defaults.items()} | {"method": method}
    config = settings.config_from_values(others)
    assert all(config_values(config)[key] != defaults[key] for key in defaults)
    file = tmp_path / "config.toml"
    file.write_text(config_to_toml(config))
    assert config_from_toml(file) == config
    assert set(tomllib.loads(file.read_text())) == {
        *("method", "backend", "device", "scene", "train", method)
    }


def test_what_is_none_is_left_out_of_the_file() -> None:
    tree = tomllib.loads(config_to_toml(Config()))
    assert "method" not in tree and "classic" not in tree
    assert tree["scene"] == {"holdout": 8, "skip_bad_frames": False}


def test_bounds_hold_for_tables_made_in_python() -> None:
    ensure_valid("scene", SceneConfig(downscale=2))
    with pytest.raises(NerfError, match="scene.downscale must be"):
        ensure_valid("scene", SceneConfig(downscale=0))


@pytest.mark.parametrize(
    ("key", "most"),
    [("n_samples", 2**24), ("steps_per_box", 10**6), ("occupancy_resolution", 512)],
)
def test_what_the_kernels_cannot_count_is_refused(key: str, most: float) -> None:
    right: dict[str, Any] = {key: most}
    wrong: dict[str, Any] = {key: 2 * most}
    ensure_valid("hashgrid", HashGridConfig(**right))
    with pytest.raises(NerfError, match=f"hashgrid.{key} must be"):
        ensure_valid("hashgrid", HashGridConfig(**wrong))


def test_every_method_has_a_table_and_every_table_a_method() -> None:
    assert tuple(METHODS) == METHOD_TABLES
    assert all(name == method.name for name, method in METHODS.items())


def test_every_loss_can_be_chosen() -> None:
    kind = settings.field_types()["train.loss"]
    assert {*get_args(get_args(kind)[0])} == set(PHOTOMETRIC)


def test_format_1_is_read(tmp_path: Path) -> None:
    """0 and "auto" were automatic; settings of the other method, which all files had, go."""
    file = tmp_path / "old.toml"
    file.write_text(
        'device = "cpu"\n[scene]\nholdout = 0\nnear = 0.0\nbackground = "auto"\n'
        '[model]\nmethod = "auto"\nwidth = 32\ndepth = 3\nlog2_table_size = 0\n'
        "[occupancy]\nevery = 4\n[train]\nsteps = 0\nminutes = 3.0\nn_samples = 512\n"
        "n_rays = 8\nema_decay = 0.0\n"
    )
    own = HashGridConfig(width=32, occupancy_every=4, n_samples=512, ema_decay=0.0)
    assert config_from_toml(file) == Config(
        "hashgrid",
        device="cpu",
        scene=SceneConfig(holdout=0),
        train=TrainConfig(minutes=3.0),
        hashgrid=own,
    )


@pytest.mark.parametrize(
    "words", [{"flags": {"method": "classic"}}, {"sets": ["method=classic"]}, {"preset": "classic"}]
)
def test_a_file_of_format_1_takes_the_method_from_elsewhere(
    tmp_path: Path, words: dict[str, Any]
) -> None:
    """Nothing in it may be lost or laid at the door of the other method."""
    path = tmp_path / "old.toml"
    path.write_text("[model]\nwidth = 128\ndepth = 4\n[sampling]\nn_coarse = 16\ncone = 0.1\n")
    config = load_config(file=path, **words)
    classic = config.classic
    assert (classic.width, classic.depth, classic.n_coarse) == (128, 4, 16)


def test_todays_tables_in_a_file_of_format_1_count(tmp_path: Path) -> None:
    path = tmp_path / "mixed.toml"
    path.write_text('[model]\nmethod = "classic"\n[hashgrid]\nwidth = 16\n')
    with pytest.raises(NerfError, match=r"hashgrid.width: the method is classic"):
        load_config(file=path)


@pytest.mark.parametrize("key", ["lr", "lr_final"])
def test_a_learning_rate_of_nothing_is_refused(key: str) -> None:
    with pytest.raises(NerfError, match=rf"train.{key}"):
        load_config(sets=[f"train.{key}=0"])


def test_moved_keys_lead_to_keys_that_exist() -> None:
    known = config_values(Config())
    assert all(place in known for places in MOVED.values() for place in places)
    assert not set(MOVED) & set(known)
    assert set(MOVED) | set(known) >= AUTO_AT_0 | AUTO_BY_NAME


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_short_diffs(name: str) -> None:
    lines = (PRESETS / f"{name}.toml").read_text().splitlines()
    assert len(lines) <= 20
    assert load_config(name) != Config()


def test_presets_there_are() -> None:
    assert preset_names() == ("classic", "classic-small", "quick")


def test_classic_is_the_paper() -> None:
    config = load_config("classic")
    own, train = config.classic, config.train
    assert (config.method, own.width, own.depth) == ("classic", 256, 8)
    assert (own.n_coarse, own.n_fine, own.n_rays) == (64, 128, 1024)
    assert (train.lr, train.lr_final) == (5e-4, 0.1)
    assert (train.steps, train.loss) == (200_000, "mse")


def test_at_most_40_fields_for_a_method() -> None:
    """More knobs than that nobody can hold in their head; method, backend and device choose."""
    keys = [key for key in config_values(Config()) if "." in key]
    shared = [key for key in keys if key.partition(".")[0] not in METHOD_TABLES]
    for name in METHOD_TABLES:
        assert len(shared) + sum(key.startswith(f"{name}.") for key in keys) <= 40
