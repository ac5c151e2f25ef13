"""Intervals against scipy, brute force and published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from llamaquant.errors import ConfigError
from llamaquant.statistics.bounds import (
    _skewed_quantile,
    difference_bounds,
    gamma_lower,
    gamma_upper,
    independent_turns,
    rare_bounds,
    ratio_moments,
)
from llamaquant.statistics.intervals import (
    RARE_EVENTS,
    STUDENT_T,
    design_effect,
    difference_interval,
    intra_story_correlation,
    mean_interval,
    one_sided_bounds,
)
from llamaquant.statistics.scores import TurnScores, difference_totals, score_totals
from llamaquant.statistics.simulation import WORLDS, draw_differences

F1_VALUES = st.sampled_from([0.0, 0.25, 0.4, 0.5, 2 / 3, 1.0])


def scores_of(stories: list[list[float]]) -> TurnScores:
    return TurnScores.from_rows((f"s{i:03}", j, x) for i, story in enumerate(stories) for j, x in enumerate(story))


@st.composite
def paired_stories(draw) -> tuple[TurnScores, TurnScores]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=25))
    baseline = [draw(st.lists(F1_VALUES, min_size=m, max_size=m)) for m in sizes]
    flips = [draw(st.lists(st.one_of(st.none(), F1_VALUES), min_size=m, max_size=m)) for m in sizes]
    candidate = [
        [x if y is None else y for x, y in zip(a, b, strict=True)] for a, b in zip(baseline, flips, strict=True)
    ]
    return scores_of(candidate), scores_of(baseline)


def random_pair(seed: int, n: int = 40, flip: float = 0.3) -> tuple[TurnScores, TurnScores]:
    rng = np.random.default_rng(seed)
    baseline = [list(rng.choice([0.0, 0.5, 1.0], rng.integers(1, 9))) for _ in range(n)]
    candidate = [[1.0 - x if rng.random() < flip else x for x in story] for story in baseline]
    return scores_of(candidate), scores_of(baseline)


def test_standard_error_is_the_cluster_robust_sandwich_of_an_intercept():
    candidate, baseline = random_pair(1)
    turns = candidate.scores - baseline.scores
    stories = np.array(candidate.story_ids)
    design = np.ones((turns.size, 1))
    bread = np.linalg.inv(design.T @ design)
    residuals = turns - turns.mean()
    names = np.unique(stories)
    scores = [design[stories == s].T @ residuals[stories == s] for s in names]
    meat = sum(np.outer(x, x) for x in scores)
    expected = math.sqrt((bread @ meat @ bread)[0, 0] * len(names) / (len(names) - 1))
    interval = difference_interval(candidate, baseline)
    assert interval.standard_error == pytest.approx(expected, rel=1e-12)
    assert interval.estimate == pytest.approx(turns.mean(), abs=1e-12)


def test_symmetric_single_turn_data_give_scipys_t_interval():
    magnitudes = np.random.default_rng(0).uniform(0.1, 0.5, 30)
    values = np.concatenate((magnitudes, -magnitudes))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    lower, upper = difference_bounds(values, np.ones(60), 0.025)
    assert (lower, upper) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_skew_moves_the_bound_on_its_own_side_outwards_only():
    values = np.concatenate((np.full(12, -1.0), np.full(28, 0.25), np.zeros(60)))
    lower, upper = difference_bounds(values, np.ones(100), 0.025)
    plain = stats.ttest_1samp(values, 0.0)
    mean, error = values.mean(), stats.sem(values)
    assert lower < plain.confidence_interval(0.95).low
    assert upper >= plain.confidence_interval(0.95).high
    assert mean - lower > 1.05 * stats.t.ppf(0.975, 39) * error


@given(st.floats(-4, 4), st.floats(-3, 3), st.integers(10, 400))
def test_skewed_quantile_inverts_halls_cubic(x, skewness, n):
    t = float(_skewed_quantile(np.array(x), np.array(skewness), n))
    a = skewness / (3 * math.sqrt(n))
    assert t + a * t**2 + a**2 * t**3 / 3 + a / 2 == pytest.approx(x, abs=1e-6 * max(1, abs(t) ** 3))


def test_kish_number_counts_equal_residuals():
    sums = np.concatenate((np.full(6, 1.0), np.full(6, -1.0), np.zeros(38)))
    assert ratio_moments(sums, np.ones(50)).effective_stories == pytest.approx(12)


@pytest.mark.parametrize(("n", "alpha", "factor"), [(50, 0.05, 3.0), (300, 0.025, 3.69), (100, 0.025 / 3, 4.79)])
def test_no_difference_at_all_gives_the_rule_of_three(n, alpha, factor):
    lower, upper = difference_bounds(np.zeros(n), np.ones(n), alpha)
    assert (lower, upper) == pytest.approx((-factor / n, factor / n), rel=2e-3)


@pytest.mark.parametrize("events", range(10))
def test_unit_losses_give_the_exact_poisson_bounds(events):
    losses = np.zeros(80)
    losses[:events] = 1.0
    upper = optimize.brentq(lambda mean: stats.poisson.cdf(events, mean) - 0.025, 1e-9, 60)
    assert gamma_upper(losses, 1.0, 0.025) == pytest.approx(upper, rel=1e-6)
    if events:
        lower = optimize.brentq(lambda mean: stats.poisson.sf(events - 1, mean) - 0.025, 1e-9, 60)
        assert gamma_lower(losses, 0.025) == pytest.approx(lower, rel=1e-6)
    bounds = rare_bounds(-losses, np.ones(80), 0.025, 0.025)
    assert bounds[0] == pytest.approx(-upper / 80, rel=1e-6)
    assert bounds[1] >= stats.chi2.isf(0.025, 2) / 2 / 80 - losses.sum() / 80


@pytest.mark.parametrize("correlation", [0.02, 0.2, 0.5, 0.9])
def test_independent_turns_is_the_rare_limit_of_a_beta_binomial(correlation):
    p, size = 1e-7, 17
    spread = (1 - correlation) / correlation
    silent = stats.betabinom.logpmf(0, size, p * spread, (1 - p) * spread)
    assert independent_turns(np.array([size]), correlation)[0] == pytest.approx(-silent / p, rel=1e-4)


def test_independent_turns_at_its_ends():
    sizes = np.array([1, 7, 20])
    assert list(independent_turns(sizes, 0.0)) == [1, 7, 20]
    assert list(independent_turns(sizes, 1.0)) == [1, 1, 1]


def test_a_correlation_cap_of_one_makes_the_story_the_unit():
    same = scores_of([[1.0] * 15] * 300)
    free = difference_interval(same, same, correlation_cap=1.0)
    assert free.upper == pytest.approx(-math.log(0.025) / 300)
    assert difference_interval(same, same).upper < free.upper
    with pytest.raises(ConfigError, match="correlation_cap"):
        difference_interval(same, same, correlation_cap=1.2)


def test_ten_differing_stories_are_enough_for_student_t():
    base = [[0.0, 1.0]] * 40
    for differing, method in ((9, RARE_EVENTS), (10, STUDENT_T)):
        candidate = [[0.0, 0.0]] * differing + [[0.0, 1.0]] * (40 - differing)
        interval = difference_interval(scores_of(candidate), scores_of(base))
        assert (interval.method, interval.differing_stories) == (method, differing)


@settings(max_examples=50, deadline=None)
@given(paired_stories(), st.sampled_from([0.9, 0.95, 0.98]))
def test_intervals_are_finite_ordered_and_never_empty(pair, confidence):
    for interval in (
        difference_interval(*pair, confidence, seed=None),
        mean_interval(pair[0], confidence, seed=None),
    ):
        assert interval.lower <= interval.estimate <= interval.upper
        assert interval.upper - interval.lower > 1e-6
        assert all(math.isfinite(value) for value in interval.to_metrics("x").values())


@settings(max_examples=50, deadline=None)
@given(paired_stories())
def test_swapping_candidate_and_baseline_mirrors_the_interval(pair):
    there, back = difference_interval(*pair, seed=None), difference_interval(*reversed(pair), seed=None)
    assert (-back.upper, -back.lower) == pytest.approx((there.lower, there.upper), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(paired_stories())
def test_more_confidence_means_a_wider_interval(pair):
    narrow, wide = (difference_interval(*pair, confidence, seed=None) for confidence in (0.9, 0.99))
    assert wide.lower <= narrow.lower
    assert narrow.upper <= wide.upper


@pytest.mark.parametrize("flip_rate", [0.02, 0.12, 0.3])
def test_vectorised_bounds_equal_the_scalar_path(flip_rate):
    rng = np.random.default_rng(4)
    sums, sizes = draw_differences(rng, 20, 60, flip_rate, 0.005, WORLDS["heavy losses"])
    lower, upper = difference_bounds(sums, sizes, 0.025)
    from llamaquant.statistics.scores import StoryTotals

    for i in range(20):
        names = tuple(str(j) for j in range(60))
        totals = StoryTotals(names, sums[i], sizes[i], sums[i] ** 2, -1.0, 1.0)
        assert one_sided_bounds(totals, 0.025, 0.025)[:2] == pytest.approx((lower[i], upper[i]), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7])
def test_constant_scores_still_have_an_error_bar(value):
    interval = mean_interval(scores_of([[value] * 5] * 30))
    assert interval.method == RARE_EVENTS
    assert interval.estimate == pytest.approx(value)
    assert interval.lower < value or value == 0.0
    assert interval.upper > value or value == 1.0
    assert 0.0 <= interval.lower < interval.upper <= 1.0
    assert interval.design_effect is None


def test_a_constant_shift_is_not_certain_either():
    interval = difference_interval(scores_of([[0.4]] * 40), scores_of([[0.5]] * 40))
    assert interval.lower < -0.1 < interval.upper


def test_one_story_is_enough_for_a_very_wide_interval():
    interval = difference_interval(scores_of([[0.0, 1.0]]), scores_of([[1.0, 1.0]]))
    assert (interval.lower, interval.upper) == pytest.approx((-1.0, 1.0), abs=0.05)


def test_story_correlation_is_the_analysis_of_variance_estimate():
    rng = np.random.default_rng(3)
    stories = [list(np.clip(rng.normal(rng.uniform(0.2, 0.8), 0.1, 6), 0, 1)) for _ in range(20)]
    f = stats.f_oneway(*stories).statistic  # = mean square between / within
    expected = (f - 1) / (f + 6 - 1)
    assert intra_story_correlation(score_totals(scores_of(stories))) == pytest.approx(expected, rel=1e-9)


def test_identical_turns_have_the_largest_design_effect_and_correlation():
    values = np.random.default_rng(5).uniform(0, 1, 50)
    totals = score_totals(scores_of([[x] * 8 for x in values]))
    assert intra_story_correlation(totals) == pytest.approx(1.0)
    assert design_effect(totals) == pytest.approx(8 * (400 - 1) / 400 * 50 / 49, rel=1e-9)


def test_single_turn_stories_have_no_design_effect():
    candidate, baseline = scores_of([[x] for x in np.linspace(0, 1, 30)]), scores_of([[0.5]] * 30)
    interval = difference_interval(candidate, baseline)
    assert interval.intra_story_correlation is None
    assert interval.design_effect == pytest.approx(1.0)
    assert interval.effective_turns == pytest.approx(30)


def test_bootstrap_is_seeded_close_to_t_and_absent_when_degenerate():
    pair = random_pair(7, n=120)
    first, again, other = (difference_interval(*pair, seed=seed) for seed in (1, 1, 2))
    assert (first.bootstrap_lower, first.bootstrap_upper) == (again.bootstrap_lower, again.bootstrap_upper)
    assert first.bootstrap_lower != other.bootstrap_lower
    assert first.bootstrap_lower == pytest.approx(first.lower, abs=0.01)
    same = difference_interval(pair[0], pair[0])
    assert same.bootstrap_lower is None
    assert "d_bootstrap_lower" not in same.to_metrics("d")


def test_bootstrap_resamples_whole_stories():
    """Eight copies of each turn must not narrow the bootstrap: the story is the unit."""
    values = np.random.default_rng(11).uniform(0, 1, 60)
    one, eight = (mean_interval(scores_of([[x] * m for x in values])) for m in (1, 8))
    assert one.bootstrap_lower == pytest.approx(eight.bootstrap_lower, abs=1e-9)
    assert one.lower == pytest.approx(eight.lower, abs=1e-9)


def test_a_confidence_of_percent_is_refused():
    with pytest.raises(ConfigError, match="confidence"):
        difference_interval(*random_pair(1), confidence=95)


def test_rare_rule_uses_the_difference_totals_range():
    pair = scores_of([[0.0]] * 20), scores_of([[0.0]] * 20)
    assert difference_totals(*pair).turn_low == -1.0
    assert mean_interval(pair[0]).lower == 0.0
