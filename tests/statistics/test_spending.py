"""Boundaries of error spending against published designs and scipy's multivariate normal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llamaquant.errors import ConfigError
from llamaquant.statistics.spending import boundaries, nominal_levels, spent

FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        # One-sided 2.5%, five equally spaced looks: Lan-DeMets designs as tabulated by gsDesign (sfLDOF, sfLDPocock).
        ("obrien_fleming", [4.877, 3.357, 2.680, 2.290, 2.031]),
        ("pocock", [2.438, 2.427, 2.410, 2.397, 2.386]),
    ],
)
def test_boundaries_are_the_published_ones(spending, published):
    assert boundaries(FIVE, 0.025, spending) == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
@pytest.mark.parametrize("alpha", [0.01, 0.025])
def test_crossing_probability_is_what_was_spent(spending, alpha):
    t = np.array([0.1, 0.3, 0.6, 1.0])
    correlation = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    z = np.array(boundaries(t, alpha, spending))
    for k in range(1, len(t) + 1):
        law = stats.multivariate_normal(
            np.zeros(k), correlation[:k, :k], abseps=1e-7, releps=1e-7, maxpts=500_000, seed=0
        )
        stays = law.cdf(z[:k])
        assert 1 - stays == pytest.approx(spent(t[k - 1], alpha, spending), abs=2e-5)


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 100), min_size=1, max_size=6), st.sampled_from(["pocock", "obrien_fleming"]))
def test_levels_never_exceed_the_budget_and_are_worth_at_least_its_parts(looks, spending):
    fractions = [look / 100 for look in sorted(looks)]
    levels = nominal_levels(fractions, 0.01, spending)
    steps = np.diff([0.0, *(spent(t, 0.01, spending) for t in fractions)])
    assert all(0.0 <= level <= 0.01 + 1e-9 for level in levels)
    assert all(level >= step * (1 - 1e-3) - 1e-12 for level, step in zip(levels, steps, strict=True))  # Bonferroni


def test_spending_ends_at_alpha():
    assert spent(1.0, 0.01, "pocock") == pytest.approx(0.01)
    assert spent(1.0, 0.01, "obrien_fleming") == pytest.approx(0.01)


@pytest.mark.parametrize("fractions", [[], [0.5, 0.5], [0.6, 0.2], [0.0, 1.0], [0.5, 1.5]])
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(ConfigError, match="rise within"):
        boundaries(fractions, 0.01)


def test_unknown_spending_is_refused():
    with pytest.raises(ConfigError, match="haybittle"):
        boundaries([1.0], 0.01, "haybittle")
