"""Scores that enter the statistics: bad rows are refused by name, totals equal a plain loop."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaquant.errors import DataError
from llamaquant.statistics.scores import TurnScores, difference_totals, score_totals, split_stories, story_order

ROWS = [("a", 1, 1.0), ("a", 2, 0.5), ("b", 1, 0.0)]

rows_of_turns = st.dictionaries(
    st.tuples(st.sampled_from("abcdef"), st.integers(0, 5)), st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1
)


@pytest.mark.parametrize(
    ("rows", "culprit"),
    [
        ([], "got none"),
        ([*ROWS, ("c", 7, math.nan)], "story 'c' turn 7"),
        ([*ROWS, ("c", 7, math.inf)], "story 'c' turn 7"),
        ([*ROWS, ("c", 7, 1.5)], "story 'c' turn 7"),
        ([*ROWS, ("c", 7, -0.1)], "story 'c' turn 7"),
        ([*ROWS, ("a", 2, 0.5)], "story 'a' turn 2 twice"),
    ],
)
def test_bad_rows_are_refused_by_name(rows, culprit):
    with pytest.raises(DataError, match=culprit) as error:
        TurnScores.from_rows(rows)
    assert "\n" not in str(error.value)


def test_columns_must_run_in_parallel():
    with pytest.raises(DataError, match="parallel"):
        TurnScores(("a",), (1, 2), np.array([0.5, 0.5]))


def test_scores_cannot_be_changed_and_do_not_follow_the_callers_array():
    mine = np.array([0.5])
    scores = TurnScores(("a",), (1,), mine)
    mine[0] = 1.0
    assert scores.scores[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        scores.scores[0] = 1.0


@pytest.mark.parametrize(
    ("candidate", "baseline", "message"),
    [
        (ROWS, ROWS[:2], "baseline lacks story 'b' turn 1"),
        (ROWS[:2], ROWS, "candidate lacks story 'b' turn 1"),
        (ROWS, [("a", 1, 1.0), ("a", 3, 1.0), ("b", 1, 1.0)], "baseline lacks story 'a' turn 2"),
    ],
)
def test_a_baseline_of_other_questions_is_refused(candidate, baseline, message):
    with pytest.raises(DataError, match=message):
        difference_totals(TurnScores.from_rows(candidate), TurnScores.from_rows(baseline))


@given(rows_of_turns, st.randoms(use_true_random=False))
def test_totals_equal_a_plain_loop_in_any_row_order(turns, random):
    rows = [(story, turn, score) for (story, turn), score in turns.items()]
    expected = defaultdict(lambda: [0.0, 0, 0.0])
    for story, _, score in rows:
        expected[story][0] += score
        expected[story][1] += 1
        expected[story][2] += score * score
    random.shuffle(rows)
    totals = score_totals(TurnScores.from_rows(rows))
    got = {s: list(v) for s, *v in zip(totals.story_ids, totals.sums, totals.sizes, totals.squares, strict=True)}
    assert got == {story: pytest.approx(values) for story, values in expected.items()}


@given(rows_of_turns, st.randoms(use_true_random=False))
def test_pairing_goes_by_story_and_turn_not_by_row(turns, random):
    rows = [(story, turn, score) for (story, turn), score in turns.items()]
    shuffled = list(rows)
    random.shuffle(shuffled)
    totals = difference_totals(TurnScores.from_rows(shuffled), TurnScores.from_rows(rows))
    assert (totals.sums == 0).all()
    assert totals.n_turns == len(rows)


def test_rounding_of_the_same_f1_is_no_difference():
    candidate, baseline = TurnScores.from_rows([("a", 1, 0.1 + 0.2)]), TurnScores.from_rows([("a", 1, 0.3)])
    assert candidate.scores[0] != baseline.scores[0]
    assert difference_totals(candidate, baseline).sums[0] == 0.0


def test_take_keeps_whole_stories_and_names_a_missing_one():
    scores = TurnScores.from_rows(ROWS)
    assert scores.take(["a"]).keys == [("a", 1), ("a", 2)]
    with pytest.raises(DataError, match="'z'"):
        scores.take(["a", "z"])


@given(st.sets(st.text(max_size=5)), st.sets(st.text(max_size=5)), st.integers(0, 3))
def test_a_story_never_changes_sides_when_others_come_or_go(some, others, seed):
    search, confirmation = split_stories(some, 0.4, seed)
    assert set(search) | set(confirmation) == some
    assert not set(search) & set(confirmation)
    more_search, more_confirmation = split_stories(some | others, 0.4, seed)
    assert set(search) <= set(more_search)
    assert set(confirmation) <= set(more_confirmation)


def test_split_meets_its_share_and_order_depends_on_the_seed():
    stories = [f"story-{i}" for i in range(4000)]
    assert len(split_stories(stories, 0.3)[1]) == pytest.approx(1200, abs=120)
    assert story_order(stories, 1) == story_order(reversed(stories), 1)
    assert story_order(stories, 1) != story_order(stories, 2)
    assert sorted(story_order(stories, 1)) == sorted(stories)
