"""docs/cli.md says what the program says."""

from __future__ import annotations

import importlib.util
import inspect
import re
from types import ModuleType

import pytest
import typer

from conftest import ROOT
from nerfcli.cli import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TEXT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def reference_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "cli_reference", ROOT / "docs" / "cli_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(title: str) -> str:
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match is not None, f"docs/cli.md lacks '## {title}': python docs/cli_reference.py"
    return match[1]


def one_line(text: str) -> str:
    """Line breaks aside: where they fall differs between versions of typer."""
    return " ".join(text.replace("\b", "").split())


def test_every_command_and_no_other_is_documented() -> None:
    assert re.findall(r"^## nerf (\w+)$", TEXT, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("verb", list(COMMANDS))
def test_help_in_the_docs_is_that_of_the_program(verb: str) -> None:
    command, raw = COMMANDS[verb], section(f"nerf {verb}")
    words = one_line(raw)
    description = inspect.getdoc(command.callback) or ""
    assert "Example" in description
    assert one_line(description) in words
    flags = {"--help"}
    for parameter in command.params:
        assert parameter.help, f"{verb} {parameter.name} has no help"
        assert one_line(parameter.help) in words
        flags |= {flag for flag in parameter.opts + parameter.secondary_opts if flag[:2] == "--"}
    rows = re.findall(r"^  (?:-\w, )?(--[a-z-]+)(?: / (--[a-z-]+))?", raw, re.MULTILINE)
    assert {flag for row in rows for flag in row if flag} == flags


@pytest.mark.parametrize("title", ["Presets", "Settings"])
def test_settings_in_the_docs_are_those_of_the_program(title: str) -> None:
    module = reference_module()
    fresh = {"Presets": module.presets, "Settings": module.settings_table}[title]()
    assert fresh in TEXT, "run: python docs/cli_reference.py"


def test_head_of_the_docs() -> None:
    module = reference_module()
    assert TEXT.startswith(module.HEAD)
    assert all(f"  {verb}" in module.help_text([]) for verb in COMMANDS)
