"""Per-turn scores as they enter the statistics, and their totals by story.

A story is the unit of sampling: its turns share a text and a dialogue, so their scores are correlated. Everything below
this file sees only story totals (sum of values, number of turns), never single turns as if they were independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamaquant.errors import DataError

Array = NDArray[np.float64]


def _name(key: tuple[str, int]) -> str:
    return f"story {key[0]!r} turn {key[1]!r}"


@dataclass(frozen=True, eq=False)
class TurnScores:
    """One score in [0, 1] (F1 or exact match, not percent) for each answered turn.

    `story_ids`, `turn_ids` and `scores` run in parallel; (story, turn) is unique. The order of rows has no meaning.
    Raises DataError that names the first offending row.
    """

    story_ids: tuple[str, ...]
    turn_ids: tuple[int, ...]
    scores: Array  # [turns]

    def __post_init__(self) -> None:
        scores = np.array(self.scores, dtype=np.float64)
        scores.setflags(write=False)
        object.__setattr__(self, "story_ids", tuple(self.story_ids))
        object.__setattr__(self, "turn_ids", tuple(self.turn_ids))
        object.__setattr__(self, "scores", scores)
        self._check()

    def _check(self) -> None:
        lengths = (len(self.story_ids), len(self.turn_ids), self.scores.shape)
        if self.scores.ndim != 1 or len({lengths[0], lengths[1], self.scores.size}) != 1:
            raise DataError(
                f"story ids, turn ids and scores must run in parallel, got {lengths}: pass one of each per turn"
            )
        if not self.scores.size:
            raise DataError("there must be at least one scored turn, got none: the evaluation wrote no predictions")
        bad = ~((self.scores >= 0.0) & (self.scores <= 1.0))  # True for NaN, too
        if bad.any():
            i = int(np.argmax(bad))
            raise DataError(
                f"a score must lie in [0, 1], got {self.scores[i]} for {_name(self.keys[i])}: evaluate that turn again"
            )
        seen: set[tuple[str, int]] = set()
        for key in self.keys:
            if key in seen:
                raise DataError(f"each turn must be scored once, got {_name(key)} twice: drop one row")
            seen.add(key)

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, int, float]]) -> TurnScores:
        """Build from (story id, turn id, score) rows, for example the lines of predictions.jsonl."""
        listed = list(rows)
        return cls(
            tuple(r[0] for r in listed), tuple(r[1] for r in listed), np.array([r[2] for r in listed], dtype=float)
        )

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(story, turn) of every row, in row order."""
        return list(zip(self.story_ids, self.turn_ids, strict=True))

    @property
    def n_turns(self) -> int:
        return len(self.story_ids)

    @property
    def n_stories(self) -> int:
        return len(set(self.story_ids))

    def take(self, stories: Iterable[str]) -> TurnScores:
        """Only the rows of `stories`; every one of them must be here."""
        wanted = list(stories)
        known = set(self.story_ids)
        missing = next((s for s in wanted if s not in known), None)
        if missing is not None:
            raise DataError(
                f"every requested story must have scores, got none for story {missing!r}: evaluate it first"
            )
        keep = set(wanted)
        return TurnScores.from_rows(
            (s, t, x) for s, t, x in zip(self.story_ids, self.turn_ids, self.scores, strict=True) if s in keep
        )


@dataclass(frozen=True, eq=False)
class StoryTotals:
    """Values of turns (scores, or score differences) added up by story, in the order the stories first appear.

    `sums` and `squares` hold the sum of the values and of their squares, `sizes` the number of turns: all [stories].
    A turn's value lies in [`turn_low`, `turn_high`].
    """

    story_ids: tuple[str, ...]
    sums: Array
    sizes: Array
    squares: Array
    turn_low: float
    turn_high: float

    @property
    def n_stories(self) -> int:
        return len(self.story_ids)

    @property
    def n_turns(self) -> int:
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """Mean over turns: the ratio of two sums, so that a long story weighs as much as its turns."""
        return float(self.sums.sum() / self.sizes.sum())


def _totals(stories: Sequence[str], values: Array, turn_low: float, turn_high: float) -> StoryTotals:
    order = {story: i for i, story in enumerate(dict.fromkeys(stories))}
    index = np.fromiter((order[s] for s in stories), dtype=np.int64, count=len(stories))
    add: Any = np.bincount
    return StoryTotals(
        story_ids=tuple(order),
        sums=add(index, weights=values),
        sizes=add(index).astype(np.float64),
        squares=add(index, weights=values**2),
        turn_low=turn_low,
        turn_high=turn_high,
    )


def score_totals(scores: TurnScores) -> StoryTotals:
    """Story totals of the scores themselves."""
    return _totals(scores.story_ids, scores.scores, 0.0, 1.0)


def difference_totals(candidate: TurnScores, baseline: TurnScores) -> StoryTotals:
    """Story totals of candidate minus baseline, turn by turn; both must have scored exactly the same questions."""
    reference = dict(zip(baseline.keys, baseline.scores, strict=True))
    for key in candidate.keys:
        if key not in reference:
            raise DataError(
                f"candidate and baseline must answer the same questions, but the baseline lacks {_name(key)}: "
                "score both on the same stories"
            )
    if candidate.n_turns != baseline.n_turns:
        answered = set(candidate.keys)
        key = next(key for key in baseline.keys if key not in answered)
        raise DataError(
            f"candidate and baseline must answer the same questions, but the candidate lacks {_name(key)}: "
            "finish its evaluation, or select the same stories of both"
        )
    paired = np.array([reference[key] for key in candidate.keys])
    differences = candidate.scores - paired
    # Scores are ratios of small integers; 1e-12 is rounding of the same F1 computed in another order, not a difference.
    differences = np.where(np.abs(differences) < 1e-12, 0.0, differences)
    return _totals(candidate.story_ids, differences, -1.0, 1.0)


def _story_hash(story: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{story}".encode()).digest()[:8], "big")


def story_order(stories: Iterable[str], seed: int = 0) -> tuple[str, ...]:
    """Stories in a seeded order that depends on nothing but their ids: the order in which a race reads them."""
    return tuple(sorted(set(stories), key=lambda story: (_story_hash(story, seed), story)))


def split_stories(
    stories: Iterable[str], confirmation_share: float = 0.5, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(search, confirmation): each story falls on its side by a hash of its id, whatever other stories there are.

    The shares are therefore met on average only; a story never changes sides when stories are added.
    """
    limit = int(confirmation_share * 2**64)
    listed = sorted(set(stories))
    confirmation = tuple(s for s in listed if _story_hash(s, seed) < limit)
    chosen = set(confirmation)
    return tuple(s for s in listed if s not in chosen), confirmation
