"""Error spending over looks at growing data (Lan & DeMets 1983, Biometrika 70)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from llamaquant.errors import ConfigError

Array = NDArray[np.float64]
SPENDING = ("pocock", "obrien_fleming")
_GRID = 801  # points of the recursive integration: boundaries are then good to 1e-4
_DEPTH = -10.0  # standard deviations below 0 where the integration starts


def spent(fraction: float, alpha: float, spending: str = "pocock") -> float:
    """Error spent once `fraction` of the information is in; `alpha` at 1.

    `pocock`: alpha log(1 + (e - 1) t), which stops early; `obrien_fleming`: 2 - 2 Phi(z(1 - alpha / 2) / sqrt(t)),
    which saves the error for late looks.
    """
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1.0) * fraction)
    if spending == "obrien_fleming":
        return float(2.0 * stats.norm.sf(stats.norm.isf(alpha / 2.0) / math.sqrt(fraction)))
    raise ConfigError(f"spending must be one of {', '.join(SPENDING)}, got {spending!r}")


def boundaries(fractions: Sequence[float], alpha: float, spending: str = "pocock") -> tuple[float, ...]:
    """One-sided normal boundaries z_k with P(some Z_j > z_j, j <= k) = spent(t_k) under the null.

    `fractions` t_1 < ... < t_K <= 1 of the information. (Z_j) has the canonical joint normal law with correlation
    sqrt(t_i / t_j); its density of not having stopped yet is carried from look to look (Armitage, McPherson & Rowe
    1969, JRSS A 132), on the scale of the score B_j = Z_j sqrt(t_j).
    """
    t = list(fractions)
    if not t or any(b <= a for a, b in zip([0.0, *t], t, strict=False)) or t[-1] > 1.0 + 1e-12:
        raise ConfigError(f"information fractions must rise within (0, 1], got {t}: sort the looks and drop doubles")
    steps = np.diff([0.0, *(spent(x, alpha, spending) for x in t)])
    found: list[float] = []
    points: Array = np.zeros(1)
    density: Array = np.ones(1)  # a point mass at B_0 = 0; `density` holds mass per grid point
    before = 0.0
    for fraction, step in zip(t, steps, strict=True):
        deviation = math.sqrt(fraction - before)
        limit = _stop_at(points, density, deviation, float(step), math.sqrt(fraction))
        found.append(limit / math.sqrt(fraction))
        points, density = _survivors(points, density, deviation, limit, math.sqrt(fraction))
        before = fraction
    return tuple(found)


def _stop_at(points: Array, mass: Array, deviation: float, step: float, scale: float) -> float:
    """Score above which exactly `step` of the surviving mass moves in the next increment."""

    def excess(limit: float) -> float:
        return math.log(max(float(mass @ stats.norm.sf((limit - points) / deviation)), 1e-300)) - math.log(
            max(step, 1e-290)
        )

    return float(optimize.brentq(excess, -10.0 * scale, 40.0 * scale, xtol=1e-12))


def _survivors(points: Array, mass: Array, deviation: float, limit: float, scale: float) -> tuple[Array, Array]:
    """Grid and Simpson-weighted mass of the score, given that it stayed below `limit`."""
    grid = np.linspace(_DEPTH * scale, min(limit, 10.0 * scale), _GRID)
    weights = np.full(_GRID, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    weights *= (grid[1] - grid[0]) / 3.0
    density = stats.norm.pdf((grid[:, None] - points[None, :]) / deviation) @ mass / deviation
    return np.asarray(grid, dtype=float), density * weights


def nominal_levels(fractions: Sequence[float], alpha: float, spending: str = "pocock") -> tuple[float, ...]:
    """One-sided significance level at which each look may stop: boundaries, as tail probabilities.

    Carrying levels, not z values, to Student t tests is the significance-level approach of Jennison & Turnbull 2000,
    "Group Sequential Methods", section 3.8.
    """
    return tuple(float(stats.norm.sf(z)) for z in boundaries(fractions, alpha, spending))
