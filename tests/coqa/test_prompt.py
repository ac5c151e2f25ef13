"""The prompt layout equals lm-eval's own, byte by byte."""

import gzip
import json
import os
from pathlib import Path

import pytest

from llamaquant.coqa.prompt import STOP, extract_answer, full_dialogue, golds_for_turn, last_turn_prompt, prompt_for_turn
from llamaquant.demo import demo_stories
from llamaquant.errors import DataError

SHARED = Path(os.environ.get("LLAMAQUANT_SHARED") or Path(__file__).parents[2].parent / "shared")
COQA_FILE = SHARED / "data" / "coqa-dev-open.json.gz"

STORY = {
    "id": "tiny",
    "story": "Ada met Bo.\nThey ate figs.",
    "questions": [{"turn_id": 1, "input_text": "Who met Bo?"}, {"turn_id": 2, "input_text": "What did they eat?"}],
    "answers": [{"turn_id": 1, "input_text": "Ada"}, {"turn_id": 2, "input_text": "figs"}],
    "additional_answers": {
        "0": [{"turn_id": 1, "input_text": "Ada."}, {"turn_id": 2, "input_text": "Figs"}],
        "1": [{"turn_id": 1, "input_text": "ada"}, {"turn_id": 2, "input_text": "some figs"}],
    },
}


def hub_layout(story: dict) -> dict:
    """The same story as the hub data set gives it to lm-eval: one list of texts per field."""

    def texts(turns: list[dict]) -> dict:
        return {"input_text": [turn["input_text"] for turn in turns]}

    return {
        "story": story["story"],
        "questions": texts(story["questions"]),
        "answers": texts(story["answers"]),
        "additional_answers": {key: texts(turns) for key, turns in story["additional_answers"].items()},
    }


def first_turns(story: dict, count: int) -> dict:
    """The story cut after `count` turns, so that lm-eval's last turn is turn `count - 1`."""
    cut = {key: story[key][:count] for key in ("questions", "answers")}
    return {**story, **cut, "additional_answers": {k: v[:count] for k, v in story["additional_answers"].items()}}


def assert_equals_lm_eval(stories: list[dict]) -> None:
    from lm_eval.tasks.coqa.utils import doc_to_target, doc_to_text

    for story in stories:
        assert last_turn_prompt(story) == doc_to_text(hub_layout(story))
        for turn in range(len(story["questions"])):
            cut = hub_layout(first_turns(story, turn + 1))
            assert prompt_for_turn(story, turn) == doc_to_text(cut)
            assert golds_for_turn(story, turn)[0] == doc_to_target(cut)[0]


def test_layout_by_hand():
    assert prompt_for_turn(STORY, 0) == "Ada met Bo.\nThey ate figs.\n\nQ: Who met Bo?\n\nA:"
    second = "Ada met Bo.\nThey ate figs.\n\nQ: Who met Bo?\n\nA: Ada\n\nQ: What did they eat?\n\nA:"
    assert prompt_for_turn(STORY, 1) == second
    assert full_dialogue(STORY) == second + " figs\n\n"
    assert golds_for_turn(STORY, 1) == ["figs", "Figs", "some figs"]


def test_every_prompt_is_a_prefix_of_the_dialogue():
    for story in demo_stories("evaluation", 5):
        for turn in range(len(story["questions"])):
            assert full_dialogue(story).startswith(prompt_for_turn(story, turn))


def test_equals_lm_eval_on_demo_stories():
    assert_equals_lm_eval([STORY, *demo_stories("evaluation", 20)])


def test_equals_lm_eval_on_coqa():
    if not COQA_FILE.exists():
        pytest.skip(f"the open CoQA file is not at {COQA_FILE}: set LLAMAQUANT_SHARED")
    with gzip.open(COQA_FILE, "rt", encoding="utf-8") as file:
        assert_equals_lm_eval(json.load(file)["data"])


@pytest.mark.parametrize("turn", [-1, 2, 99])
def test_turn_that_is_not_there(turn):
    with pytest.raises(DataError, match="turn_index"):
        prompt_for_turn(STORY, turn)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [(" figs\n\nQ: And then?", "figs"), ("figs", "figs"), ("\nQ: x", ""), ("", ""), ("  a b \n c", "a b ")],
)
def test_answer_before_the_stop_rule(completion, answer):
    assert STOP == "\nQ:"
    assert extract_answer(completion) == answer
