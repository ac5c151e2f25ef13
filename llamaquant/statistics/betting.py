"""Betting confidence sequences for a bounded, clustered mean: valid at every sample size, for any stopping rule.

A gambler who bets against "the mean is at most theta" multiplies a wealth that is, if the claim holds, a
non-negative supermartingale of start 1; by Ville's inequality it ever reaches 1 / alpha with probability at most alpha.
Bets are a fixed mixture of constant fractions, the "diversified Kelly" bets of Waudby-Smith & Ramdas ("Estimating means
of bounded random variables by betting", JRSS B 86, 2024; arXiv 2010.09686). One story is one round: its expected
sum_i - theta * size_i is 0 at the turn-weighted mean theta, whatever the dependence inside it. Assumed are only
independent stories, values in [low, high] and a largest story size known in advance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special

FRACTIONS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.99])
"""Bets, as shares of the largest one that cannot lose everything; each further one costs wealth at the start."""


def _log_wealth(gains: Any) -> Any:
    """Log of the mixture wealth after each story; gains: [..., stories], each at least -1."""
    growth = np.log1p(FRACTIONS[:, None] * gains[..., None, :])  # [..., bets, stories]
    return special.logsumexp(np.cumsum(growth, axis=-1), axis=-2) - np.log(FRACTIONS.size)


def log_wealth_above(sums: Any, sizes: Any, theta: float, size_max: float, low: float = -1.0) -> Any:
    """Log wealth against "mean <= theta" after each story; sums, sizes: [..., stories] in the order they were read."""
    return _log_wealth((np.asarray(sums) - theta * np.asarray(sizes)) / (size_max * (theta - low)))


def log_wealth_below(sums: Any, sizes: Any, theta: float, size_max: float, high: float = 1.0) -> Any:
    """Log wealth against "mean >= theta" after each story."""
    return _log_wealth((theta * np.asarray(sizes) - np.asarray(sums)) / (size_max * (high - theta)))


def betting_bounds(
    sums: Any, sizes: Any, alpha: float, size_max: float, low: float = -1.0, high: float = 1.0
) -> tuple[float, float]:
    """(lower, upper), each at one-sided level `alpha`, valid jointly over all prefixes of the stories read.

    Wealth falls monotonically as theta moves towards the data, so that each bound is one root.
    """
    target = -np.log(alpha)
    span = high - low
    edge_low, edge_high = low + 1e-9 * span, high - 1e-9 * span

    def above(theta: float) -> float:
        return float(np.max(log_wealth_above(sums, sizes, theta, size_max, low)) - target)

    def below(theta: float) -> float:
        return float(np.max(log_wealth_below(sums, sizes, theta, size_max, high)) - target)

    if above(edge_low) <= 0:
        lower = low
    else:
        lower = high if above(edge_high) > 0 else float(optimize.brentq(above, edge_low, edge_high))
    if below(edge_high) <= 0:
        upper = high
    else:
        upper = low if below(edge_low) > 0 else float(optimize.brentq(below, edge_low, edge_high))
    return lower, upper
