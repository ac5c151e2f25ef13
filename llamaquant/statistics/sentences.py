"""The one place that words claims: `sentence` says what a result shows, and nothing more."""

from __future__ import annotations

from functools import singledispatch

from llamaquant.statistics.intervals import ClusterInterval
from llamaquant.statistics.racing import RaceDecision
from llamaquant.statistics.selection import Selection
from llamaquant.statistics.verdict import Comparison, Criterion, Verdict


@singledispatch
def sentence(result: object) -> str:
    """One plain sentence for a Comparison, RaceDecision or Selection. F1 is in points (0.01 = 1 point)."""
    raise TypeError(f"no claim can be worded for {type(result).__name__}")


@sentence.register
def _(result: Comparison) -> str:
    return _floor_sentence(result) if result.criterion.f1_floor is not None else _drop_sentence(result)


@sentence.register
def _(result: RaceDecision) -> str:
    if result.comparison is not None:
        return sentence(result.comparison)
    goal = _goal(result.criterion)
    if result.verdict is None:
        return f"still open after {result.n_stories} of {result.planned_stories} stories: not shown to miss {goal}"
    if result.verdict is Verdict.PASS:
        bound = f"lower bound {_signed(result.lower or 0.0)}, valid at any stop"
        return f"shown to meet {goal} after {result.n_stories} of {result.planned_stories} stories ({bound})"
    if result.verdict is Verdict.FAIL:
        bound = f"upper bound {_signed(result.upper)} at one-sided level {result.level:.2g}"
        return f"shown to miss {goal} after {result.n_stories} of {result.planned_stories} stories ({bound})"
    return f"not decided: {result.n_stories} stories neither show that it meets {goal} nor that it misses it"


@sentence.register
def _(result: Selection) -> str:
    past = _count(result.earlier_uses, "confirmation")
    used = f"; these stories had served {past} before" if result.earlier_uses else ""
    if result.winner is not None:
        comparison = dict(result.comparisons)[result.winner]
        rank = "cheapest finalist" if len(result.comparisons) == 1 else "cheapest finalist that passes"
        return f"confirmed: {result.winner}, the {rank}: {sentence(comparison)}{used}"
    name, comparison = result.closest
    if len(result.comparisons) == 1:
        return f"the finalist {name} is not confirmed: {sentence(comparison)}{used}"
    return f"none of {len(result.comparisons)} finalists is confirmed; closest is {name}: {sentence(comparison)}{used}"


def _drop_sentence(result: Comparison) -> str:
    judged, margin = result.judged, _points(result.criterion.max_f1_drop)
    data = f"{_difference(judged)}, {_sample(judged)}"
    if result.verdict is Verdict.PASS:
        if judged.lower > 0:
            return f"F1 rises: {data}"
        return f"F1 drops by less than {margin}{'' if judged.upper < 0 else ', if at all'}: {data}"
    if result.verdict is Verdict.FAIL:
        return f"F1 drops by more than {margin}: {data}"
    start = "not shown to differ"
    if judged.upper < 0:
        start = f"F1 drops, but not shown whether by more or less than {margin}"
    needed = _rough(result.stories_to_decide)
    return f"{start}: {_power(result)}; about {needed} would decide a {_margin(result)} margin"


def _floor_sentence(result: Comparison) -> str:
    judged, floor = result.judged, f"the floor of {_points(result.criterion.threshold)}"
    data = f"F1 {100 * judged.estimate:.1f}, {_range(judged, plus=False)}, {_sample(judged)}"
    if result.verdict is Verdict.PASS:
        return f"F1 is above {floor}: {data}"
    if result.verdict is Verdict.FAIL:
        return f"F1 is below {floor}: {data}"
    needed = _rough(result.stories_to_decide)
    reason = f"would decide it if F1 is {100 * judged.estimate:.1f}"
    more = f"about {needed} {reason}" if needed else "no number would decide a tie"
    return f"not shown to be above or below {floor}: {_power(result)}; {more}"


def _goal(criterion: Criterion) -> str:
    if criterion.f1_floor is not None:
        return f"the F1 floor of {_points(criterion.f1_floor)}"
    return f"the {_number(100 * criterion.max_f1_drop)}-point margin"


def _power(result: Comparison) -> str:
    stories = _count(result.judged.n_stories, "story", "stories")
    return f"{stories} can detect {_points(result.minimum_detectable_effect)}"


def _margin(result: Comparison) -> str:
    return f"{_number(100 * result.criterion.max_f1_drop)}-point"


def _difference(interval: ClusterInterval) -> str:
    return f"difference {_signed(interval.estimate)}, {_range(interval)}"


def _range(interval: ClusterInterval, plus: bool = True) -> str:
    show = _signed if plus else (lambda value: f"{100 * value:.1f}")
    return f"{_number(100 * interval.confidence)}% interval {show(interval.lower)} to {show(interval.upper)} points"


def _sample(interval: ClusterInterval) -> str:
    stories = _count(interval.n_stories, "story", "stories")
    return f"{stories} with {_count(interval.n_turns, 'question')}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _number(value: float) -> str:
    """At most one decimal, more only where a non-zero value would read as 0: 1, 10.5, 0.04."""
    rounded = f"{value:.1f}" if abs(value) >= 0.1 else f"{value:.1g}"
    return rounded.removesuffix(".0")


def _points(value: float) -> str:
    number = _number(100 * value)
    return f"{number} point" if number == "1" else f"{number} points"


def _signed(value: float) -> str:
    """F1 difference in points with its sign; two decimals, so that a bound beside a margin is not rounded onto it."""
    return f"{round(100 * value, 2) + 0.0:+.2f}"


def _rough(stories: int | None) -> str:
    """Two significant digits: a planning figure is no better."""
    if stories is None:
        return ""
    digits = max(len(str(stories)) - 2, 0)
    return f"{round(stories, -digits):,}"
