"""Races: declared looks, FAIL only, and the fixed-sample verdict at the end."""

from __future__ import annotations

import numpy as np
import pytest

from llamaquant.errors import ConfigError
from llamaquant.statistics import Criterion, RacePlan, TurnScores, Verdict, compare, look, sentence
from llamaquant.statistics.intervals import one_sided_bounds
from llamaquant.statistics.scores import difference_totals


def pair(n: int, loss: float, seed: int = 0, turns: int = 10) -> tuple[TurnScores, TurnScores]:
    """Candidate that loses a whole answer with probability `loss`, against a perfect baseline."""
    rng = np.random.default_rng(seed)
    rows = [(f"s{i:03}", j, 1.0 - float(rng.random() < loss)) for i in range(n) for j in range(turns)]
    return TurnScores.from_rows(rows), TurnScores.from_rows((s, t, 1.0) for s, t, _ in rows)


def first(scores: TurnScores, n: int) -> TurnScores:
    return scores.take([f"s{i:03}" for i in range(n)])


def test_looks_beyond_the_sample_are_dropped_and_the_budget_is_spent_by_the_last_interim_look():
    plan = RacePlan(80)
    assert plan.interim_looks == (10, 20, 30, 50)
    assert max(plan.levels) < 0.01 < sum(plan.levels)  # correlated looks are worth more than a Bonferroni split
    assert RacePlan(10).interim_looks == ()
    assert [RacePlan(80).next_look(n) for n in (0, 9, 10, 50, 79)] == [10, 10, 20, 80, 80]


def test_a_hopeless_configuration_ends_at_the_first_looks():
    plan, (candidate, baseline) = RacePlan(300), pair(300, 0.5)
    decision = look(plan, first(candidate, 10), first(baseline, 10))
    assert decision.verdict is Verdict.FAIL
    assert decision.stopped_early
    assert decision.upper < -0.01
    assert sentence(decision).startswith("shown to miss the 1-point margin after 10 of 300 stories (upper bound -")
    assert decision.to_metrics()["race/stopped_early"] == 1.0


def test_an_early_fail_agrees_with_the_95_percent_interval_of_its_data():
    plan, (candidate, baseline) = RacePlan(300), pair(300, 0.2)
    decision = look(plan, first(candidate, 20), first(baseline, 20))
    assert decision.verdict is Verdict.FAIL
    assert compare(first(candidate, 20), first(baseline, 20), seed=None).verdict is Verdict.FAIL


def test_an_interim_look_can_never_pass():
    plan, (candidate, baseline) = RacePlan(300), pair(300, 0.0)
    for n in plan.interim_looks:
        decision = look(plan, first(candidate, n), first(baseline, n))
        assert decision.verdict is None
        assert not decision.stopped_early
    assert sentence(decision) == "still open after 100 of 300 stories: not shown to miss the 1-point margin"


def test_the_full_sample_is_judged_by_the_fixed_sample_test():
    plan, (candidate, baseline) = RacePlan(60), pair(60, 0.005)
    decision, fixed = look(plan, candidate, baseline), compare(candidate, baseline)
    assert decision.comparison == fixed
    assert decision.verdict is fixed.verdict
    assert sentence(decision) == sentence(fixed)


def test_the_bound_of_a_look_is_the_interval_bound_at_its_level():
    plan, (candidate, baseline) = RacePlan(300), pair(30, 0.1)
    decision = look(plan, candidate, baseline)
    totals = difference_totals(candidate, baseline)
    assert decision.level == plan.levels[2]
    assert decision.upper == one_sided_bounds(totals, 0.2, decision.level)[1]


def test_undeclared_looks_are_refused():
    plan, (candidate, baseline) = RacePlan(300), pair(15, 0.1)
    with pytest.raises(ConfigError, match=r"declared story counts \(10, 20, 30, 50, 100, 300\), got 15"):
        look(plan, candidate, baseline)
    with pytest.raises(ConfigError, match="more than its 12"):
        look(RacePlan(12), candidate, baseline)


def test_a_floor_can_be_raced_without_a_baseline():
    candidate, _ = pair(30, 0.5)
    decision = look(RacePlan(300), candidate, criterion=Criterion(f1_floor=0.8))
    assert decision.verdict is Verdict.FAIL
    assert "the F1 floor of 80 points" in sentence(decision)


def test_no_stopping_looks_at_the_full_sample_only():
    plan = RacePlan(300, stopping="none")
    assert plan.next_look(0) == 300
    with pytest.raises(ConfigError, match="declared"):
        look(plan, *pair(10, 0.5))


def test_anytime_may_pass_and_fail_after_any_story():
    plan = RacePlan(600, stopping="anytime", max_turns_per_story=10)
    assert plan.next_look(7) == 8
    bad = look(plan, *pair(77, 0.3))
    assert bad.verdict is Verdict.FAIL
    assert "77 of 600" in sentence(bad)
    wide = Criterion(max_f1_drop=0.2)
    good = look(plan, *pair(77, 0.0), wide)
    assert good.verdict is Verdict.PASS
    assert good.lower > -0.2
    assert "valid at any stop" in sentence(good)
    assert look(plan, *pair(20, 0.0)).verdict is None
    ended = look(RacePlan(20, stopping="anytime", max_turns_per_story=10), *pair(20, 0.0))
    assert ended.verdict is Verdict.INCONCLUSIVE
    assert sentence(ended).startswith("not decided: 20 stories")


def test_anytime_refuses_a_story_longer_than_declared():
    plan = RacePlan(300, stopping="anytime", max_turns_per_story=5)
    with pytest.raises(ConfigError, match="got 10 in 's000'"):
        look(plan, *pair(3, 0.0))


@pytest.mark.parametrize(
    "bad",
    [
        {"stopping": "never"},
        {"spending": "all"},
        {"looks": (20, 10)},
        {"looks": (1, 5)},
        {"alpha_fail": 0.2},
        {"n_stories": 0},
        {"stopping": "anytime"},
    ],
)
def test_bad_plans_are_refused(bad):
    with pytest.raises(ConfigError):
        RacePlan(**{"n_stories": 300, **bad})
