"""Paired score differences drawn from known worlds, to check intervals and races against a truth.

Stories have the sizes of the 300 open CoQA development stories. A turn's score flips with a probability that varies
over stories (beta-binomial), in a direction that varies over stories, too; most differences are 0, the others are a few
bounded, skewed values: clustered, zero-inflated, skewed and bounded, as real differences are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llamaquant.errors import ConfigError

STORY_SIZES = dict(
    zip(range(10, 23), (29, 21, 16, 22, 19, 23, 13, 13, 7, 6, 127, 2, 2), strict=True)
)  # turns: stories, of coqa-dev-open


@dataclass(frozen=True)
class World:
    """Sizes of losses and of gains when an answer flips: (value in F1, probability) each."""

    losses: tuple[tuple[float, float], ...]
    gains: tuple[tuple[float, float], ...]

    def loss_share(self, flip_rate: float, drop: float) -> float:
        """Share of flips that must be losses for the mean difference to be exactly -drop."""
        loss, gain = (sum(value * p for value, p in side) for side in (self.losses, self.gains))
        return (drop / flip_rate + gain) / (loss + gain)


_F1_STEPS = ((1.0, 0.45), (0.667, 0.2), (0.5, 0.2), (0.25, 0.15))
WORLDS = {
    "even": World(_F1_STEPS, _F1_STEPS),
    "heavy losses": World(((1.0, 1.0),), ((0.5, 0.5), (0.25, 0.5))),
    "heavy gains": World(((0.5, 0.5), (0.25, 0.5)), ((1.0, 1.0),)),
}
FLIP_RATES = (0.02, 0.05, 0.12, 0.30)
STORY_COUNTS = (50, 100, 300)

Draw = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_differences(
    rng: np.random.Generator,
    repetitions: int,
    n_stories: int,
    flip_rate: float,
    drop: float,
    world: World,
    intra_story_correlation: float = 0.1,
    last_turn_only: bool = False,
) -> Draw:
    """(sums, sizes), each [repetitions, stories], with true mean difference -drop.

    Raises ConfigError if the flips of the world cannot add up to that drop.
    """
    share = world.loss_share(flip_rate, drop)
    if not 0.0 < share < 1.0:
        raise ConfigError(f"a drop must be within reach of the flips, got {drop} at flip_rate={flip_rate}: flip more")
    shape = (repetitions, n_stories)
    known = np.array(list(STORY_SIZES.values()), dtype=float)
    sizes = rng.choice(np.array(list(STORY_SIZES)), shape, p=known / known.sum())
    if last_turn_only:
        sizes = np.ones(shape, dtype=np.int64)
    spread = (1.0 - intra_story_correlation) / intra_story_correlation
    flips = rng.binomial(sizes, rng.beta(flip_rate * spread, (1.0 - flip_rate) * spread, shape))
    lost = rng.binomial(flips, rng.beta(share * spread, (1.0 - share) * spread, shape))
    sums = _add_up(rng, flips - lost, world.gains) - _add_up(rng, lost, world.losses)
    return sums, sizes.astype(float)


def _add_up(
    rng: np.random.Generator, counts: NDArray[np.int64], values: tuple[tuple[float, float], ...]
) -> NDArray[np.float64]:
    drawn = rng.multinomial(counts, [p for _, p in values])  # [repetitions, stories, values]
    return np.asarray(drawn @ np.array([value for value, _ in values]))


def cells(drop: float) -> Iterator[tuple[str, float, int]]:
    """(world, flip rate, stories) of every cell of the study in which a true drop of `drop` is possible."""
    for name, world in WORLDS.items():
        for flip_rate in FLIP_RATES:
            if 0.0 < world.loss_share(flip_rate, drop) < 1.0:
                for n_stories in STORY_COUNTS:
                    yield name, flip_rate, n_stories
