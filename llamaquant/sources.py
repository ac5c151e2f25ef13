"""Names to things: which model folder and which stories a config means. Everything wrong with a name ends here, early."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llamaquant import demo
from llamaquant.coqa.data import Story, check_stories, from_hub_layout, read_stories, subset
from llamaquant.errors import BackendError, DataError
from llamaquant.model import ModelShape

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w.-]*")
HUB_COQA = "EleutherAI/coqa"
DEMO_STORIES = 600
"""Evaluation stories that the demo generates where no limit is given."""
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is fetched from a hub repository: no pickle, no code."""


@dataclass(frozen=True)
class ModelSource:
    """A model on disk.

    Attributes:
        folder: checkpoint folder; for dummy weights it may hold nothing but config.json.
        shape: from its config.json.
        identity: 16 hex digits over the contents of config and weights.
        dummy: weights are to be drawn at random.
    """

    folder: Path
    shape: ModelShape
    identity: str
    dummy: bool


def resolve_model(model: str, revision: str, weights: str) -> ModelSource:
    """Find `model`: `demo`, a local folder, or a hub id (fetched into the hub cache).

    Raises:
        DataError: a folder that is no usable checkpoint.
        BackendError: the hub refuses or cannot be reached.
    """
    dummy = weights == "dummy"
    folder = demo.MODEL_PATH if model == "demo" else _local(model) or _from_hub(model, revision, dummy)
    shape = ModelShape.from_folder(folder)
    if not dummy:
        _check_weights(folder)
    return ModelSource(folder=folder, shape=shape, identity=_identity(folder, dummy), dummy=dummy)


def _local(model: str) -> Path | None:
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise DataError(f"model must be demo, a hub id or a checkpoint folder, got the file {model!r}: name its folder")
    if model.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model) or model.count("/") > 1:
        raise DataError(f"model must be demo, a hub id or an existing checkpoint folder, got {model!r}: check the path")
    return None


def _from_hub(model: str, revision: str, config_only: bool) -> Path:
    """Snapshot of a hub repository; every refusal becomes one line with its cure."""
    from huggingface_hub import snapshot_download

    patterns = ["config.json"] if config_only else list(MODEL_FILES)
    return Path(_ask_hub(f"model {model!r}", lambda: snapshot_download(
        model, revision=revision or None, allow_patterns=patterns, ignore_patterns=["original/*", "*.bin"])))


def _ask_hub(what: str, ask: Callable[[], Any]) -> Any:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return ask()
    except GatedRepoError:
        raise BackendError(f"{what} must be open to you, got a gated repository: accept its licence on the hub, then "
                           "`hf auth login` or set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise DataError(f"the revision of {what} must exist, got none of that name on the hub: check revision") from None
    except RepositoryNotFoundError:
        raise DataError(f"{what} must exist on the hub or as a folder, got neither (or a private one without token): check "
                        "the name, or `hf auth login`") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ConnectionError) as error:
        raise BackendError(f"{what} must be in the local cache or the hub in reach, got {type(error).__name__}: connect, "
                           "or use model=demo dataset=demo, or local paths") from None


def _check_weights(folder: Path) -> None:
    """Every weight file that the folder should have is there; a missing shard would otherwise surface minutes later."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"the weight index must be JSON with a weight_map, got {index}: fetch it again") from None
        missing = sorted(name for name in names if not (folder / str(name)).is_file())
        if missing:
            raise DataError(f"a checkpoint must have all its shards, got {folder} without {missing[0]}: fetch it again")
    elif not any(folder.glob("*.safetensors")):
        raise DataError(f"a checkpoint must have safetensors weights, got {folder} without (pickled .bin files are not read): "
                        "save it with save_pretrained, or use weights=dummy")


@cache
def _identity(folder: Path, dummy: bool) -> str:
    total = hashlib.sha256()
    names = ["config.json"] + ([] if dummy else sorted(path.name for path in folder.glob("*.safetensors")))
    for name in names:
        total.update(name.encode() + b"\0" + file_sha256(folder / name).encode())
    return total.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's contents, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def resolve_stories(dataset: str, revision: str, limit: int | None, seed: int) -> list[Story]:
    """The stories to evaluate: a seeded subset of `limit`, or all.

    Raises:
        DataError: a missing or malformed file, or fewer stories than `limit`.
        BackendError: the hub cannot be reached.
    """
    if dataset == "demo":
        return demo.demo_stories("evaluation", limit or DEMO_STORIES, seed)
    if dataset == "coqa":
        return subset(hub_coqa(revision, "validation"), limit, seed)
    path = Path(dataset).expanduser()
    if path.is_dir():
        raise DataError(f"dataset must be demo, coqa or a file, got the folder {dataset!r}: name the JSON file in it")
    return subset(read_stories(path), limit, seed)


@cache
def hub_coqa(revision: str, split: str) -> tuple[Story, ...]:
    from datasets import load_dataset

    rows = _ask_hub(f"data set {HUB_COQA!r}", lambda: _load(load_dataset, revision, split))
    stories = [from_hub_layout(row) for row in rows]
    check_stories(stories)
    return tuple(stories)


def _load(load_dataset: Callable[..., Any], revision: str, split: str) -> list[dict[str, Any]]:
    try:
        return [dict(row) for row in load_dataset(HUB_COQA, split=split, revision=revision or None)]
    except ValueError as error:  # datasets' word for "not in the cache and the hub is off"
        raise ConnectionError(str(error)) from error


def question_count(stories: list[Story]) -> int:
    """Turns of all stories together."""
    return sum(len(story["questions"]) for story in stories)
