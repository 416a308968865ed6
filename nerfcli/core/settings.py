"""Where the values of a Config come from, and how it lies on disk.

Order: defaults < preset < file < --set < named flags. A layer is a flat mapping from dotted keys
("train.steps") to values. TOML in, TOML out; config is data and builds nothing.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from nerfcli.core.config import METHOD_TABLES, SHARED_TABLES, Config, stated_method
from nerfcli.core.config_format1 import is_format1, new_home, translate
from nerfcli.core.errors import NerfError
from nerfcli.core.files import write_text
from nerfcli.core.text import most_like

PRESETS = Path(__file__).parents[1] / "presets"
AUTO = ("auto", "none")  # ways to write None, which TOML has no word for


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
    stated = dict(_parse_set(text) for text in sets)
    named = {key: value for key, value in (flags or {}).items() if value is not None}
    named = {key: _checked(key, value, _flag(key)) for key, value in named.items()}
    layers = []
    if preset is not None:
        layers.append(_read_toml(_preset_path(preset), f"preset {preset}"))
    if file is not None:
        # a file of format 1 does not say which method its settings are for
        method = named.get("method") or stated.get("method")
        others = layers[0].get("method") if layers else None
        layers.append(_read_toml(file, str(file), method, others))
    layers += [stated, named]
    merged: dict[str, object] = {}
    for layer in layers:
        for key, other in (("train.steps", "train.minutes"), ("train.minutes", "train.steps")):
            if layer.get(key) and not layer.get(other):
                merged.pop(other, None)  # two ways to say how long: the later word replaces both
        merged.update(layer)
    return merged


def config_from_values(values: Mapping[str, object]) -> Config:
    """Defaults with these dotted values in their place.

    A value of one method's table chooses that method, if nothing else does.

    Raises:
        NerfError: a value of another method's table than the config's own.
    """
    config = with_values(Config(), values)
    method = values.get("method") or _method_of_tables(values)
    ensure_own_table(values, method)
    return dataclasses.replace(config, method=method)


def with_values(config: Config, values: Mapping[str, object]) -> Config:
    """The config with these dotted values in their place."""
    for key, value in values.items():
        table, _, leaf = key.rpartition(".")
        if table:
            section = dataclasses.replace(getattr(config, table), **{leaf: value})
            config = dataclasses.replace(config, **{table: section})
        else:
            config = dataclasses.replace(config, **{leaf: value})
    return config


def _method_of_tables(values: Mapping[str, object]) -> str | None:
    """The method whose table values are of; None without any."""
    keys = {key.partition(".")[0]: key for key in values}
    found = [table for table in keys if table in METHOD_TABLES]
    if len(found) > 1:
        raise NerfError(
            f"{keys[found[0]]} and {keys[found[1]]} are settings of two methods; "
            f"choose one with --method {found[0]} or --method {found[1]}, and leave the other out."
        )
    return found[0] if found else None


def ensure_own_table(values: Mapping[str, object], method: object, where: str = "") -> None:
    """Raise NerfError where a value is of another method's table."""
    for key in values:
        table = key.partition(".")[0]
        if table in METHOD_TABLES and table != method:
            raise NerfError(
                f"{where}{key}: the method is {method}, which does not read table [{table}]; "
                f"leave it out, or choose --method {table}."
            )


def config_values(config: Config) -> dict[str, object]:
    """Every field of the tree by its dotted key."""
    return _flatten(dataclasses.asdict(config))


def config_tree(config: Config) -> dict[str, Any]:
    """The tables of a config as they are written: without None and without other methods."""
    others = [name for name in METHOD_TABLES if name != stated_method(config)]
    tree = {k: v for k, v in dataclasses.asdict(config).items() if k not in others}
    for name, value in list(tree.items()):
        if isinstance(value, dict):
            tree[name] = {k: v for k, v in value.items() if v is not None}
    return {k: v for k, v in tree.items() if v is not None}


def config_to_toml(config: Config) -> str:
    import tomli_w  # a third party; reading needs none

    return tomli_w.dumps(config_tree(config))


def config_from_toml(path: Path) -> Config:
    """The config in a TOML file; keys that it leaves out have their defaults.

    Raises:
        NerfError: unreadable, broken TOML, unknown key, wrong type or value.
    """
    values = _read_toml(path, str(path))
    if values.get("method"):
        ensure_own_table(values, values["method"], f"{path}: ")
    return config_from_values(values)


def write_config(config: Config, path: Path) -> None:
    write_text(path, config_to_toml(config))


def ensure_valid(table: str, config: object) -> None:
    """Raise NerfError where a value of a config table, made in Python, is out of its bounds."""
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        _checked(f"{table}.{field.name}", getattr(config, field.name), "config")


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def nearest(word: str, known: Sequence[str]) -> str:
    """A clause that names the known word nearest to `word`, or all of them if there are few."""
    if near := most_like(word, known, 0.5):
        return f"did you mean {near}?"
    return f"known: {', '.join(known)}." if len(known) <= 12 else "see docs/cli.md for all keys."


def _preset_path(name: str) -> Path:
    if name not in preset_names():
        raise NerfError(
            f"unknown preset {name!r}; {nearest(name, preset_names())} "
            "A file of yours goes to --config."
        )
    return PRESETS / f"{name}.toml"


def _read_toml(
    path: Path, where: str, method: object = None, default: object = None
) -> dict[str, object]:
    """The checked values of a TOML file by dotted keys.

    method, default: for a file of format 1, the method that outranks its own, and the one where
    it names none.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise NerfError(f"{where}: broken TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise NerfError(f"{where}: not a UTF-8 text file.") from error
    except OSError as error:
        raise NerfError(f"cannot read config {path}: {error.strerror or error}.") from error
    values = _flatten(tree)
    if is_format1(values):
        own = values.get("model.method", "auto")
        values = translate(values, method or (default if own == "auto" else None))
    return {key: _checked(key, value, where) for key, value in values.items()}


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
    try:
        value = tomllib.loads(f"value = {raw}").get("value")
    except tomllib.TOMLDecodeError:
        value = raw
    return key, _checked(key, value, where)


@cache
def field_types() -> dict[str, Any]:
    """The type of every field, with its bounds, by dotted key."""
    types = get_type_hints(Config, include_extras=True)
    for table in (*SHARED_TABLES, *METHOD_TABLES):
        hints = get_type_hints(types.pop(table), include_extras=True)
        types |= {f"{table}.{leaf}": hint for leaf, hint in hints.items()}
    return types


def _field_type(key: str, where: str) -> Any:
    types = field_types()
    if key in types:
        return types[key]
    if place := new_home(key):
        raise NerfError(f"{where}: unknown key {key!r}; it is now {place}.")
    leaves = [name for name in types if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = f"did you mean {' or '.join(leaves)}?" if leaves else nearest(key, list(types))
    raise NerfError(f"{where}: unknown key {key!r}; {hint}")


def _flag(key: str) -> str:
    """The flag of a command that sets this key."""
    return f"--{key.rpartition('.')[2].replace('_', '-')}"


def _checked(key: str, value: object, where: str) -> Any:
    """The value in its field's type, or NerfError: unknown key, wrong type, out of bounds."""
    kind = _field_type(key, where)
    if value in AUTO and type(None) in get_args(kind):
        return None
    try:
        value = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        subject = where if where == _flag(key) else f"{where}: {key}"
        expected = _expected(kind)
        if subject == where and "number" in expected:  # such a flag takes no word
            expected = expected.removesuffix(", or auto")
        raise NerfError(f"{subject} must be {expected}; got {value!r}.") from error
    if key == "method" and value not in (None, *METHOD_TABLES):
        names = ", ".join(METHOD_TABLES)
        subject = where if where == _flag(key) else f"{where}: {key}"
        near = most_like(str(value), METHOD_TABLES, 0.5)
        hint = f"; did you mean {near}?" if near else "."
        raise NerfError(f"{subject} must be one of {names}; got {value!r}{hint}")
    return value


def _expected(kind: Any) -> str:
    """What a field's type admits, as a phrase: "a whole number, at least 1"."""
    from msgspec import inspect

    info = inspect.type_info(kind)
    if isinstance(info, inspect.UnionType):
        phrases = [_phrase(part) for part in info.types if not isinstance(part, inspect.NoneType)]
        return ", or ".join([*phrases, "auto"])
    return _phrase(info)


def _phrase(info: Any) -> str:
    from msgspec import inspect

    if isinstance(info, inspect.LiteralType):
        return f"one of {', '.join(map(str, info.values))}"
    if isinstance(info, inspect.StrType):
        return "a string" if info.pattern is None else "auto, cpu, cuda or cuda:N"
    if isinstance(info, inspect.BoolType):
        return "true or false"
    bounds = [("above", info.gt), ("at least", info.ge), ("at most", info.le)]
    bounds.append(("below", info.lt))
    texts = [f"{word} {n:.10g}" for word, n in bounds if n is not None and abs(n) < 2**62]
    noun = "a whole number" if isinstance(info, inspect.IntType) else "a finite number"
    return ", ".join([noun, *([" and ".join(texts)] if texts else [])])
