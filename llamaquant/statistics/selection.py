"""Choosing the best of many: a few finalists, fixed beforehand, judged once on stories that the search never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamaquant.errors import ConfigError
from llamaquant.statistics.scores import TurnScores
from llamaquant.statistics.verdict import ALPHA, Comparison, Criterion, Verdict, compare

MAX_FINALISTS = 3


@dataclass(frozen=True)
class Finalist:
    """A configuration chosen by the search; `cost` (bits per parameter, lower is better) orders the tests."""

    name: str
    cost: float
    scores: TurnScores


@dataclass(frozen=True)
class Selection:
    """Result of a confirmation. `comparisons` holds (name, comparison) in the order tested, cheapest first.

    `earlier_uses` counts confirmations made before on the same split: each one weakens the claim.
    """

    comparisons: tuple[tuple[str, Comparison], ...]
    untested: tuple[str, ...]
    alpha_each: float
    earlier_uses: int = 0

    @property
    def winner(self) -> str | None:
        """The cheapest finalist that passed, or None."""
        return next((name for name, result in self.comparisons if result.verdict is Verdict.PASS), None)

    @property
    def closest(self) -> tuple[str, Comparison]:
        """The finalist whose lower bound came closest to its threshold, or furthest above it."""
        return max(self.comparisons, key=lambda item: item[1].judged.lower)

    def to_metrics(self, prefix: str = "confirmation/") -> dict[str, float]:
        """Flat float metrics, with one group for each tested finalist (numbered in order of cost)."""
        metrics = {
            f"{prefix}finalists": float(len(self.comparisons) + len(self.untested)),
            f"{prefix}tested": float(len(self.comparisons)),
            f"{prefix}passed": float(self.winner is not None),
            f"{prefix}alpha_each": self.alpha_each,
            f"{prefix}earlier_uses": float(self.earlier_uses),
        }
        for number, (_, comparison) in enumerate(self.comparisons, start=1):
            metrics |= comparison.to_metrics(f"{prefix}finalist_{number}/")
        return metrics


def confirm(
    finalists: Sequence[Finalist],
    baseline: TurnScores | None = None,
    criterion: Criterion | None = None,
    alpha: float = ALPHA,
    earlier_uses: int = 0,
) -> Selection:
    """Test at most 3 finalists, cheapest first, each at alpha / 3, and stop at the first PASS.

    By Bonferroni's inequality the chance that any configuration below the criterion passes is at most alpha, however
    the finalists depend on each other. The divisor stays 3 with fewer finalists, so that the level is known beforehand.
    """
    if not 1 <= len(finalists) <= MAX_FINALISTS:
        raise ConfigError(
            f"a confirmation takes 1 to {MAX_FINALISTS} finalists, got {len(finalists)}: choose on search stories"
        )
    names = [finalist.name for finalist in finalists]
    if len(set(names)) != len(names):
        raise ConfigError(f"finalists must have distinct names, got {', '.join(names)}")
    if earlier_uses < 0:
        raise ConfigError(f"earlier_uses must count past confirmations, got {earlier_uses}")
    ordered = sorted(finalists, key=lambda finalist: (finalist.cost, finalist.name))
    done: list[tuple[str, Comparison]] = []
    for finalist in ordered:
        done.append((finalist.name, compare(finalist.scores, baseline, criterion, alpha / MAX_FINALISTS)))
        if done[-1][1].verdict is Verdict.PASS:
            break
    untested = tuple(finalist.name for finalist in ordered[len(done) :])
    return Selection(tuple(done), untested, alpha / MAX_FINALISTS, earlier_uses)
