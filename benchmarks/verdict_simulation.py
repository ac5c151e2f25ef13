"""Coverage, false PASS and false FAIL of the intervals in simulated worlds: python -m benchmarks.verdict_simulation

Prints the tables of docs/statistics.md; `--repetitions` 2000 takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llamaquant.statistics.bounds import FEW_STORIES, difference_bounds, ratio_moments
from llamaquant.statistics.simulation import STORY_COUNTS, WORLDS, cells, draw_differences

Array = NDArray[Any]
ALPHA = 0.025


@dataclass(frozen=True)
class Rates:
    """Shares of repetitions, in percent. `missed_low`: interval wholly below the truth; `missed_high`: wholly above."""

    covered: float
    missed_low: float
    missed_high: float
    passed: float
    failed: float
    inconclusive: float
    rare: float  # share judged by the rare-event rule
    plain_passed: float


def rates(sums: Array, sizes: Array, drop: float, margin: float, alpha: float = ALPHA) -> Rates:
    """Judge every repetition against the truth -drop and the threshold -margin; sums, sizes: [repetitions, stories]."""
    lower, upper = difference_bounds(sums, sizes, alpha)
    truth, threshold = -drop, -margin
    passed, failed = lower > threshold, upper < threshold

    def percent(flags: Array) -> float:
        return float(100 * flags.mean())

    return Rates(
        covered=percent((lower <= truth) & (truth <= upper)),
        missed_low=percent(upper < truth),
        missed_high=percent(lower > truth),
        passed=percent(passed),
        failed=percent(failed),
        inconclusive=percent(~passed & ~failed),
        rare=percent((sums != 0).sum(-1) < FEW_STORIES),
        plain_passed=percent(plain_t_lower(sums, sizes, alpha) > threshold),
    )


def plain_t_lower(sums: Array, sizes: Array, alpha: float) -> Array:
    """Lower bound of the textbook clustered t interval, without any of our corrections: for comparison only."""
    n = sums.shape[-1]
    moments = ratio_moments(sums, sizes)
    return np.asarray(moments.estimate - stats.t.isf(alpha, n - 1) * moments.standard_error)


def cell(
    name: str,
    flip_rate: float,
    n: int,
    drop: float,
    margin: float,
    repetitions: int,
    seed: int,
    correlation: float = 0.1,
) -> Rates:
    """One cell of the study; the seed is tied to the cell, so that cells do not depend on each other."""
    rng = np.random.default_rng([seed, list(WORLDS).index(name), round(1000 * flip_rate), n, round(1000 * drop)])
    draw = draw_differences(rng, repetitions, n, flip_rate, drop, WORLDS[name], correlation)
    return rates(*draw, drop, margin)


def simulation_error(rate: float, repetitions: int, deviations: float = 3.0) -> float:
    """Allowance in percentage points for a rate (percent) estimated from so many repetitions."""
    p = rate / 100
    return 100 * deviations * math.sqrt(p * (1 - p) / repetitions)


def table(drop: float, margin: float, repetitions: int, seed: int, correlation: float) -> None:
    """Markdown table of one true drop."""
    print(f"\nTrue drop {100 * drop:g} points, margin {100 * margin:g}, {repetitions} repetitions (all in %)\n")
    print("| world | flips | stories | covered | PASS | FAIL | PASS by plain t | rare-event rule used |")
    print("|---|---|---|---|---|---|---|---|")
    for name, flip_rate, n in cells(drop):
        r = cell(name, flip_rate, n, drop, margin, repetitions, seed, correlation)
        judged = f"{r.covered:.1f} | {r.passed:.1f} | {r.failed:.2f} | {r.plain_passed:.1f} | {r.rare:.0f}"
        print(f"| {name} | {100 * flip_rate:g} | {n} | {judged} |")


def replay(repetitions: int, seed: int) -> None:
    """The claim of a study on 50 last-turn questions, when nothing differs."""
    print(f"\n50 last-turn questions, true difference 0, margin 1 point, {repetitions} repetitions (all in %)\n")
    print("| world | flips | PASS | FAIL | INCONCLUSIVE |\n|---|---|---|---|---|")
    for name, world in WORLDS.items():
        for flip_rate in (0.05, 0.12, 0.30):
            rng = np.random.default_rng([seed, 9, round(1000 * flip_rate)])
            draw = draw_differences(rng, repetitions, 50, flip_rate, 0.0, world, last_turn_only=True)
            r = rates(*draw, 0.0, 0.01)
            print(f"| {name} | {100 * flip_rate:g} | {r.passed:.2f} | {r.failed:.2f} | {r.inconclusive:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--correlation", type=float, default=0.1, help="intra-story correlation of the worlds")
    args = parser.parse_args()
    print(f"stories {STORY_COUNTS}, sizes as in CoQA, intra-story correlation {args.correlation}")
    for drop, margin in ((0.0, 0.01), (0.01, 0.01), (0.03, 0.03)):
        table(drop, margin, args.repetitions, args.seed, args.correlation)
    replay(args.repetitions, args.seed)


if __name__ == "__main__":
    main()
