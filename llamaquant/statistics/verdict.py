"""Non-inferiority verdicts: read off an interval, never stronger than it. Wording lives in sentences.py."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llamaquant.errors import ConfigError
from llamaquant.statistics.bounds import STORY_CORRELATION_CAP
from llamaquant.statistics.intervals import ClusterInterval, totals_interval
from llamaquant.statistics.power import minimum_detectable_effect, stories_to_decide
from llamaquant.statistics.scores import StoryTotals, TurnScores, difference_totals, score_totals

ALPHA = 0.025
"""One-sided level of a verdict; the interval shown with it has confidence 1 - 2 * ALPHA."""


class Verdict(StrEnum):
    """PASS: shown to be within the margin. FAIL: shown to be beyond it. INCONCLUSIVE: neither is shown."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Criterion:
    """What a configuration must hold: a largest F1 drop against the baseline, or an absolute F1 floor.

    With `f1_floor`, the drop is not judged.
    """

    max_f1_drop: float = 0.01
    f1_floor: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.max_f1_drop < 1.0:
            raise ConfigError(f"max_f1_drop must lie between 0 and 1, got {self.max_f1_drop}: one F1 point is 0.01")
        if self.f1_floor is not None and not 0.0 < self.f1_floor < 1.0:
            raise ConfigError(f"f1_floor must lie between 0 and 1, got {self.f1_floor}: 60 F1 points are 0.6")

    @property
    def threshold(self) -> float:
        """Value that the judged mean must stay above: -max_f1_drop of a difference, or the floor of a score."""
        return -self.max_f1_drop if self.f1_floor is None else self.f1_floor

    def totals(self, candidate: TurnScores, baseline: TurnScores | None) -> StoryTotals:
        """Story totals of the quantity that is judged."""
        if self.f1_floor is not None:
            return score_totals(candidate)
        if baseline is None:
            raise ConfigError("max_f1_drop is judged against a baseline, got none: score the baseline, or set f1_floor")
        return difference_totals(candidate, baseline)

    def judge(self, lower: float, upper: float) -> Verdict:
        """The verdict that an interval allows."""
        if lower > self.threshold:
            return Verdict.PASS
        return Verdict.FAIL if upper < self.threshold else Verdict.INCONCLUSIVE


@dataclass(frozen=True)
class Comparison:
    """One configuration judged on one set of questions.

    `judged` is the interval the verdict is read from: of the paired difference, or of the F1 itself under a floor.
    `score` is the configuration's F1; `difference` is None when there was no baseline.
    """

    criterion: Criterion
    score: ClusterInterval
    difference: ClusterInterval | None

    @property
    def judged(self) -> ClusterInterval:
        if self.criterion.f1_floor is None and self.difference is not None:
            return self.difference
        return self.score

    @property
    def verdict(self) -> Verdict:
        return self.criterion.judge(self.judged.lower, self.judged.upper)

    @property
    def minimum_detectable_effect(self) -> float:
        """F1 difference that these data detect at 80% power."""
        return minimum_detectable_effect(self.judged)

    @property
    def stories_to_decide(self) -> int | None:
        """Stories in all that would decide an INCONCLUSIVE comparison at 80% power; None if decided or undecidable.

        Under a margin: if the true difference is 0. Under a floor: if the true F1 is the one measured here.
        """
        if self.verdict is not Verdict.INCONCLUSIVE:
            return None
        margin = self.criterion.f1_floor is None
        distance = self.criterion.max_f1_drop if margin else abs(self.judged.estimate - self.criterion.threshold)
        stories = stories_to_decide(self.judged, distance)
        return None if stories is None else max(stories, self.judged.n_stories + 1)

    @property
    def more_stories(self) -> int | None:
        stories = self.stories_to_decide
        return None if stories is None else stories - self.judged.n_stories

    @property
    def more_questions(self) -> int | None:
        stories = self.more_stories
        return None if stories is None else round(stories * self.judged.n_turns / self.judged.n_stories)

    def to_metrics(self, prefix: str = "quality/") -> dict[str, float]:
        """Flat float metrics; the verdict itself is a tag, see `to_tags`."""
        metrics = self.score.to_metrics(f"{prefix}f1")
        if self.difference is not None:
            metrics |= self.difference.to_metrics(f"{prefix}f1_diff")
        metrics[f"{prefix}f1_threshold"] = self.criterion.threshold
        metrics[f"{prefix}min_detectable_f1"] = self.minimum_detectable_effect
        if self.more_stories is not None and self.more_questions is not None:
            metrics[f"{prefix}more_stories_to_decide"] = float(self.more_stories)
            metrics[f"{prefix}more_questions_to_decide"] = float(self.more_questions)
        return metrics

    def to_tags(self, prefix: str = "quality.") -> dict[str, str]:
        """Verdict, its sentence and the method of its interval, as run tags."""
        from llamaquant.statistics.sentences import sentence  # sentences.py words this class: import it late

        return {
            f"{prefix}verdict": self.verdict.value,
            f"{prefix}sentence": sentence(self),
            f"{prefix}interval_method": self.judged.method,
        }


def compare(
    candidate: TurnScores,
    baseline: TurnScores | None = None,
    criterion: Criterion | None = None,
    alpha: float = ALPHA,
    correlation_cap: float = STORY_CORRELATION_CAP,
    seed: int | None = 0,
) -> Comparison:
    """Judge a configuration at the one-sided level `alpha`; `seed` is the bootstrap's, None leaves that out."""
    criterion = criterion or Criterion()
    if not 0.0 < alpha < 0.25:
        raise ConfigError(f"alpha must lie between 0 and 0.25, got {alpha}: the usual one-sided level is 0.025")
    criterion.totals(candidate, baseline)  # refuses a missing or foreign baseline before anything is computed
    confidence = 1.0 - 2.0 * alpha
    difference = None
    if baseline is not None:
        difference = totals_interval(difference_totals(candidate, baseline), confidence, correlation_cap, seed)
    return Comparison(
        criterion=criterion,
        score=totals_interval(score_totals(candidate), confidence, correlation_cap, seed),
        difference=difference,
    )
