"""Confidence bounds of a turn-weighted mean from story totals, vectorised over leading axes.

Two regimes. With enough stories whose value differs from a centre: Student t on the cluster-robust standard error of
the ratio estimator, guarded against skewness. With fewer: counts of rare events, where a normal approximation would
report certainty that the data cannot give.

Sources: Miller 2024, "Adding Error Bars to Evals" (clustered standard errors of paired differences); Hall 1992, "On the
removal of skewness by transformation", JRSS B 54 (cubic transformation of t); Kish 1965, "Survey Sampling" (effective
number); Fay & Feuer 1997, Statistics in Medicine 16 (gamma limits of a weighted sum of Poisson counts); Zou & Donner
2008, Statistics in Medicine 27 (limits of a difference from the limits of its two terms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

FEW_STORIES = 10
"""With fewer differing stories than this, the rare-event rule replaces Student t."""

STORY_CORRELATION_CAP = 0.5
"""Intra-story correlation of turns not seen to differ, at worst; 1.0 lets a whole story fail as one turn does."""


@dataclass(frozen=True, eq=False)
class RatioMoments:
    """Moments of the ratio estimator `sum(sums) / sum(sizes)`; every field has the leading shape [...]."""

    estimate: Any
    standard_error: Any
    skewness: Any  # of the story residuals
    effective_stories: Any  # Kish number of stories that carry the variance


def ratio_moments(sums: Any, sizes: Any) -> RatioMoments:
    """Linearised (Taylor) variance of a ratio of two story totals; sums, sizes: [..., stories]."""
    n = sums.shape[-1]
    turns = sizes.sum(-1)
    estimate = sums.sum(-1) / turns
    residuals = sums - estimate[..., None] * sizes  # [..., stories], sum to 0
    squared = residuals**2
    second = squared.sum(-1)
    safe = np.where(second > 0, second, 1.0)
    skewness = np.where(second > 0, (squared * residuals).sum(-1) * np.sqrt(n) / safe**1.5, 0.0)
    effective = np.where(second > 0, safe**2 / np.where(second > 0, (squared**2).sum(-1), 1.0), 0.0)
    return RatioMoments(estimate, np.sqrt(n / max(n - 1, 1) * second) / turns, skewness, effective)


def _skewed_quantile(t: Any, skewness: Any, n: int) -> Any:
    """Inverse of Hall's monotone cubic: the quantile of the studentised mean whose corrected version has quantile t."""
    a = skewness / (3.0 * np.sqrt(n))
    flat = np.abs(a) < 1e-9
    safe = np.where(flat, 1.0, a)
    return np.where(flat, t, (np.cbrt(1.0 + 3.0 * safe * (t - safe / 2.0)) - 1.0) / safe)


def student_bounds(sums: Any, sizes: Any, active: Any, alpha_low: float, alpha_high: float) -> tuple[Any, Any]:
    """One-sided Student t bounds at `alpha_low` (lower) and `alpha_high` (upper), widened where the data are skewed.

    With zeros and a few large residuals the standard error knows less than its stories suggest: degrees of freedom are
    Kish's effective number K of stories less one towards the long tail, 1.5 K less one towards the short one, and never
    more than the stories that differ (`active`) less one. The factor 1.5 is calibrated (docs/statistics.md). Hall's
    correction may move a bound outwards only: its inward half rests on a skewness that small samples underestimate.
    """
    n = sums.shape[-1]
    moments = ratio_moments(sums, sizes)
    most = np.maximum(np.asarray(active) - 1.0, 1.0)
    long_tail = np.minimum(np.maximum(moments.effective_stories - 1.0, 2.0), most)
    short_tail = np.minimum(np.maximum(1.5 * moments.effective_stories - 1.0, 2.0), most)
    t_low = stats.t.isf(alpha_low, np.where(moments.skewness < -1e-9, long_tail, short_tail))
    t_high = stats.t.isf(alpha_high, np.where(moments.skewness > 1e-9, long_tail, short_tail))
    reach_low = np.maximum(t_low, _skewed_quantile(t_low, moments.skewness, n))
    reach_high = np.maximum(t_high, -_skewed_quantile(-t_high, moments.skewness, n))
    return (
        moments.estimate - reach_low * moments.standard_error,
        moments.estimate + reach_high * moments.standard_error,
    )


def independent_turns(sizes: Any, correlation: float) -> Any:
    """How many independent turns a story of `sizes` turns is worth when the events are rare; shape of `sizes`.

    If the event rate varies over stories as a beta distribution with intra-story correlation r, a story shows no event
    with probability exp(-p * sum over j < size of 1 / (1 + j r / (1 - r))) as p goes to 0: all turns at r = 0, one at
    r = 1.
    """
    longest = int(np.max(sizes))
    j = np.arange(longest)
    weights = (j == 0).astype(float) if correlation >= 1.0 else 1.0 / (1.0 + j * correlation / (1.0 - correlation))
    return np.concatenate(([0.0], np.cumsum(weights)))[np.asarray(sizes, dtype=np.int64)]


def gamma_upper(weights: Any, unseen: Any, alpha: float) -> Any:
    """Fay-Feuer upper bound of the mean of a weighted sum of Poisson counts; weights [..., stories], unseen [...].

    `unseen` is the weight of one more event. No event at all gives `unseen * -log(alpha)`: the rule of three (3.0 at
    5%, 3.69 at 2.5%).
    """
    total = weights.sum(-1) + unseen
    variance = (weights**2).sum(-1) + unseen**2
    possible = total > 0  # not where a score sits on its own limit: an F1 of 0 cannot fall
    total, variance = np.where(possible, total, 1.0), np.where(possible, variance, 1.0)
    return np.where(possible, variance / total * stats.gamma.isf(alpha, total**2 / variance), 0.0)


def gamma_lower(weights: Any, alpha: float) -> Any:
    """Fay-Feuer lower bound, 0 without events."""
    total, variance = weights.sum(-1), (weights**2).sum(-1)
    seen = total > 0
    shape = np.where(seen, total**2 / np.where(seen, variance, 1.0), 1.0)
    return np.where(seen, variance / np.where(seen, total, 1.0) * stats.gamma.ppf(alpha, shape), 0.0)


def rare_bounds(
    sums: Any,
    sizes: Any,
    alpha_low: float,
    alpha_high: float,
    turn_low: float = -1.0,
    turn_high: float = 1.0,
    correlation_cap: float = STORY_CORRELATION_CAP,
) -> tuple[Any, Any]:
    """Bounds when few stories differ from 0: gains and losses are weighted rare events, never an empty interval.

    One event not yet seen is taken to be as bad as a turn can be, for as many turns as `correlation_cap` ties together,
    or as the worst story seen, whichever is larger.
    """
    turns = sizes.sum(-1)[..., None]
    losses, gains = np.maximum(-sums, 0.0) / turns, np.maximum(sums, 0.0) / turns
    unit = 1.0 / independent_turns(sizes, correlation_cap).sum(-1)
    unseen_loss = np.maximum(-turn_low * unit, losses.max(-1))
    unseen_gain = np.maximum(turn_high * unit, gains.max(-1))
    loss, gain = losses.sum(-1), gains.sum(-1)
    reach_low = np.hypot(gamma_upper(losses, unseen_loss, alpha_low) - loss, gain - gamma_lower(gains, alpha_low))
    reach_high = np.hypot(gamma_upper(gains, unseen_gain, alpha_high) - gain, loss - gamma_lower(losses, alpha_high))
    estimate = gain - loss
    return np.maximum(estimate - reach_low, turn_low), np.minimum(estimate + reach_high, turn_high)


def difference_bounds(
    sums: Any,
    sizes: Any,
    alpha_low: float,
    alpha_high: float | None = None,
    correlation_cap: float = STORY_CORRELATION_CAP,
) -> tuple[Any, Any]:
    """Bounds of a mean paired difference; sums, sizes: [..., stories]. One-sided levels; `alpha_high` = `alpha_low`."""
    alpha_high = alpha_low if alpha_high is None else alpha_high
    sums, sizes = np.asarray(sums, dtype=float), np.asarray(sizes, dtype=float)
    active = (sums != 0).sum(-1)
    few = active < FEW_STORIES
    lower, upper = student_bounds(sums, sizes, active, alpha_low, alpha_high)
    if np.any(few):
        rare_lower, rare_upper = rare_bounds(sums, sizes, alpha_low, alpha_high, correlation_cap=correlation_cap)
        lower, upper = np.where(few, rare_lower, lower), np.where(few, rare_upper, upper)
    return np.maximum(lower, -1.0), np.minimum(upper, 1.0)
