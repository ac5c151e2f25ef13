"""Racing: end a hopeless configuration early, without ever making a PASS easier.

`group_sequential` (default): at looks declared beforehand a race may end in FAIL only. The chance that a configuration
whose true value meets the criterion is ever stopped is at most `alpha_fail`, spent over the looks. PASS is decided
once, on all stories, by the fixed-sample verdict: stopping for futility can only lower its chance of a false PASS.
`anytime`: betting confidence sequence, PASS or FAIL after any story, no model of the data; needs more stories.
`none`: no early end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llamaquant.errors import ConfigError
from llamaquant.statistics.betting import betting_bounds
from llamaquant.statistics.bounds import STORY_CORRELATION_CAP
from llamaquant.statistics.intervals import one_sided_bounds
from llamaquant.statistics.scores import TurnScores
from llamaquant.statistics.spending import SPENDING, nominal_levels
from llamaquant.statistics.verdict import ALPHA, Comparison, Criterion, Verdict, compare

STOPPING = ("group_sequential", "anytime", "none")
LOOKS = (10, 20, 30, 50, 100)


@dataclass(frozen=True)
class RacePlan:
    """What is declared before a race.

    `n_stories`: all search stories; looks at or beyond it are ignored. `looks`: story counts at which FAIL may be said.
    `alpha_fail`: bound on stopping a configuration that meets the criterion. `max_turns_per_story` is needed by
    `anytime` only: the longest story of the set, known before any is scored.
    """

    n_stories: int
    looks: tuple[int, ...] = LOOKS
    alpha_fail: float = 0.01
    spending: str = "pocock"
    stopping: str = "group_sequential"
    max_turns_per_story: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "looks", tuple(self.looks))
        if self.stopping not in STOPPING:
            raise ConfigError(f"stopping must be one of {', '.join(STOPPING)}, got {self.stopping!r}")
        if self.spending not in SPENDING:
            raise ConfigError(f"spending must be one of {', '.join(SPENDING)}, got {self.spending!r}")
        if self.n_stories < 1:
            raise ConfigError(f"a race needs at least one story, got {self.n_stories}: raise the limit")
        if not 0.0 < self.alpha_fail <= ALPHA:
            raise ConfigError(f"alpha_fail must lie in (0, {ALPHA}], got {self.alpha_fail}: the default is 0.01")
        if any(look < 2 for look in self.looks) or list(self.looks) != sorted(set(self.looks)):
            raise ConfigError(f"looks must be rising story counts of at least 2, got {self.looks}: for example {LOOKS}")
        if self.stopping == "anytime" and (self.max_turns_per_story is None or self.max_turns_per_story < 1):
            raise ConfigError(
                "stopping=anytime needs max_turns_per_story, the longest story of the set, before the race"
            )

    @cached_property
    def interim_looks(self) -> tuple[int, ...]:
        """Looks before the full sample; none without group-sequential stopping."""
        if self.stopping != "group_sequential":
            return ()
        return tuple(look for look in self.looks if look < self.n_stories)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """One-sided level of each interim look; information counts stories, and the last interim look spends the rest.

        The full sample is judged by the fixed-sample test, so that nothing is saved up for it.
        """
        if not self.interim_looks:
            return ()
        last = self.interim_looks[-1]
        return nominal_levels([look / last for look in self.interim_looks], self.alpha_fail, self.spending)

    def next_look(self, n_scored: int) -> int:
        """Story count up to which a race that has scored `n_scored` stories should go on."""
        if self.stopping == "anytime":
            return min(n_scored + 1, self.n_stories)
        return next((look for look in self.interim_looks if look > n_scored), self.n_stories)


@dataclass(frozen=True)
class RaceDecision:
    """What a look says. `verdict` None: go on. `comparison` is the fixed-sample one, at the full sample only.

    `upper` is the one-sided bound, at `level`, that FAIL is read from; `lower` the one for PASS (`anytime` only).
    """

    n_stories: int
    planned_stories: int
    stopping: str
    criterion: Criterion
    verdict: Verdict | None
    estimate: float
    upper: float
    level: float
    lower: float | None = None
    comparison: Comparison | None = None

    @property
    def stopped_early(self) -> bool:
        return self.verdict is not None and self.n_stories < self.planned_stories

    def to_metrics(self, prefix: str = "race/") -> dict[str, float]:
        """Flat float metrics of this look."""
        metrics = {
            f"{prefix}stories": float(self.n_stories),
            f"{prefix}estimate": self.estimate,
            f"{prefix}upper": self.upper,
            f"{prefix}level": self.level,
            f"{prefix}stopped_early": float(self.stopped_early),
        }
        if self.lower is not None:
            metrics[f"{prefix}lower"] = self.lower
        return metrics


def look(
    plan: RacePlan,
    candidate: TurnScores,
    baseline: TurnScores | None = None,
    criterion: Criterion | None = None,
    correlation_cap: float = STORY_CORRELATION_CAP,
) -> RaceDecision:
    """Judge the stories scored so far, in the order they were scored; ConfigError at an undeclared story count."""
    criterion = criterion or Criterion()
    if candidate.n_stories > plan.n_stories:
        raise ConfigError(f"a race may not read more than its {plan.n_stories} stories, got {candidate.n_stories}")
    if plan.stopping == "anytime":
        return _anytime(plan, candidate, baseline, criterion)
    if candidate.n_stories == plan.n_stories:
        return _full_sample(plan, candidate, baseline, criterion, correlation_cap)
    if candidate.n_stories not in plan.interim_looks:
        declared = (*plan.interim_looks, plan.n_stories)
        raise ConfigError(f"a race looks only at the declared story counts {declared}, got {candidate.n_stories}")
    totals = criterion.totals(candidate, baseline)
    level = plan.levels[plan.interim_looks.index(candidate.n_stories)]
    _, upper, _, _ = one_sided_bounds(totals, level, level, correlation_cap)
    return RaceDecision(
        n_stories=candidate.n_stories,
        planned_stories=plan.n_stories,
        stopping=plan.stopping,
        criterion=criterion,
        verdict=Verdict.FAIL if upper < criterion.threshold else None,
        estimate=totals.mean,
        upper=upper,
        level=level,
    )


def _full_sample(
    plan: RacePlan, candidate: TurnScores, baseline: TurnScores | None, criterion: Criterion, correlation_cap: float
) -> RaceDecision:
    comparison = compare(candidate, baseline, criterion, correlation_cap=correlation_cap)
    judged = comparison.judged
    return RaceDecision(
        n_stories=candidate.n_stories,
        planned_stories=plan.n_stories,
        stopping=plan.stopping,
        criterion=criterion,
        verdict=comparison.verdict,
        estimate=judged.estimate,
        upper=judged.upper,
        level=judged.alpha,
        lower=judged.lower,
        comparison=comparison,
    )


def _anytime(plan: RacePlan, candidate: TurnScores, baseline: TurnScores | None, criterion: Criterion) -> RaceDecision:
    totals = criterion.totals(candidate, baseline)
    size_max = plan.max_turns_per_story or 0
    if totals.sizes.max() > size_max:
        story = totals.story_ids[int(totals.sizes.argmax())]
        raise ConfigError(
            f"no story may be longer than max_turns_per_story={size_max}, got {int(totals.sizes.max())} in {story!r}: "
            "declare the longest story of the set before the race"
        )
    args = (totals.sums, totals.sizes)
    lower, _ = betting_bounds(*args, ALPHA, size_max, totals.turn_low, totals.turn_high)
    _, upper = betting_bounds(*args, plan.alpha_fail, size_max, totals.turn_low, totals.turn_high)
    verdict: Verdict | None = criterion.judge(lower, upper)
    if verdict is Verdict.INCONCLUSIVE and totals.n_stories < plan.n_stories:
        verdict = None
    return RaceDecision(
        n_stories=totals.n_stories,
        planned_stories=plan.n_stories,
        stopping=plan.stopping,
        criterion=criterion,
        verdict=verdict,
        estimate=totals.mean,
        upper=upper,
        level=plan.alpha_fail,
        lower=lower,
    )
