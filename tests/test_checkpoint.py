"""A checkpoint is there whole or not at all, and a changed one is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamaquant.checkpoint import MANIFEST, Manifest, build_atomically, read_manifest, verify, write_manifest
from llamaquant.errors import DataError

EMPTY = Manifest(fingerprint="f", config={}, loader="transformers", kernel="Linear", device="cpu", dtype="bf16", parameters=10,
                 block_parameters=5, prepare_seconds=1.0, versions={}, sha256={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def build(partial: Path) -> None:
        (partial / "model.safetensors").write_bytes(b"weights")
        (partial / "sub").mkdir()
        (partial / "sub" / "a.json").write_text("{}")
        write_manifest(partial, EMPTY)

    return build_atomically(tmp_path / "made", build)


def test_whole_checkpoints_verify(folder: Path) -> None:
    manifest = verify(folder)
    assert set(manifest.sha256) == {"model.safetensors", "sub/a.json"} and manifest.parameters == 10
    done = subprocess.run(["sha256sum", folder / "model.safetensors"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == manifest.sha256["model.safetensors"]


@pytest.mark.parametrize("damage", ["change", "remove", "no_manifest", "cut_manifest", "odd_manifest"])
def test_changed_checkpoints_are_refused(folder: Path, damage: str) -> None:
    weights, manifest = folder / "model.safetensors", folder / MANIFEST
    if damage == "change":
        weights.write_bytes(b"weightz")
    elif damage == "remove":
        weights.unlink()
    elif damage == "no_manifest":
        manifest.unlink()
    elif damage == "cut_manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        manifest.write_text('{"fingerprint": "x"}')
    with pytest.raises(DataError) as caught:
        verify(folder)
    assert "\n" not in str(caught.value)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def build(partial: Path) -> None:
        (partial / "half").write_text("x")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        build_atomically(tmp_path / "made", build)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_is_not_taken_for_whole_and_is_swept_up(tmp_path: Path) -> None:
    code = ("import os, signal, sys; from pathlib import Path; from llamaquant.checkpoint import build_atomically\n"
            "def build(p): (p / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
            "build_atomically(Path(sys.argv[1]), build)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")], check=False)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and ".partial-" in left[0]
    mine = tmp_path / f"other.partial-{os.getpid()}"
    mine.mkdir()
    build_atomically(tmp_path / "made", lambda partial: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", mine.name]


def test_the_faster_of_two_wins(folder: Path) -> None:
    build_atomically(folder, lambda partial: (partial / "model.safetensors").write_bytes(b"late") and None)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert read_manifest(folder).fingerprint == "f"
