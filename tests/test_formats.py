"""Which format of a folder is read, and folders and files that cannot be read at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import source_writers as writers
import test_scenes_colmap as colmap

from nerfcli.core.errors import NerfError
from nerfcli.scenes import read_source

POSE = np.eye(4).tolist()
PATH = {"frames": [{"file_path": f"path/{i}.png", "transform_matrix": POSE} for i in range(3)]}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("transforms_test.json", json.dumps(PATH), "none of the 3 images exists"),
        ("transforms_test.json", '{"camera_path": []}', "has no frames"),
        (
            "transforms_test.json",
            json.dumps({"frames": [{"transform_matrix": POSE}]}),
            "no file_path",
        ),
        ("transforms_train.json", '{"frames"', "transforms_train.json"),
        ("transforms.json", '{"frames": []}', "has no frames"),
        ("transforms.json", '{"frames": [', "transforms.json"),
        ("transforms.json", "[]", "must hold a JSON object"),
    ],
)
def test_a_colmap_model_is_read_beside_a_file_without_frames(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    colmap.capture(tmp_path)
    (tmp_path / name).write_text(text)
    source = read_source(tmp_path)
    assert source.kind == "colmap"
    assert source.notes[0].startswith(f"{name} is not used: ") and reason in source.notes[0]
    assert source.notes[1] == "a COLMAP model in sparse/0 is read"


def test_a_fault_in_a_frame_is_not_hidden_by_another_format(tmp_path: Path) -> None:
    colmap.capture(tmp_path)
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": POSE if i else [[0.0] * 4] * 4}
        for i, name in enumerate(colmap.NAMES)
    ]
    text = json.dumps({"fl_x": 30.0, "frames": frames})
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(NerfError, match="singular"):
        read_source(tmp_path)
    (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
    with pytest.raises(NerfError, match="singular"):
        read_source(tmp_path)
    # one of several split files
    (tmp_path / "transforms_train.json").write_text(text.replace("0.0", "1.0"))
    for broken in ("{", "{}"):
        (tmp_path / "transforms_val.json").write_text(broken)
        with pytest.raises(NerfError, match=r"transforms_(val|train)\.json"):
            read_source(tmp_path)


@pytest.mark.parametrize(
    "name", ["metadata.json", "metadata", "meta_data.json", "cameras.npz", "cameras.txt"]
)
@pytest.mark.parametrize("is_readable", [True, False])
def test_metashape_is_read_beside_files_of_another_purpose(
    tmp_path: Path, name: str, is_readable: bool
) -> None:
    writers.write_metashape(tmp_path, writers.rig(3))
    (tmp_path / "rgb").mkdir()
    (tmp_path / name).write_text('{"version": 1}' if is_readable else "what?")
    if is_readable and name.endswith("npz"):
        np.savez(tmp_path / name, other=np.zeros(3))
    source = read_source(tmp_path)
    assert source.kind == "metashape"
    assert any(note.startswith(f"{name} is not used: ") for note in source.notes) == (
        name != "cameras.txt"
    )


def test_what_no_format_can_read_names_all(tmp_path: Path) -> None:
    (tmp_path / "transforms.json").write_text('{"frames": []}')
    (tmp_path / "meta_data.json").write_text("{}")
    with pytest.raises(NerfError, match=r"transforms.json has no frames. Nor can meta_data.json"):
        read_source(tmp_path)
    (tmp_path / "meta_data.json").unlink()
    with pytest.raises(NerfError, match=r"transforms.json has no frames\.$"):
        read_source(tmp_path)


def test_a_part_of_a_colmap_model_is_named(tmp_path: Path) -> None:
    colmap.capture(tmp_path)
    (tmp_path / "sparse/0/images.bin").unlink()
    with pytest.raises(NerfError, match=r"no complete COLMAP model.* found cameras\.bin"):
        read_source(tmp_path)


def close(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Make a folder as closed as for a user without any rights on it."""

    def deny(path: Path) -> None:
        if closed in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))

    for name in ("stat", "iterdir", "is_file", "is_dir", "open", "glob"):
        real = getattr(Path, name)

        def checked(path: Path, *rest: object, real=real, name=name, **more: object):  # noqa: ANN001
            deny(path / "x" if name in ("iterdir", "glob") else path)
            return real(path, *rest, **more)

        monkeypatch.setattr(Path, name, checked)


def test_closed_folders_are_errors_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, whole = tmp_path / "lost+found", tmp_path / "whole"
    (lost / "sparse").mkdir(parents=True)
    colmap.capture(whole / "scene")
    (whole / "scene/lost+found").mkdir()
    with monkeypatch.context() as patch:
        close(patch, lost)
        with pytest.raises(NerfError, match=r"lost\+found.*cannot be read: Permission denied"):
            read_source(lost)
        with pytest.raises(NerfError, match="has no known format"):
            read_source(tmp_path)
    with monkeypatch.context() as patch:
        close(patch, whole / "lost+found")
        (whole / "lost+found").mkdir()
        with pytest.raises(NerfError, match=r"Scenes within it: \S*whole/scene\."):
            read_source(whole)
    with monkeypatch.context() as patch:
        close(patch, whole / "scene/sparse")
        with pytest.raises(NerfError, match="sparse.*cannot be read: Permission denied"):
            read_source(whole / "scene")
        writers.write_metashape(whole / "scene", writers.rig(3))
        assert read_source(whole / "scene").kind == "metashape"


def test_a_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NerfError, match="cannot be read: File name too long"):
        read_source(tmp_path / ("a" * 300))
