"""A quantized checkpoint on disk: appears whole or not at all, says what it is, and proves that it was not changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from llamaquant.errors import DataError
from llamaquant.sources import file_sha256

MANIFEST = "llamaquant.json"


@dataclass(frozen=True)
class Manifest:
    """What the folder holds.

    Attributes:
        fingerprint: of everything that can change the weights.
        config: the experiment's params.
        loader: library that loads it.
        kernel: linear layer class right after quantizing.
        device: kind of device it was made on.
        dtype: of what is not quantized.
        parameters: of the unquantized model.
        block_parameters: of its block linears.
        prepare_seconds: loading, quantizing and saving.
        versions: of the libraries that made it.
        sha256: of every other file, by name.
    """

    fingerprint: str
    config: dict[str, str]
    loader: str
    kernel: str
    device: str
    dtype: str
    parameters: int
    block_parameters: int
    prepare_seconds: float
    versions: dict[str, str]
    sha256: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder; DataError where there is none or it is damaged."""
    try:
        return Manifest(**json.loads((folder / MANIFEST).read_text("utf-8")))
    except FileNotFoundError:
        raise DataError(f"a llamaquant checkpoint must hold {MANIFEST}, got {folder} without: prepare it again") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{MANIFEST} must be whole, got a damaged one in {folder} ({error}): delete the folder") from None


def verify(folder: Path) -> Manifest:
    """The manifest, after every file was found with the hash that it states; DataError names the first that differs."""
    manifest = read_manifest(folder)
    for name, wanted in manifest.sha256.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"a checkpoint must have all its files, got {folder} without {name}: delete the folder, it is made anew")
        if file_sha256(path) != wanted:
            raise DataError(f"a checkpoint's files must have their hashes, got a changed {name} in {folder}: delete the folder, "
                            "it is made anew")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file in `folder`, write the manifest beside them, and return it with the hashes."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    hashed = Manifest(**{**asdict(manifest), "sha256": {n: file_sha256(folder / n) for n in names if n != MANIFEST}})
    (folder / MANIFEST).write_text(json.dumps(asdict(hashed), indent=1, sort_keys=True) + "\n", "utf-8")
    return hashed


def build_atomically(final: Path, build: Callable[[Path], None]) -> Path:
    """Run `build` in a folder beside `final`, then rename it into place.

    A process that dies half-way leaves only a `.partial` folder, which nobody takes for a checkpoint. Where another
    process was faster, its folder is kept.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_partials(final.parent)
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        with contextlib.suppress(OSError):  # the target exists: somebody else finished it first
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def remove_dead_partials(folder: Path) -> None:
    """Delete what killed processes of this machine left half-made."""
    for path in folder.glob("*.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)
