"""Functions of the lm-eval task `coqa_all_turns` (see the YAML file beside this one)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets

from llamaquant.coqa.data import read_stories
from llamaquant.coqa.prompt import extract_answer, golds_for_turn, prompt_for_turn
from llamaquant.coqa.score import f1_em_lm_eval, f1_em_official
from llamaquant.errors import ConfigError

Doc = dict[str, Any]


def load_turns(data_file: str | None = None, stories: int | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """One row per turn of an official CoQA JSON file, in the file's order.

    Args:
        data_file: path, plain or gzipped; without it the environment variable LLAMAQUANT_COQA is read.
        stories: only the first so many stories (lm-eval's own `limit` counts turns here).
    """
    path = data_file or os.environ.get("LLAMAQUANT_COQA")
    if not path:
        raise ConfigError("coqa_all_turns needs a CoQA file, got none: pass --metadata '{\"data_file\": PATH}' "
                          "or set LLAMAQUANT_COQA")
    rows = [
        {"story_id": story["id"], "turn_id": int(question["turn_id"]), "source": str(story.get("source", "")),
         "prompt": prompt_for_turn(story, index), "golds": golds_for_turn(story, index)}
        for story in read_stories(Path(path))[:stories] for index, question in enumerate(story["questions"])
    ]
    return {"validation": datasets.Dataset.from_list(rows)}


def doc_to_text(doc: Doc) -> str:
    return str(doc["prompt"])


def doc_to_target(doc: Doc) -> list[str]:
    return list(doc["golds"])


def process_results(doc: Doc, results: list[str]) -> dict[str, float]:
    """F1 and EM in [0, 1]: lm-eval's variant and the official one."""
    f1, em = f1_em_lm_eval(results[0], doc["golds"])
    f1_official, em_official = f1_em_official(extract_answer(results[0]), doc["golds"])
    return {"f1": f1, "em": em, "f1_official": f1_official, "em_official": em_official}
