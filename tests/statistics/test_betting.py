"""The betting sequence: a fair game by exact enumeration, and bounds where its wealth says they are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaquant.statistics.betting import FRACTIONS, betting_bounds, log_wealth_above, log_wealth_below

LAW = (((-1.0, 1.0), 0.2), ((0.0, 2.0), 0.3), ((1.5, 3.0), 0.4), ((-3.0, 3.0), 0.1))  # ((sum, size), probability)
THETA = sum(p * s for (s, _), p in LAW) / sum(p * m for (_, m), p in LAW)


@pytest.mark.parametrize("wealth", [log_wealth_above, log_wealth_below])
def test_the_game_is_fair_at_the_true_turn_weighted_mean(wealth):
    """All outcomes of four stories of unequal size, enumerated: the expected wealth is 1 after every story."""
    expected = np.zeros(4)
    for path in itertools.product(LAW, repeat=4):
        sums, sizes = (np.array([story[i] for story, _ in path]) for i in (0, 1))
        expected += math.prod(p for _, p in path) * np.exp(wealth(sums, sizes, THETA, 3.0))
    assert expected == pytest.approx(np.ones(4), abs=1e-9)


def test_wealth_is_the_mean_over_fractions_of_plain_products():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 12).astype(float)
    sums = rng.uniform(-1, 1, 12) * sizes
    by_hand = np.mean(
        [math.prod(1 + f * (-0.01 * m - s) / (5 * 1.01) for s, m in zip(sums, sizes, strict=True)) for f in FRACTIONS]
    )
    assert np.exp(log_wealth_below(sums, sizes, -0.01, 5.0)[-1]) == pytest.approx(by_hand)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 5)), min_size=1, max_size=40), st.sampled_from([0.01, 0.025])
)
def test_bounds_hold_the_mean_and_are_where_the_wealth_is_one_over_alpha(stories, alpha):
    sizes = np.array([m for _, m in stories], dtype=float)
    sums = np.array([x for x, _ in stories]) * sizes
    lower, upper = betting_bounds(sums, sizes, alpha, 5.0)
    assert -1.0 <= lower <= upper <= 1.0
    if lower > -1.0 + 1e-6:
        assert np.max(log_wealth_above(sums, sizes, lower, 5.0)) == pytest.approx(-math.log(alpha), abs=1e-6)
    if upper < 1.0 - 1e-6:
        assert np.max(log_wealth_below(sums, sizes, upper, 5.0)) == pytest.approx(-math.log(alpha), abs=1e-6)


def test_bounds_tighten_only_as_stories_come_in():
    rng = np.random.default_rng(1)
    sums = rng.choice([-1.0, 0.0, 0.5], 120, p=[0.3, 0.6, 0.1])
    bounds = [betting_bounds(sums[:n], np.ones(n), 0.025, 1.0) for n in (20, 60, 120)]
    assert [b[0] for b in bounds] == sorted(b[0] for b in bounds)
    assert [b[1] for b in bounds] == sorted((b[1] for b in bounds), reverse=True)


def test_false_alarms_at_any_time_stay_below_alpha():
    """Continuous monitoring of 400 single-turn stories with a rare, large loss: Ville's inequality in action."""
    rng = np.random.default_rng(2)
    sums = rng.choice([-1.0, 1.0, 0.0], (500, 300), p=[0.05, 0.03, 0.92])  # true mean -0.02
    alarms = (log_wealth_below(sums, np.ones_like(sums), -0.02, 1.0) >= -math.log(0.05)).any(-1).mean()
    assert alarms <= 0.05
