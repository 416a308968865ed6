"""docs/minimal.py does what it says: a picture that gets better with training."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT

PROGRAM = ROOT / "docs" / "minimal.py"


def test_minimal_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("minimal", PROGRAM)
    assert spec is not None and spec.loader is not None
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    monkeypatch.setattr(minimal, "N_RAYS", 64)
    before, after = minimal.main(15, tmp_path / "view.png", downscale=8)
    assert after > before + 0.5
    with Image.open(tmp_path / "view.png") as image:
        assert image.size == (25, 25) and image.mode == "RGB"


def test_minimal_is_short_and_takes_its_mathematics_from_the_reference() -> None:
    source = PROGRAM.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 150
    imported = {
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nerfcli")
    }
    folders = {".".join((module or "").split(".")[:2]) for module in imported}
    assert folders == {f"nerfcli.{name}" for name in ("reference", "cameras", "scenes", "core")}
