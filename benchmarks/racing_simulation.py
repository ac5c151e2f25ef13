"""False FAIL and stopping times of races in simulated worlds: python -m benchmarks.racing_simulation

Prints the racing tables of docs/statistics.md; `--repetitions` 2000 takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamaquant.statistics.betting import log_wealth_above, log_wealth_below
from llamaquant.statistics.bounds import difference_bounds
from llamaquant.statistics.racing import RacePlan
from llamaquant.statistics.simulation import FLIP_RATES, STORY_SIZES, WORLDS, draw_differences
from llamaquant.statistics.verdict import ALPHA

Array = NDArray[Any]
N_STORIES = 300
CHUNK = 500


@dataclass(frozen=True)
class RaceRates:
    """Shares in percent, stopping times in stories; early: before the full sample."""

    early_fail: float
    fail: float
    passed: float
    fixed_passed: float
    median_stories: float
    p90_stories: float


def race(sums: Array, sizes: Array, margin: float, plan: RacePlan) -> RaceRates:
    """Group-sequential race of every repetition; sums, sizes: [repetitions, stories] in reading order."""
    ended = np.full(sums.shape[0], plan.n_stories)
    for look, level in zip(reversed(plan.interim_looks), reversed(plan.levels), strict=True):
        _, upper = difference_bounds(sums[:, :look], sizes[:, :look], level)
        ended[upper < -margin] = look
    early = ended < plan.n_stories
    lower, upper = difference_bounds(sums, sizes, ALPHA)
    return _summary(early, upper < -margin, lower > -margin, ended)


def bet(sums: Array, sizes: Array, margin: float, plan: RacePlan) -> RaceRates:
    """Betting race (`stopping=anytime`): PASS or FAIL after any story, whichever comes first."""
    longest = max(STORY_SIZES)
    ended = np.full(sums.shape[0], plan.n_stories)
    fail, passed = np.zeros(len(sums), bool), np.zeros(len(sums), bool)
    for start in range(0, len(sums), CHUNK):
        part = slice(start, start + CHUNK)
        down = log_wealth_below(sums[part], sizes[part], -margin, longest) >= -np.log(plan.alpha_fail)
        up = log_wealth_above(sums[part], sizes[part], -margin, longest) >= -np.log(ALPHA)
        down_at = np.where(down.any(-1), down.argmax(-1), plan.n_stories)
        up_at = np.where(up.any(-1), up.argmax(-1), plan.n_stories)
        fail[part], passed[part] = down_at < up_at, up_at < down_at
        ended[part] = np.minimum(np.minimum(down_at, up_at) + 1, plan.n_stories)
    early = fail & (ended < plan.n_stories)
    return _summary(early, fail, passed & ~fail, ended)


def _summary(early: Array, full_fail: Array, full_pass: Array, ended: Array) -> RaceRates:
    return RaceRates(
        early_fail=100 * float(early.mean()),
        fail=100 * float((early | full_fail).mean()),
        passed=100 * float((full_pass & ~early).mean()),
        fixed_passed=100 * float(full_pass.mean()),
        median_stories=float(np.median(ended)),
        p90_stories=float(np.quantile(ended, 0.9)),
    )


def draw(name: str, flip_rate: float, drop: float, repetitions: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng([seed, 7, list(WORLDS).index(name), round(1000 * flip_rate), round(1000 * drop)])
    return draw_differences(rng, repetitions, N_STORIES, flip_rate, drop, WORLDS[name])


def possible(drop: float) -> list[tuple[str, float]]:
    """(world, flip rate) pairs whose flips can add up to a drop."""
    return [(name, p) for name, world in WORLDS.items() for p in FLIP_RATES if 0 < world.loss_share(p, drop) < 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    plan = RacePlan(N_STORIES)
    margin = 0.01
    print(f"{N_STORIES} stories, looks {plan.interim_looks}, margin 1 point, {args.repetitions} repetitions (in %)\n")
    print("| rule | drop | world | flips | early FAIL | FAIL in all | PASS | PASS, no race | stories: median | 90% |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for label, judge in (("group sequential", race), ("anytime", bet)):
        for drop in (0.0, 0.01, 0.03, 0.05, 0.10):
            for name, flip_rate in possible(drop):
                r = judge(*draw(name, flip_rate, drop, args.repetitions, args.seed), margin, plan)
                stories = f"{r.median_stories:.0f} | {r.p90_stories:.0f}"
                row = f"{r.early_fail:.2f} | {r.fail:.2f} | {r.passed:.1f} | {r.fixed_passed:.1f} | {stories}"
                print(f"| {label} | {100 * drop:g} | {name} | {100 * flip_rate:g} | {row} |")


if __name__ == "__main__":
    main()
