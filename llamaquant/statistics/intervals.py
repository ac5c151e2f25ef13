"""Confidence intervals of a mean F1 and of a paired F1 difference, for new stories of the same kind."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from llamaquant.errors import ConfigError
from llamaquant.statistics.bounds import (
    FEW_STORIES,
    STORY_CORRELATION_CAP,
    rare_bounds,
    ratio_moments,
    student_bounds,
)
from llamaquant.statistics.scores import StoryTotals, TurnScores, difference_totals, score_totals

STUDENT_T = "student_t"
RARE_EVENTS = "rare_events"
BOOTSTRAP_RESAMPLES = 2_000


@dataclass(frozen=True)
class ClusterInterval:
    """A turn-weighted mean with its two-sided interval; F1 units (0.01 is one point).

    `method` is `student_t`, or `rare_events` where fewer than 10 stories differ. `bootstrap_*` is the BCa cluster
    bootstrap, shown for comparison and never used for a verdict; None where it does not exist. `design_effect` and
    `intra_story_correlation` are None where the data cannot give them (no variance, or one turn per story).
    """

    estimate: float
    lower: float
    upper: float
    confidence: float
    standard_error: float
    method: str
    n_stories: int
    n_turns: int
    differing_stories: int
    design_effect: float | None = None
    intra_story_correlation: float | None = None
    bootstrap_lower: float | None = None
    bootstrap_upper: float | None = None

    @property
    def alpha(self) -> float:
        """Level of each of the two one-sided tests that the interval carries."""
        return (1.0 - self.confidence) / 2.0

    @property
    def half_width(self) -> float:
        return (self.upper - self.lower) / 2.0

    @property
    def effective_turns(self) -> float | None:
        """Independent turns that would give the same standard error (turns / design effect)."""
        return None if self.design_effect is None else self.n_turns / self.design_effect

    def to_metrics(self, prefix: str) -> dict[str, float]:
        """Flat metrics `<prefix><name>`; what does not exist is left out, so no value is ever NaN."""
        values: dict[str, float | None] = {
            "": self.estimate,
            "_lower": self.lower,
            "_upper": self.upper,
            "_confidence": self.confidence,
            "_se": self.standard_error,
            "_stories": float(self.n_stories),
            "_turns": float(self.n_turns),
            "_differing_stories": float(self.differing_stories),
            "_design_effect": self.design_effect,
            "_effective_turns": self.effective_turns,
            "_intra_story_correlation": self.intra_story_correlation,
            "_bootstrap_lower": self.bootstrap_lower,
            "_bootstrap_upper": self.bootstrap_upper,
        }
        return {f"{prefix}{name}": float(value) for name, value in values.items() if value is not None}


def difference_interval(
    candidate: TurnScores,
    baseline: TurnScores,
    confidence: float = 0.95,
    correlation_cap: float = STORY_CORRELATION_CAP,
    seed: int | None = 0,
) -> ClusterInterval:
    """Interval of mean(candidate - baseline) on the same questions; `seed` None leaves the bootstrap out."""
    return totals_interval(difference_totals(candidate, baseline), confidence, correlation_cap, seed)


def mean_interval(
    scores: TurnScores,
    confidence: float = 0.95,
    correlation_cap: float = STORY_CORRELATION_CAP,
    seed: int | None = 0,
) -> ClusterInterval:
    """Interval of the mean score of one configuration."""
    return totals_interval(score_totals(scores), confidence, correlation_cap, seed)


def totals_interval(
    totals: StoryTotals,
    confidence: float = 0.95,
    correlation_cap: float = STORY_CORRELATION_CAP,
    seed: int | None = 0,
) -> ClusterInterval:
    """Interval of the mean of any story totals; one story is enough, and it is never empty."""
    if not 0.5 < confidence < 1.0:
        raise ConfigError(f"a confidence must lie between 0.5 and 1, got {confidence}: use for example 0.95")
    alpha = (1.0 - confidence) / 2.0
    lower, upper, method, differing = one_sided_bounds(totals, alpha, alpha, correlation_cap)
    bootstrap = bootstrap_bounds(totals, confidence, seed) if seed is not None else None
    return ClusterInterval(
        estimate=totals.mean,
        lower=lower,
        upper=upper,
        confidence=confidence,
        standard_error=float(ratio_moments(totals.sums, totals.sizes).standard_error),
        method=method,
        n_stories=totals.n_stories,
        n_turns=totals.n_turns,
        differing_stories=differing,
        design_effect=design_effect(totals),
        intra_story_correlation=intra_story_correlation(totals),
        bootstrap_lower=bootstrap[0] if bootstrap else None,
        bootstrap_upper=bootstrap[1] if bootstrap else None,
    )


def one_sided_bounds(
    totals: StoryTotals, alpha_low: float, alpha_high: float, correlation_cap: float = STORY_CORRELATION_CAP
) -> tuple[float, float, str, int]:
    """(lower, upper, method, differing stories): bounds at two separate one-sided levels."""
    if not 0.0 <= correlation_cap <= 1.0:
        raise ConfigError(f"correlation_cap must lie in [0, 1], got {correlation_cap}: 1 assumes nothing")
    centre, differing = _centre(totals)
    if centre is None:
        bounds = student_bounds(totals.sums, totals.sizes, differing, alpha_low, alpha_high)
        method = STUDENT_T
    else:
        shifted = totals.sums - centre * totals.sizes
        shifted = np.where(np.abs(shifted) < 1e-9, 0.0, shifted)
        bounds = rare_bounds(
            shifted,
            totals.sizes,
            alpha_low,
            alpha_high,
            turn_low=totals.turn_low - centre,
            turn_high=totals.turn_high - centre,
            correlation_cap=correlation_cap,
        )
        bounds = (bounds[0] + centre, bounds[1] + centre)
        method = RARE_EVENTS
    lower, upper = max(float(bounds[0]), totals.turn_low), min(float(bounds[1]), totals.turn_high)
    return lower, upper, method, differing


def _centre(totals: StoryTotals) -> tuple[float | None, int]:
    """(value that all but a few stories share, or None; number of stories that differ from it or from 0).

    For a paired difference the value is 0 (no change). The most common story mean serves where more than half of the
    stories have it: perfect scores, a constant shift, or a single story, where a standard error is 0 or undefined.
    """
    means = np.round(totals.sums / totals.sizes, 12)
    values, counts = np.unique(means, return_counts=True)
    nonzero = int((means != 0).sum())
    paired = totals.turn_low < 0.0
    if paired and nonzero < FEW_STORIES:
        return 0.0, nonzero
    common = int(counts.max())
    others = totals.n_stories - common
    if others < FEW_STORIES and common > totals.n_stories / 2:
        return float(values[counts.argmax()]), others
    return None, nonzero if paired else totals.n_stories


def design_effect(totals: StoryTotals) -> float | None:
    """Cluster-robust variance over the variance of as many independent turns; None without any variance."""
    if totals.n_stories < 2:
        return None
    turns, mean = totals.n_turns, totals.mean
    spread = max(float(totals.squares.sum()) - turns * mean**2, 0.0)
    clustered = float(ratio_moments(totals.sums, totals.sizes).standard_error) ** 2
    if turns < 2 or spread < 1e-12 or clustered < 1e-18:
        return None
    return clustered / (spread / (turns * (turns - 1)))


def intra_story_correlation(totals: StoryTotals) -> float | None:
    """One-way analysis-of-variance estimate for unequal story sizes (Donner 1986); None where undefined."""
    n, turns = totals.n_stories, totals.n_turns
    if n < 2 or turns <= n:
        return None
    story_part = totals.sums**2 / totals.sizes
    between = (float(story_part.sum()) - turns * totals.mean**2) / (n - 1)
    within = max(float((totals.squares - story_part).sum()), 0.0) / (turns - n)
    typical_size = (turns - float((totals.sizes**2).sum()) / turns) / (n - 1)
    scale = between + (typical_size - 1.0) * within
    return float(np.clip((between - within) / scale, -1.0, 1.0)) if scale > 1e-15 else None


def bootstrap_bounds(totals: StoryTotals, confidence: float = 0.95, seed: int = 0) -> tuple[float, float] | None:
    """BCa bootstrap over stories (Efron 1987, by scipy, seeded); None where the data are too degenerate for it."""
    if totals.n_stories < 3 or np.ptp(totals.sums / totals.sizes) < 1e-12:
        return None

    def ratio(sums: Any, sizes: Any, axis: int = -1) -> Any:
        return sums.sum(axis=axis) / sizes.sum(axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate resamples: answered by the NaN check
        result = stats.bootstrap(
            (totals.sums, totals.sizes),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=BOOTSTRAP_RESAMPLES,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    lower, upper = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (lower, upper) if np.isfinite([lower, upper]).all() else None
