"""Where the values of a Config come from, and how it lies on disk.

Order: defaults < preset < file < --set < named flags. A layer is a flat mapping from dotted keys
("train.steps") to values. TOML in, TOML out; config is data and builds nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nerfcli.core.config import Config
from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_text

PRESETS = Path(__file__).parents[1] / "presets"
CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "scene.background": ("auto", "white", "black"),
    "model.method": ("auto", "hashgrid", "classic"),
    "train.loss": ("auto", "mse", "huber"),
}
AT_LEAST = {  # every other number must not be negative
    "model.n_levels": 1,
    "model.n_features": 1,
    "model.base_resolution": 1,
    "model.depth": 1,
    "sampling.n_coarse": 1,
    "occupancy.resolution": 1,
    "occupancy.every": 1,
}
AT_MOST = {
    "model.log2_table_size": 24,  # 16 levels of 2 features would take 2 GiB
    "sampling.min_transmittance": 1.0,
    "occupancy.decay": 1.0,
    "train.ema_decay": 1.0,
    "train.crop_fraction": 1.0,
    "train.seed": 2**63 - 1,
}
TYPE_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def load_config(
    preset: str | None = None,
    file: Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
) -> Config:
    """The config that these layers make of the defaults.

    Args:
        preset: a name of `preset_names()`.
        file: a TOML file, such as a run's config.toml.
        sets: "train.steps=2000"; the value is TOML, or a bare string.
        flags: dotted keys; None means that the flag was not given.

    Raises:
        NerfError: an unknown preset, file or key (naming the nearest), or a wrong type or value.
    """
    return config_from_values(given_values(preset, file, sets, flags))


def given_values(
    preset: str | None,
    file: Path | None,
    sets: Sequence[str],
    flags: Mapping[str, object] | None,
) -> dict[str, object]:
    """The values that the layers state, later ones winning, checked; see `load_config`."""
    layers = []
    if preset is not None:
        layers.append(_read_toml(_preset_path(preset), f"preset {preset}"))
    if file is not None:
        layers.append(_read_toml(file, str(file)))
    layers.append(dict(_parse_set(text) for text in sets))
    named = {key: value for key, value in (flags or {}).items() if value is not None}
    layers.append({key: _checked(key, value, "the flags") for key, value in named.items()})
    merged: dict[str, object] = {}
    for layer in layers:
        for key, other in (("train.steps", "train.minutes"), ("train.minutes", "train.steps")):
            if layer.get(key) and not layer.get(other):
                merged.pop(other, None)  # two ways to say how long: the later word replaces both
        merged.update(layer)
    return merged


def config_from_values(values: Mapping[str, object]) -> Config:
    """Defaults with these dotted values in their place."""
    config = Config()
    for key, value in values.items():
        table, _, leaf = key.rpartition(".")
        if table:
            section = dataclasses.replace(getattr(config, table), **{leaf: value})
            config = dataclasses.replace(config, **{table: section})
        else:
            config = dataclasses.replace(config, **{leaf: value})
    return config


def config_values(config: Config) -> dict[str, object]:
    """Every field of the tree by its dotted key."""
    return _flatten(dataclasses.asdict(config))


def config_to_toml(config: Config) -> str:
    import tomli_w  # a third party; reading needs none

    return tomli_w.dumps(dataclasses.asdict(config))


def config_from_toml(path: Path) -> Config:
    """The config in a TOML file; keys that it leaves out have their defaults.

    Raises:
        NerfError: unreadable, broken TOML, unknown key, wrong type or value.
    """
    return config_from_values(_read_toml(path, str(path)))


def write_config(config: Config, path: Path) -> None:
    write_text(path, config_to_toml(config))


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def nearest(word: str, known: Sequence[str]) -> str:
    """A clause that names the known word nearest to `word`, or all of them if there are few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}." if len(known) <= 12 else "see docs/cli.md for all keys."


def _preset_path(name: str) -> Path:
    if name not in preset_names():
        raise NerfError(
            f"unknown preset {name!r}; {nearest(name, preset_names())} "
            "A file of yours goes to --config."
        )
    return PRESETS / f"{name}.toml"


def _read_toml(path: Path, where: str) -> dict[str, object]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise NerfError(f"{where}: broken TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise NerfError(f"{where}: not a UTF-8 text file.") from error
    except OSError as error:
        raise NerfError(f"cannot read config {path}: {error.strerror or error}.") from error
    return {key: _checked(key, value, where) for key, value in _flatten(tree).items()}


def _flatten(tree: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys of a tree of one level of tables."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{leaf}": item for leaf, item in value.items()})
        else:
            flat[key] = value
    return flat


def _parse_set(text: str) -> tuple[str, object]:
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    where = f"--set {text}"
    if not equals or not key:
        raise NerfError(f"{where}: write it as table.key=value, such as train.steps=2000.")
    if isinstance(_default(key, where), str):
        return key, _checked(key, raw.strip("\"'"), where)
    try:
        value = tomllib.loads(f"value = {raw}").get("value")
    except tomllib.TOMLDecodeError:
        value = raw
    return key, _checked(key, value, where)


def _default(key: str, where: str) -> object:
    defaults = config_values(Config())
    if key in defaults:
        return defaults[key]
    leaves = [known for known in defaults if known.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"did you mean {leaves[0]}?" if leaves else nearest(key, list(defaults))
    raise NerfError(f"{where}: unknown key {key!r}; {hint}")


def _checked(key: str, value: object, where: str) -> object:
    """The value in its field's type, or NerfError: unknown key, wrong type, out of range."""
    want = type(_default(key, where))
    if want is float and type(value) is int:
        value = float(value)
    if type(value) is not want:
        table, _, leaf = key.rpartition(".")
        place = f"table [{table}], key {leaf!r}" if table else f"key {leaf!r}"
        raise NerfError(
            f"{where}: {place} must be {TYPE_WORDS[want]}, got {value!r} ({type(value).__name__})."
        )
    if key in CHOICES and value not in CHOICES[key]:
        raise NerfError(f"{where}: {key} must be one of {', '.join(CHOICES[key])}; got {value!r}.")
    if isinstance(value, int | float) and want is not bool:
        low, high = AT_LEAST.get(key, 0), AT_MOST.get(key, math.inf)
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f"at least {low}" + (f" and at most {high}" if high < math.inf else "")
            raise NerfError(f"{where}: {key} must be {bounds}, got {value}.")
    return value
