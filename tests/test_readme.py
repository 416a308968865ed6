"""The commands of README and docs are ones that the program takes, and the README's script runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from conftest import ROOT, nerf_environment
from nerfcli.cli import app

GROUP = typer.main.get_command(app)
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(text: str) -> list[str]:
    """The indented blocks of a page, without their indentation."""
    found = re.findall(r"(?:(?<=\n\n)|\A)((?:    .*\n)+)", text)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def commands(text: str) -> list[list[str]]:
    """The words of each `nerf VERB ...` in the blocks of a page, and in its lines of code."""
    found = []
    code = [*blocks(text), *re.findall(r"`(nerf [^`]+)`", text)]
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        for part in re.findall(r"(?:^|[;(]|&&|\bdo )\s*(nerf [a-z][^;|&)]*)", line):
            words = shlex.split(part, comments=True)
            if re.fullmatch("[a-z]+", words[1]):
                found.append([word for word in words[1:] if word not in ("...", "…")])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_is_one_that_the_program_takes(page: Path) -> None:
    if page.name == "cli.md":  # held to the program by test_cli_docs.py
        return
    for verb, *words in commands(page.read_text(encoding="utf-8")):
        command = GROUP.commands[verb]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts} | {"-h"}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in known | {"--help"}, f"nerf {verb} {' '.join(words)}"


def test_the_environment_is_activated_once_and_first() -> None:
    lines = [line for block in blocks(README) for line in block.splitlines()]
    install = lines.index("pip install .")
    assert lines[install - 1] == ". .venv/bin/activate"
    first = next(i for i, line in enumerate(lines) if "datasets/biplane" in line)
    assert install < first
    # but the line for tests, which needs an environment of its own
    assert sum(".venv/bin/" in line for line in lines) == 2


@pytest.mark.slow
def test_the_script_of_the_readme_runs_twice(ball: Path, tmp_path: Path) -> None:
    """A script that was stopped, or is given once more, ends well."""
    (script,) = [block for block in blocks(README) if block.startswith("set -e")]
    assert "--minutes 5" in script
    (tmp_path / "scene").symlink_to(ball)
    (tmp_path / "bin").mkdir()
    for name, words in (("nerf", "-m nerfcli"), ("python", "")):
        shim = tmp_path / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        shim.chmod(0o755)
    environment = nerf_environment()
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", script.replace("--minutes 5", "--steps 30")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"^chair: [\d.]+ dB$", done.stdout, re.MULTILINE), done.stdout
    assert (tmp_path / "chair.mp4").stat().st_size > 1000
