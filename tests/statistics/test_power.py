"""Planning and minimum detectable effects against scipy's noncentral t and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llamaquant.errors import ConfigError
from llamaquant.statistics.intervals import ClusterInterval
from llamaquant.statistics.power import (
    Planning,
    check_power,
    decidable_margin,
    minimum_detectable_effect,
    stories_for_margin,
    stories_to_decide,
)

STUDY = Planning(flip_rate=0.12, flip_rms=0.765, intra_story_correlation=0.0)  # standard deviation 0.265


def interval(se: float, n: int = 50, method: str = "student_t", half: float | None = None) -> ClusterInterval:
    half = 1.959964 * se if half is None else half
    return ClusterInterval(0.0, -half, half, 0.95, se, method, n, n, 30 if se else 0)


def test_fifty_last_turn_questions_decide_about_ten_points():
    assert decidable_margin(50, 1, STUDY) == pytest.approx(0.107, abs=0.001)
    assert minimum_detectable_effect(interval(0.0375)) == pytest.approx(0.105, abs=0.0005)
    assert stories_to_decide(interval(0.0375), 0.01) == pytest.approx(5519, abs=10)


@pytest.mark.parametrize("n", [20, 50, 300])
def test_a_t_test_at_the_decidable_margin_has_its_power(n):
    plan = Planning(flip_rate=1.0, flip_rms=0.3, intra_story_correlation=0.0)
    distance = decidable_margin(n, 1, plan) / plan.standard_error(n, 1)
    power = stats.nct.sf(stats.t.isf(0.025, n - 1), n - 1, distance)
    assert power == pytest.approx(0.8, abs=0.01)


def test_clusters_cost_their_design_effect():
    alone = Planning(intra_story_correlation=0.0).standard_error(100, 16)
    tied = Planning(intra_story_correlation=0.2).standard_error(100, 16)
    assert tied / alone == pytest.approx(math.sqrt(1 + 15 * 0.2))
    total = Planning(intra_story_correlation=1.0)
    assert total.standard_error(100, 16) == pytest.approx(total.standard_error(100, 1))


@given(st.integers(1, 400), st.integers(1, 20))
def test_more_stories_never_decide_less(n, turns):
    assert decidable_margin(n + 1, turns) <= decidable_margin(n, turns) + 1e-12


@pytest.mark.parametrize(("margin", "turns"), [(0.01, 16), (0.03, 1), (0.2, 2)])
def test_stories_for_margin_is_the_smallest_that_will_do(margin, turns):
    n = stories_for_margin(margin, turns)
    assert decidable_margin(n, turns) <= margin < decidable_margin(n - 1, turns)


def test_a_margin_out_of_reach_is_refused_unless_forced():
    with pytest.raises(ConfigError, match=r"got 0.01: 50 stories of 1 questions.*force=true"):
        check_power(50, 1, 0.01)
    assert check_power(50, 1, 0.01, force=True) == decidable_margin(50, 1)
    assert check_power(500, 16, 0.01) < 0.01


def test_no_plan_is_better_than_the_rule_of_three():
    spotless = Planning(flip_rate=1e-9)
    assert decidable_margin(100, 1, spotless) == pytest.approx(-math.log(0.025) / 100)


def test_a_pilot_reproduces_its_own_standard_error():
    pilot = ClusterInterval(0.0, -0.0196, 0.0196, 0.95, 0.01, "student_t", 60, 960, 60, 1.6, 0.04)
    assert Planning.from_interval(pilot).standard_error(60, 16) == pytest.approx(0.01, rel=1e-3)


def test_without_any_difference_width_shrinks_in_proportion_to_stories():
    zero = interval(0.0, 300, "rare_events", half=3.69 / 300)
    n = stories_to_decide(zero, 0.01)
    assert n == math.ceil(300 * minimum_detectable_effect(zero) / 0.01)
    assert stories_to_decide(zero, 0.0) is None


@pytest.mark.parametrize("bad", [{"flip_rate": 0}, {"flip_rms": 5}, {"intra_story_correlation": -0.1}])
def test_bad_plans_are_refused(bad):
    with pytest.raises(ConfigError):
        Planning(**bad)
    assert np.isfinite(decidable_margin(1, 1))


@pytest.mark.parametrize(("stories", "turns"), [(0, 5), (5, 0)])
def test_an_empty_plan_is_refused(stories, turns):
    with pytest.raises(ConfigError, match="at least one story"):
        decidable_margin(stories, turns)
