"""CoQA's official JSON (Reddy et al. 2019, v1.0): read, check, choose a seeded subset, and hand to lm-eval."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamaquant.errors import DataError

Story = dict[str, Any]
"""One story in the official layout: `id`, `source`, `story`, `questions`, `answers`, `additional_answers`."""

CURE = "bring a file in the official CoQA JSON layout"


def read_stories(path: Path) -> list[Story]:
    """Stories of an official CoQA JSON file, plain or gzipped; DataError names the first fault."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        document = json.loads(raw)
    except FileNotFoundError:
        raise DataError(f"a data set must be demo, coqa or an existing file, got {str(path)!r}: check the path") from None
    except (OSError, EOFError) as error:
        raise DataError(f"a data set must be a readable file, got {str(path)!r} ({error}): {CURE}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"a data set must be JSON, got {str(path)!r} ({error}): {CURE}") from None
    if not isinstance(document, dict) or not isinstance(document.get("data"), list) or not document["data"]:
        raise DataError(f"a CoQA file must hold a non-empty list 'data', got {str(path)!r} without: {CURE}")
    check_stories(document["data"])
    return list(document["data"])


def check_stories(stories: Sequence[Any]) -> None:
    """DataError at the first story that is not whole: keys, turns that match, texts that are not empty, ids once."""
    seen: set[str] = set()
    for position, story in enumerate(stories):
        where = f"story {position}"
        if not isinstance(story, dict):
            raise DataError(f"a story must be an object, got {type(story).__name__} at {where}: {CURE}")
        for key in ("id", "story", "questions", "answers"):
            if key not in story:
                raise DataError(f"a story must have the key {key!r}, got {where} without: {CURE}")
        where = f"story {story['id']!r}"
        if not isinstance(story["id"], str) or story["id"] in seen:
            raise DataError(f"story ids must be strings that occur once, got {story['id']!r} again at {position}: {CURE}")
        seen.add(story["id"])
        if not isinstance(story["story"], str) or not story["story"].strip():
            raise DataError(f"a story must have a text, got {where} with none: {CURE}")
        _check_turns(story, where)


def _check_turns(story: Story, where: str) -> None:
    columns = {"questions": story["questions"], "answers": story["answers"]}
    extra = story.get("additional_answers") or {}
    if not isinstance(extra, dict):
        raise DataError(f"additional_answers must be an object, got {type(extra).__name__} in {where}: {CURE}")
    columns |= {f"additional_answers[{key}]": turns for key, turns in extra.items()}
    wanted: list[Any] | None = None
    for name, turns in columns.items():
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{name} must be a non-empty list, got none in {where}: {CURE}")
        for turn in turns:
            text = turn.get("input_text") if isinstance(turn, dict) else None
            if not isinstance(text, str) or not text.strip() or "turn_id" not in turn:
                raise DataError(f"every turn must have turn_id and a text, got {turn!r:.80} in {name} of {where}: {CURE}")
        ids = [turn["turn_id"] for turn in turns]
        wanted = ids if wanted is None else wanted
        if ids != wanted or len(set(ids)) != len(ids):
            raise DataError(f"{name} must have the turns of questions in order, got turns {ids!r:.80} in {where}: {CURE}")


def subset(stories: Sequence[Story], limit: int | None, seed: int) -> list[Story]:
    """`limit` stories, the same for the same seed, and nested: a larger limit keeps the smaller one's stories.

    DataError where there are fewer; silently scoring less than was asked for would overstate the evidence.
    """
    order = sorted(range(len(stories)), key=lambda i: hashlib.sha256(f"{seed}:{stories[i]['id']}".encode()).digest())
    if limit is not None and limit > len(stories):
        raise DataError(f"limit must not exceed the data set's {len(stories)} stories, got {limit}: lower it")
    return [stories[i] for i in order[:limit]]


def stories_sha256(stories: Sequence[Story]) -> str:
    """SHA-256 over the canonical JSON of the stories, order included."""
    return hashlib.sha256(json.dumps(list(stories), sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def to_hub_layout(story: Story) -> dict[str, Any]:
    """The layout of the hub data set EleutherAI/coqa, which lm-eval's task reads: turns as columns."""
    def columns(turns: list[dict[str, Any]]) -> dict[str, Any]:
        return {"turn_id": [turn["turn_id"] for turn in turns], "input_text": [turn["input_text"] for turn in turns]}

    extra = story.get("additional_answers") or {}
    return {"id": story["id"], "source": story.get("source", ""), "story": story["story"],
            "questions": columns(story["questions"]), "answers": columns(story["answers"]),
            "additional_answers": {key: columns(turns) for key, turns in extra.items()}}


def from_hub_layout(row: dict[str, Any]) -> Story:
    """Invert `to_hub_layout`; spans that the hub carries are dropped, no scorer reads them."""
    def turns(columns: dict[str, Any]) -> list[dict[str, Any]]:
        ids = columns.get("turn_id") or range(1, len(columns["input_text"]) + 1)
        return [{"turn_id": i, "input_text": text} for i, text in zip(ids, columns["input_text"], strict=True)]

    extra = row.get("additional_answers") or {}
    return {"id": row["id"], "source": row.get("source", ""), "story": row["story"], "questions": turns(row["questions"]),
            "answers": turns(row["answers"]), "additional_answers": {key: turns(value) for key, value in extra.items()}}


