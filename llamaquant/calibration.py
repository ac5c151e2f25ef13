"""Texts that methods look at while quantizing: seeded, and never a story that is evaluated."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from llamaquant import demo, sources
from llamaquant.config import CalibrationConfig
from llamaquant.coqa.data import Story, read_stories
from llamaquant.coqa.prompt import full_dialogue
from llamaquant.errors import DataError

T = TypeVar("T")


def calibration_texts(config: CalibrationConfig, dataset: str, evaluated: Sequence[Story]) -> list[str]:
    """`config.samples` dialogues in the prompt's layout, or paragraphs of a plain text file.

    Raises:
        DataError: too few texts, an unreadable file, or a text that is also evaluated (by story id or text hash).
    """
    source = config.source
    if source == "auto":
        source = "demo" if dataset == "demo" else "coqa-train"
    if source == "demo":
        stories = demo.demo_stories("calibration", config.samples, config.seed)
    elif source == "coqa-train":
        stories = list(sources.hub_coqa("", "train"))
    elif source.endswith((".json", ".json.gz")):
        stories = read_stories(Path(source).expanduser())
    else:
        return _from_text_file(Path(source).expanduser(), config, evaluated)
    _refuse_leaks(stories, evaluated)
    return [full_dialogue(story) for story in _draw(stories, config)]


def _draw(items: Sequence[T], config: CalibrationConfig) -> list[T]:
    if len(items) < config.samples:
        raise DataError(f"calibration must have {config.samples} texts, got {len(items)} in {config.source!r}: lower "
                        "calibration_samples")
    return random.Random(config.seed).sample(list(items), config.samples)


def text_hash(text: str) -> str:
    """Hash of a story's words, blind to case and white space."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def _refuse_leaks(stories: Sequence[Story], evaluated: Sequence[Story]) -> None:
    ids = {story["id"] for story in evaluated}
    texts = {text_hash(story["story"]) for story in evaluated}
    for story in stories:
        if story["id"] in ids or text_hash(story["story"]) in texts:
            raise DataError(f"calibration must not see an evaluated story, got {story['id']!r} in both: use other texts")


def _from_text_file(path: Path, config: CalibrationConfig, evaluated: Sequence[Story]) -> list[str]:
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"calibration must be auto, demo, coqa-train or a readable file, got {str(path)!r} "
                        f"({type(error).__name__}): check the path") from None
    paragraphs = [part.strip() for part in content.split("\n\n") if part.strip()]
    normal = " ".join(content.lower().split())
    for story in evaluated:
        if " ".join(story["story"].lower().split()) in normal:
            raise DataError(f"calibration must not see an evaluated story, got {story['id']!r} in {path.name!r}: use other texts")
    return _draw(paragraphs, config)
