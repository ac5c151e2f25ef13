"""The story world: layout, answers that follow from the story, spans, and splits that never meet."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.coqa.prompt import golds_for_turn
from llamaquant.coqa.score import f1_em_official, normalize
from llamaquant.demo import SPLITS, demo_stories
from llamaquant.demo.names import (
    CLASSES,
    COLOURS,
    MATERIALS,
    NOUNS,
    NUMBERS,
    SPLIT_CELLS,
    people_by_class,
    split_of_pair,
)
from llamaquant.errors import ConfigError

NAMES = {person.name for people in people_by_class() for person in people}
THING = re.compile(rf"\b({'|'.join((*MATERIALS, *COLOURS))}) ({'|'.join(NOUNS)})\b")
WORD = re.compile(r"[A-Z][a-z]+")
SEEDS = st.integers(0, 2**31)
FREE = ("yes", "no", "unknown")


def one(split: str, seed: int) -> dict:
    return demo_stories(split, 1, seed)[0]


def pairs(story: dict) -> set[tuple[str, str]]:
    """Every (person, thing) that this story's text brings together, read off the text alone."""
    people = NAMES & set(WORD.findall(story["story"]))
    return {(person, " ".join(thing)) for person in people for thing in THING.findall(story["story"])}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SPLITS), SEEDS)
def test_layout_is_the_official_one(split, seed):
    story = one(split, seed)
    assert set(story) >= {"source", "id", "filename", "story", "questions", "answers", "additional_answers"}
    assert 60 <= len(story["story"].split()) <= 200
    assert 6 <= len(story["questions"]) <= 12
    assert list(story["additional_answers"]) == ["0", "1", "2"]
    for turns in (story["questions"], story["answers"], *story["additional_answers"].values()):
        assert [turn["turn_id"] for turn in turns] == list(range(1, len(story["questions"]) + 1))
        assert all(turn["input_text"].strip() == turn["input_text"] != "" for turn in turns)
    questions = [turn["input_text"] for turn in story["questions"]]
    assert len(set(questions)) == len(questions)
    assert all(q.endswith("?") and q[0].isupper() and "{" not in q and "None" not in q for q in questions)
    assert "{" not in story["story"] and "None" not in story["story"] and "  " not in story["story"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SPLITS), SEEDS)
def test_spans_are_exact(split, seed):
    story = one(split, seed)
    for turns in (story["answers"], *story["additional_answers"].values()):
        for answer in turns:
            if answer["span_start"] == -1:
                assert answer["span_end"] == -1
                assert normalize(answer["input_text"]) == answer["span_text"] == "unknown"
            else:
                assert story["story"][answer["span_start"] : answer["span_end"]] == answer["span_text"] != ""


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SPLITS), SEEDS)
def test_answers_can_be_read_off_the_story(split, seed):
    """A plain answer is yes/no/unknown, a number that was computed, or words of the story."""
    story = one(split, seed)
    words = set(normalize(story["story"]).split())
    for answer in story["answers"]:
        plain = normalize(answer["input_text"])
        if plain in FREE or answer["input_text"].strip(".").lower() in NUMBERS:
            continue
        foreign = set(plain.split()) - words - {"coins", "was", "he", "she"}
        assert not foreign, (answer["input_text"], story["story"])


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_references_agree_with_the_answer(seed):
    """Four people word one answer differently, but mean the same: every reference shares words with the plain one."""
    story = one("evaluation", seed)
    for turn in range(len(story["questions"])):
        golds = golds_for_turn(story, turn)
        assert len(golds) == 4
        assert all(f1_em_official(gold, [golds[0]])[0] > 0 for gold in golds), golds


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_what_is_left_is_the_difference(seed):
    """Counts come from the state: an independent reader of the sentences finds the same number."""
    story = one("train", seed)
    text = story["story"]
    number = "|".join(sorted(NUMBERS, key=len, reverse=True))
    verbs = "gathered|packed|counted|collected"
    for question, answer in zip(story["questions"], story["answers"], strict=True):
        asked = re.fullmatch(r"How many (?:(\w+) )?(?:were left|did \w+ still have)\?", question["input_text"])
        if not asked or not asked[1]:
            continue
        goods = asked[1]
        total = re.search(rf"(?:{verbs}) ({number}) {goods}\. (?:\w+ (?:{verbs}) (?:another ({number})|({number}) more)\.)?", text)
        gone = re.search(rf"({number}) of the {goods}", text)
        have = NUMBERS.index(total[1]) + NUMBERS.index(total[2] or total[3] or "zero")
        assert answer["input_text"].strip(".").lower() == NUMBERS[have - NUMBERS.index(gone[1])]


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_last_place_of_a_thing(seed):
    """The question "Where was it in the end" names the last place that the text gives, "at first" the first."""
    story = one("train", seed)
    for question, answer in zip(story["questions"], story["answers"], strict=True):
        asked = re.fullmatch(r"Where was the (?:\w+ )?(\w+) (in the end|at first)\?", question["input_text"])
        if not asked or asked[1] not in NOUNS or answer["input_text"].lower() in FREE:
            continue
        spot = re.escape(normalize(answer["input_text"]))
        noun, sentences = asked[1], [normalize(s) for s in story["story"].split(". ")]
        places = [s for s in sentences if f" {noun} " in f" {s} " and re.search(r" (put|laid|left|hid|found better) ", s)]
        assert re.search(spot, places[-1] if asked[2] == "in the end" else places[0])


def test_story_does_not_depend_on_count():
    assert demo_stories("train", 12)[:5] == demo_stories("train", 5)
    assert demo_stories("train", 12, seed=1)[:5] != demo_stories("train", 5)
    ids = [story["id"] for split in SPLITS for story in demo_stories(split, 20)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("split", "count"), [("test", 1), ("train", -1), ("", 0)])
def test_bad_requests(split, count):
    with pytest.raises(ConfigError):
        demo_stories(split, count)


def test_cells_are_disjoint_and_complete():
    cells = [cell for cells in SPLIT_CELLS.values() for cell in cells]
    assert sorted(cells) == list(range(CLASSES))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SPLITS), SEEDS)
def test_every_pair_of_person_and_thing_belongs_to_the_split(split, seed):
    """So no (person, thing) of a held-out story can be in training, whatever the seeds."""
    found = pairs(one(split, seed))
    assert found
    assert {split_of_pair(person, thing) for person, thing in found} == {split}


def test_no_held_out_story_is_in_training():
    train = demo_stories("train", 1500)
    train_texts = {story["story"] for story in train}
    train_pairs = set().union(*map(pairs, train))
    for split in ("calibration", "evaluation", "confirmation"):
        held_out = demo_stories(split, 400)
        assert not train_texts & {story["story"] for story in held_out}
        assert not train_pairs & set().union(*map(pairs, held_out))


def test_variety():
    """No answer dominates, every kind of question occurs, unanswerable turns are some but not many."""
    stories = demo_stories("evaluation", 300)
    answers = [normalize(a["input_text"]) for s in stories for a in s["answers"]]
    questions = " ".join(q["input_text"] for s in stories for q in s["questions"])
    assert all(word in questions for word in ("Who", "Where", "Why", "How many", "When", "What", "Did", " it", " she", " he"))
    assert 0.03 < answers.count("unknown") / len(answers) < 0.15
    assert 0.03 < answers.count("yes") / len(answers) < 0.15
    assert 0.03 < answers.count("no") / len(answers) < 0.15
    assert len({s["story"] for s in stories}) == 300
