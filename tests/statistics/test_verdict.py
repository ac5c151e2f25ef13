"""Verdicts agree with their intervals, and words with their verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.errors import ConfigError, DataError
from llamaquant.statistics import Criterion, TurnScores, Verdict, compare, sentence
from llamaquant.statistics.intervals import ClusterInterval
from llamaquant.statistics.verdict import Comparison


def scored(differences: list[list[float]], base: float = 0.5) -> tuple[TurnScores, TurnScores]:
    rows = [(f"s{i:03}", j, d) for i, story in enumerate(differences) for j, d in enumerate(story)]
    return (
        TurnScores.from_rows((s, t, base + d) for s, t, d in rows),
        TurnScores.from_rows((s, t, base) for s, t, _ in rows),
    )


def noisy(mean: float, n: int = 200, seed: int = 0, spread: float = 0.1) -> tuple[TurnScores, TurnScores]:
    values = np.random.default_rng(seed).uniform(-spread, spread, n)
    return scored([[mean + x] for x in values - values.mean()])


def interval(estimate: float, lower: float, upper: float, n: int = 50, turns: int = 50) -> ClusterInterval:
    return ClusterInterval(estimate, lower, upper, 0.95, (upper - lower) / 3.92, "student_t", n, turns, 40)


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [(0.0, Verdict.PASS), (-0.03, Verdict.FAIL), (-0.01, Verdict.INCONCLUSIVE), (0.1, Verdict.PASS)],
)
def test_verdicts_of_clear_cases(mean, verdict):
    assert compare(*noisy(mean), Criterion(max_f1_drop=0.01), seed=None).verdict is verdict


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([-0.5, -0.1, 0.0, 0.0, 0.0, 0.1, 0.5]), min_size=1, max_size=3),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([0.01, 0.05, 0.3]),
    st.sampled_from([0.025, 0.025 / 3]),
    st.sampled_from([None, 0.3, 0.5, 0.7]),
)
def test_verdict_and_logged_interval_always_agree(differences, margin, alpha, floor):
    result = compare(*scored(differences), Criterion(margin, floor), alpha=alpha, seed=None)
    metrics = result.to_metrics("q/")
    name = "q/f1" if floor else "q/f1_diff"
    lower, upper, threshold = metrics[f"{name}_lower"], metrics[f"{name}_upper"], metrics["q/f1_threshold"]
    expected = Verdict.PASS if lower > threshold else Verdict.FAIL if upper < threshold else Verdict.INCONCLUSIVE
    assert result.verdict is expected
    assert metrics[f"{name}_confidence"] == pytest.approx(1 - 2 * alpha)
    assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())
    assert ("q/more_stories_to_decide" in metrics) == (result.more_stories is not None)
    assert "\n" not in sentence(result)
    assert "nan" not in sentence(result).lower()


def test_only_inconclusive_asks_for_more():
    assert compare(*noisy(0.0), seed=None).more_questions is None
    open_case = compare(*noisy(-0.01), seed=None)
    assert open_case.more_stories > 0
    assert open_case.more_questions >= open_case.more_stories


def test_a_floor_needs_no_baseline_and_a_drop_does():
    candidate, baseline = noisy(0.0)
    assert compare(candidate, criterion=Criterion(f1_floor=0.3)).verdict is Verdict.PASS
    assert compare(candidate, baseline, Criterion(f1_floor=0.7)).verdict is Verdict.FAIL
    with pytest.raises(ConfigError, match="baseline"):
        compare(candidate)


def test_a_foreign_baseline_is_refused_even_under_a_floor():
    candidate, _ = noisy(0.0, n=20)
    with pytest.raises(DataError, match="lacks story"):
        compare(candidate, noisy(0.0, n=19)[1], Criterion(f1_floor=0.3))


@pytest.mark.parametrize("bad", [{"max_f1_drop": 0.0}, {"max_f1_drop": -1}, {"max_f1_drop": 1.0}, {"f1_floor": 2.0}])
def test_bad_criteria_are_refused(bad):
    with pytest.raises(ConfigError, match="must lie between"):
        Criterion(**bad)


def test_bad_alpha_is_refused():
    with pytest.raises(ConfigError, match="alpha"):
        compare(*noisy(0.0), alpha=0.5)


DROP, FLOOR = Criterion(0.01), Criterion(f1_floor=0.6)


@pytest.mark.parametrize(
    ("judged", "criterion", "expected"),
    [
        (
            interval(0.0, -0.0735, 0.0735),
            DROP,
            "not shown to differ: 50 stories can detect 10.5 points; about 5,500 would decide a 1-point margin",
        ),
        (
            interval(-0.02, -0.035, -0.005, 200, 3200),
            DROP,
            "F1 drops, but not shown whether by more or less than 1 point: 200 stories can detect 2.1 points; "
            "about 920 would decide a 1-point margin",
        ),
        (
            interval(-0.002, -0.008, 0.004, 300, 4905),
            DROP,
            "F1 drops by less than 1 point, if at all: difference -0.20, 95% interval -0.80 to +0.40 points, "
            "300 stories with 4,905 questions",
        ),
        (
            interval(-0.005, -0.009, -0.001, 300, 4905),
            DROP,
            "F1 drops by less than 1 point: difference -0.50, 95% interval -0.90 to -0.10 points, "
            "300 stories with 4,905 questions",
        ),
        (
            interval(0.02, 0.01, 0.03, 1, 1),
            DROP,
            "F1 rises: difference +2.00, 95% interval +1.00 to +3.00 points, 1 story with 1 question",
        ),
        (
            interval(-0.1, -0.15, -0.05),
            Criterion(0.025),
            "F1 drops by more than 2.5 points: difference -10.00, 95% interval -15.00 to -5.00 points, "
            "50 stories with 50 questions",
        ),
        (
            interval(0.65, 0.61, 0.69),
            FLOOR,
            "F1 is above the floor of 60 points: F1 65.0, 95% interval 61.0 to 69.0 points, "
            "50 stories with 50 questions",
        ),
        (
            interval(0.55, 0.51, 0.59),
            FLOOR,
            "F1 is below the floor of 60 points: F1 55.0, 95% interval 51.0 to 59.0 points, "
            "50 stories with 50 questions",
        ),
        (
            interval(0.62, 0.58, 0.66),
            FLOOR,
            "not shown to be above or below the floor of 60 points: 50 stories can detect 5.7 points; "
            "about 410 would decide it if F1 is 62.0",
        ),
        (
            interval(0.6, 0.58, 0.62),
            FLOOR,
            "not shown to be above or below the floor of 60 points: 50 stories can detect 2.9 points; "
            "no number would decide a tie",
        ),
    ],
)
def test_sentences(judged, criterion, expected):
    floor = criterion.f1_floor is not None
    result = Comparison(criterion, score=judged, difference=None if floor else judged)
    assert sentence(result) == expected
    tags = result.to_tags()
    assert tags["quality.sentence"] == expected
    assert tags["quality.verdict"] == result.verdict.value


def test_no_words_for_anything_else():
    with pytest.raises(TypeError, match="no claim"):
        sentence("NF4 beats FP16")
