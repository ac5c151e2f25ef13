"""What a number of stories can decide: before a run (planning) and after it (minimum detectable effect)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llamaquant.errors import ConfigError
from llamaquant.statistics.bounds import STORY_CORRELATION_CAP, independent_turns
from llamaquant.statistics.intervals import RARE_EVENTS, ClusterInterval

POWER = 0.8


@dataclass(frozen=True)
class Planning:
    """What is assumed of a configuration that deserves to pass, before anything has been measured.

    `flip_rate`: share of answers whose score changes. `flip_rms`: root mean square of those changes, in F1.
    `intra_story_correlation`: of the per-turn differences. The defaults describe a near-lossless configuration; after
    a pilot, `Planning.from_interval` puts measured values in their place.
    """

    flip_rate: float = 0.05
    flip_rms: float = 0.75
    intra_story_correlation: float = 0.02

    def __post_init__(self) -> None:
        for name, value in (("flip_rate", self.flip_rate), ("flip_rms", self.flip_rms)):
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"{name} must lie in (0, 1], got {value}: use a share, not percent")
        if not 0.0 <= self.intra_story_correlation <= 1.0:
            raise ConfigError(f"intra_story_correlation must lie in [0, 1], got {self.intra_story_correlation}")

    @classmethod
    def from_interval(cls, pilot: ClusterInterval) -> Planning:
        """Reproduce the standard error of a measured paired difference."""
        correlation = float(np.clip(pilot.intra_story_correlation or 0.0, 0.0, 1.0))
        size = pilot.n_turns / pilot.n_stories
        rms = effective_standard_error(pilot) * math.sqrt(pilot.n_turns / (1.0 + (size - 1.0) * correlation))
        return cls(flip_rate=1.0, flip_rms=min(rms, 1.0), intra_story_correlation=correlation)

    def standard_error(self, n_stories: int, turns_per_story: float) -> float:
        """Standard error of the mean difference (design effect 1 + (m - 1) r for m turns a story; Kish 1965)."""
        design = 1.0 + (turns_per_story - 1.0) * self.intra_story_correlation
        return self.flip_rms * math.sqrt(self.flip_rate * design / (n_stories * turns_per_story))


def _reach(n_stories: int, alpha: float, power: float) -> float:
    """Standard errors between margin and truth at which a one-sided t test has the given power."""
    freedom = max(n_stories - 1, 1)
    return float(stats.t.isf(alpha, freedom) + stats.t.ppf(power, freedom))


def decidable_margin(
    n_stories: int, turns_per_story: float, planning: Planning | None = None, alpha: float = 0.025, power: float = POWER
) -> float:
    """Smallest margin (F1) that this many stories can certify with `power` if the true difference is 0.

    Never below what the rare-event rule leaves open when not one answer differs.
    """
    _check_counts(n_stories, turns_per_story)
    planned = (planning or Planning()).standard_error(n_stories, turns_per_story)
    units = float(independent_turns(max(round(turns_per_story), 1), STORY_CORRELATION_CAP))
    floor = -math.log(alpha) / (n_stories * units)
    return min(max(_reach(n_stories, alpha, power) * planned, floor), 1.0)


def stories_for_margin(
    margin: float, turns_per_story: float, planning: Planning | None = None, alpha: float = 0.025, power: float = POWER
) -> int:
    """Fewest stories whose decidable margin is at most `margin`."""
    if not 0.0 < margin < 1.0:
        raise ConfigError(f"a margin must lie between 0 and 1, got {margin}: one F1 point is 0.01")
    low, high = 1, 2
    while decidable_margin(high, turns_per_story, planning, alpha, power) > margin:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if decidable_margin(middle, turns_per_story, planning, alpha, power) > margin:
            low = middle
        else:
            high = middle
    return high


def check_power(
    n_stories: int,
    turns_per_story: float,
    margin: float,
    planning: Planning | None = None,
    alpha: float = 0.025,
    force: bool = False,
) -> float:
    """The decidable margin of a planned run; ConfigError if `margin` is smaller, unless `force`."""
    decidable = decidable_margin(n_stories, turns_per_story, planning, alpha)
    if margin < decidable and not force:
        needed = stories_for_margin(margin, turns_per_story, planning, alpha)
        raise ConfigError(
            f"max_f1_drop must be decidable, got {margin:g}: {n_stories} stories of {turns_per_story:g} questions "
            f"decide {decidable:.3g} at {POWER:.0%} power; use {needed:,} stories, a larger margin, or force=true"
        )
    return decidable


def effective_standard_error(interval: ClusterInterval) -> float:
    """Half the interval in units of the normal quantile: positive even where the plain standard error is 0."""
    return max(interval.half_width / float(stats.norm.isf(interval.alpha)), interval.standard_error)


def minimum_detectable_effect(interval: ClusterInterval, power: float = POWER) -> float:
    """Margin (F1) that data as precise as these certify with `power` if the true difference is 0."""
    quantiles = float(stats.norm.isf(interval.alpha) + stats.norm.ppf(power))
    return min(quantiles * effective_standard_error(interval), 1.0)


def stories_to_decide(interval: ClusterInterval, distance: float, power: float = POWER) -> int | None:
    """Stories in all at which a truth `distance` away from the threshold is decided with `power`; None if 0 away.

    What has been seen shrinks a width with the square root of the stories, what may be unseen in proportion to them.
    """
    if distance <= 0.0:
        return None
    ratio = minimum_detectable_effect(interval, power) / distance
    if interval.method != RARE_EVENTS:
        return math.ceil(interval.n_stories * ratio**2)
    quantiles = float(stats.norm.isf(interval.alpha) + stats.norm.ppf(power))
    seen = quantiles * interval.standard_error / distance
    return math.ceil(interval.n_stories * max(ratio, seen**2))


def _check_counts(n_stories: int, turns_per_story: float) -> None:
    if n_stories < 1 or turns_per_story < 1:
        raise ConfigError(
            f"a plan needs at least one story of one question, got {n_stories} x {turns_per_story}: raise the limit"
        )
