"""Scores against hand-computed values, against lm-eval's function, and by properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaquant.coqa.score import (
    deduplicate,
    exact_match,
    f1_em_lm_eval,
    f1_em_official,
    normalize,
    token_f1,
)
from llamaquant.errors import DataError

WORDS = st.sampled_from(["the", "A", "an", "mill", "Mill.", "old", "river,", "because", "it's", "--", "café", "seven", ""])
ANSWERS = st.one_of(st.lists(WORDS, max_size=6).map(" ".join), st.text(max_size=20))
GOLDS = st.lists(ANSWERS, min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The old Mill.", "old mill"),
        ("a an the", ""),
        ("theatre, anthem", "theatre anthem"),
        ("It's  5 o'clock!", "its 5 oclock"),
        ("", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "em"),
    [
        ("the old mill", "an old mill!", 1.0, 1.0),
        ("old mill", "in the old mill", 0.8, 0.0),  # precision 2/2, recall 2/3
        ("mill mill", "mill", 2 / 3, 0.0),  # a repeated word counts once: precision 1/2, recall 1
        ("barn", "mill", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),  # both empty after normalisation
        ("", "mill", 0.0, 0.0),
    ],
)
def test_pair_by_hand(prediction, gold, f1, em):
    assert token_f1(prediction, gold) == pytest.approx(f1)
    assert exact_match(prediction, gold) == em


@pytest.mark.parametrize(
    ("prediction", "golds", "official", "lm_eval"),
    [
        # one reference: scored against itself
        ("yes", ["Yes."], (1.0, 1.0), (1.0, 1.0)),
        # 3 x "mill", 1 x "river mill"; left out in turn: 3 x 1 and max(1, 1, 1) -> 1; de-duplicated: (2/3 + 1) / 2
        ("mill", ["mill", "Mill", "MILL", "river mill"], (1.0, 1.0), ((2 / 3 + 1) / 2, 0.5)),
        # only the second matches: left out it gives 0, the three others give 1
        ("b", ["x", "b", "c", "d"], (0.75, 0.75), (0.75, 0.75)),
        # all equal: de-duplicated to one
        ("no", ["no", "no", "no", "no"], (1.0, 1.0), (1.0, 1.0)),
        ("x", ["no", "no", "no", "no"], (0.0, 0.0), (0.0, 0.0)),
    ],
)
def test_leave_one_out_by_hand(prediction, golds, official, lm_eval):
    assert f1_em_official(prediction, golds) == pytest.approx(official)
    assert f1_em_lm_eval(prediction, golds) == pytest.approx(lm_eval)


def test_no_reference_is_an_error():
    with pytest.raises(DataError, match="at least 1 reference"):
        f1_em_official("x", [])


def test_lm_eval_reads_the_first_line():
    assert f1_em_lm_eval(" seven \n\nmore", ["seven"]) == (1.0, 1.0)


@given(ANSWERS, GOLDS)
def test_equals_lm_eval(prediction, golds):
    from lm_eval.tasks.coqa.utils import process_results

    doc = {
        "questions": {"input_text": ["q"]},
        "answers": {"input_text": [golds[0]]},
        "additional_answers": {str(i): {"input_text": [gold]} for i, gold in enumerate(golds[1:])},
    }
    expected = process_results(doc, [prediction])
    assert f1_em_lm_eval(prediction, golds) == pytest.approx((expected["f1"], expected["em"]))


@given(ANSWERS, GOLDS)
def test_equals_lm_eval_scores_without_deduplication(prediction, golds):
    from lm_eval.tasks.coqa.utils import compute_scores

    expected = compute_scores(golds, prediction)
    assert f1_em_official(prediction, golds) == pytest.approx((expected["f1"], expected["em"]))


@given(ANSWERS, ANSWERS)
def test_f1_is_symmetric_and_bounds_exact_match(a, b):
    assert token_f1(a, b) == pytest.approx(token_f1(b, a))
    assert 0.0 <= exact_match(a, b) <= token_f1(a, b) <= 1.0 + 1e-12
    assert token_f1(a, a) == exact_match(a, a) == 1.0


@given(ANSWERS, GOLDS, st.randoms(use_true_random=False))
def test_order_of_references_is_irrelevant(prediction, golds, rng):
    shuffled = list(golds)
    rng.shuffle(shuffled)
    assert f1_em_official(prediction, golds) == pytest.approx(f1_em_official(prediction, shuffled))


@given(GOLDS)
def test_a_reference_that_two_people_gave_scores_one(golds):
    assert f1_em_official(golds[0], [golds[0], *golds]) == pytest.approx((1.0, 1.0))


@given(GOLDS)
def test_deduplicate_keeps_first_spellings(golds):
    kept = deduplicate(golds)
    assert kept[0] == golds[0]
    assert [g.lower() for g in kept] == list(dict.fromkeys(g.lower() for g in golds))
