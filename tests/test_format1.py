"""Run folders of before go on: they render, they are scored, and they train to the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Nerf

KEPT = Path(__file__).parent / "data" / "format1"
EXPECTED = json.loads((KEPT / "expected.json").read_text())
# Another processor or torch rounds other last bits, and Adam's first steps are as large for a small
# gradient as for a great one: a few entries may go another way, the mean may not.
MEAN_TOLERANCE = 1e-4


def this_machine() -> dict[str, str]:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": names[0] if names else "",
    }


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the runs and their scene, in the folder where `nerf` runs."""
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("name", ["hashgrid", "classic"])
def test_scores_are_as_before(kept: Path, nerf: Nerf, name: str) -> None:
    done = nerf("eval", name, "--scene", "ball", "--backend", "torch", "--json", "--quiet")
    result = json.loads(done.stdout)
    assert result["step"] == 12
    assert result["psnr"] == pytest.approx(EXPECTED[name]["psnr_at_12"], abs=2e-3)
    assert result["protocol"]["background"] == "white"
    assert result["protocol"]["downscale"] == 1


@pytest.mark.parametrize("name", ["hashgrid", "classic"])
def test_they_render_and_say_what_they_are(kept: Path, nerf: Nerf, name: str) -> None:
    nerf("render", name, "--frames", "2", "--out", "frames", "--quiet")
    assert len(list((kept / "frames").glob("*.png"))) == 2
    value = json.loads(nerf("info", name, "--json").stdout)
    assert (value["method"], value["step"], value["finished"]) == (name, 12, False)


@pytest.mark.parametrize(
    ("name", "backend"), [("hashgrid", "cpu"), ("hashgrid", "torch"), ("classic", "torch")]
)
def test_resumed_to_the_same_weights(kept: Path, nerf: Nerf, name: str, backend: str) -> None:
    words = ("train", "ball", "--out", name, "--resume", "--backend", backend, "--device", "cpu")
    done = nerf(*words, "--json", "--quiet")
    assert json.loads(done.stdout)["steps"] == 20
    got = load_file(kept / name / "model-20.safetensors")
    got |= load_file(kept / name / "optimizer-20.safetensors")
    for key, want in load_file(KEPT / f"{name}-{backend}-20.safetensors").items():
        if this_machine() == EXPECTED["made_on"]:
            assert torch.equal(got[key], want), key
        else:
            known = want.isfinite()
            assert torch.equal(got[key].isfinite(), known), key
            assert (got[key] - want)[known].abs().mean() < MEAN_TOLERANCE, key


def test_a_flag_that_repeats_a_setting_is_no_change(kept: Path, nerf: Nerf) -> None:
    words = ("train", "ball", "--out", "hashgrid", "--resume", "--quiet")
    refused = nerf(*words, "--downscale", "2", code=2)
    assert "scene.downscale" in refused.stderr
    nerf(*words, "--downscale", "1", "--method", "hashgrid", "--set", "train.loss=huber")
